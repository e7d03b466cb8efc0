"""What a module of this folder must have, so that an exchange can be answered in its API. A module is a value of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ringfence.guard.exchange import Exchange
from ringfence.proxy.reply import Event, Released


class Reader(Protocol):
    """Reads the chunks of one streamed reply."""

    @property
    def ended(self) -> bool:
        """Whether the reply came to an end that its API knows."""
        ...

    def read(self, chunk: Any) -> Iterator[Event]:
        """Yield the events in one chunk; `ValueError` where it is none of this API."""
        ...

    def end(self) -> Iterator[Event]:
        """Yield what had to wait for the end."""
        ...


class Writer(Protocol):
    """Writes one reply: chunk by chunk, or collected."""

    def chunks(self, event: Released) -> Iterator[dict[str, Any]]:
        """Yield the chunks that tell a streaming client of one event."""
        ...

    def last_chunks(self) -> Iterator[dict[str, Any]]:
        """Yield what comes after everything else."""
        ...

    def collect(self, event: Released) -> None:
        """Take one event of a reply that is sent whole."""
        ...

    def body(self) -> dict[str, Any]:
        """Return the collected reply."""
        ...


class ErrorBody(Protocol):
    """Writes an error."""

    def __call__(self, message: str, *, kind: str, code: str | int | None, param: str | None = None) -> dict[str, Any]:
        """Return an error in the API's shape."""
        ...


class Dialect(Protocol):
    """One API that callers and upstreams speak.

    Attributes:
        DIALECT: its name on record.
        END: what a stream that is complete ends with.
    """

    @property
    def DIALECT(self) -> str: ...  # noqa: D102
    @property
    def END(self) -> bytes: ...  # noqa: D102

    @property
    def read_request(self) -> Callable[[dict[str, Any]], tuple[Exchange, Any]]:
        """A request body to the exchange that it opens; `BadRequest` names the field that is wrong."""
        ...

    @property
    def read_reply(self) -> Callable[[Any], Iterator[Event]]:
        """The events of a reply that came whole; `ValueError` where it is none."""
        ...

    @property
    def ChunkReader(self) -> Callable[[], Reader]:
        """Opens a reader."""
        ...

    @property
    def Renderer(self) -> Callable[[Exchange], Writer]:
        """Opens a writer for the reply to an exchange."""
        ...

    @property
    def frame(self) -> Callable[[Mapping[str, Any]], bytes]:
        """One chunk as a server-sent event."""
        ...

    @property
    def error_body(self) -> ErrorBody:
        """An error in the API's shape."""
        ...
