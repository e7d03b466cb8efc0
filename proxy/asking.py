"""Puts questions to an upstream from any thread: one at a time or many, within a deadline and a budget, each once.

Knows no question and no answer. Whoever asks has them made and read by a coroutine, which runs on a loop of its own.
"""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from threading import Lock, Thread
from time import monotonic
from typing import Any, Generic, TypeVar
from weakref import finalize

from ringfence.guard.budget import Budget
from ringfence.guard.check import CannotAnswer
from ringfence.policies.own import GuardModel, Moderations
from ringfence.proxy.reply import Upstream, UpstreamError

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_AGAIN_S = 10.0
"""What was seen of a server holds for so long: whoever wants to know may want to every second."""

LOOK_FOR_S = 5.0
"""Seconds at most until a server that says nothing counts as away."""


class BudgetSpent(Exception):
    """As many verdicts were asked for lately as the policy allows in a minute."""


class Asking(Generic[T]):
    """Asks, and remembers what it was told. Thread-safe.

    Args:
        name: of the thread; who: in error messages, as `the judge`.
        upstream: closed when nobody holds this any more.
        timeout_s: the longest that an answer may take.
        per_minute: questions asked in a minute at most.
        remember: answers kept.
        clock: that of `until` and of the budget.
    """

    def __init__(
        self,
        name: str,
        who: str,
        upstream: Upstream,
        *,
        timeout_s: float,
        per_minute: int,
        remember: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._who = who
        self._timeout_s = timeout_s
        self._per_minute = per_minute
        self._remember = remember
        self._clock = clock
        self._budget = Budget(per_minute, clock)
        self._known: OrderedDict[bytes, T] = OrderedDict()
        self._lock = Lock()
        self._seen: tuple[float, str | None] = (-math.inf, None)
        # Checks run on worker threads and upstreams on a loop; connections stay with the loop that opened them.
        self._loop = asyncio.new_event_loop()
        Thread(target=_run, args=(self._loop, upstream), name=name, daemon=True).start()
        finalize(self, self._loop.call_soon_threadsafe, self._loop.stop).atexit = False

    def ask(self, key: bytes, question: Callable[[], Coroutine[Any, Any, T]], until: float | None) -> T:
        """Return what the coroutine returns, or what it did when the same key was asked about before.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than until nobody waits any more.
            BudgetSpent: `per_minute` questions were asked already.
            Exception: whatever the coroutine raises, which is not remembered.
        """
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        answer = self._told(question, until)
        with self._lock:
            self._known[key] = answer
            while len(self._known) > self._remember:
                self._known.popitem(last=False)
        return answer

    def away(self, upstream: Upstream) -> str | None:
        """Return why the upstream cannot answer at present, or None where it can; seen `LOOK_AGAIN_S` ago at most.

        While one caller looks, others are told what was seen before.
        """
        with self._lock:
            when, why = self._seen
            now = self._clock()
            if now < when + LOOK_AGAIN_S:
                return why
            self._seen = now, why
        why = self._look(upstream)
        self._seen = self._clock(), why
        return why

    def _look(self, upstream: Upstream) -> str | None:
        answer, seconds = (
            asyncio.run_coroutine_threadsafe(upstream.ready(), self._loop),
            min(self._timeout_s, LOOK_FOR_S),
        )
        try:
            return answer.result(seconds)
        except TimeoutError:
            answer.cancel()
            return f"no answer within {seconds:.3g} s"

    def _told(self, question: Callable[[], Coroutine[Any, Any, T]], until: float | None) -> T:
        left = self._timeout_s if until is None else min(self._timeout_s, until - self._clock())
        if left <= 0:
            raise TimeoutError(f"there was no time left to ask {self._who}")
        with self._lock:
            if not self._budget.take():
                raise BudgetSpent(f"{self._per_minute} verdicts a minute are the policy's limit (per_minute)")
        answer = asyncio.run_coroutine_threadsafe(question(), self._loop)
        try:
            return answer.result(left)
        except TimeoutError:
            answer.cancel()
            raise TimeoutError(f"{self._who} gave no verdict within {left:.3g} s") from None


class AskingServer(Generic[T]):
    """Asks the server that a policy names for a guard, and says of its failures what to do. Thread-safe.

    Attributes:
        who: the guard, in error messages.
    """

    def __init__(
        self, spec: GuardModel | Moderations, upstream: Upstream, clock: Callable[[], float] = monotonic
    ) -> None:
        self.who = f"{spec.kind} ('{spec.category}')"
        self._spec = spec
        self._upstream = upstream
        self._asking: Asking[T] = Asking(
            f"{spec.kind}-{spec.category}",
            self.who,
            upstream,
            timeout_s=spec.timeout_s,
            per_minute=spec.per_minute,
            remember=spec.remember,
            clock=clock,
        )

    def warm(self) -> None:
        """See whether the server is there, and say so in the log where it is not: it may come yet."""
        if why := self.away():
            log.warning("%s: %s; its rules' on_error settles what it cannot answer", self.who, why)

    def away(self) -> str | None:
        """Return why the server cannot be asked at present; see `Asking.away`."""
        return self._asking.away(self._upstream)

    def ask(self, key: bytes, question: Callable[[], Coroutine[Any, Any, T]], until: float | None) -> T:
        """Return what the coroutine returns, or what it did when the same key was asked about before.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than until nobody waits any more.
            CannotAnswer: the server could not, or `per_minute` questions were asked already.
            Exception: whatever else the coroutine raises.
        """
        try:
            return self._asking.ask(key, question, until)
        except UpstreamError as error:
            what = f"{self.who}: {error}"
            raise CannotAnswer(f"{what}; check that {self._spec.use} is up and serves '{self._spec.model}'") from None
        except BudgetSpent as error:
            raise CannotAnswer(f"{self.who}: {error}") from None


def _run(loop: asyncio.AbstractEventLoop, upstream: Upstream) -> None:
    """Run a loop until nobody asks any more. Knows no `Asking`, or that would never go."""
    loop.run_forever()
    loop.run_until_complete(upstream.aclose())
    loop.close()
