"""What is said of the weights that ship: what they learnt from, and how they do on sources they never saw."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ringfence.guard.classifier import base
from ringfence.guard.classifier.corpus import Corpus, Example, Recipe
from ringfence.guard.classifier.heads import HEADS, TASKS
from ringfence.guard.classifier.measure import measure
from ringfence.guard.classifier.scorer import Scorer
from ringfence.guard.classifier.train import Plan

LIMITS = (
    "English only: text in other languages is read, and judged badly.",
    "Hazards other than S1, S2 and S10 were learnt from few rows each.",
    "A part of a harmful response under 400 characters was never shown as harmful on its own.",
    "An e-mail address is read as a friend's name: words spelled out as one are not seen.",
    "Letters in disguise are seen through only as far as Unicode compatibility forms go; leetspeak and base64 are not.",
)


def write_card(scorer: Scorer, corpus: Corpus, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Measure the weights on every report source, and say where they come from.

    Report sources are whole families: nothing of theirs was trained or calibrated on.
    """
    return {
        "version": 1,
        "revision": scorer.revision,
        "recipe": recipe.value,
        "base": {"name": base.NAME, "licence": base.LICENCE, "sha256": base.SHA256},
        "heads": list(HEADS),
        "plan": asdict(plan),
        "training": {
            "examples": len(corpus.train),
            "families": dict(Counter(example.family for example in corpus.train).most_common()),
            "labels": count_labels(corpus.train),
            "licences": dict(corpus.licences),
        },
        "calibration": {"families": dict(Counter(example.family for example in corpus.calibrate).most_common())},
        "unseen_sources": dict(unseen(scorer, corpus.report)),
        "limits": list(LIMITS),
    }


def count_labels(examples: Sequence[Example]) -> Mapping[str, list[int]]:
    """Count negatives and positives by head."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for example in examples:
        for head, label in example.labels.items():
            counts[head][int(label)] += 1
    return {head: counts[head] for head in HEADS}


def unseen(scorer: Scorer, report: Mapping[str, Sequence[Example]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure each report source, and all of them together, on the heads that its rows are annotated for."""
    pooled: dict[str, tuple[list[float], list[int]]] = {task: ([], []) for task in TASKS}
    for family, examples in report.items():
        scores = scorer.score_many((example.text, example.prompt) for example in examples)
        by_head: dict[str, Any] = {}
        for task in TASKS:
            rows = [i for i, one in enumerate(examples) if task in one.labels and task not in one.doubt]
            if rows:
                found = [scores[i].tasks[task] for i in rows]
                truth = [int(examples[i].labels[task]) for i in rows]
                pooled[task][0].extend(found)
                pooled[task][1].extend(truth)
                by_head[task] = asdict(measure(found, truth))
        yield family, by_head
    yield "all", {task: asdict(measure(*both)) for task, both in pooled.items() if both[0]}
