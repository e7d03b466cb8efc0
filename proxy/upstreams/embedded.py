"""The embedded engine as an upstream: messages in, text out, computed on the engine's own thread.

The only place that knows both the engine (token ids) and an exchange (messages). Another engine changes this file and
nothing above it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringfence.guard.exchange import Exchange
from ringfence.model.chat import Chat, Detokenizer, TemplateRefused
from ringfence.model.engine import ContextOverflow
from ringfence.model.grammar import Grammar, Grammars
from ringfence.model.loading import load
from ringfence.model.sampler import BrokenLogits, OutOfBounds, Sampling, SamplingError
from ringfence.model.sequence import Advance
from ringfence.model.service import EngineEnded, Service
from ringfence.model.weights import DEFAULT, identity, locate
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.reply import About, Event, Finish, Likelihoods, Text, UpstreamError
from ringfence.proxy.wire.body import BadRequest

if TYPE_CHECKING:
    from ringfence.model.stock import StockService

MAX_NEW_TOKENS = 512
"""Where the caller sets no limit: a small model that has lost the thread does not find its end by itself."""

CHOICES = 8
"""Replies to one prompt at most."""

STOPS, STOP_LENGTH = 16, 200
"""Strings that may stop a reply, and characters of each: all are looked for at every token."""


def open_upstream(choice: UpstreamChoice) -> "EmbeddedUpstream":
    """Load the engine that stands after `embedded:`, by a name or as a folder; the default one where nothing does.

    After it may stand `,draft=` and, in the same way, a smaller engine that guesses what it says.

    Raises:
        WeightsMissing: they were not pulled; the message says what to type.
        PullFailed: it names no engine.
        WeightsDamaged, NotEnoughMemory, TemplateRefused: it cannot be run, or cannot chat.
    """
    name, drafted, draft = choice.use.partition(":")[2].partition(",draft=")
    name = name or DEFAULT
    path = locate(name)
    smaller = locate(draft) if drafted else None
    chat = Chat.load(path)  # at once, where the weights may take minutes
    called = path.resolve().name if path == Path(name) else name  # callers need not know where it lies
    return EmbeddedUpstream(called, identity(path), load(path, draft=smaller), chat)


@dataclass(slots=True)
class Stops:
    """Text up to the first of some strings; what may be the beginning of one is held back."""

    strings: tuple[str, ...]
    met: bool = False
    _held: str = ""

    def feed(self, text: str) -> str:
        """Return what may be said of some more text; nothing once a string was met."""
        if self.met or not self.strings:
            return "" if self.met else text
        text = self._held + text
        ends = [at for string in self.strings if (at := text.find(string)) >= 0]
        self.met = bool(ends)
        said = min(ends) if ends else len(text) - max(self._begun(text, string) for string in self.strings)
        self._held = "" if self.met else text[said:]
        return text[:said]

    def close(self) -> str:
        """Return what was held back and turned out to be nothing."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _begun(text: str, string: str) -> int:
        """Return how much of a string the text ends with."""
        return next((size for size in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:size])), 0)


