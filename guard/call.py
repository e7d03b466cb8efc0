"""One call of something that answers in text, step by step: judge, run, judge, remember. Knows no framework.

`@guarded` and the hooks for other people's frameworks put these steps around calls of their own kind.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self, get_args

from anyio import CancelScope, to_thread

from ringfence.guard.audit.store import Store
from ringfence.guard.exchange import Exchange, Kind, Part, Path, compose, image_part, words
from ringfence.guard.guard import Blocked, Guard
from ringfence.guard.images import address_of
from ringfence.policies.load import load_policy
from ringfence.policies.types import Action, Policy
from ringfence.policies.words import Role

OnBlock = Literal["raise", "return"]


def refuse_other(on_block: str) -> None:
    """Raise ValueError of a word that says nothing of what to do where something is blocked."""
    if on_block not in get_args(OnBlock):
        raise ValueError(f"on_block is 'raise' or 'return', and not {on_block!r}")


REPLY = ("reply",)

SHORT = 64
"""Characters of what may be words, whatever it is the end of."""

MEDIA = frozenset(
    {
        "audio",
        "document",
        "file",
        "image",
        "image_url",
        "input_audio",
        "input_file",
        "input_image",
        "media",
        "video",
        "video_url",
    }
)
"""Kinds of content that hold what no check reads, by the names that APIs and frameworks have for them."""

INLINE = frozenset({"inline_data", "inlineData", "file_data", "fileData"})
"""Fields that make content media where it has no `type`: Google's."""

GIVEN = frozenset({"args", "arguments", "function_call", "input", "tool_calls"})
"""Fields below which a tool's own words stand, whose `type` is no kind of content."""

LETTERS = frozenset({"data", "image_url", "url"})
"""Fields of an image that hold the letters that it is written in."""

FIELDS = frozenset(
    {
        "additional_kwargs",
        "annotations",
        "audio",
        "content",
        "function_call",
        "id",
        "name",
        "parts",
        "reasoning",
        "reasoning_content",
        "refusal",
        "response_metadata",
        "role",
        "tool_call_id",
        "tool_calls",
        "type",
        "usage_metadata",
    }
)
"""Fields of a message whose names are the API's or the framework's own; of any other the name is text, too."""


def open_guard(policy: Guard | Policy | FilePath | str | None) -> Guard:
    """Return the guard as it is, or one by this policy whose records go where the policy says.

    Raises:
        PolicyError, UnknownCheck: the policy is wrong.
        StoreError: its audit log cannot be opened.
    """
    if isinstance(policy, Guard):
        return policy
    settled = policy if isinstance(policy, Policy) else load_policy(FilePath(policy) if policy else None)
    return Guard(settled, store=Store.open(FilePath(settled.audit.path)))


class Call:
    """One call: its exchange, from the prompt to the record, which is kept when the `with` ends.

    Args:
        prompt: a string, or a list of messages with `role` and `content`; every text in them is judged, and what is
            neither text nor JSON counts as a field that nobody reads.
        name: what the prompt is called in the record.
        model: who answers, for the record.

    Raises:
        TypeError: the prompt is neither.
    """

    def __init__(self, guard: Guard, prompt: object, *, name: str = "prompt", model: str = "") -> None:
        self._guard = guard
        self._name = name
        self._exchange = Exchange(dialect="python", model=model, request=_parts(name, prompt), body={name: prompt})
        self._reply = guard.open_reply(self._exchange)
        self._started = perf_counter()

    def admit(self) -> Any:
        """Judge the prompt and return it, rewritten where that is asked for.

        Raises:
            Blocked: it must not be answered.
        """
        decision = self._guard.judge_request(self._exchange)
        if decision.action is Action.BLOCK:
            raise Blocked(decision, self._exchange.id)
        return self._exchange.body[self._name]

    def release(self, text: object, *, last: bool = False) -> str:
        """Judge some more of the reply and return what may leave; nothing once it was stopped.

        Raises:
            TypeError: it is not text.
        """
        if not isinstance(text, str):
            raise TypeError(f"{self._exchange.model} gave {type(text).__name__}, not text")
        self._reply.feed(REPLY, text)
        return self._reply.release(REPLY, last=last)

    def release_whole(self, body: Any, where: str) -> Any:
        """Judge what came whole beside the text (calls of tools, say) and return it, rewritten where that is asked for.

        Args:
            body: JSON values.
            where: what it is called in the record.

        Raises:
            Blocked: it must not leave, nor anything after it.
        """
        found = [(path, text) for path, text in words(body) if text]
        if not found:
            return body
        body = self._reply.release_whole(compose(Kind.TOOL_CALL, "assistant", (*REPLY, where), found), body)
        self.stop_if_blocked()
        return body

    @property
    def stopped(self) -> bool:
        """Whether the policy ended the reply."""
        return self._reply.stopped is not None

    def stop_if_blocked(self) -> None:
        """Raise once the reply was stopped; what was judged before that has been released."""
        if self._reply.stopped:
            raise Blocked(self._reply.stopped, self._exchange.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, GeneratorExit):
            self._exchange.error = "the caller stopped reading"
        elif error is not None and not isinstance(error, Blocked):
            self._exchange.error = type(error).__name__  # its words may quote anything
        self._reply.finish()
        self._exchange.timings["total_s"] = perf_counter() - self._started
        self._guard.record(self._exchange)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with CancelScope(shield=True):  # a cancelled call is on record like any other
            await to_thread.run_sync(self.__exit__, kind, error, trace)


