"""Finds the threshold that keeps a promise, from scores with labels. Pure; knows no file, no check and no text.

How many errors n texts may hold is settled before their scores are seen: k, the most whose exact upper bound is within
the target. The (k + 1)-th score then decides. An order statistic has the distribution that the Clopper-Pearson bound is
made of, so that a threshold which the scores chose keeps the bound as one fixed beforehand would, whatever the scores'
distribution. From there the threshold goes to the middle of the way to the next score, by which no row fires otherwise
and stray ones do not; that, ties and rounding only make the promise safer.

Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934); S. S. Wilks, Annals of Mathematical Statistics 12 (1941).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import scipy  # its parts are loaded when they are named first: `special` takes a quarter of a second

from ringfence.policies.explain import STEP, floor
from ringfence.policies.types import Sample, Stage, Target

CONFIDENCE = 0.95


class CannotPromise(ValueError):
    """No threshold keeps the target with confidence; the message says why, and how many rows are needed."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of labelled texts of one stage: of each, the highest that the rule looks at.

    Minus infinity where nothing was found; infinity where a score is not a number, which fires at any threshold.

    Attributes:
        negatives: of texts that are not of the category.
        positives: of texts that are.
        unanswered: how many texts the check had no answer to.
    """

    negatives: tuple[float, ...] = ()
    positives: tuple[float, ...] = ()
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """How a threshold does on a sample; None where there is no such text."""

    threshold: float
    false_positive_rate: float | None
    recall: float | None


def fit(target: Target, scored: Mapping[Stage, Scored]) -> tuple[float, Mapping[Stage, Sample]]:
    """Return the threshold that keeps the target at each stage, and how it does there.

    Of those that keep a false-positive rate it fires on most rows, of those that keep a recall on fewest; it lies in
    the middle of the gap between scores that does so, in steps of `STEP`. At each stage by itself the promise holds
    with a probability of `CONFIDENCE` over the drawing of the rows.

    Raises:
        CannotPromise: with one line for each stage that has too few rows, or scores that no threshold parts.
    """
    edges, bounds, reasons = list[float](), dict[Stage, float](), list[str]()
    for stage, one in scored.items():
        try:
            edge, bounds[stage] = _edge(target, one)
            edges.append(edge)
        except CannotPromise as error:
            reasons.append(f"{stage}: {error}")
    if reasons:
        raise CannotPromise("\n".join(reasons))
    found = [score for one in scored.values() for score in (*one.negatives, *one.positives)]
    threshold = _above(max(edges), found) if target.min_recall is None else _below(min(edges), found)
    return threshold, {stage: _sample(one, threshold, target, bounds[stage]) for stage, one in scored.items()}


def refuse_verdicts(scored: Mapping[Stage, Scored]) -> None:
    """Refuse scores that are only a yes or a no on every text: all thresholds above 0 do the same.

    Words and patterns, which score what they find and say nothing of the rest, are not meant.

    Raises:
        CannotPromise: with one line for each stage that has such scores.
    """
    reasons = [
        f"{stage}: every score is 0 or 1, as of a check that only says yes or no, and no threshold moves that; "
        "have the guard's server tell how probable its words are (logprobs), or write a 'threshold'"
        for stage, one in scored.items()
        if 0.0 in (said := {score for score in (*one.negatives, *one.positives) if math.isfinite(score)})
        and said <= {0.0, 1.0}
    ]
    if reasons:
        raise CannotPromise("\n".join(reasons))


def errors_allowed(rows: int, rate: float) -> int:
    """Return how many of the rows may be errors for the true rate to be within `rate` with confidence; -1: none may.

    The largest k with `upper_bound(k, rows) <= rate`.
    """
    return (
        bisect_right(range(rows), 1 - CONFIDENCE, key=lambda errors: float(scipy.special.bdtr(errors, rows, rate))) - 1
    )


def rows_needed(rate: float) -> int:
    """Return the fewest rows that can promise a rate, which they do if none of them is an error."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-rate))


