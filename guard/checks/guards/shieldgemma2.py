"""ShieldGemma 2 (4B, of Gemma 3), run here: whether an image violates each of three policies. It reads no texts.

The processor that comes with it words the question, the policies included; the network gives the probability of `Yes`,
the image violates the policy, against that of `No`. Sources: its model card, and transformers, which has both classes.
Google gives out no form of it that a chat server would ask in these words.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ringfence.guard.check import Findable, Finding, Form, Passage, Span, refuse_nan
from ringfence.guard.checks.guards.batches import Batches, Row, due
from ringfence.guard.checks.guards.check import refuse_without_pillow
from ringfence.guard.checks.guards.hazards import below
from ringfence.guard.checks.guards.weights import (
    Loaded,
    Weights,
    find_weights,
    load_processor,
    load_weights,
    run_in_time,
)
from ringfence.guard.classifier.heads import HAZARDS
from ringfence.guard.images import opened
from ringfence.policies.own import ClassifierModel
from ringfence.policies.types import Stage

KIND = "shieldgemma-2"

METHOD = 1
"""Part of a check's revision: raised when the same weights come to score otherwise."""

ARCHITECTURE = "ShieldGemma2ForImageClassification"

POLICIES = ("dangerous", "sexual", "violence")


@dataclass(frozen=True, slots=True)
class Running:
    """The network behind its queue, which gives the scores of images by policy."""

    loaded: Loaded
    batches: Batches[Mapping[str, float]]


class ShieldGemma2Check:
    """Reports how surely an image violates a policy: the worst by the check's category, each policy below it.

    Loaded by `warm`, or at the first image. Thread-safe.
    """

    reads: frozenset[Form] = frozenset({"image"})

    def __init__(self, spec: ClassifierModel, weights: Weights) -> None:
        self.name = spec.category
        self.categories = frozenset({spec.category})
        self._below = {policy: f"{spec.category}.{below(KIND, policy, own=False)}" for policy in POLICIES}
        self.finds = tuple(Findable(name, stages=(Stage.INPUT,)) for name in (spec.category, *self._below.values()))
        asked = [METHOD, KIND, weights.revision, spec.bits, self._below]
        self.revision = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self._spec = spec
        self._weights = weights
        self._lock = Lock()
        self._running: Running | None = None

    def warm(self) -> Running:
        """Load the weights.

        Raises:
            PolicyError: they cannot be used.
        """
        with self._lock:
            if self._running is None:
                processor, loaded = load_processor(self._weights), load_weights(self._weights)
                run = Batches(lambda rows: [scores_of(loaded, processor, row.shown) for row in rows], f"guard-{KIND}")
                self._running = Running(loaded, run)
            return self._running

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of these."""
        return self._weights.is_replaced()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return what an image scores. Scores have four decimals; spans are empty.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than anybody waits.
            CannotAnswer: memory ran out, or a score is not a number.
        """
        if passage.image is None:
            return ()
        running = self.warm()  # before the clock starts: loading takes long
        until = due(passage.until, self._spec.timeout_s)
        row = Row((), shown=opened(passage.image))
        who = f"the {KIND} of '{self.name}'"
        (scores,) = run_in_time(running.batches, [row], until, KIND, who)
        refuse_nan(scores.values(), who)
        span = (Span(passage.part, 0, 0),)
        found = {self.name: max(scores.values())} | {self._below[policy]: score for policy, score in scores.items()}
        return [
            Finding(self.name, name, round(score, 4), span, HAZARDS.get(name.removeprefix(f"{self.name}."), ""))
            for name, score in found.items()
        ]


def open_shieldgemma_2(spec: ClassifierModel) -> ShieldGemma2Check:
    """Make the check for ShieldGemma 2; its weights are found, and not loaded yet.

    Raises:
        PolicyError: the weights are not there, or another model's; Pillow is not; or the policy names labels.
    """
    who = f"the guard of '{spec.category}'"
    refuse_without_pillow(who, spec.origin)
    weights = find_weights(who, spec.model, spec.bits, spec.origin)
    if weights.architecture != ARCHITECTURE:
        has = weights.architecture or "no architecture in its config.json"
        raise weights.refused(f"it is {has}, and {KIND} is {ARCHITECTURE}; check `model` and `kind`")
    if spec.labels or spec.multi_label is not None:
        raise weights.refused(f"`labels` and `multi_label` are known for {KIND}; leave them out")
    return ShieldGemma2Check(spec, weights)


def scores_of(loaded: Loaded, processor: Any, picture: Any) -> Mapping[str, float]:
    """Return the probability that a picture violates each policy, in one pass over as many prompts."""
    import torch

    network = loaded.network
    inputs = processor(images=[picture], policies=list(POLICIES), return_tensors="pt")
    with torch.inference_mode():
        output = network(**inputs.to(network.device, dtype=network.dtype))
    yes: list[float] = output.probabilities[:, 0].float().tolist()  # (policies, Yes and No)
    return dict(zip(POLICIES, yes, strict=True))
