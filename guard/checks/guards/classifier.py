"""Sequence classifiers of anybody's, run here: the probability of the labels that a policy names is the finding.

`kind: prompt-guard-2` is Llama Prompt Guard 2 (22M, 86M), of which it is known what to ask: two classes, of which the
second is an attack (`MALICIOUS`). Source: its model cards in meta-llama/PurpleLlama. A text that is longer than the
network reads is read in windows that overlap, as the card advises; the likeliest decides. A text in disguise is read
in the clear as well.

Not confirmed: whether the published config.json calls the second class `MALICIOUS`, as the card does, or `LABEL_1`;
both are understood.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from ringfence.guard.check import Findable, Finding, Passage, Span, refuse_nan
from ringfence.guard.checks.disguise import in_every_reading
from ringfence.guard.checks.guards.batches import Batches, Row, due, padded
from ringfence.guard.checks.guards.family import neutral
from ringfence.guard.checks.guards.local import Running, seams_of
from ringfence.guard.checks.guards.weights import Loaded, Weights, find_weights, load_weights, run_in_time
from ringfence.guard.unicode import readable
from ringfence.policies.document import PolicyError, Problem, did_you_mean
from ringfence.policies.own import ClassifierModel

METHOD = 3
"""Part of a check's revision: raised when the same weights come to score otherwise."""

SUFFIX = "ForSequenceClassification"

LONGEST = 512
"""Tokens of a window at most, whatever more a network would read."""

SHARED = 64
"""Tokens that a window has of the one before it."""

MANY = "multi_label_classification"
"""What `problem_type` in a `config.json` says where a text may have many labels."""

ATTACK = ("MALICIOUS", "LABEL_1")
"""What the second class of Prompt Guard 2 is called."""


class ClassifierModelCheck:
    """Reports what a classifier says of every text: the check's category, and what its labels are called below it.

    Where a text has one label of several, the labels that speak for the category add up; where it may have many, the
    likeliest counts. Loaded by `warm`, or at the first text. Thread-safe.

    Args:
        labels: the index of each label, and what its findings are called; the check's own category where empty.
    """

    def __init__(self, spec: ClassifierModel, weights: Weights, labels: Mapping[int, str]) -> None:
        self.name = spec.category
        self.categories = frozenset({spec.category})
        names = dict.fromkeys(f"{spec.category}.{name}" for name in labels.values() if name)
        self.finds = tuple(map(Findable, [spec.category, *names]))
        config = weights.config.problem_type
        self._many = config == MANY if spec.multi_label is None else spec.multi_label
        asked = [METHOD, spec.kind, weights.revision, spec.bits, sorted(labels.items()), self._many]
        self.revision = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self._spec = spec
        self._weights = weights
        self._labels = labels
        self._lock = Lock()
        self._running: Running | None = None

    def warm(self) -> Running:
        """Load the weights.

        Raises:
            PolicyError: they cannot be used.
        """
        with self._lock:
            if self._running is None:
                loaded, many = load_weights(self._weights), self._many
                batches = Batches(lambda rows: run_windows(loaded, rows, many), f"classifier-{self.name}")
                self._running = Running(loaded, batches, seams_of(loaded.tokenizer))
            return self._running

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of these."""
        return self._weights.is_replaced()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return what the likeliest window of a passage scores. Scores have four decimals.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than anybody waits.
            CannotAnswer: memory ran out, or a score is not a number.
        """
        if not passage.text.strip():
            return ()
        return in_every_reading(self._found, passage)

    def _found(self, readings: Sequence[Passage]) -> Sequence[Sequence[Finding]]:
        running = self.warm()
        texts = [neutral(readable(one.text), running.specials) for one in readings]
        until = due(readings[0].until, self._spec.timeout_s)
        with self._lock:  # a tokenizer that cuts texts off may not be used by two threads at once
            cut = [windows_of(running.loaded, text) for text in texts]
        who, rows = f"the {self._spec.kind}", [Row(ids) for windows in cut for ids, _ in windows]
        found = iter(run_in_time(running.batches, rows, until, who, f"{who} of '{self.name}'"))
        each = [[(place, next(found)) for _, place in windows] for windows in cut]
        return [self._findings(*one) for one in zip(readings, texts, each, strict=True)]

    def _findings(self, passage: Passage, text: str, windows: Sequence[tuple[tuple[int, int], Any]]) -> list[Finding]:
        best: dict[str, tuple[float, Span]] = {}
        for (start, end), probabilities in windows:
            # Where something was put between its characters, nobody knows the places any more.
            length = len(passage.text)
            span = Span(passage.part, start, end) if len(text) == length else Span(passage.part, 0, length)
            for name, score in self._scores(probabilities).items():
                if name not in best or score > best[name][0]:
                    best[name] = score, span
        return [Finding(self.name, name, round(score, 4), (span,)) for name, (score, span) in best.items()]

    def _scores(self, probabilities: Any) -> Mapping[str, float]:
        chosen = {index: float(probabilities[index]) for index in self._labels}
        refuse_nan(chosen.values(), f"the {self._spec.kind} of '{self.name}'")
        together = max(chosen.values()) if self._many else min(1.0, sum(chosen.values()))
        scores = {self.name: together}
        for index, name in self._labels.items():
            if name:
                full = f"{self.name}.{name}"
                other = scores.get(full, 0.0)
                scores[full] = max(other, chosen[index]) if self._many else min(1.0, other + chosen[index])
        return scores


