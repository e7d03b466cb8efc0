"""LangChain: a guard around a model or a chain, itself a Runnable. Knows messages and strings, and no provider."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path as FilePath
from typing import Any, cast

from anyio import to_thread
from langchain_core.callbacks import CallbackManager
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import patch_config

from ringfence.guard.call import MEDIA, Call, OnBlock, open_guard, refuse_other
from ringfence.guard.guard import Blocked, Guard
from ringfence.policies.types import Policy

Prompt = str | list[dict[str, Any]]

NOT_SAID = {
    "artifact",
    "chunk_position",
    "example",
    "id",
    "response_metadata",
    "status",
    "type",
    "usage_metadata",
}
"""Fields of a message that no model is sent."""

ROLES = {"ai": "assistant", "human": "user"}
"""Roles as policies name them, by the names of LangChain; the others are called the same."""


def guarded_runnable(
    runnable: Runnable[Any, Any],
    *,
    policy: Guard | Policy | FilePath | str | None = None,
    on_block: OnBlock = "raise",
    model: str | None = None,
) -> "GuardRunnable":
    """Return a Runnable that judges what goes into another and what comes out of it, with one record of each call.

    Takes what a model takes (a string, messages, the value of a prompt template) and dictionaries of strings; gives
    what the other gives: text, or the assistant's message. Works in a chain: `prompt | guarded_runnable(llm) | parser`.

    Args:
        runnable: a chat model, with its tools bound, a language model, or a chain that ends in one or in text.
        policy: a policy or the path of one, None for the one that ships; or a `Guard`, to share one.
        on_block: `raise` raises `Blocked`; `return` gives the policy's message as the reply, or at the end of it.
        model: the name that the record carries; None for the other's own.

    Raises:
        ValueError: `on_block` is another word.
    """
    refuse_other(on_block)
    return GuardRunnable(runnable, open_guard(policy), on_block, model or runnable.get_name())


class GuardRunnable(Runnable[Any, Any]):
    """See `guarded_runnable`.

    The other runs without the callbacks of the chain: what they were told of its text, nobody would have judged.
    """

    def __init__(self, bound: Runnable[Any, Any], guard: Guard, on_block: OnBlock, model: str) -> None:
        self._bound = bound
        self._guard = guard
        self._on_block = on_block
        self._model = model

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Answer once."""
        return self._call_with_config(partial(self._invoke, **kwargs), input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Answer once."""
        return await self._acall_with_config(partial(self._ainvoke, **kwargs), input, config)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Answer piece by piece, each as soon as it was judged."""
        source = iter([input])
        yield from self._transform_stream_with_config(source, partial(self._stream, **kwargs), config)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Answer piece by piece, each as soon as it was judged."""

        async def source() -> AsyncIterator[Any]:
            yield input

        answers = self._atransform_stream_with_config(source(), partial(self._astream, **kwargs), config)
        async for piece in answers:
            yield piece

    def _open(self, given: Any) -> tuple[Call, Callable[[Any], Any]]:
        prompt, back = _readable(given)
        return Call(self._guard, prompt, model=self._model), back

    def _refused(self, blocked: Blocked, kind: type[AIMessage]) -> Any:
        if self._on_block == "raise":
            raise blocked
        message = blocked.decision.message
        return message if self._gives_text else kind(message, response_metadata={"finish_reason": "content_filter"})

    @property
    def _gives_text(self) -> bool:
        try:
            return self._bound.OutputType is str
        except TypeError:  # it does not say
            return False

    def _invoke(self, given: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        call, back = self._open(given)
        with call:
            try:
                return _released(call, self._bound.invoke(back(call.admit()), _apart(config), **kwargs))
            except Blocked as blocked:
                return self._refused(blocked, AIMessage)

    async def _ainvoke(self, given: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        call, back = self._open(given)
        async with call:
            try:
                admitted = back(await to_thread.run_sync(call.admit))
                said = await self._bound.ainvoke(admitted, _apart(config), **kwargs)
                return await to_thread.run_sync(_released, call, said)
            except Blocked as blocked:
                return self._refused(blocked, AIMessage)

    def _stream(self, given: Iterator[Any], config: RunnableConfig, **kwargs: Any) -> Iterator[Any]:
        call, back = self._open(next(given))
        pieces = _Pieces(call)
        with call:
            try:
                answers = self._bound.stream(back(call.admit()), _apart(config), **kwargs)
                with closing(cast(Generator[Any, None, None], answers)) as source:
                    for piece in source:
                        yield from pieces.release(piece)
                        call.stop_if_blocked()
                for step in pieces.last:
                    yield from step()
                    call.stop_if_blocked()
            except Blocked as blocked:
                yield self._refused(blocked, AIMessageChunk)

    async def _astream(self, given: AsyncIterator[Any], config: RunnableConfig, **kwargs: Any) -> AsyncIterator[Any]:
        call, back = self._open(await anext(given))
        pieces = _Pieces(call)
        async with call:
            try:
                answers = self._bound.astream(back(await to_thread.run_sync(call.admit)), _apart(config), **kwargs)
                async with aclosing(cast(AsyncGenerator[Any, None], answers)) as source:
                    async for piece in source:
                        for released in await to_thread.run_sync(pieces.release, piece):
                            yield released
                        call.stop_if_blocked()
                for step in pieces.last:
                    for released in await to_thread.run_sync(step):
                        yield released
                    call.stop_if_blocked()
            except Blocked as blocked:
                yield self._refused(blocked, AIMessageChunk)


class _Pieces:
    """The pieces of one streamed reply: text leaves as it is judged, what came beside it at the end, judged whole.

    Attributes:
        last: what to do at the end, in this order.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._all: AIMessageChunk | None = None
        self.last = (self._rest_of_text, self._beside)

    def release(self, piece: object) -> list[Any]:
        """Take a piece and return what may leave now."""
        if isinstance(piece, str):
            return [released] if (released := self._call.release(piece)) else []
        chunk = _chunk(piece)
        self._all = chunk if self._all is None else self._all + chunk
        released, usage = self._call.release(_text(chunk)), chunk.usage_metadata
        return [AIMessageChunk(content=released, id=chunk.id, usage_metadata=usage)] if released or usage else []

    def _rest_of_text(self) -> list[Any]:
        released = self._call.release("", last=True)
        return (
            [released if self._all is None else AIMessageChunk(content=released, id=self._all.id)] if released else []
        )

    def _beside(self) -> list[Any]:
        beside = _beside(self._call, self._all) if self._all is not None else {}
        return (
            [AIMessageChunk(id=self._all.id, **({"content": ""} | beside))] if self._all is not None and beside else []
        )


def _released(call: Call, said: object) -> Any:
    """Judge a whole reply, and return it as it may leave."""
    text = said if isinstance(said, str) else _text(_message(said))
    released = call.release(text, last=True)
    call.stop_if_blocked()
    if isinstance(said, str):
        return released
    message = _message(said)
    beside = _beside(call, message)
    content = beside.pop("content", [])
    blocks = [*([{"type": "text", "text": released}] if released else []), *content]
    return AIMessage(blocks if content else released, id=message.id, usage_metadata=message.usage_metadata, **beside)


def _beside(call: Call, message: AIMessage) -> dict[str, Any]:
    """Judge what a reply has beside its text, and return it as it may leave; what nobody can read is left out."""
    blocks = message.content if isinstance(message.content, list) else []
    beside = {
        "content": [b for b in blocks if not isinstance(b, str) and b.get("type") not in {"text", *MEDIA}],
        "tool_calls": message.tool_calls,
        "invalid_tool_calls": message.invalid_tool_calls,
        "additional_kwargs": {name: value for name, value in message.additional_kwargs.items() if _is_json(value)},
    }
    judged = call.release_whole({name: value for name, value in beside.items() if value}, "message")
    about = {name: value for name, value in message.response_metadata.items() if _is_plain(value)}
    return {**judged, **({"response_metadata": about} if about else {})}


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_plain(value: object) -> bool:
    """Whether a value is a number or one word: tokens with their probabilities would tell what was held back."""
    return isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier())


