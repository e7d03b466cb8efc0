"""What an upstream's reply is made of, whatever API it speaks; what the proxy releases is made of the same."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ringfence.guard.exchange import Exchange, Kind, Path
from ringfence.policies.types import Decision


@dataclass(frozen=True, slots=True)
class Text:
    """Some more text of one field of one choice."""

    choice: int
    field: str
    text: str
    kind: Kind = Kind.TEXT

    @property
    def path(self) -> Path:
        """Where the whole text stands in a collected reply."""
        return ("choices", self.choice, "message", self.field)


ENVELOPE = frozenset({"arguments", "function", "id", "input", "name", "type"})
"""Fields that a tool call of either API has by itself; those of what the tool is given are named by the model."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, complete: half a call is of no use to anyone, so calls are held until they are whole."""

    choice: int
    index: int
    call: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Where the call stands in a collected reply."""
        return ("choices", self.choice, "message", "tool_calls", self.index)


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """How likely the model held what it said. Passed on only where all of it leaves as it was said.

    Attributes:
        text: the choice's whole content.
        tokens: the texts that it came in, and the natural logarithm of how likely each was.
    """

    choice: int
    text: str
    tokens: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Finish:
    """A choice ended."""

    choice: int
    reason: str


@dataclass(frozen=True, slots=True)
class About:
    """What the upstream says of the reply that is not text: id, model, creation time, usage …"""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Withheld:
    """Something in the reply that no check reads and that is not passed on."""

    where: str
    why: str


Event = Text | ToolCall | Likelihoods | Finish | About | Withheld


@dataclass(frozen=True, slots=True)
class Stopped:
    """The policy ended the reply; nothing of the upstream's comes after it."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Recorded:
    """The exchange is on record; comes after every text and before the first `Finish`."""


Released = Event | Stopped | Recorded


class UpstreamError(Exception):
    """The upstream could not answer, or not to the end.

    Attributes:
        status: HTTP status for the caller.
        code, kind, param: as OpenAI's API has them; no `kind` where the status says it all.
        told: the upstream's own words, if any; unjudged.
        headers: of the upstream's answer, those for the caller.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | int | None,
        kind: str | None = None,
        param: str | None = None,
        told: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.kind, self.param, self.told = status, code, kind, param, told
        self.headers = dict(headers or {})


class Source(Protocol):
    """Answers."""

    def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
        """Answer `exchange.body`; closing the iterator stops the work at once.

        Args:
            headers: the caller's, lower-cased names.

        Raises:
            UpstreamError: it could not answer, or not to the end.
            BadRequest: it does not take this request.
        """
        ...


class Upstream(Source, Protocol):
    """Answers for a server. One implementation an upstream, found by the entry point group `ringfence.upstreams`."""

    async def models(self, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the models it serves, as `GET /v1/models` lists them."""
        ...

    async def ready(self) -> str | None:
        """Return why it cannot answer at present, or None where it can."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads."""
        ...
