"""The embedded engine as an upstream: messages in, text out, on a thread of its own.

The only place that knows both the engine (token ids) and an exchange (messages). Another engine changes this file and
nothing above it.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ringfence.guard.exchange import Exchange
from ringfence.model.chat import Chat, TemplateRefused
from ringfence.model.engine import SEQUENCES, ContextOverflow, Engine, Sampling
from ringfence.model.weights import DEFAULT, locate
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.reply import About, Event, Finish, Text
from ringfence.proxy.wire.body import BadRequest

MAX_NEW_TOKENS = 512
"""Where the caller sets no limit: a small model that has lost the thread does not find its end by itself."""


def open_upstream(choice: UpstreamChoice) -> "EmbeddedUpstream":
    """Load the default engine.

    Raises:
        WeightsMissing: they were not pulled; the message says what to type.
    """
    path = locate(DEFAULT)
    return EmbeddedUpstream(DEFAULT, Engine.load(path), Chat.load(path))


class EmbeddedUpstream:
    """Generates on this machine, a few exchanges at a time; the others wait for a seat."""

    def __init__(self, name: str, engine: Engine, chat: Chat) -> None:
        self._name = name
        self._engine = engine
        self._chat = chat
        self._worker = ThreadPoolExecutor(max_workers=SEQUENCES, thread_name_prefix="engine")

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        """Generate; closing the iterator stops the worker at the next token."""
        exchange.revisions["engine"] = self._engine.revision
        try:
            prompt = self._chat.render(_messages(exchange.body, self._name))
        except TemplateRefused as error:
            raise BadRequest(str(error), param="messages") from error
        sampling = _sampling(exchange.body)
        loop, arrived, gone = asyncio.get_running_loop(), asyncio.Queue[Event | Exception | None](), threading.Event()

        def tell(item: Event | Exception | None) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, item)

        def work() -> None:
            try:
                for event in self._generate(prompt, sampling, gone):
                    tell(event)
            except Exception as error:  # noqa: BLE001 — it is raised again below, on the thread that can tell the caller
                tell(error)
            finally:
                tell(None)

        yield About({"model": self._name})
        self._worker.submit(work)
        try:
            while (item := await arrived.get()) is not None:
                if isinstance(item, ContextOverflow):
                    raise BadRequest(str(item), param="messages", code="context_length_exceeded")
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            gone.set()

    async def models(self, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the one model."""
        return [{"id": self._name, "object": "model", "created": 0, "owned_by": "ringfence"}]

    async def ready(self) -> str | None:
        """Always, once loaded."""
        return None

    async def aclose(self) -> None:
        """Let the worker go."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _generate(self, prompt: list[int], sampling: Sampling, gone: threading.Event) -> Iterator[Event]:
        text, count = self._chat.detokenizer(), 0
        for token in self._engine.generate(prompt, sampling, gone.is_set):
            count += 1
            if piece := text.feed(token):
                yield Text(0, "content", piece)
        if piece := text.close():
            yield Text(0, "content", piece)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}
        yield About({"usage": usage})
        full = count == min(sampling.max_tokens, self._engine.context_length - len(prompt))
        yield Finish(0, "length" if full else "stop")


def _messages(body: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    if body["model"] != name:
        raise BadRequest(
            f"the model '{body['model']}' does not exist here; this engine runs '{name}'",
            param="model",
            code="model_not_found",
            status=404,
        )
    if (body.get("n") or 1) > 1:
        raise BadRequest("the embedded engine gives one choice at a time: n must be 1", param="n")
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


def _sampling(body: Mapping[str, Any]) -> Sampling:
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or MAX_NEW_TOKENS
    kinds = {"temperature": float, "top_p": float, "repetition_penalty": float, "top_k": int, "seed": int}
    given = {name: body[name] for name in kinds if body.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | kinds[name]):
            raise BadRequest(f"{name} must be {'a whole' if kinds[name] is int else 'a'} number", param=name)
    try:
        return Sampling(max_tokens=limit, **given)
    except ValueError as error:
        raise BadRequest(str(error)) from error