def _text(message: BaseMessage) -> str:
    """Return the text of a message, all its blocks together."""
    if isinstance(message.content, str):
        return message.content
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in message.content]
    return "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")


def _message(said: object) -> AIMessage:
    if not isinstance(said, AIMessage):
        raise TypeError(
            f"guarded_runnable judges text and messages of an assistant, got {type(said).__name__}; "
            "guard the model, before whatever parses its replies"
        )
    return said


def _chunk(said: object) -> AIMessageChunk:
    message = _message(said)
    if isinstance(message, AIMessageChunk):
        return message
    names = ("content", "id", "tool_calls", "invalid_tool_calls", "additional_kwargs", "response_metadata")
    fields = {name: getattr(message, name) for name in (*names, "usage_metadata")}
    return AIMessageChunk(**fields)


def _readable(given: Any) -> tuple[Prompt, Callable[[Any], Any]]:
    """Return what a Runnable is given as a prompt to judge, and the way back from it as judged."""
    if isinstance(given, StringPromptValue):
        given = given.text
    if isinstance(given, str):
        return given, lambda judged: judged
    if isinstance(given, Mapping) and given and all(isinstance(value, str) for value in given.values()):
        said = [{"role": "user", "content": list(given.values())}]
        return said, lambda judged: dict(zip(given, judged[0]["content"], strict=True))
    if isinstance(given, PromptValue):
        given = given.to_messages()
    if isinstance(given, list | tuple) and given:
        messages = convert_to_messages(given)
        spoken = [_spoken(message) for message in messages]
        return spoken, lambda judged: [_as_judged(*each) for each in zip(messages, spoken, judged, strict=True)]
    raise TypeError(
        f"guarded_runnable takes a string, messages, or a dictionary of strings, got {type(given).__name__}; "
        "guard the model inside of the chain, where it is given messages"
    )


def _spoken(message: BaseMessage) -> dict[str, Any]:
    kind = message.type.removesuffix("MessageChunk").lower()
    said = {name: value for name, value in message.model_dump(exclude=NOT_SAID).items() if value}
    return said | {"role": said.get("role") or ROLES.get(kind, kind)}


def _as_judged(message: BaseMessage, said: Mapping[str, Any], judged: Mapping[str, Any]) -> BaseMessage:
    return message.model_copy(update={name: judged[name] for name in said if judged[name] != said[name]})


def _apart(config: RunnableConfig) -> RunnableConfig:
    """Return the config without callbacks: they would be told what nobody has judged yet."""
    return patch_config(config, callbacks=CallbackManager([]))