@dataclass(slots=True)
class Choice:
    """One reply under way.

    Attributes:
        leave: ends its sequence in the engine.
        said: its text so far.
        likely: the text of each token, and the logarithm of how likely it was, where that is asked for.
        reason: why it is over; None while it goes on.
    """

    index: int
    words: Detokenizer
    stops: Stops
    leave: Callable[[], None]
    tokens: int = 0
    said: str = ""
    likely: list[tuple[str, float]] = field(default_factory=list)
    reason: str | None = None

    def events(self, advance: Advance) -> Iterator[Event]:
        """Yield what a step adds to the reply."""
        for one in advance.chosen:
            self.tokens += 1
            piece = self.words.feed(one.token)
            if one.logprob is not None:
                self.likely.append((piece, one.logprob))
            yield self._text(self.stops.feed(piece))
            if self.stops.met:
                break
        if advance.end and not self.stops.met:
            yield self._text(self.stops.feed(self.words.close()))
            yield self._text(self.stops.close())
        if advance.end or self.stops.met:
            self.reason = "stop" if self.stops.met else advance.end
            self.leave()

    def likelihoods(self) -> Likelihoods:
        """Return how likely what it said was; not what a stop string cut off."""
        ends = accumulate(len(piece) for piece, _ in self.likely)
        told = [one for one, end in zip(self.likely, ends, strict=True) if end <= len(self.said)]
        return Likelihoods(self.index, self.said, told)

    def _text(self, text: str) -> Text:
        self.said += text
        return Text(self.index, "content", text)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks of the engine."""

    prompt: list[int]
    sampling: Sampling
    stops: tuple[str, ...]
    choices: int
    schema: Mapping[str, Any] | None = None

    def sampling_of(self, choice: int) -> Sampling:
        """Return how one of the replies is sampled: each with a seed of its own, where there is one."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) % (1 << 63))


class EmbeddedUpstream:
    """Generates on this machine, many exchanges at a time."""

    def __init__(self, name: str, revision: str, service: "Service | StockService", chat: Chat) -> None:
        self._name = name
        self._revision = revision
        self._service = service
        self._chat = chat

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        """Generate; closing the iterator ends the sequences at the next step."""
        exchange.revisions["engine"] = self._revision
        wish = await asyncio.to_thread(self._wish, exchange.body)  # a long text takes a while to be cut into tokens
        grammar = await self._grammar(wish.schema)
        loop, news = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Advance | Exception]]()

        def tell(index: int, said: Advance | Exception) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(news.put_nowait, (index, said))

        yield About({"model": self._name})
        choices: list[Choice] = []
        try:
            for index in range(wish.choices):
                own = grammar and grammar.copy()
                leave = self._service.submit(wish.prompt, wish.sampling_of(index), partial(tell, index), own)
                choices.append(Choice(index, self._chat.detokenizer(), Stops(wish.stops), leave))
            async for event in _texts(choices, news):
                yield event
        except ContextOverflow as error:
            raise BadRequest(str(error), param="messages", code="context_length_exceeded") from error
        except OutOfBounds as error:
            raise BadRequest(str(error), param=error.name) from error
        except ValueError as error:
            raise BadRequest(str(error)) from error
        except BrokenLogits as error:
            raise UpstreamError(str(error), status=502, code="engine_error") from error
        except SamplingError as error:
            raise BadRequest(str(error), param="response_format" if grammar else None) from error
        except EngineEnded as error:
            raise UpstreamError(str(error), status=503, code="engine_ended") from error
        finally:
            for choice in choices:
                choice.leave()
        said = sum(choice.tokens for choice in choices)
        yield About({"usage": _usage(len(wish.prompt), said)})
        for choice in choices:
            if wish.sampling.logprobs is not None:
                yield choice.likelihoods()
            yield Finish(choice.index, choice.reason or "stop")

    async def models(self, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the one model."""
        return [{"id": self._name, "object": "model", "created": 0, "owned_by": "ringfence"}]

    async def ready(self) -> str | None:
        """Say why not, where the engine has ended."""
        return self._service.problem()

    async def aclose(self) -> None:
        """Let the engine's thread go."""
        await asyncio.to_thread(self._service.close)

    def _wish(self, body: Mapping[str, Any]) -> Wish:
        messages = _messages(body, self._name)
        try:
            prompt = self._chat.render(messages)
        except TemplateRefused as error:
            raise BadRequest(str(error), param="messages") from error
        return Wish(prompt, _sampling(body), _stops(body), _choices(body), _schema(body))

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._chat.tokenizer, self._service.ends, self._service.vocabulary)

    async def _grammar(self, schema: Mapping[str, Any] | None) -> Grammar | None:
        if schema is None:
            return None
        try:
            return await asyncio.to_thread(lambda: self._grammars.json_schema(schema))
        except ValueError as error:
            raise BadRequest(str(error), param="response_format") from error


