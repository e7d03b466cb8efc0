"""`@guarded`: the path of an exchange around any Python function that returns or yields text."""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from pathlib import Path as FilePath
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, cast

from anyio import CancelScope, to_thread

from ringfence.guard.audit.store import Store
from ringfence.guard.exchange import Exchange, Kind, Part, Path, compose, words
from ringfence.guard.guard import Blocked, Guard
from ringfence.policies.load import load_policy
from ringfence.policies.types import Action, Policy

P = ParamSpec("P")
R = TypeVar("R")
OnBlock = Literal["raise", "return"]

REPLY = ("reply",)


def guarded(
    *,
    policy: Guard | Policy | FilePath | str | None = None,
    prompt: str | None = None,
    on_block: OnBlock = "raise",
    model: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Judge what goes into a function and what comes out of it, and keep one audit record of each call.

    Works on functions, coroutine functions, generators and async generators. A rewritten prompt is what the
    function gets; a rewritten reply is what the caller gets; text is yielded only once it was judged.

    Args:
        policy: a policy or the path of one, None for the one that ships; or a `Guard`, to share one between
            functions and to choose where its records go.
        prompt: name of the parameter that holds the prompt: a string, or a list of messages with `role` and
            `content`. None takes the first parameter, or the second where the first is `self`.
        on_block: `raise` raises `Blocked`; `return` returns (or yields, last) the policy's message.
        model: the name that the audit record carries; None for the function's own.

    Raises:
        PolicyError: the policy file is wrong.
        TypeError: the function has no such parameter; or, at a call, prompt or reply is not text.
    """
    settled = policy if isinstance(policy, Guard | Policy) else load_policy(FilePath(policy) if policy else None)

    lock = Lock()

    @functools.cache
    def opened() -> Guard:
        if isinstance(settled, Guard):
            return settled
        return Guard(settled, store=Store.open(FilePath(settled.audit.path)))

    def guard() -> Guard:
        with lock:  # two first calls at once open one store
            return opened()

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, title = inspect.signature(function), getattr(function, "__qualname__", type(function).__name__)
        name = prompt or next((parameter for parameter in signature.parameters if parameter != "self"), "")
        if name not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise TypeError(f"@guarded: {title} has no parameter '{name}'; its parameters: {known}")

        def call(*args: Any, **kwargs: Any) -> _Call:
            return _Call(guard(), signature.bind(*args, **kwargs), name, model or title, on_block)

        wrapper = _wrapper_for(function)(function, call)
        return cast(Callable[P, R], functools.wraps(function)(wrapper))

    return decorate


class _Call:
    """One call of a guarded function: its exchange, and the steps that every kind of function takes."""

    def __init__(self, guard: Guard, bound: inspect.BoundArguments, name: str, model: str, on_block: OnBlock) -> None:
        bound.apply_defaults()
        self._guard = guard
        self._bound = bound
        self._name = name
        self._on_block = on_block
        value = bound.arguments[name]
        self._exchange = Exchange(dialect="python", model=model, request=_parts(name, value), body={name: value})
        self._reply = guard.open_reply(self._exchange)
        self._started = perf_counter()

    def run(self, function: Callable[..., Any]) -> Any:
        """Call the function with the arguments as judged."""
        return function(*self._bound.args, **self._bound.kwargs)

    def admit(self) -> None:
        """Judge the prompt, and put a rewritten one in its place."""
        decision = self._guard.judge_request(self._exchange)
        if decision.action is Action.BLOCK:
            raise Blocked(decision, self._exchange.id)
        self._bound.arguments[self._name] = self._exchange.body[self._name]

    def release(self, text: object, *, last: bool = False) -> str:
        """Judge some more of the reply and return what may leave."""
        if not isinstance(text, str):
            raise TypeError(f"@guarded: {self._exchange.model} gave {type(text).__name__}, not text")
        self._reply.feed(REPLY, text)
        return self._reply.release(REPLY, last=last)

    def stop_if_blocked(self) -> None:
        """Raise once the reply was stopped; what was judged before that has been released."""
        if self._reply.stopped:
            raise Blocked(self._reply.stopped, self._exchange.id)

    def refuse(self, blocked: Blocked) -> str:
        """Return the policy's message, or raise, as the function's author chose."""
        if self._on_block == "raise":
            raise blocked
        return blocked.decision.message

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
    raise TypeError(f"@guarded: argument '{name}' must be a string or a list of messages, got {type(value).__name__}")


def _message_parts(message: dict[str, Any], path: Path) -> Iterator[Part]:
    role = str(message.get("role", "user"))
    for key, value in message.items():
        found = [(where, text) for where, text in words(value, (*path, key)) if text]
        if key != "role" and found:
            yield compose(Kind.TEXT if key == "content" else Kind.TOOL_CALL, role, (*path, key), found, seam="\n")


def _wrapper_for(function: Callable[..., Any]) -> Callable[[Callable[..., Any], Callable[..., _Call]], Any]:
    if inspect.isasyncgenfunction(function):
        return _async_generator
    if inspect.iscoroutinefunction(function):
        return _coroutine
    if inspect.isgeneratorfunction(function):
        return _generator
    return _function


def _function(function: Callable[..., Any], open_call: Callable[..., _Call]) -> Callable[..., str]:
    def wrapper(*args: Any, **kwargs: Any) -> str:
        with open_call(*args, **kwargs) as call:
            try:
                call.admit()
                text = call.release(call.run(function), last=True)
                call.stop_if_blocked()
                return text
            except Blocked as blocked:
                return call.refuse(blocked)

    return wrapper


def _coroutine(function: Callable[..., Any], open_call: Callable[..., _Call]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> str:
        async with open_call(*args, **kwargs) as call:
            try:
                await to_thread.run_sync(call.admit)
                reply = await call.run(function)
                text = await to_thread.run_sync(functools.partial(call.release, reply, last=True))
                call.stop_if_blocked()
                return text
            except Blocked as blocked:
                return call.refuse(blocked)

    return wrapper


def _generator(function: Callable[..., Any], open_call: Callable[..., _Call]) -> Callable[..., Iterator[str]]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[str, None, None]:
        with open_call(*args, **kwargs) as call:
            try:
                call.admit()
                with closing(call.run(function)) as source:
                    for text in source:
                        if released := call.release(text):
                            yield released
                        call.stop_if_blocked()
                if released := call.release("", last=True):
                    yield released
                call.stop_if_blocked()
            except Blocked as blocked:
                yield call.refuse(blocked)

    return wrapper


def _async_generator(
    function: Callable[..., Any], open_call: Callable[..., _Call]
) -> Callable[..., AsyncIterator[str]]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[str, None]:
        async with open_call(*args, **kwargs) as call:
            try:
                await to_thread.run_sync(call.admit)
                async with aclosing(call.run(function)) as source:
                    async for text in source:
                        if released := await to_thread.run_sync(call.release, text):
                            yield released
                        call.stop_if_blocked()
                if released := await to_thread.run_sync(functools.partial(call.release, "", last=True)):
                    yield released
                call.stop_if_blocked()
            except Blocked as blocked:
                yield call.refuse(blocked)

    return wrapper
