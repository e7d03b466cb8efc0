"""The HTTP surface: requests in, answers out, every error in the API's own shape."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter
from typing import Any, TypeVar

from anyio import create_task_group, to_thread
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from ringfence.guard.audit.store import Store, StoreError
from ringfence.guard.exchange import Exchange, Judged
from ringfence.guard.guard import Blocked, Guard, TooLong
from ringfence.policies.decide import reasons
from ringfence.policies.types import Decision
from ringfence.proxy.auth import CrossSite, NotTheOperator, Unauthorized, authorize
from ringfence.proxy.handle import explain, handle
from ringfence.proxy.live import Refused
from ringfence.proxy.reply import About, Recorded, Released, UpstreamError
from ringfence.proxy.review.routes import review_router
from ringfence.proxy.service import Service
from ringfence.proxy.wire import openai_chat, openai_moderations
from ringfence.proxy.wire.body import BadRequest, read_object

log = logging.getLogger(__name__)

Headers = dict[str, str]
T = TypeVar("T")

EXPECTED = (Blocked, BadRequest, TooLong, UpstreamError, StoreError)
"""How an exchange can end without an answer, short of a defect of ours."""

CONVERSATION = "x-ringfence-conversation"
"""Header in which a caller names the conversation that a request goes on with, for counters; no upstream sees it."""

RETRY_IS_USELESS = {"x-should-retry": "false"}
"""Read by the `openai` clients: a blocked prompt must not be sent three times."""


def add_routes(app: FastAPI, service: Service) -> None:
    """Put every route and error handler of the service on the application."""

    async def authorized(request: Request) -> None:
        request.state.subject = authorize(request, service.settings, service.keys)

    async def operating(request: Request) -> None:
        request.state.subject = authorize(request, service.settings, service.keys, operator=True)

    api = APIRouter(dependencies=[Depends(authorized)])
    admin = APIRouter(dependencies=[Depends(operating)])

    @api.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Answer a chat, guarded on both ends."""
        guard = service.live.guard
        body = await _body(request, guard, openai_chat.DIALECT)
        exchange, asked = await _opened(request, guard, openai_chat.DIALECT, lambda: openai_chat.read_request(body))
        events = handle(exchange, guard, service.upstream, _passed_on(request, service))
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        if asked.stream:
            return await _streamed(request, exchange, events, openai_chat.Renderer(exchange, usage=usage), guard)
        renderer = openai_chat.Renderer(exchange)
        answer = await _while_there(request, lambda: _whole(exchange, events, renderer, guard))
        return answer or NOBODY_THERE

    @api.post("/v1/moderations")
    async def moderations(request: Request) -> Response:
        """Judge texts, and say what of them the policy would not let through."""
        guard = service.live.guard
        body = await _body(request, guard, openai_moderations.DIALECT)
        exchange, groups = await _opened(
            request, guard, openai_moderations.DIALECT, lambda: openai_moderations.read_request(body)
        )
        try:
            decision = await to_thread.run_sync(_judged_and_recorded, guard, exchange)
        except EXPECTED as error:
            return _failed(error, exchange, guard)
        answer = await to_thread.run_sync(
            openai_moderations.write_results,
            exchange,
            guard.pipeline_of(exchange).policy,
            decision.findings,
            groups,
        )
        return JSONResponse(answer, headers=_headers(exchange, guard))

    @api.get("/v1/models")
    async def models(request: Request) -> Response:
        """List what the upstream serves."""
        return JSONResponse(openai_chat.model_list(await service.upstream.models(_passed_on(request, service))))

    @admin.get("/admin/policy")
    async def policy() -> dict[str, Any]:
        """Say which policy is in force, and why what stands in its files is not, where that is so."""
        live = service.live
        return {"name": live.guard.policy.name, "revision": live.guard.policy.revision, "refused": live.refused}

    @admin.post("/admin/reload")
    async def reload() -> dict[str, Any]:
        """Put the policy in force as its files have it now."""
        done = await service.live.reload()
        return {"revision": done.revision, "previous": done.previous, "changed": done.changed}

    @app.get("/health/liveness")
    async def liveness() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/health/readiness")
    async def readiness() -> Response:
        """Say whether an exchange could be answered now, and if not, why."""
        problems = {
            "audit": await to_thread.run_sync(_store_problem, service.store),
            "upstream": await service.upstream.ready(),
        }
        wrong = {name: why for name, why in problems.items() if why is not None}
        state = {
            "status": "unavailable" if wrong else "ok",
            "policy": service.live.guard.policy.revision,
            "problems": wrong,
        }
        if service.live.refused:  # no reason to send callers elsewhere; and not for everyone to read
            state["reload"] = "refused: GET /admin/policy says why"
        return JSONResponse(state, status_code=503 if wrong else 200)

    app.include_router(api)
    app.include_router(admin)
    app.include_router(review_router(lambda: service.store), dependencies=[Depends(operating)])
    _handle_errors(app)


