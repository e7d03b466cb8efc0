"""What two guards do together, where the big one is asked only about what the small one is not sure of.

Below a band [low, high) of scores the small guard's no stands, from its end on its yes; within, the big guard's score
is compared with its own threshold, as `escalate` in a policy has it. Knows scores, labels and seconds; asks nobody.
Failures have no part in it: the texts are those that both guards answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold

from ringfence.guard.bench.answers import Answer, key_of
from ringfence.guard.bench.formats import Target
from ringfence.guard.bench.items import Item
from ringfence.guard.bench.rules import Rate
from ringfence.guard.bench.run import SEED, Report, Scored, report_on
from ringfence.guard.bench.side_by_side import Gain, Price, answered_by, gains_over_first, scores_of
from ringfence.guard.classifier.measure import Measures

LEAST = 50
"""Texts of each label that either half should have: with fewer, an F1 may be a tenth off either way."""

CUTS = 200
"""Places at most where a band may begin or end, spread over the scores that there are."""


class CannotChoose(ValueError):
    """No band can be told to do what is wanted; the message says why, and what could."""


@dataclass(frozen=True, slots=True)
class Band:
    """The scores [low, high) of the small guard at which the big one is asked."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Want:
    """What a band is wanted for: at least so high an F1; at most so large a share that the big guard is asked, or so
    many US dollars for a million texts."""

    what: Literal["f1", "escalated", "cost"]
    value: float

    def __str__(self) -> str:
        return f"{self.what}={self.value:g}"


