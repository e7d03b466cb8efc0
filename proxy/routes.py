"""The HTTP surface: requests in, answers out, every error in the API's own shape."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar

from anyio import create_task_group, to_thread
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from ringfence.guard.audit.store import Store, StoreError
from ringfence.guard.exchange import Exchange
from ringfence.guard.guard import Guard
from ringfence.guard.pipeline import State
from ringfence.proxy.answer import (
    CONVERSATION,
    EXPECTED,
    RETRY_IS_USELESS,
    STREAMED,
    Failure,
    Headers,
    collect,
    failure,
    first_of,
    frames,
    headers_of,
    remember_bad,
)
from ringfence.proxy.auth import CrossSite, NotTheOperator, Unauthorized, authorize
from ringfence.proxy.handle import explain, handle
from ringfence.proxy.live import Refused
from ringfence.proxy.reply import Released
from ringfence.proxy.review.routes import review_router
from ringfence.proxy.service import Service
from ringfence.proxy.wire import fms_detectors, litellm_guardrail, openai_chat, openai_moderations
from ringfence.proxy.wire.body import BadRequest, read_object
from ringfence.proxy.wire.fms_detectors import Unjudged

T = TypeVar("T")
Asked = TypeVar("Asked", contravariant=True)


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
        if asked.stream:
            return await _streamed(request, exchange, events, guard)
        return await _while_there(request, lambda: _whole(exchange, events, guard)) or NOBODY_THERE

    @api.post("/v1/moderations")
    async def moderations(request: Request) -> Response:
        """Judge texts, and say what of them the policy would not let through."""
        return await _verdict(request, service, openai_moderations, openai_moderations.read_request)

    @api.post("/beta/litellm_basic_guardrail_api")
    async def litellm(request: Request) -> Response:
        """Judge one end of an exchange that LiteLLM's proxy has with a model."""
        return await _verdict(request, service, litellm_guardrail, litellm_guardrail.read_request)

    async def detector(request: Request, read: Callable[..., tuple[Exchange, fms_detectors.Asked]]) -> Response:
        named = request.headers.get(fms_detectors.DETECTOR)
        return await _verdict(request, service, fms_detectors, partial(read, detector=named))

    @api.post("/api/v1/text/contents")
    async def contents(request: Request) -> Response:
        """Say of each text where something is that the policy would not let through."""
        return await detector(request, fms_detectors.read_contents)

    @api.post("/api/v1/text/chat")
    async def chat(request: Request) -> Response:
        """Say what is in a conversation that the policy would not let through."""
        return await detector(request, fms_detectors.read_chat)

    @api.post("/api/v1/text/generation")
    async def generation(request: Request) -> Response:
        """Say what is in a model's text that the policy would not let through."""
        return await detector(request, fms_detectors.read_generation)

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
        return {
            "revision": done.revision,
            "previous": done.previous,
            "changed": done.changed,
            "weights": list(done.weights),
        }

    @app.get("/health")
    @app.get("/health/liveness")
    async def liveness() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/health/readiness")
    async def readiness() -> Response:
        """Say whether an exchange could be answered now, and if not, why."""
        guard = service.live.guard
        states = await to_thread.run_sync(guard.states)
        problems = {
            "checks": _missing(guard, states),
            "audit": await to_thread.run_sync(_store_problem, service.store),
            "upstream": await service.upstream.ready(),
        }
        wrong = {name: why for name, why in problems.items() if why is not None}
        state = {
            "status": "unavailable" if wrong else "ok",
            "policy": guard.policy.revision,
            "problems": wrong,
            "checks": {name: state for name, (state, _) in states.items()},
        }
        if service.live.refused:  # no reason to send callers elsewhere; and not for everyone to read
            state["reload"] = "refused: GET /admin/policy says why"
        return JSONResponse(state, status_code=503 if wrong else 200)

    app.include_router(api)
    app.include_router(admin)
    app.include_router(review_router(lambda: service.store), dependencies=[Depends(operating)])
    _handle_errors(app)


class _Judging(Protocol[Asked]):
    """A dialect in which nothing but a verdict is asked for."""

    @property
    def DIALECT(self) -> str: ...
    @property
    def judge(self) -> Callable[[Guard, Exchange, Asked], Any]: ...


