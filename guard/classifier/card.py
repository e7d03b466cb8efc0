"""What is said of the weights that ship: what they learnt from, and how they do on sources they never saw."""

import os
import platform
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np

from ringfence.guard.classifier.base import MINILM, MPNET
from ringfence.guard.classifier.corpus import Corpus
from ringfence.guard.classifier.examples import Example, Recipe
from ringfence.guard.classifier.heads import HEADS, TASKS
from ringfence.guard.classifier.measure import interval, measure, resample
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.scorer import Scorer

Answers = tuple[Sequence[float], Sequence[int]]
"""Scores and labels, in one order."""

LIMITS = (
    "English: of text in another language the scores say little; findings say so where the language is told.",
    "Responses are judged worse than prompts, mostly where a harmless answer on access or money sounds like help with "
    "breaking in, or a false claim sounds like a plain one.",
    "What share of harmful texts a score of one half stands for was chosen by how the sources below do with it: their "
    "figures at 0.5 are the better for it, mean F1 by one to four points.",
    "Role-play and long instructions to a model are taken for attacks too often (see qualifire_injections).",
    "Hazards other than S1, S2, S7 and S10 were learnt from few rows each.",
    "A part of a harmful response under 400 characters was never shown as harmful on its own.",
    "By themselves the weights see through letters in disguise only as far as Unicode compatibility forms go; the "
    "check that asks them undoes look-alikes, leetspeak, spacing and common encodings first.",
)


def write_card(scorer: Scorer, corpus: Corpus, recipe: Recipe, plan: Plan, teacher: Plan | None) -> dict[str, Any]:
    """Measure the weights on every report source, and say where they come from.

    Report sources are whole families: nothing of theirs was trained or calibrated on.
    """
    found = gather(scorer, corpus.report)
    return {
        "version": 2,
        "revision": scorer.revision,
        "recipe": recipe.value,
        "base": {"name": MINILM.name, "licence": MINILM.licence, "sha256": MINILM.sha256},
        "teacher": teacher
        and {"name": MPNET.name, "licence": MPNET.licence, "sha256": MPNET.sha256, "plan": asdict(teacher)},
        "heads": list(HEADS),
        "plan": asdict(plan),
        "training": {
            "examples": len(corpus.train),
            "families": dict(Counter(example.family for example in corpus.train).most_common()),
            "labels": count_labels(corpus.train),
            "licences": dict(corpus.licences),
        },
        "calibration": {"families": dict(Counter(example.family for example in corpus.calibrate).most_common())},
        "unseen_sources": dict(by_source(found)),
        "mean_f1": {task: mean_f1(families) for task, families in found.items()},
        "latency": latency(scorer),
        "limits": list(LIMITS),
    }


def count_labels(examples: Sequence[Example]) -> Mapping[str, list[int]]:
    """Count negatives and positives by head."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for example in examples:
        for head, label in example.labels.items():
            counts[head][int(label)] += 1
    return {head: counts[head] for head in HEADS}


def gather(scorer: Scorer, report: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, Answers]]:
    """Score every report source; return by head and family the scores and labels of the rows annotated for it."""
    found: dict[str, dict[str, Answers]] = {task: {} for task in TASKS}
    for family, examples in report.items():
        scores = scorer.score_many((example.text, example.prompt) for example in examples)
        for task in TASKS:
            rows = [i for i, one in enumerate(examples) if task in one.labels and task not in one.doubt]
            if rows:
                truth = [int(examples[i].labels[task]) for i in rows]
                found[task][family] = [scores[i].tasks[task] for i in rows], truth
    return {task: families for task, families in found.items() if families}


def by_source(found: Mapping[str, Mapping[str, Answers]]) -> Mapping[str, dict[str, Any]]:
    """Measure each source by head, and under `all` its rows together with those of every other."""
    table: dict[str, dict[str, Any]] = defaultdict(dict)
    for task, families in found.items():
        for family, answers in families.items():
            table[family][task] = figures(*answers)
        together = [list(chain.from_iterable(part)) for part in zip(*families.values(), strict=True)]
        table["all"][task] = figures(together[0], together[1])
    table["all"] = table.pop("all")  # last
    return table


def mean_f1(families: Mapping[str, Answers]) -> dict[str, Any]:
    """Average F1 over the sources that have positives, each counting the same, with its bounds."""
    chosen = [answers for answers in families.values() if any(answers[1])]
    drawn = [resample(*answers, seed=(0, at))["f1"] for at, answers in enumerate(chosen)]
    mean = sum(measure(*answers).f1 or 0.0 for answers in chosen) / len(chosen)
    return {"sources": len(chosen), "f1": mean, "ci95": interval(np.mean(drawn, axis=0))}


def figures(scores: Sequence[float], labels: Sequence[int]) -> dict[str, Any]:
    """Measure, and say between what bounds F1 and the false-positive rate lie in 95 of 100 resamples."""
    drawn = resample(scores, labels)
    return {**asdict(measure(scores, labels)), "ci95": {name: interval(drawn[name]) for name in ("f1", "fpr")}}


def latency(scorer: Scorer, passes: int = 40) -> dict[str, Any]:
    """Time one text of 128 tokens by itself, all cores; the median of `passes`, tokenizing included."""
    text = "word " * 126
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        scorer.score_many([(text, None)])
        times.append((time.perf_counter() - start) * 1000)
    return {"tokens": 128, "ms": round(statistics.median(times), 1), "cores": os.cpu_count(), "on": platform.machine()}
