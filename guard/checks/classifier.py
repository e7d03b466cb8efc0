"""The check that asks the guard model. Scores become findings; it knows no thresholds and loads late.

A text in disguise is judged in the clear as well, and each category has the worse of the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Protocol

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.checks.disguise import in_every_reading
from ringfence.guard.checks.model import Reader, shared_reader
from ringfence.guard.classifier.heads import HAZARDS
from ringfence.guard.classifier.scorer import PARTLY, Scores
from ringfence.policies.types import Stage

LEAST = 0.05
"""A hazard less likely than this is no finding."""

MOSTLY = 0.5
"""Share of a text's tokens that the model has no words for from which on the scores are told to say nothing."""


class Judge(Protocol):
    """What the check needs of a model."""

    @property
    def revision(self) -> str:
        """As `Scorer.revision`."""
        ...

    @property
    def reach(self) -> Mapping[str, tuple[float, float]]:
        """As `Scorer.reach`."""
        ...

    def score(self, text: str, prompt: str | None = None, until: float | None = None) -> Scores:
        """As `Scorer.score`."""
        ...


class ClassifierCheck:
    """Finds harm with its hazards, attacks, toxicity, and refusals in what an assistant says.

    Args:
        judge: the model; the shipped weights, loaded at the first passage, where None.
    """

    name = "classifier"
    categories = frozenset({"harm", "attack", "refusal", "toxicity"})
    finds = tuple(map(Findable, [*sorted(categories), *(f"harm.{hazard}" for hazard in HAZARDS)]))

    def __init__(self, judge: Judge | None = None) -> None:
        self._judge = judge
        self._reader: Reader | None = None
        self._lock = Lock()

    @property
    def revision(self) -> str:
        """The sha256 of the weights; loads them."""
        return self.warm().revision

    def warm(self) -> Judge:
        """Load the model now, so that the first passage does not wait for it."""
        with self._lock:
            if self._judge is None:
                self._reader = shared_reader()  # held, so that the next check does not load the model again
                self._judge = self._reader.scorer
            return self._judge

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of those that it has loaded."""
        return self._reader is not None and self._reader.is_replaced()

    def reach(self, category: str) -> tuple[float, float] | None:
        """Return the lowest and the highest score of the texts that the model was calibrated on; loads it."""
        heads = ("prompt_harm", "response_harm") if category == "harm" else (category,)
        known = [reach for head in heads if (reach := self.warm().reach.get(head))]
        return (min(low for low, _ in known), max(high for _, high in known)) if known else None

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Judge a passage: as a response where an assistant said it, else as a prompt. Scores have four decimals."""
        response = passage.stage is Stage.OUTPUT or passage.role == "assistant"
        prompt = passage.prompt if response else None
        judge = self.warm()

        def found(readings: Sequence[Passage]) -> Sequence[Iterator[Finding]]:
            return [findings(judge.score(one.text, prompt, one.until), one.part, response) for one in readings]

        return in_every_reading(found, passage)


def findings(scores: Scores, part: int, response: bool) -> Iterator[Finding]:
    """Yield what the scores say, and an error for each category where some of the text was not read."""
    harm = "response_harm" if response else "prompt_harm"
    foreign = f"in {scores.language}; the model knows little but English" if scores.language not in (None, "en") else ""
    if scores.unknown >= MOSTLY:
        foreign = "mostly in characters that the model does not know, which all look alike to it"
    span = {task: (Span(part, *place),) for task, place in scores.spans.items()}
    yield Finding("classifier", "harm", rounded(scores.harm), span[harm], foreign)
    for hazard, title in HAZARDS.items():
        score = rounded(scores.harm * scores.hazards[hazard])
        if score >= LEAST:
            yield Finding("classifier", f"harm.{hazard}", score, span[harm], title)
    tasks = ("attack", "toxicity", "refusal") if response else ("attack", "toxicity")
    for task in tasks:
        yield Finding("classifier", task, rounded(scores.tasks[task]), span[task], foreign)
    if scores.truncated:
        for category in ("harm", *tasks):
            yield Finding("classifier", category, 0.0, error=PARTLY)


def rounded(score: float) -> float:
    """Keep four decimals: what lies below them may differ from one processor to the next."""
    return round(score, 4)
