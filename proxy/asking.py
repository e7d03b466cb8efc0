"""Puts questions to an upstream from any thread: one at a time or many, within a deadline and a budget, each once.

Knows no question and no answer. Whoever asks has them made and read by coroutines, which run on a loop of its own.
"""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from threading import Lock, Thread
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import finalize

from ringfence.guard.budget import Budget
from ringfence.guard.check import CannotAnswer
from ringfence.policies.own import GuardModel, LlmJudge, Moderations
from ringfence.proxy.reply import Upstream, UpstreamError

log = logging.getLogger(__name__)

T = TypeVar("T")

Question: TypeAlias = Callable[[], Coroutine[Any, Any, T]]
"""Runs it, and gives what the answer says."""

ANY = "default"
"""The model of a judge that names none: the only one that its upstream has."""

LOOK_AGAIN_S = 10.0
"""What was seen of a server holds for so long: whoever wants to know may want to every second."""

LOOK_FOR_S = 5.0
"""Seconds at most until a server that says nothing counts as away."""

RETRIES = 10
"""One question for so many texts may be put once more, so that a server that is down is not asked twice as much."""

KEY = "check `api_key_env`: it wants a key, or one that may do more"

REMEDIES = {401: KEY, 403: KEY, 429: "lower `per_minute`, or raise the server's own limits"}
"""What to do about what a server refuses, by the status that it answers with."""

LONGER = "or give it longer by `timeout_s`, and by `limits.check_seconds` or the rule's `seconds` where they are less"
"""What else there is to do about a server that is slow, beside looking at it."""

LATE = "upstream_timeout"
"""The failure of an upstream that said nothing in time."""

HOPELESS = frozenset({LATE, "upstream_malformed"})
"""Failures after which a second try would be of no use, or come too late."""


class Asking(Generic[T]):
    """Asks whom a policy names for a check, remembers what it was told, and says of failures what to do. Thread-safe.

    Args:
        upstream: closed when nobody holds this any more.
        clock: that of `until` and of the budgets.

    Attributes:
        who: the check, in error messages.
    """

    def __init__(
        self, spec: GuardModel | LlmJudge | Moderations, upstream: Upstream, clock: Callable[[], float] = monotonic
    ) -> None:
        self.who = f"{spec.kind} ('{spec.category}')"
        self._spec = spec
        self._upstream = upstream
        self._clock = clock
        self._budget = Budget(spec.per_minute, clock)
        self._retries = Budget(max(1, spec.per_minute // RETRIES), clock)
        self._known: OrderedDict[bytes, Sequence[T]] = OrderedDict()
        self._lock = Lock()
        self._seen: tuple[float, str | None] = (-math.inf, None)
        # Checks run on worker threads and upstreams on a loop; connections stay with the loop that opened them.
        self._loop = asyncio.new_event_loop()
        name = f"{spec.kind}-{spec.category}"
        Thread(target=_run, args=(self._loop, upstream), name=name, daemon=True).start()
        finalize(self, self._loop.call_soon_threadsafe, self._loop.stop).atexit = False

    def ask(self, key: bytes, questions: Sequence[Question[T]], until: float | None) -> Sequence[T]:
        """Return the answers to questions about one text, or those of when the same key was asked about before.

        A question that the upstream fails to answer, for all that is known in passing, is put once more.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than until nobody waits any more.
            CannotAnswer: the upstream could not, or `per_minute` texts were asked about already.
            Exception: whatever else a question raises. No failure is remembered.
        """
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        answers = self._told(questions, until)
        with self._lock:
            self._known[key] = answers
            while len(self._known) > self._spec.remember:
                self._known.popitem(last=False)
        return answers

    def warm(self) -> None:
        """See whether the upstream is there, and say so in the log where it is not: it may come yet."""
        if why := self.away():
            log.warning("%s: %s; its rules' on_error settles what it cannot answer", self.who, why)

    def away(self) -> str | None:
        """Return why the upstream cannot answer at present, or None where it can; seen `LOOK_AGAIN_S` ago at most.

        While one caller looks, others are told what was seen before.
        """
        with self._lock:
            when, why = self._seen
            now = self._clock()
            if now < when + LOOK_AGAIN_S:
                return why
            self._seen = now, why
        why = self._look()
        self._seen = self._clock(), why
        return why

    def _look(self) -> str | None:
        seconds = min(self._spec.timeout_s, LOOK_FOR_S)
        answer = asyncio.run_coroutine_threadsafe(self._upstream.ready(), self._loop)
        try:
            return answer.result(seconds)
        except TimeoutError:
            answer.cancel()
            return f"no answer within {seconds:.3g} s"

    def _told(self, questions: Sequence[Question[T]], until: float | None) -> Sequence[T]:
        spec = self._spec
        left = spec.timeout_s if until is None else min(spec.timeout_s, until - self._clock())
        if left <= 0:
            raise TimeoutError(f"there was no time left to ask {self.who}")
        with self._lock:
            spent = not self._budget.take()
        if spent:
            limit = f"{spec.per_minute} texts a minute are the policy's limit (per_minute)"
            raise CannotAnswer(f"{self.who}: {limit}")
        slow = f"look why {spec.use} is slow, {LONGER}"
        answers = asyncio.run_coroutine_threadsafe(self._all(questions), self._loop)
        try:
            return answers.result(left)
        except TimeoutError:
            answers.cancel()
            raise TimeoutError(f"{self.who} gave no verdict within {left:.3g} s; {slow}") from None
        except UpstreamError as error:
            # The connection's deadline is no longer than ours: either may be the first to tell.
            if error.code == LATE:
                raise TimeoutError(f"{self.who} gave no verdict: {error}; {slow}") from None
            model = "one model" if spec.model == ANY else f"'{spec.model}'"
            todo = REMEDIES.get(error.status, f"check that {spec.use} is up and serves {model}")
            raise CannotAnswer(f"{self.who}: {error}; {todo}") from None

    async def _all(self, questions: Sequence[Question[T]]) -> Sequence[T]:
        tried = [asyncio.ensure_future(self._tried(question)) for question in questions]
        try:
            return await asyncio.gather(*tried)
        finally:
            for one in tried:  # where one has failed, nobody waits for the others
                one.cancel()

    async def _tried(self, question: Question[T]) -> T:
        try:
            return await question()
        except UpstreamError as error:
            if error.status < 500 or error.code in HOPELESS or not self._retries.take():
                raise
        return await question()


def _run(loop: asyncio.AbstractEventLoop, upstream: Upstream) -> None:
    """Run a loop until nobody asks any more. Knows no `Asking`, or that would never go."""
    loop.run_forever()
    loop.run_until_complete(upstream.aclose())
    loop.close()
