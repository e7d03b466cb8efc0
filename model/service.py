"""The engine at work for many callers at once: one thread steps, and tells each caller how its sequence goes on.

Knows nothing of text, chat, safety or HTTP.
"""

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

from ringfence.model.engine import Engine, check
from ringfence.model.sampler import Constraint, Sampling
from ringfence.model.sequence import Advance

Tell = Callable[[Advance | Exception], None]
"""Is told of every step that a sequence took part in, or of what ended all of them. Called on the engine's thread: it
must return at once, and not raise."""


class EngineEnded(RuntimeError):
    """Nothing is computed any more."""


class Service:
    """A thread that steps through the sequences of any number of callers. Thread-safe.

    Attributes:
        vocabulary: token ids that there are.
        context: tokens that prompt and reply may have together.
        ends: tokens that end a reply; never among the chosen.
    """

    def __init__(self, engine: Engine) -> None:
        self.vocabulary, self.context, self.ends = engine.vocabulary, engine.context, engine.ends
        self._engine = engine
        self._tells: dict[int, Tell] = {}
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._over = False
        self._door = threading.Lock()  # held while somebody joins or the thread starts or ends

    def submit(
        self, prompt: Tokens[int], sampling: Sampling, tell: Tell, constraint: Constraint | None = None
    ) -> Callable[[], None]:
        """Let a sequence join, and return what makes it leave: to be called when nobody wants it any more.

        Raises:
            ContextOverflow, ValueError: at once, before anything is computed.
            EngineEnded: the thread has ended.
        """
        check(prompt, self.vocabulary, self.context)
        left = threading.Event()

        def join() -> None:
            if left.is_set():
                return
            try:
                joined.append(self._engine.add(prompt, sampling, constraint))
            except Exception as error:  # noqa: BLE001 — the caller must hear of it, whatever it was
                tell(error)
            else:
                self._tells[joined[0]] = tell

        def leave() -> None:
            for id in joined:
                self._engine.abort(id)
                self._tells.pop(id, None)

        def gone() -> None:
            left.set()
            self._orders.put(leave)

        joined: list[int] = []
        with self._door:
            self._start()
            self._orders.put(join)
        return gone

    def generate(
        self, prompt: Tokens[int], sampling: Sampling, constraint: Constraint | None = None
    ) -> Iterator[Advance]:
        """Yield how a sequence goes on, until it is over; closing the iterator makes it leave.

        Raises:
            ContextOverflow, ValueError: at the call, before anything is computed.
        """
        check(prompt, self.vocabulary, self.context)
        return told(self, prompt, sampling, constraint)

    def close(self) -> None:
        """End the thread after the step under way; whoever is under way hears of it."""
        self._orders.put(None)
        if self._thread:
            self._thread.join()

    def problem(self) -> str | None:
        """Say why nothing would be computed any more; None where it would."""
        return "the engine has ended" if self._over else None

    def _start(self) -> None:
        if problem := self.problem():
            raise EngineEnded(problem)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            self._end()

    def _serve(self) -> None:
        while True:
            try:
                while not self._engine.busy or not self._orders.empty():
                    order = self._orders.get()
                    if order is None:
                        return
                    order()
                for advance in self._engine.step():
                    over = advance.end or advance.error
                    (self._tells.pop if over else self._tells.__getitem__)(advance.id)(advance)
            except Exception as error:  # noqa: BLE001 — every caller must hear of it, whatever it was
                self._give_up(error)

    def _end(self) -> None:
        """Let nobody join any more, and tell those who had."""
        with self._door:
            self._over = True
        while not self._orders.empty():
            if order := self._orders.get():
                with suppress(Exception):  # of an engine that is broken: the others must hear of it all the same
                    order()
        for tell in self._tells.values():
            tell(EngineEnded(self.problem()))

    def _give_up(self, error: Exception) -> None:
        """Tell everybody, first of all: an engine that cannot even let them go ends the thread."""
        tells, self._tells = self._tells, {}
        for tell in tells.values():
            tell(error)
        for id in tells:
            self._engine.abort(id)


class Submits(Protocol):
    """What sequences can be given to."""

    def submit(
        self, prompt: Tokens[int], sampling: Sampling, tell: Tell, constraint: Constraint | None = None
    ) -> Callable[[], None]:
        """As `Service.submit`."""


def told(service: Submits, prompt: Tokens[int], sampling: Sampling, constraint: Constraint | None) -> Iterator[Advance]:
    """Yield how a sequence goes on, until it is over or the iterator is closed."""
    news: SimpleQueue[Advance | Exception] = SimpleQueue()
    leave = service.submit(prompt, sampling, news.put, constraint)
    try:
        over = False
        while not over:
            match news.get():
                case Exception() as error:
                    raise error
                case Advance(error=Exception() as error):
                    raise error
                case advance:
                    yield advance
                    over = advance.end is not None
    finally:
        leave()
