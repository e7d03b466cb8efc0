"""`@guarded`: the path of an exchange around any Python function that returns or yields text."""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path as FilePath
from threading import Lock
from typing import Any, ParamSpec, TypeVar, cast, overload

from anyio import to_thread

from ringfence.guard.call import Call, OnBlock, open_guard, refuse_other
from ringfence.guard.guard import Blocked, Guard
from ringfence.policies.load import load_policy
from ringfence.policies.types import Policy

P = ParamSpec("P")
R = TypeVar("R")


@overload
def guarded(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def guarded(
    *,
    policy: Guard | Policy | FilePath | str | None = None,
    prompt: str | None = None,
    on_block: OnBlock = "raise",
    model: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def guarded(
    function: Callable[P, R] | None = None,
    /,
    *,
    policy: Guard | Policy | FilePath | str | None = None,
    prompt: str | None = None,
    on_block: OnBlock = "raise",
    model: str | None = None,
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Judge what goes into a function and what comes out of it, and keep one audit record of each call.

    Works on functions, coroutine functions, generators and async generators. A rewritten prompt is what the
    function gets; a rewritten reply is what the caller gets; text is yielded only once it was judged.

    Args:
        function: what is to be guarded, where `@guarded` is written without settings.
        policy: a policy or the path of one, None for the one that ships; or a `Guard`, to share one between
            functions and to choose where its records go.
        prompt: name of the parameter that holds the prompt: a string, or a list of messages with `role` and
            `content`. None takes the first parameter, or the second where the first is `self`.
        on_block: `raise` raises `Blocked`; `return` returns (or yields, last) the policy's message.
        model: the name that the audit record carries; None for the function's own.

    Raises:
        PolicyError: the policy file is wrong.
        TypeError: the function has no such parameter; or, at a call, prompt or reply is not text.
        ValueError: `on_block` is another word.
    """
    refuse_other(on_block)
    settled = policy if isinstance(policy, Guard | Policy) else load_policy(FilePath(policy) if policy else None)

    lock = Lock()

    @functools.cache
    def opened() -> Guard:
        return open_guard(settled)

    def guard() -> Guard:
        with lock:  # two first calls at once open one store
            return opened()

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, title = inspect.signature(function), getattr(function, "__qualname__", type(function).__name__)
        name = prompt or next((parameter for parameter in signature.parameters if parameter != "self"), "")
        if name not in signature.parameters:
            known = ", ".join(signature.parameters) or "none"
            raise TypeError(f"@guarded: {title} has no parameter '{name}'; its parameters: {known}")

        def bind(*args: Any, **kwargs: Any) -> _Bound:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            call = Call(guard(), bound.arguments[name], name=name, model=model or title)
            return _Bound(call, bound, name, on_block)

        wrapper = _wrapper_for(function)(function, bind)
        return cast(Callable[P, R], functools.wraps(function)(wrapper))

    return decorate(function) if function else decorate


@dataclass(frozen=True, slots=True)
class _Bound:
    """A call of a guarded function, with its arguments."""

    call: Call
    arguments: inspect.BoundArguments
    name: str
    on_block: OnBlock

    def admit(self) -> None:
        """Judge the prompt, and put a rewritten one in its place."""
        self.arguments.arguments[self.name] = self.call.admit()

    def run(self, function: Callable[..., Any]) -> Any:
        """Call the function with the arguments as judged."""
        return function(*self.arguments.args, **self.arguments.kwargs)

    def refuse(self, blocked: Blocked) -> str:
        """Return the policy's message, or raise, as the function's author chose."""
        if self.on_block == "raise":
            raise blocked
        return blocked.decision.message


def _wrapper_for(function: Callable[..., Any]) -> Callable[[Callable[..., Any], Callable[..., _Bound]], Any]:
    if inspect.isasyncgenfunction(function):
        return _async_generator
    if inspect.iscoroutinefunction(function):
        return _coroutine
    if inspect.isgeneratorfunction(function):
        return _generator
    return _function


def _function(function: Callable[..., Any], bind: Callable[..., _Bound]) -> Callable[..., str]:
    def wrapper(*args: Any, **kwargs: Any) -> str:
        bound = bind(*args, **kwargs)
        with bound.call as call:
            try:
                bound.admit()
                text = call.release(bound.run(function), last=True)
                call.stop_if_blocked()
                return text
            except Blocked as blocked:
                return bound.refuse(blocked)

    return wrapper


def _coroutine(function: Callable[..., Any], bind: Callable[..., _Bound]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> str:
        bound = bind(*args, **kwargs)
        async with bound.call as call:
            try:
                await to_thread.run_sync(bound.admit)
                reply = await bound.run(function)
                text = await to_thread.run_sync(functools.partial(call.release, reply, last=True))
                call.stop_if_blocked()
                return text
            except Blocked as blocked:
                return bound.refuse(blocked)

    return wrapper


def _generator(function: Callable[..., Any], bind: Callable[..., _Bound]) -> Callable[..., Iterator[str]]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[str, None, None]:
        bound = bind(*args, **kwargs)
        with bound.call as call:
            try:
                bound.admit()
                with closing(bound.run(function)) as source:
                    for text in source:
                        if released := call.release(text):
                            yield released
                        call.stop_if_blocked()
                if released := call.release("", last=True):
                    yield released
                call.stop_if_blocked()
            except Blocked as blocked:
                yield bound.refuse(blocked)

    return wrapper


def _async_generator(function: Callable[..., Any], bind: Callable[..., _Bound]) -> Callable[..., AsyncIterator[str]]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[str, None]:
        bound = bind(*args, **kwargs)
        async with bound.call as call:
            try:
                await to_thread.run_sync(bound.admit)
                async with aclosing(bound.run(function)) as source:
                    async for text in source:
                        if released := await to_thread.run_sync(call.release, text):
                            yield released
                        call.stop_if_blocked()
                if released := await to_thread.run_sync(functools.partial(call.release, "", last=True)):
                    yield released
                call.stop_if_blocked()
            except Blocked as blocked:
                yield bound.refuse(blocked)

    return wrapper