async def _verdict(
    request: Request, service: Service, dialect: _Judging[T], read: Callable[[dict[str, Any]], tuple[Exchange, T]]
) -> Response:
    """Judge what somebody else sends on, and answer with what became of it."""
    guard = service.live.guard
    body = await _body(request, guard, dialect.DIALECT)
    exchange, asked = await _opened(request, guard, dialect.DIALECT, lambda: read(body))
    judge = partial(dialect.judge, guard, exchange, asked)
    try:
        answer = await to_thread.run_sync(_judged_and_recorded, guard, exchange, judge)
    except (*EXPECTED, Unjudged) as error:
        return _answered(_failure(error), headers_of(exchange, guard), request.url.path)
    return JSONResponse(answer, headers=headers_of(exchange, guard))


def _judged_and_recorded(guard: Guard, exchange: Exchange, judge: Callable[[], T]) -> T:
    started = perf_counter()
    try:
        return judge()
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
        await to_thread.run_sync(remember_bad, error, guard, dialect, request.state.subject)
        raise


async def _whole(exchange: Exchange, events: AsyncGenerator[Released, None], guard: Guard) -> Response:
    renderer = openai_chat.Renderer(exchange)
    try:
        await collect(events, renderer)
    except EXPECTED as error:
        return _failed(error, exchange, guard)
    return JSONResponse(renderer.body(), headers=headers_of(exchange, guard))


async def _streamed(
    request: Request, exchange: Exchange, events: AsyncGenerator[Released, None], guard: Guard
) -> Response:
    """Answer with server-sent events."""
    try:
        early = await first_of(events, partial(_while_there, request))
    except EXPECTED as error:
        return _failed(error, exchange, guard)
    if early is None:
        return NOBODY_THERE
    sent = frames(early, events, openai_chat.Renderer(exchange), exchange, guard, openai_chat)
    headers = headers_of(exchange, guard) | STREAMED
    return StreamingResponse(sent, media_type="text/event-stream", headers=headers)


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


def _passed_on(request: Request, service: Service) -> Headers:
    headers = dict(request.headers)
    if service.settings.needs_key:
        for name in ("authorization", "x-api-key"):
            headers.pop(name, None)  # that key is ours
    return headers


def _missing(guard: Guard, states: Mapping[str, tuple[State, str]]) -> str | None:
    """Say which checks have nobody to ask, where nothing would pass without them."""
    away = {name: why for name, (state, why) in states.items() if state == "away"}
    if not (away and guard.pipeline.stops_without(away)):
        return None
    return "; ".join(f"{name}: {why}" for name, why in away.items())


def _store_problem(store: Store) -> str | None:
    try:
        store.check_writable()
    except StoreError as error:
        return str(error)
    return None


def _failure(error: Exception) -> Failure:
    """Return what a caller is told of an error, also of those that only a server knows."""
    invalid = "invalid_request_error"
    match error:
        case Unjudged():
            return Failure(500, "server_error", str(error), "unjudged", headers=RETRY_IS_USELESS)
        case Refused():
            return Failure(422, invalid, str(error), "policy_refused", headers=RETRY_IS_USELESS)
        case Unauthorized():
            message = "this service needs its key: send 'Authorization: Bearer …'"
            asked = {"www-authenticate": 'Basic realm="ringfence"'}
            return Failure(401, "authentication_error", message, "invalid_api_key", headers=asked)
        case NotTheOperator():
            message = "this key may call models; the record and /admin take the operator's (RINGFENCE_API_KEY)"
            return Failure(403, "permission_error", message, "not_the_operator")
        case CrossSite():
            message = "this came from a page of another site; ringfence answers to applications, and to its own pages"
            return Failure(403, invalid, message, "cross_site", headers=RETRY_IS_USELESS)
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][1:]))
            return Failure(400, invalid, f"{where}: {first['msg']}", param=where)
        case ClientDisconnect():
            return Failure(499, invalid, "the client went away")
        case HTTPException():
            return Failure(error.status_code, invalid, error.detail, headers=dict(error.headers or {}))
        case _:
            return failure(error)


def _answered(told: Failure, headers: Headers, path: str = "") -> Response:
    if path.startswith(fms_detectors.PREFIX):
        detectors = fms_detectors.error_body(told.status, told.message)
        return JSONResponse(detectors, status_code=told.status, headers=headers | told.headers)
    body = openai_chat.error_body(told.message, kind=told.kind, code=told.code, param=told.param)
    return JSONResponse(body, status_code=told.status, headers=headers | told.headers)


def _failed(error: Exception, exchange: Exchange, guard: Guard) -> Response:
    return _answered(_failure(error), headers_of(exchange, guard))


def _handle_errors(app: FastAPI) -> None:
    async def respond(request: Request, error: Exception) -> Response:
        return _answered(_failure(error), {}, request.url.path)

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
