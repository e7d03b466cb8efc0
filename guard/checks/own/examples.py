"""Learns a category from a handful of texts: a line over what the guard model's encoder says of them.

The line is as small as the examples allow, measured on ordinary texts (`classifier/correction.py`): to those it says
no, and only what the examples have in common, and ordinary texts have not, speaks for the category. It is fitted when
the policy is loaded, tried on examples that it was not fitted to, and refused where it cannot tell them apart.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from ringfence.guard.check import Finding, Passage, Span
from ringfence.guard.checks.disguise import in_disguise
from ringfence.guard.checks.model import Reader, shared_reader
from ringfence.guard.classifier.calibrate import PRIOR
from ringfence.guard.classifier.correction import Line, Texts, Vector, fit_texts
from ringfence.guard.classifier.scorer import Curve
from ringfence.guard.normalise.readings import variants
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.own import Examples, written_at
from ringfence.policies.words import Origin

METHOD = 1
"""Part of a check's revision: raised when the same examples come to score otherwise."""

NO = -4.0
"""The logit of an ordinary text before anything is learnt."""

PENALTY = 40.0
"""Of moving ordinary texts, beside the loss summed over the examples.

Of 1 to 400 for twenty examples, those from 20 to 100 told held-out examples apart best.
"""

FOLDS = 10

LEAST = 0.7
"""The AUROC that a category has to reach on examples held out: below it three pairs in ten stand the wrong way round.

Few examples have to do better, as they may do so by chance: see `bar`.
"""

LONGEST = 4_000
"""Code points of an example: a page. Longer ones take long to learn from, and teach little."""

SHOWN = 10
"""Examples that an error lists."""

QUANTILES = (np.arange(40) + 0.5) / 40


@dataclass(frozen=True, slots=True)
class Trial:
    """How the examples fare under lines that were fitted without them.

    Attributes:
        auroc: share of pairs, one of either side, that stand the right way round.
        scores: of each example, calibrated.
    """

    auroc: float
    scores: Vector


class ExamplesCheck:
    """Reports its category with the probability that a text belongs to it, for every text.

    Args:
        line: gives a window's calibrated logit.
        trial: what it promises.
        revision: the sha256 of the examples and the weights.
    """

    def __init__(self, category: str, reader: Reader, line: Line, trial: Trial, revision: str) -> None:
        self.name = category
        self.categories = frozenset({category})
        self.trial = trial
        self.revision = revision
        self._reader = reader
        self._line = line

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of those that it was learnt with."""
        return self._reader.is_replaced()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Judge a passage, whoever said it, by its likeliest window, or that of another reading of it.

        Scores have four decimals, as what lies below may differ from one processor to the next.
        """
        found = list(self._found(passage, passage.text))
        for variant in variants(passage.text):
            found += [in_disguise(finding, variant) for finding in self._found(passage, variant.text)]
        best = max((one for one in found if one.error is None), key=lambda one: one.score, default=None)
        error = next((one for one in found if one.error is not None), None)
        return [one for one in (best, error) if one]

    def _found(self, passage: Passage, text: str) -> Iterator[Finding]:
        reading = self._reader.read(text, passage.until)
        if reading.windows[0].empty:
            return
        logits = self._line(reading.features)
        at = int(logits.argmax())
        span = Span(passage.part, reading.windows[at].start, reading.windows[at].end)
        yield Finding(self.name, self.name, round(float(expit(logits[at])), 4), (span,), "like the policy's examples")
        if reading.cut_off:
            error = "the text is too long to be read in full; its middle was not"
            yield Finding(self.name, self.name, 0.0, error=error)


def learn(spec: Examples, reader: Reader | None = None) -> ExamplesCheck:
    """Make the check for a category that is described by examples; the same ones always give the same check.

    Args:
        reader: the guard model; that of the process where None.

    Raises:
        PolicyError: an example is repeated, empty or too long, or the two sides cannot be told apart; then the
            examples that come out wrong are listed.
        WeightsError: the guard model cannot be used.
    """
    if wrong := list(_unusable(spec)):
        raise PolicyError(wrong)
    reader = reader or shared_reader()
    # What a category is called by is one more text that belongs to it.
    texts = (*spec.match, spec.description, *spec.leave)
    truth = np.array([1] * (len(spec.match) + 1) + [0] * len(spec.leave))
    given = Texts([reader.read(text).features for text in texts], truth, texts)
    described = len(spec.match)
    line = _fit(given, reader.root)
    curve, trial = _try(given, described, line, reader)
    if trial.auroc < (least := bar(len(spec.match), len(spec.leave))):
        raise PolicyError(_not_learnt(spec, trial, least))
    calibrated = Line(curve.slope * line.weight, curve.slope * line.bias + curve.offset)
    return ExamplesCheck(spec.category, reader, calibrated, trial, _revision(spec, reader))


def bar(match: int, leave: int) -> float:
    """Return the AUROC that examples have to reach: `LEAST`, or what chance reaches once in twenty (Mann-Whitney)."""
    chance = 0.5 + 1.645 * sqrt((match + leave + 1) / (12 * match * leave))
    return max(LEAST, chance)


