"""One exchange from start to end: judge, ask, judge, remember. Knows no API's wire format and no upstream's."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from time import perf_counter

from anyio import CancelScope, get_cancelled_exc_class, to_thread

from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Path, compose, words
from ringfence.guard.guard import Blocked, Guard, ReplyGuard, TooLong
from ringfence.policies.types import Action, Stage
from ringfence.proxy.reply import (
    ENVELOPE,
    About,
    Event,
    Finish,
    Likelihoods,
    Recorded,
    Released,
    Source,
    Stopped,
    Text,
    ToolCall,
    UpstreamError,
    Withheld,
)
from ringfence.proxy.wire.body import BadRequest


async def handle(
    exchange: Exchange, guard: Guard, upstream: Source, headers: Mapping[str, str]
) -> AsyncGenerator[Released, None]:
    """Answer one exchange, guarded; yield what may leave, as soon as it may.

    INVARIANT: exactly one record an exchange, whatever ends it, and it is written before the reply is complete.

    Raises:
        Blocked: the request was stopped; the upstream never saw it.
        TooLong, UpstreamError, BadRequest: as their names say.
        StoreError: the record could not be kept, and the policy requires it.
    """
    started = perf_counter()
    reply = guard.open_reply(exchange)
    remembered = False

    async def remember() -> Recorded:
        nonlocal remembered
        remembered = True
        exchange.timings["total_s"] = perf_counter() - started
        with CancelScope(shield=True):
            await to_thread.run_sync(reply.finish)
            await to_thread.run_sync(guard.record, exchange)
        return Recorded()

    try:
        decision = await to_thread.run_sync(guard.judge_request, exchange)
        exchange.timings["input_s"] = perf_counter() - started
        if decision.action is Action.BLOCK:
            raise Blocked(decision, exchange.id)
        endings: list[Finish] = []
        likelihoods: list[Likelihoods] = []
        left: dict[Path, Text] = {}  # of each text that came, what has left of it
        async with aclosing(upstream.stream(exchange, headers)) as events:
            async for event in events:
                exchange.timings.setdefault("upstream_first_s", perf_counter() - started)
                match event:
                    case Text():
                        left.setdefault(event.path, replace(event, text=""))
                    case Finish():
                        endings.append(event)
                    case Likelihoods():
                        likelihoods.append(event)
                async for released in _release(event, reply, exchange):
                    _note(released, left)
                    yield released
                if reply.stopped:
                    break
        async for released in _flush(reply, list(left.values())):
            _note(released, left)
            yield released
        if reply.stopped:
            yield Stopped(reply.stopped)
        else:
            for text in left.values():
                if not text.text:  # it came empty, or nothing is left of it; no text is something else
                    yield text
            for one in likelihoods:
                # INVARIANT: they tell no word that did not leave.
                if Text(one.choice, "content", one.text) in left.values():
                    yield one
        yield await remember()
        for ending in endings:
            if not reply.stopped:
                yield ending
    except Blocked:
        raise
    except (get_cancelled_exc_class(), GeneratorExit):
        exchange.error = "the client went away"
        raise
    except Exception as error:
        exchange.error = explain(error)
        if isinstance(error, UpstreamError) and error.told:
            await _judge_told(error, guard, exchange)
        raise
    finally:
        if not remembered:
            await remember()


def explain(error: Exception) -> str:
    """Return what the record says of an error: its kind, and its words where they are ours and quote nobody."""
    ours = isinstance(error, UpstreamError | BadRequest | TooLong)
    return f"{type(error).__name__}: {error}" if ours else type(error).__name__


def _note(released: Released, left: dict[Path, Text]) -> None:
    if isinstance(released, Text):
        left[released.path] = replace(released, text=left[released.path].text + released.text)


async def _release(event: Event, reply: ReplyGuard, exchange: Exchange) -> AsyncIterator[Released]:
    match event:
        case Text():
            reply.feed(event.path, event.text, event.kind)
            async for text in _due(reply, event.path):
                yield replace(event, text=text)
        case ToolCall():
            found = [(path, text) for path, text in words(event.call) if text and (path or text not in ENVELOPE)]
            part = compose(Kind.TOOL_CALL, "assistant", event.path, found)
            call = await to_thread.run_sync(reply.release_whole, part, event.call)
            if not reply.stopped:
                yield replace(event, call=call)
        case About():
            yield event
        case Withheld():
            exchange.coverage.append(Coverage(event.where, Judged.UNJUDGED, event.why))
        case Finish() | Likelihoods():
            pass


async def _due(reply: ReplyGuard, path: Path) -> AsyncIterator[str]:
    """Judge window by window, so that a client that leaves does not leave us with all of them."""
    while reply.due(path):
        if text := await to_thread.run_sync(reply.release_next, path):
            yield text


async def _flush(reply: ReplyGuard, came: Iterable[Text]) -> AsyncIterator[Text]:
    for one in came:
        reply.close(one.path)
        async for text in _due(reply, one.path):
            yield replace(one, text=text)


async def _judge_told(error: UpstreamError, guard: Guard, exchange: Exchange) -> None:
    """An upstream's error message is text like any other: it leaves only where the policy has nothing to say."""
    check = partial(guard.check, subject=exchange.subject, model=exchange.model, route=exchange.dialect)
    decision = await to_thread.run_sync(check, error.told, Stage.OUTPUT)
    if decision.action in (Action.REWRITE, Action.BLOCK):
        error.told = ""
