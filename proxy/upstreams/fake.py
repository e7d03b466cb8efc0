"""An upstream that answers without a model, for tests and demonstrations: it says what it is told to say.

The last user message decides. `say: TEXT` answers TEXT; `fail: 503` fails with that status; `die: TEXT` breaks off
after TEXT; `call: NAME {"a": 1}` calls a tool; anything else is repeated. Text comes in pieces of one word.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from anyio import lowlevel

from ringfence.guard.exchange import Exchange
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.reply import About, Event, Finish, Text, ToolCall, UpstreamError

MODEL = "fake"


def open_upstream(choice: UpstreamChoice) -> "FakeUpstream":
    """Return the fake upstream; the choice's other fields mean nothing to it."""
    return FakeUpstream()


class FakeUpstream:
    """Says what it is told to; keeps the bodies it was sent.

    Attributes:
        seen: every request body that reached it, oldest first.
        closed_early: how many replies were cut short by whoever read them.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.closed_early = 0

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        """Answer as the module's docstring says."""
        self.seen.append(exchange.body)
        order, _, rest = _last_user_text(exchange.body).partition(":")
        yield About({"model": MODEL})
        whole = False
        try:
            match order:
                case "fail":
                    raise UpstreamError("the fake upstream was told to fail", status=int(rest), code="upstream_error")
                case "call":
                    name, _, arguments = rest.strip().partition(" ")
                    yield ToolCall(
                        0, 0, {"id": "call_0", "type": "function", "function": {"name": name, "arguments": arguments}}
                    )
                case "say" | "die":
                    async for event in _words(rest.strip()):
                        yield event
                case _:
                    async for event in _words(f"You said: {_last_user_text(exchange.body)}"):
                        yield event
            if order == "die":
                raise UpstreamError("the fake upstream broke off", status=502, code="upstream_error")
            yield Finish(0, "tool_calls" if order == "call" else "stop")
            whole = True
        finally:
            self.closed_early += not whole

    async def models(self, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the one model."""
        return [{"id": MODEL, "object": "model", "created": 0, "owned_by": "ringfence"}]

    async def ready(self) -> str | None:
        """Always."""
        return None

    async def aclose(self) -> None:
        """Nothing to let go of."""


async def _words(text: str) -> AsyncIterator[Text]:
    for piece in re.findall(r"\S+\s*|\s+", text) or [""]:
        await lowlevel.checkpoint()
        yield Text(0, "content", piece)


def _last_user_text(body: Mapping[str, Any]) -> str:
    for message in reversed(body["messages"]):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return ""