@dataclass(frozen=True, slots=True)
class Both:
    """What both guards said of the same texts, each (n,).

    Attributes:
        labels: of 0 and 1.
        rows: which texts are the same text.
    """

    labels: NDArray[np.bool_]
    small: NDArray[np.float64]
    big: NDArray[np.float64]
    small_seconds: NDArray[np.float64]
    big_seconds: NDArray[np.float64]
    rows: NDArray[np.str_]

    def at(self, places: NDArray[np.int64]) -> "Both":
        """Return some of the texts."""
        return Both(*(getattr(self, name)[places] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Way:
    """One of those that are compared: a guard alone, or the cascade.

    Attributes:
        measures: of its verdicts; those that need scores mean nothing here.
    """

    report: Report
    seconds_per_1000: float
    usd_per_million: float | None

    @property
    def measures(self) -> Measures:
        """How good its verdicts are."""
        return self.report.measures

    def to_json(self) -> dict[str, Any]:
        """Return one object."""
        named = ("f1", "precision", "recall", "fpr")
        return {
            **{name: getattr(self.measures, name) for name in named},
            "ci95": {name: self.report.ci95[name] for name in named},
            "latency_ms": dict(self.report.latency_ms),
            "seconds_per_1000": self.seconds_per_1000,
            "usd_per_million": self.usd_per_million,
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """How a band was found: what for, and what it does on the half of the texts that it was chosen on.

    Attributes:
        small_threshold, small_f1: where the small guard alone does best on that half, and how well.
    """

    want: Want
    n: int
    f1: float
    escalated: float
    small_threshold: float
    small_f1: float

    def kept_by(self, found: "Cascade") -> bool:
        """Whether the other half has what was wanted as well."""
        together = found.ways["cascade"]
        if self.want.what == "f1":
            return (together.measures.f1 or 0.0) >= self.want.value
        is_now = found.escalated.share if self.want.what == "escalated" else together.usd_per_million
        return (is_now or 0.0) <= self.want.value


@dataclass(frozen=True, slots=True)
class Cascade:
    """Two guards alone and together.

    Attributes:
        escalated: about how many texts the big one is asked.
        agree: of how many both say the same.
        as_big: of how many the cascade says what the big one does.
        ways: `small`, `big` and `cascade`; where the band was chosen, `small_at_best` as well: the small guard from the
            threshold on that was best for it on the same half.
        over: by how much the F1 of the cascade is above those of the others.
        chosen: None where the band was given.
    """

    band: Band
    n: int
    positives: int
    escalated: Rate
    agree: Rate
    as_big: Rate
    ways: Mapping[str, Way]
    over: Mapping[str, Gain]
    chosen: Chosen | None

    @property
    def in_vain(self) -> bool:
        """Whether the small guard alone does as well: what the big one costs then buys nothing."""
        best = self.ways.get("small_at_best")
        return best is not None and (best.measures.f1 or 0.0) >= (self.ways["cascade"].measures.f1 or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return one object."""
        return {
            "n": self.n,
            "positives": self.positives,
            "band": [self.band.low, self.band.high],
            "escalated": self.escalated.to_json(),
            "agree": self.agree.to_json(),
            "cascade_as_big": self.as_big.to_json(),
            "ways": {name: way.to_json() for name, way in self.ways.items()},
            **{f"f1_over_{name}": asdict(gain) for name, gain in self.over.items()},
            "chosen": self.chosen and asdict(self.chosen),
            "in_vain": self.in_vain,
        }


def both_of(items: Sequence[Item], target: Target, small: Sequence[Answer], big: Sequence[Answer]) -> Both:
    """Return what two guards said of the texts that both answered."""
    places = answered_by([small, big])
    labels = np.array([items[at].label for at in places], bool)
    scores = [scores_of(answers, places) for answers in (small, big)]
    seconds = [np.array([answers[at].seconds for at in places]) for answers in (small, big)]
    rows = np.array([key_of(items[at], target) for at in places])
    return Both(labels, scores[0], scores[1], seconds[0], seconds[1], rows)


def measure_cascade(
    both: Both,
    thresholds: tuple[float, float],
    prices: tuple[Price | None, Price | None],
    band: Band,
    chosen: Chosen | None = None,
) -> Cascade:
    """Return what the cascade does beside either guard.

    Args:
        thresholds, prices: of the small guard, then of the big one.

    Raises:
        ValueError: there is no text.
    """
    asked = (both.small >= band.low) & (both.small < band.high)
    small, big = both.small >= thresholds[0], both.big >= thresholds[1]
    together = np.where(asked, big, both.small >= band.high)
    seconds = both.small_seconds + np.where(asked, both.big_seconds, 0)
    usd = _usd(prices[0], both.small_seconds), _usd(prices[1], both.big_seconds)
    usd_together = None if usd[0] is None or usd[1] is None else usd[0] + np.where(asked, usd[1], 0)
    ways = {
        "small": _way(small, both.labels, both.small_seconds, usd[0]),
        "big": _way(big, both.labels, both.big_seconds, usd[1]),
        "cascade": _way(together, both.labels, seconds, usd_together),
    }
    alone = {"small": small, "big": big}
    if chosen:
        best = alone["small_at_best"] = both.small >= chosen.small_threshold
        ways["small_at_best"] = _way(best, both.labels, both.small_seconds, usd[0])
    over = {name: gains_over_first(both.labels, [one, together])[0] for name, one in alone.items()}
    n, positives = len(asked), int(both.labels.sum())
    agree = _rate(small == big), _rate(together == big)
    return Cascade(band, n, positives, _rate(asked), *agree, ways, over, chosen)


def choose_band(
    both: Both, threshold: float, want: Want, prices: tuple[Price | None, Price | None] = (None, None)
) -> tuple[Chosen, Band, Both]:
    """Find on one half of the texts the band that does what is wanted, and leave the other half to be measured on.

    Halves are drawn by label, always the same ones; a text that comes twice is in one of them.

    Args:
        threshold: of the big guard.
        prices: of the small guard, then of the big one; both are there where a cost is wanted.

    Returns:
        how it does on the half that it was chosen on; the band; the other half.

    Raises:
        CannotChoose: there are too few texts, or no band does it.
    """
    first, second = halves(both)
    band, f1, escalated = best_band(both.at(first), threshold, want, prices)
    return Chosen(want, len(first), f1, escalated, *best_alone(both.at(first))), band, both.at(second)


def refuse_few(labels: ArrayLike) -> None:
    """Refuse texts of which no two halves can be made.

    Raises:
        CannotChoose: there are too few of a label (n,).
    """
    counts = np.bincount(np.asarray(labels, int), minlength=2)
    if counts.min() < 2 * LEAST:
        raise CannotChoose(
            "a band is chosen on one half of the texts and measured on the other: it takes "
            f"{2 * LEAST} of each label, and there are {counts[1]:,} positive and {counts[0]:,} negative ones"
        )


def halves(both: Both) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of two halves.

    Raises:
        CannotChoose: one would have too few texts of a label.
    """
    _, once = np.unique(both.rows, return_index=True)
    refuse_few(both.labels[once])
    split = StratifiedGroupKFold(2, shuffle=True, random_state=SEED).split(both.small, both.labels, both.rows)
    first, second = next(iter(split))
    return first, second


def best_alone(both: Both) -> tuple[float, float]:
    """Return the threshold from which on the small guard alone has the best F1, and that."""
    cuts = cuts_of(both.small)
    flagged = both.small >= cuts[:, None]  # (cuts, n)
    f1 = 2 * (flagged & both.labels).sum(axis=1) / (flagged.sum(axis=1) + both.labels.sum())
    return float(cuts[f1.argmax()]), float(f1.max())


def best_band(
    both: Both, threshold: float, want: Want, prices: tuple[Price | None, Price | None] = (None, None)
) -> tuple[Band, float, float]:
    """Return the band that reaches an F1 with the fewest texts for the big guard, or the best F1 for a share of them,
    or for what it costs.

    Returns:
        it, its F1 and its share.

    Raises:
        CannotChoose: no band does it; the message says what the nearest does.
        ValueError: a cost is wanted, and a guard has no price.
    """
    cuts = cuts_of(both.small)
    order = np.argsort(both.small, kind="stable")
    score, label, big = both.small[order], both.labels[order], (both.big >= threshold)[order]
    first = np.searchsorted(score, cuts)  # that a band from here on has, and one up to here has not
    positive, big_yes, big_right = (
        np.concatenate([[0], np.cumsum(one)]) for one in (label, big, big & label)
    )  # (n + 1,): how many of the texts with the lowest scores
    low, high = np.triu_indices(len(cuts), 1)
    start, end = first[low], first[high]
    right = big_right[end] - big_right[start] + positive[-1] - positive[end]
    flagged = big_yes[end] - big_yes[start] + len(score) - end
    f1 = 2 * right / (flagged + positive[-1])
    share = (end - start) / len(score)
    spent = share
    if want.what == "cost":
        small_usd, big_usd = _usd(prices[0], both.small_seconds), _usd(prices[1], both.big_seconds)
        if small_usd is None or big_usd is None:
            raise ValueError("what a cascade costs is known only where both guards have a price")
        paid = np.concatenate([[0], np.cumsum(big_usd[order])])
        spent = small_usd.mean() + (paid[end] - paid[start]) / len(score)
    if want.what == "f1":
        fit, ranked, nearest = f1 >= want.value, np.lexsort((-f1, share)), int(f1.argmax())
    else:
        fit, ranked, nearest = spent <= want.value, np.lexsort((spent, -f1)), int(spent.argmin())
    if not fit.any():
        alone, alone_f1 = best_alone(both)
        costs = f" for {spent[nearest]:,.2f} USD a million" if want.what == "cost" else ""
        raise CannotChoose(
            f"no band comes to {want}: the nearest, {cuts[low[nearest]]:g} to {cuts[high[nearest]]:g}, has an F1 of "
            f"{f1[nearest]:.3f} on the half that is chosen on, and asks the big guard about {share[nearest]:.1%}"
            f"{costs}; the small one alone, from {alone:g} on, has an F1 of {alone_f1:.3f}"
        )
    at = ranked[fit[ranked]][0]
    return Band(float(cuts[low[at]]), float(cuts[high[at]])), float(f1[at]), float(share[at])


def cuts_of(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places between scores where a band may begin or end, with four decimals as in a policy, and 0 and 1."""
    known = np.unique(scores)
    between = (known[1:] + known[:-1]) / 2
    if len(between) > CUTS:
        between = np.quantile(scores, np.linspace(0, 1, CUTS))
    return np.unique(np.round([0.0, *between, 1.0], 4))


def _usd(price: Price | None, seconds: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return of each text what a million like it cost (n,)."""
    return None if price is None else np.array([price.of(one) for one in seconds])


def _rate(which: NDArray[np.bool_]) -> Rate:
    return Rate(int(which.sum()), len(which))


def _way(
    verdicts: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    seconds: NDArray[np.float64],
    usd: NDArray[np.float64] | None,
) -> Way:
    scored = Scored(verdicts.astype(float).tolist(), labels.astype(int).tolist(), (seconds * 1_000).tolist())
    return Way(report_on(scored), 1_000 * float(seconds.mean()), None if usd is None else float(usd.mean()))
