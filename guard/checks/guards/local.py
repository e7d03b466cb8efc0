"""Runs a guard's own weights here. One pass over a prompt gives the verdict; nothing is sampled.

The prompt is followed by the beginning of an unsafe answer, up to where its first category stands: as every token only
sees those before it, one pass tells the probability of the words that decide and, behind them, that of each category.
What a model writes before the word that decides, it writes first, the likeliest token each time.
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
from ringfence.guard.checks.guards.batches import Batches, Row, due, padded
from ringfence.guard.checks.guards.check import GuardCheck
from ringfence.guard.checks.guards.family import LEAST, Family, Form, Judgement, Question, Turn, neutral, unfinished
from ringfence.guard.checks.guards.weights import (
    Loaded,
    Weights,
    find_weights,
    load_processor,
    load_weights,
    run_in_time,
)
from ringfence.guard.images import opened
from ringfence.guard.unicode import readable
from ringfence.policies.own import GuardModel

log = logging.getLogger(__name__)

LONGEST_END = 40
"""Tokens: one a character would do for `"Response Safety": "`, and for everything else that is waited for."""


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
        processor: makes inputs of a prompt with an image; None where it is shown none.
    """

    loaded: Loaded
    batches: Batches[Any]
    specials: re.Pattern[str]
    processor: Any = None