def upper_bound(errors: int, rows: int) -> float:
    """Return what the true rate of errors does not exceed, with one-sided confidence."""
    return 1.0 if errors >= rows else float(scipy.special.betaincinv(errors + 1, rows - errors, CONFIDENCE))


def interval(hits: int, rows: int) -> tuple[float, float]:
    """Return the bounds that a true rate lies between, each with one-sided confidence."""
    return 1 - upper_bound(rows - hits, rows), upper_bound(hits, rows)


def share(scores: Sequence[float], threshold: float) -> float | None:
    """Return which share of the scores fires; None of no scores."""
    return sum(score >= threshold for score in scores) / len(scores) if scores else None


def curve(scored: Scored, thresholds: Iterable[float]) -> list[Point]:
    """Return how each threshold does."""
    return [Point(at, share(scored.negatives, at), share(scored.positives, at)) for at in thresholds]


def _edge(target: Target, scored: Scored) -> tuple[float, float]:
    """Return the score of one stage that decides, from 0 to 1, and the bound of the promised figure."""
    if target.max_false_positive_rate is not None:
        allowed = _allowed(len(scored.negatives), target.max_false_positive_rate, "without the category", target)
        edge = sorted(scored.negatives, reverse=True)[allowed]  # may not fire
        if edge >= 1:
            raise CannotPromise(
                f"more than {allowed} of {len(scored.negatives)} rows without the category score 1 or above: "
                "no threshold keeps the target; look at these rows' labels"
            )
        # Every score above the edge is allowed to fire; nothing is gained by a threshold of 0, which fires on all.
        return max(edge, 0.0), upper_bound(allowed, len(scored.negatives))
    rate = 1 - (target.min_recall or 0.0)
    allowed = _allowed(len(scored.positives), rate, "with the category", target)
    edge = sorted(scored.positives)[allowed]  # must fire
    if edge < 0:
        raise CannotPromise(
            f"in more than {allowed} of {len(scored.positives)} rows with the category nothing was found that the rule "
            "fires on: no threshold keeps the target; lower it, or use a check that finds them"
        )
    return min(edge, 1.0), 1 - upper_bound(allowed, len(scored.positives))


def _above(edge: float, scores: Iterable[float]) -> float:
    """Return the middle between a score that may not fire and the next one, which may; without one, 1."""
    after = min([1.0, *(score for score in scores if score > edge)])
    # Where the gap has no step, it is the promise that is kept.
    return float(max(floor(edge) + STEP, min(_middle(edge, after), floor(after))))


def _below(edge: float, scores: Iterable[float]) -> float:
    """Return the middle between a score that must fire and the one before, which need not; without one, 0."""
    before = max([0.0, *(score for score in scores if score < edge)])
    return float(min(floor(edge), max(_middle(before, edge), floor(before) + STEP)))


def _middle(low: float, high: float) -> Decimal:
    return floor((low + high) / 2 + float(STEP) / 2)


def _sample(scored: Scored, threshold: float, target: Target, bound: float) -> Sample:
    """Return how the threshold does at one stage; the promised figure keeps to its bound, which was settled before."""
    false_positives, recall = _interval(scored.negatives, threshold), _interval(scored.positives, threshold)
    if target.min_recall is None:
        false_positives = false_positives and (false_positives[0], bound)
    else:
        recall = recall and (bound, recall[1])
    return Sample(
        rows=len(scored.negatives) + len(scored.positives),
        positives=len(scored.positives),
        unanswered=scored.unanswered,
        false_positive_rate=share(scored.negatives, threshold),
        false_positive_interval=false_positives,
        recall=share(scored.positives, threshold),
        recall_interval=recall,
        bound=bound,
    )


def _interval(scores: Sequence[float], threshold: float) -> tuple[float, float] | None:
    return interval(sum(score >= threshold for score in scores), len(scores)) if scores else None


def _allowed(rows: int, rate: float, which: str, target: Target) -> int:
    if (allowed := errors_allowed(rows, rate)) < 0:
        raise CannotPromise(
            f"{rows} rows {which} cannot promise {target} with {CONFIDENCE:.0%} confidence; "
            f"it takes at least {rows_needed(rate)}"
        )
    return allowed