def _judged_and_recorded(guard: Guard, exchange: Exchange) -> Decision:
    started = perf_counter()
    try:
        return guard.judge_request(exchange)
    except Exception as error:
        exchange.error = explain(error)
        raise
    finally:
        exchange.timings["total_s"] = perf_counter() - started
        guard.record(exchange)


async def _body(request: Request, guard: Guard, dialect: str) -> dict[str, Any]:
    limit = guard.policy.limits.body_bytes

    async def read() -> dict[str, Any]:
        raw = bytearray()
        async for piece in request.stream():
            raw += piece
            if len(raw) > limit:
                raise BadRequest(f"the body is larger than {limit:,} bytes", code="request_too_large", status=413)
        return await to_thread.run_sync(read_object, bytes(raw))  # a large body takes a while, and others wait

    return await _recorded_if_bad(request, guard, dialect, read)


async def _opened(
    request: Request, guard: Guard, dialect: str, read: Callable[[], tuple[Exchange, T]]
) -> tuple[Exchange, T]:
    async def reading() -> tuple[Exchange, T]:
        exchange, asked = await to_thread.run_sync(read)
        said = exchange.subject
        conversation = request.headers.get(CONVERSATION) or said.conversation
        exchange.subject = replace(request.state.subject, user=said.user, conversation=conversation)
        return exchange, asked

    return await _recorded_if_bad(request, guard, dialect, reading)


async def _recorded_if_bad(request: Request, guard: Guard, dialect: str, read: Callable[[], Awaitable[T]]) -> T:
    """Read; what cannot be read never becomes an exchange, but is on record as one that failed."""
    try:
        return await read()
    except BadRequest as error:
        failed = Exchange(dialect, "", [], subject=request.state.subject, error=f"BadRequest: {error.message}")
        await to_thread.run_sync(guard.record, failed)
        error.headers = _headers(failed, guard)
        raise


async def _whole(
    exchange: Exchange, events: AsyncGenerator[Released, None], renderer: openai_chat.Renderer, guard: Guard
) -> Response:
    try:
        async with aclosing(events) as released:
            async for event in released:
                renderer.collect(event)
    except EXPECTED as error:
        return _failed(error, exchange, guard)
    return JSONResponse(renderer.body(), headers=_headers(exchange, guard))