def open_classifier(spec: ClassifierModel) -> ClassifierModelCheck:
    """Make the check for a sequence classifier; its weights are found, and not loaded yet.

    Raises:
        PolicyError: the weights are not there, are no classifier's, have no such label, or nobody says how their
            labels are to be read.
    """
    weights = find_weights(f"the classifier of '{spec.category}'", spec.model, spec.bits, spec.origin)
    if not weights.architecture.endswith(SUFFIX):
        has = weights.architecture or "no architecture in its config.json"
        raise weights.refused(f"it is {has}, and no …{SUFFIX}; choose a sequence classifier")
    known = {str(name): int(index) for index, name in weights.config.id2label.items()}
    if spec.kind == "prompt-guard-2":
        return ClassifierModelCheck(spec, weights, _attack(spec, weights, known))
    if not spec.labels:
        told = f"it has the labels {', '.join(known)}; name under `labels` those that speak for '{spec.category}'"
        raise weights.refused(told)
    problems = [
        Problem(spec.origin, f"{weights.who}: {spec.model} has no label '{one.label}'{did_you_mean(one.label, known)}")
        for one in spec.labels
        if one.label not in known
    ]
    if problems:
        raise PolicyError(problems)
    several = len(spec.labels) > 1 or len(known) > 2
    if several and spec.multi_label is None and weights.config.problem_type is None:
        told = "whether a text may have several of its labels, its config.json does not say (`problem_type`)"
        raise weights.refused(f"{told}; say `multi_label: true` where it may, `false` where they exclude each other")
    return ClassifierModelCheck(spec, weights, {known[one.label]: one.category or "" for one in spec.labels})


def windows_of(loaded: Loaded, text: str) -> Sequence[tuple[Sequence[int], tuple[int, int]]]:
    """Return the windows of a text: their tokens, with special ones, and the stretch of the text that each reads."""
    width = min(LONGEST, loaded.longest)
    read = loaded.tokenizer(
        text,
        truncation=True,
        max_length=width,
        stride=min(SHARED, width // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for ids, offsets in zip(read["input_ids"], read["offset_mapping"], strict=True):
        places = [place for place in offsets if place[1] > place[0]]
        found.append((ids, (places[0][0], places[-1][1]) if places else (0, len(text))))
    return found


def run_windows(loaded: Loaded, rows: Sequence[Row], many: bool) -> Sequence[Any]:
    """Return the probabilities (labels,) of each row, in one pass."""
    import torch

    network = loaded.network
    ids, mask = padded(rows, loaded.tokenizer.pad_token_id or 0)
    with torch.inference_mode():
        logits = network(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).logits  # (B, labels)
        logits = logits.float().cpu()
        return list(logits.sigmoid() if many or logits.shape[-1] == 1 else logits.softmax(-1))


def _attack(spec: ClassifierModel, weights: Weights, known: Mapping[str, int]) -> Mapping[int, str]:
    if spec.labels or spec.multi_label is not None:
        what = "`labels` and `multi_label` are known for prompt-guard-2"
        raise weights.refused(f"{what}; leave them out, or say `kind: classifier-model`")
    index = next((known[name] for name in ATTACK if name in known), None)
    if len(known) != 2 or index != 1:
        fitting = f"two, the second called {' or '.join(ATTACK)}"
        told = f"it has the labels {', '.join(known)}, and Prompt Guard 2 has {fitting}"
        raise weights.refused(f"{told}; say `kind: classifier-model`")
    return {index: ""}