class LocalGuard:
    """The verdicts of weights that run here. Thread-safe; loaded by `warm`, or at the first question.

    Args:
        images: whether it is shown images.
    """

    def __init__(self, family: Family, weights: Weights, timeout_s: float, images: bool = False) -> None:
        self._family = family
        self._images = images
        self._weights = weights
        self._timeout_s = timeout_s
        self._lock = Lock()
        self._running: Running | None = None
        self._read: dict[tuple[Form, tuple[str, ...]], Reading] = {}

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
                processor = load_processor(self._weights) if self._images else None
                loaded = load_weights(self._weights)
                if self._family.templated and not loaded.tokenizer.chat_template:
                    raise self._weights.refused("its tokenizer has no chat template; download the model anew")
                if not words_as_its_own(loaded.tokenizer, self._family):
                    what = "the chat template that came with %s words the prompt otherwise than %s, which is followed"
                    log.warning(what, self._weights.model, self._family.name)
                batches = Batches(lambda rows: run_rows(loaded, rows), f"guard-{self._family.name}")
                self._running = Running(loaded, batches, seams_of(loaded.tokenizer), processor)
            return self._running

    def away(self) -> None:
        """It is here."""

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of these."""
        return self._weights.is_replaced()

    def clear(self, text: str) -> str:
        """Return a text without what the family or the tokenizer takes for control tokens."""
        return neutral(neutral(readable(text), self._family.seams), self.warm().specials)

    def judge(self, questions: Sequence[Question], codes: Sequence[str], until: float | None) -> Sequence[Judgement]:
        """Answer questions; see `Oracle`."""
        self.warm()  # before the clock starts: loading takes long
        until = due(until, self._timeout_s)
        rows, readings = [], []
        for question in questions:
            form = question.form or self._family.form
            reading = self.reading(form, () if question.code else tuple(codes))
            ids, shown = self.encode(question)
            prompt = self._fitting(ids)
            if form.until:
                prompt = self._written(prompt, form.until, until)
            ids = self._fitting([*prompt, *reading.list])
            rows.append(Row(ids, (len(prompt) - 1, len(ids) - 1), shown=shown))
            readings.append(reading)
        return [self._judged(reading, row) for reading, row in zip(readings, self._run(rows, until), strict=True)]

    def _run(self, rows: Sequence[Row], until: float) -> Sequence[Any]:
        name = self._family.name
        return run_in_time(self.warm().batches, rows, until, name, name)

    def _fitting(self, ids: Sequence[int]) -> Sequence[int]:
        longest = self.warm().loaded.longest
        if len(ids) > longest:
            what = f"the text is longer than the {longest:,} tokens that {self._family.name} reads"
            raise CannotAnswer(f"{what}; lower `limits.text`, or have the rule's `on_error` settle it")
        return ids

    def _written(self, prompt: Sequence[int], ending: str, until: float) -> Sequence[int]:
        """Return a prompt and what the model writes behind it, up to where the deciding word comes."""
        longest = self._family.longest
        ids: Sequence[int] = self._run([Row(prompt, (), ending, longest, until)], until)[0]
        fresh = ids[len(prompt) :]
        if end_of(self.warm().loaded, fresh).endswith(ending):
            return ids
        raise unfinished(self._family) if self._family.reasons and len(fresh) >= longest else self._other()

    def _other(self) -> CannotAnswer:
        what = f"{self._weights.model} does not answer as a {self._family.name} does"
        return CannotAnswer(f"{what}; check `model` and `kind` in the policy")

    def encode(self, question: Question) -> tuple[Sequence[int], Any]:
        """Return the tokens of a prompt, up to where the deciding word comes, and the pixels (tiles, 3, H, W) in it."""
        text = f"{self._family.opens}{question.prompt}"
        if question.prompt is None:
            tokenizer = self.warm().loaded.tokenizer
            text = tokenizer.apply_chat_template(question.messages, tokenize=False, add_generation_prompt=True)
        text = f"{text}{self._family.begins}"
        if question.image is None:
            return self._tokens(text), None
        running = self.warm()
        made = running.processor(
            text=[text], images=[opened(question.image)], add_special_tokens=False, return_tensors="pt"
        )
        return made["input_ids"][0].tolist(), made["pixel_values"]

    def reading(self, form: Form, codes: tuple[str, ...]) -> Reading:
        """Return which tokens decide, and name these categories.

        Raises:
            PolicyError: the tokenizer does not tell the words that decide apart by one token.
        """
        if (form, codes) not in self._read:
            self._read[form, codes] = self._reading_of(form, codes)
        return self._read[form, codes]

    def _reading_of(self, form: Form, codes: tuple[str, ...]) -> Reading:
        family = self._family
        lead = form.until or family.begins
        first = {word: self._behind(lead, word)[0] for word in (family.safe, *family.unsafe)}
        if len(set(first.values())) < len(first):
            raise self._weights.refused(f"its tokenizer does not tell {', '.join(map(repr, first))} apart by one token")
        unsafe = {word: first[word] for word in family.unsafe}
        if form.lists is None or not codes:
            return Reading(first[family.safe], unsafe, (), {})
        spelt = {code: self._behind(lead, f"{form.lists}{code}") for code in codes}
        shared = min(_shared(list(spelt.values())), min(map(len, spelt.values())) - 1)
        named = {code: ids[shared] for code, ids in spelt.items()}
        return Reading(first[family.safe], unsafe, next(iter(spelt.values()))[:shared], named)

    def _behind(self, lead: str, text: str) -> list[int]:
        """Return the tokens of a text behind another: some tokenizers read the beginning of a text otherwise."""
        before, whole = self._tokens(lead), self._tokens(f"{lead}{text}")
        if whole[: len(before)] != before or len(whole) == len(before):
            raise self._weights.refused(f"its tokenizer runs {lead!r} and {text!r} together")
        return whole[len(before) :]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.warm().loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _judged(self, reading: Reading, rows: Any) -> Judgement:
        verdict, listing = rows  # (V,) each
        unsafe = {word: float(verdict[token]) for word, token in reading.unsafe.items()}
        mass = float(verdict[reading.safe]) + sum(unsafe.values())
        if not mass >= LEAST:
            raise self._other()
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
    return GuardCheck(spec, family, LocalGuard(family, weights, spec.timeout_s, spec.images))


def run_rows(loaded: Loaded, rows: Sequence[Row]) -> Sequence[Any]:
    """Return the probabilities (positions, V) of what follows the positions of each row, in one pass.

    Of a row that is to be written on, its tokens and those written, each by itself; by itself, too, one with an image.
    """
    plain = iter(read_rows(loaded, [row for row in rows if not row.until and row.shown is None]))

    def one(row: Row) -> Any:
        if row.until:
            return write_row(loaded, row)
        return next(plain) if row.shown is None else read_rows(loaded, [row])[0]

    return list(map(one, rows))


def write_row(loaded: Loaded, row: Row) -> Sequence[int]:
    """Return a row with the tokens that the network writes behind it, the likeliest each time."""
    import torch
    from transformers import StoppingCriteriaList

    def ended(ids: Any, _: Any, **__: Any) -> Any:
        text = end_of(loaded, ids[0, len(row.ids) :].tolist())
        return torch.tensor([text.endswith(row.until)], device=ids.device)

    ids = torch.tensor([row.ids], device=loaded.network.device)
    stops: Any = [ended]
    with torch.inference_mode():
        written: list[int] = loaded.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=row.most,
            max_time=max(0.0, row.due - monotonic()),
            stopping_criteria=StoppingCriteriaList(stops),
            pad_token_id=0,
        )[0].tolist()
    return written


def end_of(loaded: Loaded, ids: Sequence[int]) -> str:
    """Return the end of a text, long enough for what any family's answer is written up to."""
    text: str = loaded.tokenizer.decode(ids[-LONGEST_END:], clean_up_tokenization_spaces=False)
    return text


def read_rows(loaded: Loaded, rows: Sequence[Row]) -> Sequence[Any]:
    """Return the probabilities (positions, V) of what follows the positions of each row, in one pass.

    What one is shown, all are.
    """
    import torch

    if not rows:
        return ()

    device = loaded.network.device
    shown = rows[0].shown
    pixels = {} if shown is None else {"pixel_values": shown.to(device, loaded.network.dtype)}
    ids, mask = padded(rows)
    wanted = sorted({at for row in rows for at in row.at})
    place = {at: number for number, at in enumerate(wanted)}
    with torch.inference_mode():
        logits = loaded.network(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_to_keep=torch.tensor(wanted, device=device),
            use_cache=False,
            **pixels,
        ).logits  # (B, positions of any row, V)
        return [
            logits[number, [place[at] for at in row.at]].float().softmax(-1).cpu() for number, row in enumerate(rows)
        ]


def words_as_its_own(tokenizer: Any, family: Family) -> bool:
    """Whether the chat template that came with a tokenizer, if one did, writes a family's prompt.

    White space around it counts for nothing, nor does whether it takes a message as text or as a list of parts.
    """
    if family.templated or not tokenizer.chat_template:
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
