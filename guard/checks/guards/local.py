"""Runs a guard's own weights here. One pass over a prompt gives the verdict; nothing is generated, nothing sampled.

The prompt is followed by the beginning of an unsafe answer, up to where its first category stands: as every token only
sees those before it, one pass tells the probability of the words that decide and, behind them, that of each category.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any

from jinja2 import TemplateError

from ringfence.guard.check import CannotAnswer
from ringfence.guard.checks.guards.batches import Batches, Row, padded
from ringfence.guard.checks.guards.check import GuardCheck
from ringfence.guard.checks.guards.family import Family, Judgement, Question, Turn, neutral
from ringfence.guard.checks.guards.weights import LESS, Loaded, Weights, find_weights, load_weights, out_of_memory
from ringfence.policies.own import GuardModel

log = logging.getLogger(__name__)

LEAST = 0.001
"""The share of all probability that the deciding words must have: less, and the model does not answer as its family."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which tokens decide.

    Attributes:
        safe, unsafe: the first of each word.
        list: what stands between the prompt and the place where the first category is named; empty where none is.
        codes: the token of each category there; categories that begin with the same one share its probability, so
            that none is missed.
    """

    safe: int
    unsafe: Mapping[str, int]
    list: Sequence[int]
    codes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Running:
    """A guard that can be asked.

    Attributes:
        batches: give the probabilities (positions, V) of rows.
        specials: where the special tokens of its tokenizer come apart.
    """

    loaded: Loaded
    batches: Batches[Any]
    specials: re.Pattern[str]


class LocalGuard:
    """The verdicts of weights that run here. Thread-safe; loaded by `warm`, or at the first question."""

    def __init__(self, family: Family, weights: Weights, timeout_s: float) -> None:
        self._family = family
        self._weights = weights
        self._timeout_s = timeout_s
        self._lock = Lock()
        self._running: Running | None = None
        self._read: dict[tuple[str, ...], Reading] = {}

    @property
    def revision(self) -> str:
        """That of the weights."""
        return f"{self._weights.revision}/{self._weights.bits}"

    def warm(self) -> "Running":
        """Load the weights.

        Raises:
            PolicyError: they cannot be used.
        """
        with self._lock:
            if self._running is None:
                loaded = load_weights(self._weights)
                if not words_as_its_own(loaded.tokenizer, self._family):
                    what = "the chat template that came with %s words the prompt otherwise than %s, which is followed"
                    log.warning(what, self._weights.model, self._family.name)
                batches = Batches(lambda rows: run_rows(loaded, rows), f"guard-{self._family.name}")
                self._running = Running(loaded, batches, seams_of(loaded.tokenizer))
            return self._running

    def clear(self, text: str) -> str:
        """Return a text without what the family or the tokenizer takes for control tokens."""
        return neutral(neutral(text, self._family.seams), self.warm().specials)

    def judge(self, questions: Sequence[Question], codes: Sequence[str], until: float | None) -> Sequence[Judgement]:
        """Answer questions; see `Oracle`."""
        running = self.warm()
        soon = monotonic() + self._timeout_s
        until = soon if until is None else min(until, soon)
        rows, readings = [], []
        for question in questions:
            reading = self.reading(() if question.code else tuple(codes))
            prompt = self.encode(question)
            if len(prompt) + len(reading.list) > running.loaded.longest:
                what = f"the text is longer than the {running.loaded.longest:,} tokens that {self._family.name} reads"
                raise CannotAnswer(f"{what}; lower `limits.text`, or have the rule's `on_error` settle it")
            last = len(prompt) - 1
            ids = [*prompt, *reading.list]
            rows.append(Row(ids, (last, len(ids) - 1)))
            readings.append(reading)
        try:
            found = running.batches.run(rows, until)
        except TimeoutError:
            raise TimeoutError(
                f"{self._family.name} gave no verdict in time (timeout_s, or the rule's seconds)"
            ) from None
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise CannotAnswer(f"{self._family.name} ran out of memory; {LESS}") from None
        return [self._judged(reading, rows) for reading, rows in zip(readings, found, strict=True)]

    def encode(self, question: Question) -> Sequence[int]:
        """Return the tokens of a prompt, up to where the deciding word comes."""
        text = f"{self._family.opens}{question.prompt}{self._family.begins}"
        ids: list[int] = self.warm().loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def reading(self, codes: tuple[str, ...]) -> Reading:
        """Return which tokens decide, and name these categories.

        Raises:
            PolicyError: the tokenizer does not tell the words that decide apart by one token.
        """
        self.warm()
        if codes not in self._read:
            self._read[codes] = self._reading_of(codes)
        return self._read[codes]

    def _reading_of(self, codes: tuple[str, ...]) -> Reading:
        family = self._family
        first = {word: self._tokens(word)[0] for word in (family.safe, *family.unsafe)}
        if len(set(first.values())) < len(first):
            raise self._weights.refused(f"its tokenizer does not tell {', '.join(map(repr, first))} apart by one token")
        unsafe = {word: first[word] for word in family.unsafe}
        if family.lists is None or not codes:
            return Reading(first[family.safe], unsafe, (), {})
        spelt = {code: self._tokens(f"{family.lists}{code}") for code in codes}
        shared = min(_shared(list(spelt.values())), min(map(len, spelt.values())) - 1)
        named = {code: ids[shared] for code, ids in spelt.items()}
        return Reading(first[family.safe], unsafe, next(iter(spelt.values()))[:shared], named)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.warm().loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _judged(self, reading: Reading, rows: Any) -> Judgement:
        verdict, listing = rows  # (V,) each
        unsafe = {word: float(verdict[token]) for word, token in reading.unsafe.items()}
        mass = float(verdict[reading.safe]) + sum(unsafe.values())
        if not mass >= LEAST:
            what = f"{self._weights.model} does not answer as a {self._family.name} does"
            raise CannotAnswer(f"{what}; check `model` and `kind` in the policy")
        codes = {code: float(listing[token]) for code, token in reading.codes.items()}
        return Judgement({word: one / mass for word, one in unsafe.items()}, codes)


def open_local(spec: GuardModel, family: Family) -> GuardCheck:
    """Make the check for a guard that runs here; its weights are found, and not loaded yet.

    Raises:
        PolicyError: they are not there, or of another architecture than the family's.
    """
    who = f"the guard of '{spec.category}'"
    weights = find_weights(who, spec.model, spec.bits, spec.origin)
    if weights.architecture not in family.architectures:
        wanted = " or ".join(sorted(family.architectures))
        has = weights.architecture or "no architecture in its config.json"
        raise weights.refused(f"it is {has}, and {family.name} is {wanted}; check `model` and `kind`")
    return GuardCheck(spec, family, LocalGuard(family, weights, spec.timeout_s))


def run_rows(loaded: Loaded, rows: Sequence[Row]) -> Sequence[Any]:
    """Return the probabilities (positions, V) of what follows the positions of each row, in one pass."""
    import torch

    device = loaded.network.device
    ids, mask = padded(rows)
    wanted = sorted({at for row in rows for at in row.at})
    place = {at: number for number, at in enumerate(wanted)}
    with torch.inference_mode():
        logits = loaded.network(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_to_keep=torch.tensor(wanted, device=device),
            use_cache=False,
        ).logits  # (B, positions of any row, V)
        return [
            logits[number, [place[at] for at in row.at]].float().softmax(-1).cpu() for number, row in enumerate(rows)
        ]


def words_as_its_own(tokenizer: Any, family: Family) -> bool:
    """Whether the chat template that came with a tokenizer, if one did, writes a family's prompt.

    White space around it counts for nothing, nor does whether it takes a message as text or as a list of parts.
    """
    if not tokenizer.chat_template:
        return True
    codes = family.default or tuple(family.categories)
    said = (Turn("user", "What?"), Turn("assistant", "That."))
    question = family.ask(said, {code: family.categories[code] for code in codes})[0]
    guideline = family.categories[question.code].answered if question.code else ""
    for parts in (False, True):
        texts = [[{"type": "text", "text": turn.text}] if parts else turn.text for turn in said]
        messages = [{"role": turn.role, "content": text} for turn, text in zip(said, texts, strict=True)]
        try:
            own = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, guideline=guideline
            )
        except (TemplateError, TypeError, ValueError):
            continue
        if own.strip() == f"{family.opens}{question.prompt}".strip():
            return True
    return False


def seams_of(tokenizer: Any) -> re.Pattern[str]:
    """Return where the special tokens of a tokenizer come apart: after their first character."""
    specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    specials |= set(tokenizer.all_special_tokens)
    parts = [f"{re.escape(one[0])}(?={re.escape(one[1:])})" for one in sorted(specials) if len(one) > 1]
    return re.compile("|".join(parts) or r"(?!)")


def _shared(spelt: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all of them begin with."""
    length = 0
    for column in zip(*spelt, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
