"""Measures the guard model on a file of labelled texts. Knows rows and scores; prints nothing."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ringfence.guard.classifier.measure import Measures, measure
from ringfence.guard.classifier.rows import Row, RowError, read_rows
from ringfence.guard.classifier.scorer import Scores

Target = Literal["prompt", "response", "attack"]
"""What is measured: harm of prompts, harm of responses given their prompts, or attacks."""


class Judge(Protocol):
    """What is measured."""

    def score(self, text: str, prompt: str | None = None) -> Scores:
        """As `Scorer.score`."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled text; a response has the prompt that it answers."""

    text: str
    prompt: str | None
    label: int


@dataclass(frozen=True, slots=True)
class Report:
    """Measures, and the milliseconds that one text took by itself, tokenizing included."""

    measures: Measures
    latency_ms: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return one object, as `ringfence bench guard --json` prints it."""
        return {**asdict(self.measures), "latency_ms": dict(self.latency_ms)}


def bench_guard(judge: Judge, items: Iterable[Item], target: Target, threshold: float = 0.5) -> Report:
    """Score items one by one and compare with their labels.

    Args:
        judge: must not remember texts, or repeated ones would seem fast.

    Raises:
        ValueError: there are no items.
    """
    judge.score("warm")  # the first pass allocates; it is not what is measured
    scores, labels, times = [], [], []
    for item in items:
        start = time.perf_counter()
        found = judge.score(item.text, item.prompt)
        times.append((time.perf_counter() - start) * 1000)
        scores.append(found.tasks["attack"] if target == "attack" else found.harm)
        labels.append(item.label)
    measures = measure(scores, labels, threshold)
    return Report(measures, {f"p{at}": round(float(np.percentile(times, at)), 3) for at in (50, 95, 99)})


def read_items(path: Path, target: Target) -> Iterator[Item]:
    """Read the rows that are labelled for a target; `prompt_label` is the label of prompts and of attacks.

    Raises:
        RowError: a row is not as expected, or none is labelled; the message names file and line.
    """
    key = "response_label" if target == "response" else "prompt_label"
    labelled = False
    for where, row in read_rows(path):
        label = row.get(key)
        if label is None:
            continue
        if isinstance(label, bool) or label not in (0, 1):
            raise RowError(f"{where}: {key} must be 0, 1 or null, got {label!r}")
        text, prompt = text_of(row, "text", where), None
        if target == "response":
            text, prompt = text_of(row, "response", where), text
        labelled = True
        yield Item(text, prompt, int(label))
    if not labelled:
        raise RowError(f"{path}: no row has a {key}, which --target {target} needs")


def text_of(row: Row, key: str, where: str) -> str:
    """Return a string field, or say what is wrong with it."""
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError(f"{where}: {key} must be a string, got {'nothing' if value is None else type(value).__name__}")
    return value