def _fit(texts: Texts, root: Vector) -> Line:
    nothing = Line(np.zeros(len(root) - 1), NO)
    return nothing.plus(fit_texts(nothing, texts, root, PENALTY / len(texts.truth)))


def _try(given: Texts, described: int, line: Line, reader: Reader) -> tuple[Curve, Trial]:
    """Have every example judged by a line that was fitted without it, and make probabilities of what comes out.

    Args:
        described: which of the texts is the description: it is always learnt from, and never tried.
    """
    examples = np.delete(np.arange(len(given.truth)), described)
    truth = given.truth[examples]
    logits = np.empty(len(examples))
    folds = StratifiedKFold(min(FOLDS, int(truth.sum()), int((1 - truth).sum())), shuffle=True, random_state=0)
    for train, test in folds.split(examples, truth):
        fitted = _fit(given.at([*examples[train], described]), reader.root)
        logits[test] = fitted.of_texts(given.at(examples[test]).windows)
    curve = _curve(logits, truth, _ordinary(line, reader))
    scores: Vector = expit(curve.slope * logits + curve.offset)
    return curve, Trial(float(roc_auc_score(truth, logits)), scores)


def _ordinary(line: Line, reader: Reader) -> Vector:
    """Return logits as ordinary texts have them: of a normal distribution with their mean and spread."""
    whole = np.append(line.weight, line.bias)
    mean = whole @ reader.ordinary[-1]
    spread = max(0.0, whole @ reader.ordinary @ whole - mean**2) ** 0.5
    logits: Vector = mean + spread * ndtri(QUANTILES)
    return logits


def _curve(logits: Vector, truth: NDArray[Any], ordinary: Vector) -> Curve:
    """Fit a curve through examples and ordinary texts; of those that do not belong, either counts half.

    Few examples are never surer than their number allows (Platt 1999): each counts a little for the other side.
    """
    belongs, not_so = int(truth.sum()), int((1 - truth).sum())
    likely = np.where(truth == 1, (belongs + 1) / (belongs + 2), 1 / (not_so + 2))
    share = np.where(truth == 1, PRIOR / belongs, (1 - PRIOR) / 2 / not_so)
    others = np.full(len(ordinary), (1 - PRIOR) / 2 / len(ordinary))
    x = np.concatenate([logits, logits, ordinary])
    y = np.repeat([1, 0, 0], [len(logits), len(logits), len(ordinary)])
    weights = np.concatenate([share * likely, share * (1 - likely), others])
    model = LogisticRegression(C=1e6).fit(x[:, None], y, sample_weight=weights * len(logits))
    return Curve(float(model.coef_[0, 0]), float(model.intercept_[0]))


def _given(spec: Examples) -> Iterator[tuple[str, int, str, Origin]]:
    """Yield every example: its side, its number there, its text, and where it was written."""
    for side, texts in (("match", spec.match), ("leave", spec.leave)):
        yield from ((side, i + 1, text, written_at(spec, side, i)) for i, text in enumerate(texts))


def _unusable(spec: Examples) -> Iterator[Problem]:
    seen: set[str] = set()
    given = [(f"example {number} of '{side}'", text, place) for side, number, text, place in _given(spec)]
    for where, text, place in (*given, ("the description", spec.description, written_at(spec, "description"))):
        if not text.strip():
            yield Problem(place, f"{where} is nothing but white space; write one or leave it")
        elif len(text) > LONGEST:
            yield Problem(place, f"{where} has {len(text):,} characters; {LONGEST:,} are enough to learn from")
        elif text in seen:
            what = f"{where} is there already; an example teaches once, and on one side: {_brief(text)}"
            yield Problem(place, what)
        seen.add(text)


def _not_learnt(spec: Examples, trial: Trial, least: float) -> Iterator[Problem]:
    yield Problem(
        spec.origin,
        f"the examples of '{spec.category}' cannot be told apart: held out, they reach an AUROC of {trial.auroc:.2f}, "
        f"and {least:.2f} is the least for {len(spec.match)} and {len(spec.leave)} of them; give more, or clearer ones",
    )
    # The farther a score is from where it should be, the sooner its author should look at it.
    tried = sorted(zip(trial.scores, _given(spec), strict=True), key=lambda one: -abs(one[0] - (one[1][0] == "match")))
    wrong = [
        Problem(place, f"{_brief(text)} of '{side}' scores {score:.2f}")
        for score, (side, _, text, place) in tried
        if (score >= 0.5) != (side == "match")
    ]
    yield from wrong[:SHOWN]
    if len(wrong) > SHOWN:
        what = f"{len(wrong)} examples are on the wrong side of 0.5; the {SHOWN} that are farthest off are told"
        yield Problem(spec.origin, what)


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text if len(text) <= 60 else f'{text[:57]}...'}'"


def _revision(spec: Examples, reader: Reader) -> str:
    learnt = [METHOD, spec.category, spec.description, spec.match, spec.leave, reader.scorer.revision]
    digest = hashlib.sha256(json.dumps(learnt, separators=(",", ":")).encode())
    digest.update(reader.ordinary.tobytes())
    return digest.hexdigest()