def _parts(name: str, value: object) -> list[Part]:
    if isinstance(value, str):
        return [Part(Kind.TEXT, "user", (name,), value)]
    if isinstance(value, list | tuple) and value and all(isinstance(message, dict) for message in value):
        return [part for index, message in enumerate(value) for part in _message_parts(message, (name, index))]
    raise TypeError(f"'{name}' must be a string or a list of messages, got {type(value).__name__}")


def _message_parts(message: Mapping[str, Any], path: Path) -> Iterator[Part]:
    role = str(message.get("role", "user"))
    if role not in get_args(Role):
        yield Part(Kind.TEXT, "setting", (*path, "role"), role)
    for key, value in message.items():
        at, others = (*path, key), list[Part]()
        if key == "content" and isinstance(value, list | tuple):
            texts = [(where, text) for where, text in _texts(value, at) if text]
            if texts:  # judged as one: whoever cut a word in two must not get past
                yield compose(Kind.TEXT, role, at, texts, seam="")
            beside = ((_beside_text(item), (*at, index)) for index, item in enumerate(value))
            found = [one for item, place in beside for one in _read(item, role, place, others)]
        else:
            found = list(_read(value, role, at, others, media=key not in GIVEN))
        if key not in FIELDS:
            found.insert(0, (None, str(key)))
        if key != "role" and (found := [(where, text) for where, text in found if text]):
            yield compose(Kind.TEXT if key == "content" else Kind.TOOL_CALL, role, at, found, seam="\n")
        yield from others


def _texts(content: Sequence[object], path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the texts of a message that is in several pieces."""
    for index, item in enumerate(content):
        match item:
            case str():
                yield (*path, index), item
            case {"type": "text", "text": str(text)}:
                yield (*path, index, "text"), text


def _beside_text(item: object) -> object:
    """Return what `_texts` leaves of one piece."""
    match item:
        case str():
            return None
        case {"type": "text", "text": str(), **rest}:
            return rest or None
    return item


def _read(
    value: object, role: str, path: Path, others: list[Part], *, media: bool = True, letters: str = ""
) -> Iterator[tuple[Path | None, str]]:
    """Yield the words below a value as `words` does; add to `others` what nobody reads.

    Args:
        media: whether there may be any.
        letters: the address of the image that this is part of, which holds it; no text.
    """
    if isinstance(value, Mapping):
        if media and _is_media(value):
            others.append(image_part(role, path, address_of(value)))
            letters, media = (image.url if (image := others[-1].image) else ""), False
        for key, item in value.items():
            yield None, str(key)
            yield from _read(item, role, (*path, key), others, media=media and key not in GIVEN, letters=letters)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _read(item, role, (*path, index), others, media=media, letters=letters)
    elif isinstance(value, str):
        if not (path[-1] in LETTERS and len(value) > SHORT and letters.endswith(value)):
            yield from words(value, path)
    elif isinstance(value, int | float):
        yield from words(value, path)
    elif value is not None:
        others.append(Part(Kind.UNKNOWN, role, path))


def _is_media(value: Mapping[Any, Any]) -> bool:
    kind = value.get("type")
    return (isinstance(kind, str) and kind in MEDIA) or any(value.get(name) is not None for name in INLINE)
