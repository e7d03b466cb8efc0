"""What is said of weights: what they learnt from, and how they do on sources that nothing was learnt from."""

import os
import platform
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ringfence.guard.classifier.base import Published
from ringfence.guard.classifier.calibrate import tells
from ringfence.guard.classifier.corpus import Corpus
from ringfence.guard.classifier.examples import Example, Recipe
from ringfence.guard.classifier.heads import HAZARDS, HEADS, TASKS
from ringfence.guard.classifier.measure import interval, intervals, measure, resample
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.scorer import Scorer
from ringfence.guard.classifier.sources import credit_of


class Answers(NamedTuple):
    """Scores and labels, in one order, and how many of the texts were read in part only."""

    scores: Sequence[float]
    labels: Sequence[int]
    truncated: int


LIMITS = (
    "English: of text in another language the scores say little; findings say so where the language is told.",
    "What share of harmful texts a score of one half stands for was chosen by how the sources below do with it: their "
    "figures at 0.5 are the better for it.",
    "A part of a harmful response under 400 characters was never shown as harmful on its own.",
    "By themselves the weights see through letters in disguise only as far as Unicode compatibility forms go; the "
    "check that asks them undoes look-alikes, leetspeak, spacing and common encodings first.",
)
"""What is true of all weights that are trained here. What was found about some stands in their own card."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a network came from.

    Attributes:
        published: the encoder that it started from.
        teacher: whose answers it learnt from beside the labels, if anybody's.
    """

    published: Published
    recipe: Recipe
    plan: Plan
    teacher: str | None = None


def write_card(scorer: Scorer, corpus: Corpus, origin: Origin) -> dict[str, Any]:
    """Measure the weights on every report source, and say where they come from."""
    base = origin.published
    return {
        "version": 5,
        "revision": scorer.revision,
        "recipe": origin.recipe.value,
        "base": {"name": base.name, "licence": base.licence, "sha256": base.sha256},
        "teacher": origin.teacher,
        "heads": list(HEADS),
        "plan": asdict(origin.plan),
        "training": {
            "examples": len(corpus.train),
            "families": dict(Counter(example.family for example in corpus.train).most_common()),
            "labels": count_labels(corpus.train),
            "licences": dict(corpus.licences),
        },
        "calibration": {
            "families": dict(Counter(example.family for example in corpus.calibrate).most_common()),
            "licences": dict(corpus.calibrated),
        },
        "credits": {file: credit_of(file) for file in (*corpus.licences, *corpus.calibrated)},
        **measured(scorer, corpus),
        "latency": latency(scorer),
        "limits": list(LIMITS),
    }


def measured(scorer: Scorer, corpus: Corpus) -> dict[str, Any]:
    """Measure the weights on every report source.

    Report sources are whole families: neither weights nor curves were fitted to any of their texts. The priors of the
    curves (`calibrate.PRIORS`) were chosen by how they do.
    """
    found = gather(scorer, corpus.report, TASKS)
    return {
        "unseen_sources": by_source(found),
        "mean_f1": {task: mean_f1(families) for task, families in found.items() if any(together(families).labels)},
        "ours": by_source(gather(scorer, corpus.ours, TASKS)),
        "hazards": {
            hazard: {family: figures(answers) for family, answers in families.items()}
            for hazard, families in gather(scorer, corpus.hazards, tuple(HAZARDS)).items()
        },
    }


def count_labels(examples: Sequence[Example]) -> Mapping[str, list[int]]:
    """Count negatives and positives by head."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for example in examples:
        for head, label in example.labels.items():
            counts[head][int(label)] += 1
    return {head: counts[head] for head in HEADS}


def gather(
    scorer: Scorer, report: Mapping[str, Sequence[Example]], heads: Sequence[str]
) -> dict[str, dict[str, Answers]]:
    """Score sources; return by head and family what is said of the rows annotated for it, for a hazard harmful ones."""
    found: dict[str, dict[str, Answers]] = {head: {} for head in heads}
    for family, examples in report.items():
        scores = scorer.score_many((example.text, example.prompt) for example in examples)
        for head in heads:
            rows = [i for i, one in enumerate(examples) if tells(one, head)]
            if rows:
                found[head][family] = Answers(
                    [{**scores[i].tasks, **scores[i].hazards}[head] for i in rows],
                    [int(examples[i].labels[head]) for i in rows],
                    sum(scores[i].truncated for i in rows),
                )
    return {head: families for head, families in found.items() if families}


def by_source(found: Mapping[str, Mapping[str, Answers]]) -> dict[str, Any]:
    """Measure each source by head, and under `all` its rows together with those of every other."""
    table: dict[str, dict[str, Any]] = defaultdict(dict)
    every: dict[str, Any] = {}
    for task, families in found.items():
        for family, answers in families.items():
            table[family][task] = figures(answers)
        every[task] = figures(together(families))
    return {**table, "all": every}


def together(families: Mapping[str, Answers]) -> Answers:
    """Return the answers about all families as if they were one."""
    scores, labels, truncated = zip(*families.values(), strict=True)
    return Answers(list(chain.from_iterable(scores)), list(chain.from_iterable(labels)), sum(truncated))


def mean_f1(families: Mapping[str, Answers]) -> dict[str, Any]:
    """Average F1 over the sources that have positives, each counting the same, with its bounds."""
    chosen = [answers for answers in families.values() if any(answers.labels)]
    drawn = [resample(one.scores, one.labels, seed=(0, at))["f1"] for at, one in enumerate(chosen)]
    mean = sum(measure(one.scores, one.labels).f1 or 0.0 for one in chosen) / len(chosen)
    return {"sources": len(chosen), "f1": mean, "ci95": interval(np.mean(drawn, axis=0))}


def figures(answers: Answers) -> dict[str, Any]:
    """Measure, and say between what bounds each figure lies in 95 of 100 resamples."""
    scores, labels, truncated = answers
    drawn = resample(scores, labels)
    return {**asdict(measure(scores, labels)), "truncated": truncated, "ci95": intervals(drawn)}


def latency(scorer: Scorer, passes: int = 40) -> dict[str, Any]:
    """Time one text of 128 tokens by itself, all cores; the median of `passes`, tokenizing included."""
    text = "word " * 126
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        scorer.score_many([(text, None)])
        times.append((time.perf_counter() - start) * 1000)
    return {"tokens": 128, "ms": round(statistics.median(times), 1), "cores": os.cpu_count(), "on": platform.machine()}
