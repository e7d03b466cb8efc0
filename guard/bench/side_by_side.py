"""Compares what several guards said of the same labelled texts. Knows answers and labels; asks nobody, prints nothing.

Texts that a guard could not answer are counted with their reasons, and have no part in its figures; so that guards can
be compared all the same, figures are given once more over the texts that all of them answered.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ringfence.guard.bench.answers import Answer
from ringfence.guard.bench.items import Item
from ringfence.guard.bench.run import SEED, Report, Scored, report_on
from ringfence.guard.classifier.measure import RESAMPLES, interval, recall_at

LIMIT = 0.05
"""The share of false positives at which recall is given as well, beside those that every report has."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a guard costs: US dollars for a million texts, or for an hour of the machine that it runs on."""

    usd: float
    per: Literal["million", "hour"]

    def of(self, seconds: float) -> float:
        """Return what a million texts cost that take so many seconds each."""
        return self.usd if self.per == "million" else seconds * 1_000_000 / 3_600 * self.usd


@dataclass(frozen=True, slots=True)
class Figures:
    """How good a guard is on some texts.

    Attributes:
        calibrated: False where every score is 0 or 1, which is no probability: then there is no calibration error.
    """

    report: Report
    recall_at_5_fpr: float | None
    calibrated: bool

    @property
    def ece(self) -> float | None:
        """The calibration error, where scores are probabilities."""
        return self.report.measures.ece if self.calibrated else None

    def to_json(self) -> dict[str, Any]:
        """Return one object, with the keys of `ringfence bench guard --json`."""
        found = self.report.to_json()
        found["recall_at_fpr"] = {**found["recall_at_fpr"], str(LIMIT): self.recall_at_5_fpr}
        found["ci95"]["ece"] = found["ci95"]["ece"] if self.calibrated else None
        return found | {"ece": self.ece}


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much one F1 is above another on the same `n` texts; None where there are no positives among them."""

    n: int
    f1: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Side:
    """One guard.

    Attributes:
        failures: how many texts it could not answer, by the reason that it gave.
        answered: on the texts that it answered; None where there are none.
        shared: on those that all guards answered.
        seconds_per_1000: that it took for a thousand texts that it answered, one after the other.
        usd_per_million: None where nobody said what it costs.
        gain: over the first guard; None for that.
    """

    name: str
    revision: str
    threshold: float
    failures: Mapping[str, int]
    answered: Figures | None
    shared: Figures | None
    seconds_per_1000: float | None
    usd_per_million: float | None
    gain: Gain | None

    @property
    def failed(self) -> int:
        """How many texts it could not answer."""
        return sum(self.failures.values())

    def to_json(self) -> dict[str, Any]:
        """Return one object."""
        plain = {key: getattr(self, key) for key in ("revision", "threshold", "failed")}
        return plain | {
            "failures": dict(self.failures),
            "answered": self.answered and self.answered.to_json(),
            "answered_by_all": self.shared and self.shared.to_json(),
            "seconds_per_1000": self.seconds_per_1000,
            "usd_per_million": self.usd_per_million,
            "f1_over_first": self.gain and asdict(self.gain),
        }


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A text that some guards flag and others do not.

    Attributes:
        scores: by guard; None where one could not answer.
        flagged: the guards whose score is at or above their threshold.
        spread: from the lowest score to the highest.
    """

    item: Item
    scores: Mapping[str, float | None]
    flagged: Sequence[str]
    spread: float

    def to_json(self) -> dict[str, Any]:
        """Return one object, with the text in full."""
        return {
            "where": self.item.where,
            "label": self.item.label,
            "scores": dict(self.scores),
            "flagged": list(self.flagged),
            "prompt": self.item.prompt,
            "text": self.item.text,
        }


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Several guards on the same texts.

    Attributes:
        shared: how many texts all guards answered.
        disagreements: the widest apart first.
    """

    n: int
    positives: int
    shared: int
    sides: Sequence[Side]
    disagreements: Sequence[Disagreement]

    def to_json(self, disagreements: int) -> dict[str, Any]:
        """Return one object, with so many of the disagreements."""
        return {
            "n": self.n,
            "positives": self.positives,
            "answered_by_all": self.shared,
            "guards": {side.name: side.to_json() for side in self.sides},
            "disagreements": {
                "n": len(self.disagreements),
                "rows": [one.to_json() for one in self.disagreements[:disagreements]],
            },
        }


def compare(
    items: Sequence[Item],
    answers: Mapping[str, Sequence[Answer]],
    revisions: Mapping[str, str],
    thresholds: Mapping[str, float],
    prices: Mapping[str, Price],
) -> SideBySide:
    """Put guards side by side, in the order of the answers; the first is the one that others are compared with.

    Args:
        answers: by name, one for each text.
        prices: of guards; others have no cost.
    """
    first = next(iter(answers))
    everyone = answered_by(answers.values())
    sides = []
    for name, own in answers.items():
        known = answered_by([own])
        seconds = float(np.mean([own[at].seconds for at in known])) if known else None
        side = Side(
            name,
            revisions[name],
            thresholds[name],
            failures_of(own),
            figures_of(items, own, known, thresholds[name]),
            figures_of(items, own, everyone, thresholds[name]),
            None if seconds is None else 1_000 * seconds,
            None if seconds is None or name not in prices else prices[name].of(seconds),
            None if name == first else gain_of(items, answers, thresholds, name, first),
        )
        sides.append(side)
    positives = sum(item.label for item in items)
    return SideBySide(len(items), positives, len(everyone), sides, disagreements_of(items, answers, thresholds))


def answered_by(guards: Collection[Sequence[Answer]]) -> list[int]:
    """Return the places of the texts that all of some guards answered."""
    return [at for at, row in enumerate(zip(*guards, strict=True)) if all(one.score is not None for one in row)]


def comparable(items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]) -> tuple[list[str], list[int]]:
    """Return guards that have answered texts of both labels together, and the places of those.

    Where all of them have not, those that answered least are left out; where nothing helps, nobody is left.
    """
    kept = dict(answers)
    while kept:
        places = answered_by(kept.values())
        if len({items[at].label for at in places}) == 2:
            return list(kept), places
        del kept[min(kept, key=lambda name: len(answered_by([kept[name]])))]
    return [], []


def failures_of(answers: Sequence[Answer]) -> Mapping[str, int]:
    """Count the reasons why there is no answer, the most frequent first."""
    return dict(Counter(one.why for one in answers if one.score is None).most_common())


def scores_of(answers: Sequence[Answer], places: Sequence[int]) -> NDArray[np.float64]:
    """Return the scores (n,) at some places, at which there are some."""
    return np.array([answers[at].score for at in places], np.float64)


def figures_of(
    items: Sequence[Item], answers: Sequence[Answer], places: Sequence[int], threshold: float
) -> Figures | None:
    """Return how good the answers at some places are; None where there are none."""
    if not places:
        return None
    scores = scores_of(answers, places)
    labels = [items[at].label for at in places]
    report = report_on(Scored(list(scores), labels, [answers[at].seconds * 1_000 for at in places]), threshold)
    both = 0 < report.measures.positives < report.measures.n
    recall = recall_at(scores, np.array(labels, bool), LIMIT) if both else None
    return Figures(report, recall, not bool(np.isin(scores, (0, 1)).all()))


def gain_of(
    items: Sequence[Item],
    answers: Mapping[str, Sequence[Answer]],
    thresholds: Mapping[str, float],
    name: str,
    first: str,
) -> Gain:
    """Return by how much a guard's F1 is above the first one's, on the texts that both answered."""
    places = answered_by([answers[first], answers[name]])
    verdicts = [scores_of(answers[one], places) >= thresholds[one] for one in (first, name)]
    return gains_over_first([items[at].label for at in places], verdicts)[0]


def gains_over_first(labels: ArrayLike, verdicts: Sequence[ArrayLike]) -> list[Gain]:
    """Return by how much each verdict's F1 but the first is above that of the first, on the same texts.

    The interval is that of the paired bootstrap (Efron 1979): a text is drawn with all that was said of it. As F1 knows
    of a text only its label and the verdicts, to draw texts is to draw how many there are of each kind.

    Args:
        labels: (n,) of 0 and 1; verdicts: each (n,), whether a text was flagged.
    """
    table = np.column_stack([labels, *verdicts]).astype(bool)
    n = len(table)
    if not table[:, 0].any():
        return [Gain(n, None, None) for _ in verdicts[1:]]
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=RESAMPLES)  # (R, kinds)
    found, spread = f1s_of(kinds, counts[None])[0], f1s_of(kinds, drawn)
    return [
        Gain(n, float(found[at] - found[0]), interval(spread[:, at] - spread[:, 0])) for at in range(1, len(verdicts))
    ]


def f1s_of(kinds: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return F1 (R, verdicts) where there are so many (R, kinds) texts of each kind (kinds, 1 + verdicts); NaN where
    there are no positives."""
    label, verdicts = kinds[:, :1], kinds[:, 1:]
    positives = counts @ label.astype(int)  # (R, 1)
    found, flagged = counts @ (verdicts & label).astype(int), counts @ verdicts.astype(int)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(positives > 0, 2 * found / (flagged + positives), np.nan)


def disagreements_of(
    items: Sequence[Item], answers: Mapping[str, Sequence[Answer]], thresholds: Mapping[str, float]
) -> list[Disagreement]:
    """Return the texts that some guards flag and others do not, those first whose scores are widest apart."""
    found = []
    for at, item in enumerate(items):
        scores = {name: own[at].score for name, own in answers.items()}
        known = {name: score for name, score in scores.items() if score is not None}
        flagged = [name for name, score in known.items() if score >= thresholds[name]]
        if 0 < len(flagged) < len(known):
            spread = max(known.values()) - min(known.values())
            found.append(Disagreement(item, scores, flagged, spread))
    return sorted(found, key=lambda one: -one.spread)