async def _texts(
    choices: list[Choice], news: "asyncio.Queue[tuple[int, Advance | Exception]]"
) -> AsyncGenerator[Event, None]:
    while not all(choice.reason for choice in choices):
        index, said = await news.get()
        if isinstance(said, Exception):
            raise said
        if said.error:
            raise said.error
        if not choices[index].reason:  # else it met a stop string, and a step more was taken
            for event in choices[index].events(said):
                yield event


def _usage(prompt: int, said: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _messages(body: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    if body["model"] != name:
        raise BadRequest(
            f"the model '{body['model']}' does not exist here; this engine runs '{name}'",
            param="model",
            code="model_not_found",
            status=404,
        )
    if body.get("tools"):
        raise BadRequest("the embedded model calls no tools", param="tools")
    return [(message["role"], _text(message, index)) for index, message in enumerate(body["messages"])]


def _text(message: Mapping[str, Any], index: int) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if any(item["type"] != "text" for item in content):
        raise BadRequest("the embedded model reads text only", param=f"messages[{index}].content")
    return "\n".join(item.get("text") or "" for item in content)


NUMBERS: Mapping[str, type] = {
    "temperature": float,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "top_k": int,
    "seed": int,
}


def _sampling(body: Mapping[str, Any]) -> Sampling:
    limit = given(body, "max_completion_tokens", given(body, "max_tokens", MAX_NEW_TOKENS))
    numbers = {name: body[name] for name in NUMBERS if body.get(name) is not None}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | NUMBERS[name]):
            raise BadRequest(f"{name} must be {'a whole' if NUMBERS[name] is int else 'a'} number", param=name)
    try:
        bias = {token_of(name): float(value) for name, value in given(body, "logit_bias", {}).items()}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise BadRequest("logit_bias must map token ids to numbers", param="logit_bias") from error
    logprobs = _logprobs(body)
    try:
        return Sampling(max_tokens=limit, logit_bias=bias, logprobs=logprobs, **numbers)
    except OutOfBounds as error:
        raise BadRequest(str(error), param=error.name) from error


def given(body: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """Return what a body says of a field, or what goes without saying; null says nothing."""
    return otherwise if body.get(name) is None else body[name]


def token_of(name: object) -> int:
    """Return the token id that a key stands for: digits, and nothing else that `int` takes."""
    if not (isinstance(name, str) and name.isascii() and name.isdigit()):
        raise ValueError(name)
    return int(name)


def _logprobs(body: Mapping[str, Any]) -> int | None:
    """Return how many tokens to tell beside each that is said: none; None where no probabilities are asked for."""
    wanted, others = given(body, "logprobs", False), given(body, "top_logprobs", 0)
    if not isinstance(wanted, bool):
        raise BadRequest("logprobs must be true or false", param="logprobs")
    if others is False or others != 0:
        raise BadRequest(
            "top_logprobs would tell words that the model did not say and that no check reads; "
            "logprobs alone tells of those that it said",
            param="top_logprobs",
        )
    return 0 if wanted else None


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    told = given(body, "stop", [])
    stops = (told,) if isinstance(told, str) else tuple(told) if isinstance(told, list) else None
    if stops is None or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest("stop must be a string or a list of strings, none of them empty", param="stop")
    if len(stops) > STOPS or any(len(stop) > STOP_LENGTH for stop in stops):
        raise BadRequest(f"stop takes up to {STOPS} strings of up to {STOP_LENGTH} characters", param="stop")
    return stops


def _choices(body: Mapping[str, Any]) -> int:
    count = given(body, "n", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= CHOICES:
        raise BadRequest(f"n must be a whole number between 1 and {CHOICES}", param="n")
    return count


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the JSON schema that a reply is held to; None for none."""
    match body.get("response_format"):
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case _:
            raise BadRequest(
                "response_format must be of type text, json_object, or json_schema with a schema in it",
                param="response_format",
            )
