"""Measures the guard model on labelled texts, one set or several. Knows scores and labels; prints nothing."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ringfence.guard.bench.formats import Target
from ringfence.guard.bench.items import Item
from ringfence.guard.classifier.measure import Measures, Resampled, interval, intervals, measure, resample
from ringfence.guard.classifier.scorer import Scores

SEED = 20


class Judge(Protocol):
    """What is measured."""

    def score(self, text: str, prompt: str | None = None) -> Scores:
        """As `Scorer.score`."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """What the judge said of a set's items, the truth, and the milliseconds each took, tokenizing included.

    Attributes:
        truncated: how many texts are too long to be read in full: their scores are about a part only.
    """

    scores: Sequence[float]
    labels: Sequence[int]
    milliseconds: Sequence[float]
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Measures of one set, with the middle 95 % of their values in 1,000 resamples of it.

    Attributes:
        truncated: as of `Scored`.
    """

    measures: Measures
    flagged: int
    truncated: int
    latency_ms: Mapping[str, float]
    ci95: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return one object, as `ringfence bench guard --json` prints it."""
        counts = {"flagged": self.flagged, "truncated": self.truncated}
        return {**asdict(self.measures), "latency_ms": dict(self.latency_ms), **counts, "ci95": dict(self.ci95)}


@dataclass(frozen=True, slots=True)
class Reports:
    """Several sets, each by itself, and taken together.

    Attributes:
        mean_f1: unweighted mean over the sets that have an F1; None where none has.
        pooled: the items of all sets as if they were one.
    """

    sets: Mapping[str, Report]
    mean_f1: float | None
    mean_f1_ci95: tuple[float, float] | None
    pooled: Report

    def to_json(self) -> dict[str, Any]:
        """Return one object, as `ringfence bench guard --json` prints it of several files."""
        return {
            "sets": {name: report.to_json() for name, report in self.sets.items()},
            "mean_f1": self.mean_f1,
            "mean_f1_ci95": self.mean_f1_ci95,
            "pooled": self.pooled.to_json(),
        }


def score_items(judge: Judge, items: Iterable[Item], target: Target) -> Scored:
    """Score items one by one.

    Args:
        judge: must not remember texts, or repeated ones would seem fast.
    """
    judge.score("warm")  # the first pass allocates; it is not what is measured
    scores, labels, times, truncated = [], [], [], 0
    for item in items:
        start = time.perf_counter()
        found = judge.score(item.text, item.prompt)
        times.append((time.perf_counter() - start) * 1000)
        scores.append(asked_for(found, target))
        labels.append(item.label)
        truncated += found.truncated
    return Scored(scores, labels, times, truncated)


def asked_for(found: Scores, target: Target) -> float:
    """Return the score that the labels of a target are about."""
    return found.tasks["attack"] if target == "attack" else found.harm


def report_on(scored: Scored, threshold: float = 0.5) -> Report:
    """Compare scores with labels.

    Raises:
        ValueError: there are none.
    """
    return summed(scored, threshold, resample(scored.scores, scored.labels, threshold, (SEED,)))


def report_on_all(sets: Mapping[str, Scored], threshold: float = 0.5) -> Reports:
    """Compare scores with labels, set by set and together."""
    # a seed each: sets of one size must not be drawn alike, or their mean would seem less sure than it is
    drawn = {
        name: resample(one.scores, one.labels, threshold, (SEED, at)) for at, (name, one) in enumerate(sets.items())
    }
    reports = {name: summed(one, threshold, drawn[name]) for name, one in sets.items()}
    known = {name: f1 for name, report in reports.items() if (f1 := report.measures.f1) is not None}
    pool = Scored(
        [score for one in sets.values() for score in one.scores],
        [label for one in sets.values() for label in one.labels],
        [time for one in sets.values() for time in one.milliseconds],
        sum(one.truncated for one in sets.values()),
    )
    return Reports(
        reports,
        sum(known.values()) / len(known) if known else None,
        interval(np.mean([drawn[name]["f1"] for name in known], axis=0)) if known else None,
        report_on(pool, threshold),
    )


def summed(scored: Scored, threshold: float, drawn: Resampled) -> Report:
    """Put one set's figures together."""
    return Report(
        measure(scored.scores, scored.labels, threshold),
        int(sum(score >= threshold for score in scored.scores)),
        scored.truncated,
        {f"p{at}": round(float(np.percentile(scored.milliseconds, at)), 3) for at in (50, 95, 99)},
        intervals(drawn),
    )