async def _streamed(
    request: Request,
    exchange: Exchange,
    events: AsyncGenerator[Released, None],
    renderer: openai_chat.Renderer,
    guard: Guard,
) -> Response:
    """Answer with server-sent events. The first that says something is awaited: until then an error has its status."""
    early: list[Released] = []
    try:
        while not early or isinstance(early[-1], About):
            event = await _while_there(request, lambda: anext(events))
            if event is None:
                return NOBODY_THERE
            early.append(event)
    except EXPECTED as error:
        return _failed(error, exchange, guard)

    async def frames() -> AsyncIterator[bytes]:
        async with aclosing(events) as released:
            try:
                for event in early:
                    for frame in _frames(renderer, event, exchange, guard):
                        yield frame
                async for event in released:
                    for frame in _frames(renderer, event, exchange, guard):
                        yield frame
                for chunk in renderer.last_chunks():
                    yield _frame(chunk)
            except Exception as error:  # the status has been sent: the error goes into the stream
                if not isinstance(error, EXPECTED):
                    log.exception("exchange %s broke off", exchange.id)
                # No [DONE]: a client must be able to see that the answer is not complete.
                yield _frame(_described(error)[1])
                return
        yield b"data: [DONE]\n\n"

    headers = _headers(exchange, guard) | {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(frames(), media_type="text/event-stream", headers=headers)


NOBODY_THERE = Response(status_code=499)


async def _while_there(request: Request, work: Callable[[], Awaitable[T]]) -> T | None:
    """Do the work as long as the client is there to have it; None once it is not."""
    done: T | None = None
    failed: Exception | None = None  # raised once the group is gone, which would wrap it
    async with create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            done = await work()
        except Exception as error:  # noqa: BLE001
            failed = error
        group.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return done


def _frames(renderer: openai_chat.Renderer, event: Released, exchange: Exchange, guard: Guard) -> Iterator[bytes]:
    if isinstance(event, Recorded):
        yield _comment(_headers(exchange, guard))
    for chunk in renderer.chunks(event):
        yield _frame(chunk)


def _frame(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %s\n\n" % json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()


def _comment(fields: Headers) -> bytes:
    """Return a server-sent comment, which clients skip: what the headers of a whole reply would say at its end."""
    return "".join([*(f": {name}: {value}\n" for name, value in fields.items()), "\n"]).encode()


def _passed_on(request: Request, service: Service) -> Headers:
    headers = dict(request.headers)
    if service.settings.needs_key:
        headers.pop("authorization", None)  # that key is ours
    return headers


def _headers(exchange: Exchange, guard: Guard) -> Headers:
    headers = {"x-ringfence-exchange": exchange.id, "x-ringfence-policy": guard.policy.revision[:16]}
    if exchange.decisions:
        strongest = max((d.action for d in exchange.decisions), key=lambda action: action.strength)
        rules = dict.fromkeys(why for d in exchange.decisions for why in (*reasons(d), *d.logged))
        headers |= {"x-ringfence-action": strongest.value, "x-ringfence-rules": ",".join(rules)}
    if exchange.receipt:
        headers["x-ringfence-receipt"] = exchange.receipt
    counts = {status: sum(c.status is status for c in exchange.coverage) for status in Judged}
    return headers | {"x-ringfence-coverage": " ".join(f"{status}={n}" for status, n in counts.items())}


def _store_problem(store: Store) -> str | None:
    try:
        store.check_writable()
    except StoreError as error:
        return str(error)
    return None


def _described(error: Exception) -> tuple[int, dict[str, Any], Headers]:
    """Return status, body and headers for an error, in the API's shape."""
    invalid, server = "invalid_request_error", "server_error"
    match error:
        case Blocked():
            body = openai_chat.error_body(str(error), kind=invalid, code="content_filter", param="messages")
            return 400, body, RETRY_IS_USELESS
        case BadRequest():
            body = openai_chat.error_body(error.message, kind=invalid, code=error.code, param=error.param)
            return error.status, body, error.headers | RETRY_IS_USELESS
        case TooLong():
            return (
                400,
                openai_chat.error_body(str(error), kind=invalid, code="string_above_max_length"),
                RETRY_IS_USELESS,
            )
        case UpstreamError():
            told = f": {error.told}" if error.told else ""
            kind = invalid if error.status < 500 else "upstream_error"
            return error.status, openai_chat.error_body(f"{error}{told}", kind=kind, code=error.code), {}
        case StoreError():
            message = (
                "the audit record of this exchange could not be kept, and the policy requires it: nothing is answered"
            )
            return 503, openai_chat.error_body(message, kind=server, code="audit_unavailable"), RETRY_IS_USELESS
        case Refused():
            return 422, openai_chat.error_body(str(error), kind=invalid, code="policy_refused"), RETRY_IS_USELESS
        case Unauthorized():
            message = "this service needs its key: send 'Authorization: Bearer …'"
            body = openai_chat.error_body(message, kind="authentication_error", code="invalid_api_key")
            return 401, body, {"www-authenticate": 'Basic realm="ringfence"'}
        case NotTheOperator():
            message = "this key may call models; the record and /admin take the operator's (RINGFENCE_API_KEY)"
            return 403, openai_chat.error_body(message, kind="permission_error", code="not_the_operator"), {}
        case CrossSite():
            message = "this came from a page of another site; ringfence answers to applications, and to its own pages"
            return 403, openai_chat.error_body(message, kind=invalid, code="cross_site"), RETRY_IS_USELESS
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][1:]))
            return 400, openai_chat.error_body(f"{where}: {first['msg']}", kind=invalid, code=None, param=where), {}
        case ClientDisconnect():
            return 499, openai_chat.error_body("the client went away", kind=invalid, code=None), {}
        case HTTPException():
            return (
                error.status_code,
                openai_chat.error_body(error.detail, kind=invalid, code=None),
                dict(error.headers or {}),
            )
        case _:
            return (
                500,
                openai_chat.error_body("internal error; the server's log has the details", kind=server, code=None),
                {},
            )


def _failed(error: Exception, exchange: Exchange, guard: Guard) -> Response:
    status, body, headers = _described(error)
    return JSONResponse(body, status_code=status, headers=_headers(exchange, guard) | headers)


def _handle_errors(app: FastAPI) -> None:
    async def respond(_: Request, error: Exception) -> Response:
        status, body, headers = _described(error)
        return JSONResponse(body, status_code=status, headers=headers)

    for kind in (
        *EXPECTED,
        Refused,
        Unauthorized,
        NotTheOperator,
        CrossSite,
        RequestValidationError,
        ClientDisconnect,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, respond)
