"""An exchange answered in the API's own words: events to bodies and frames, errors to statuses. Knows no HTTP library.

The server's routes and the clients' transport send what stands here.
"""

import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate

from ringfence.guard.audit.store import StoreError
from ringfence.guard.exchange import Exchange, Judged, Subject
from ringfence.guard.guard import Blocked, Guard, TooLong
from ringfence.policies.decide import reasons
from ringfence.proxy.reply import About, Recorded, Released, UpstreamError
from ringfence.proxy.wire.body import BadRequest
from ringfence.proxy.wire.dialect import Dialect, Writer

log = logging.getLogger(__name__)

Headers = dict[str, str]

EXPECTED = (Blocked, BadRequest, TooLong, UpstreamError, StoreError)
"""How an exchange can end without an answer, short of a defect of ours."""

CONVERSATION = "x-ringfence-conversation"
"""Header in which a caller names the conversation that a request goes on with, for counters; no upstream sees it."""

RETRY_IS_USELESS = {"x-should-retry": "false"}
"""Read by the SDKs: a blocked prompt must not be sent three times."""

ROOM = 1_000
"""Characters that rules take in a header: proxies commonly have 4 KB for all headers, and clients give up on more."""

STREAMED = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a caller is told of it, before it has the shape of an API.

    Attributes:
        kind, code, param: as OpenAI's API has them, a number as `code` where an upstream has one; others write what
            they have for that.
    """

    status: int
    kind: str
    message: str
    code: str | int | None = None
    param: str | None = None
    headers: Headers = field(default_factory=dict)


def failure(error: Exception) -> Failure:
    """Return what a caller is told of an error."""
    invalid = "invalid_request_error"
    match error:
        case Blocked():
            return Failure(400, invalid, str(error), "content_filter", "messages", RETRY_IS_USELESS)
        case BadRequest():
            headers = error.headers | RETRY_IS_USELESS
            return Failure(error.status, invalid, error.message, error.code, error.param, headers)
        case TooLong():
            return Failure(400, invalid, str(error), "string_above_max_length", headers=RETRY_IS_USELESS)
        case UpstreamError():
            told = f": {error.told}" if error.told else ""
            kind = error.kind or (invalid if error.status < 500 else "upstream_error")
            return Failure(error.status, kind, f"{error}{told}", error.code, error.param, error.headers)
        case StoreError():
            message = (
                "the audit record of this exchange could not be kept, and the policy requires it: nothing is answered"
            )
            return Failure(503, "server_error", message, "audit_unavailable", headers=RETRY_IS_USELESS)
        case _:
            return Failure(500, "server_error", "internal error; the server's log has the details")


def remember_bad(error: BadRequest, guard: Guard, dialect: str, subject: Subject) -> None:
    """Put on record what could not be read, and so never became an exchange; the error's headers say where."""
    failed = Exchange(dialect, "", [], subject=subject, error=f"BadRequest: {error.message}")
    guard.record(failed)
    error.headers = headers_of(failed, guard)


async def collect(events: AsyncGenerator[Released, None], writer: Writer) -> None:
    """Take in a whole reply; `handle` says what it raises."""
    async with aclosing(events) as released:
        async for event in released:
            writer.collect(event)


async def first_of(
    events: AsyncGenerator[Released, None],
    take: Callable[[Callable[[], Awaitable[Released]]], Awaitable[Released | None]],
) -> list[Released] | None:
    """Await the first event that says something, and return those so far: until then an error has a status of its own.

    Args:
        take: takes the next event; None where nobody waits for it any more, and then the whole is None.
    """
    early: list[Released] = []
    while not early or isinstance(early[-1], About):
        event = await take(lambda: anext(events))
        if event is None:
            return None
        early.append(event)
    return early


async def frames(
    early: list[Released],
    events: AsyncGenerator[Released, None],
    writer: Writer,
    exchange: Exchange,
    guard: Guard,
    dialect: Dialect,
) -> AsyncGenerator[bytes, None]:
    """Yield a reply as server-sent events.

    Args:
        early: events that were taken already.
    """
    async with aclosing(events) as released:
        try:
            async for event in _chained(early, released):
                for frame in _frames(writer, event, exchange, guard, dialect):
                    yield frame
            for chunk in writer.last_chunks():
                yield dialect.frame(chunk)
        except Exception as error:  # the status has been sent: the error goes into the stream
            if not isinstance(error, EXPECTED):
                log.exception("exchange %s broke off", exchange.id)
            # No end: a client must be able to see that the answer is not complete.
            told = failure(error)
            yield dialect.frame(dialect.error_body(told.message, kind=told.kind, code=told.code, param=told.param))
            return
    yield dialect.END


def headers_of(exchange: Exchange, guard: Guard) -> Headers:
    """Return what the headers of an answer say of its exchange."""
    headers = {"x-ringfence-exchange": exchange.id, "x-ringfence-policy": guard.policy.revision[:16]}
    if exchange.decisions:
        strongest = max((d.action for d in exchange.decisions), key=lambda action: action.strength)
        rules = dict.fromkeys(why for d in exchange.decisions for why in (*reasons(d), *d.logged))
        headers |= {"x-ringfence-action": strongest.value, "x-ringfence-rules": listed(rules)}
    if exchange.receipt:
        headers["x-ringfence-receipt"] = exchange.receipt
    counts = {status: sum(c.status is status for c in exchange.coverage) for status in Judged}
    return headers | {"x-ringfence-coverage": " ".join(f"{status}={n}" for status, n in counts.items())}


def listed(names: Iterable[str]) -> str:
    """Write names one behind the other, as far as a header has room for them; then `+` and how many are left out."""
    told = list(names)
    fitting = bisect_right(list(accumulate(len(name) + 1 for name in told)), ROOM)
    return ",".join(told[:fitting] + [f"+{len(told) - fitting}"] * (fitting < len(told)))


async def _chained(early: list[Released], events: AsyncIterator[Released]) -> AsyncIterator[Released]:
    for event in early:
        yield event
    async for event in events:
        yield event


def _frames(writer: Writer, event: Released, exchange: Exchange, guard: Guard, dialect: Dialect) -> Iterator[bytes]:
    if isinstance(event, Recorded):
        yield _comment(headers_of(exchange, guard))
    for chunk in writer.chunks(event):
        yield dialect.frame(chunk)


def _comment(fields: Headers) -> bytes:
    """Return a server-sent comment, which clients skip: what the headers of a whole reply would say at its end."""
    return "".join([*(f": {name}: {value}\n" for name, value in fields.items()), "\n"]).encode()
