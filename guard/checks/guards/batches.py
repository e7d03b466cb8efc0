"""Runs a network for many threads at once: whoever asks waits, and rows that wait together are one pass.

Knows no network: what runs a batch is a function.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import finalize

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

MOST_ROWS = 16
MOST_TOKENS = 8_192
"""Of one pass, padding included; a longer row is a pass by itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text as the network reads it.

    Attributes:
        ids: its tokens.
        at: positions whose prediction is wanted.
        until: where the row is to be written on, what its text then ends with; empty where it is only read.
        most: tokens that are written at most.
        due: until when, in seconds of `time.monotonic`.
        shown: what is read beside the tokens: the pixels of an image, as the network has them.
    """

    ids: Sequence[int]
    at: Sequence[int] = ()
    until: str = ""
    most: int = 0
    due: float = 0.0
    shown: Any = None


def due(until: float | None, seconds: float) -> float:
    """Return when an answer is due that may take so many seconds from now, and that nobody waits for after `until`."""
    soon = monotonic() + seconds
    return soon if until is None else min(until, soon)


def padded(rows: Sequence[Row], padding: int = 0) -> tuple["Tensor", "Tensor"]:
    """Return the tokens of rows side by side, int64 (B, T), and 1 where there are any.

    What fills them up stands behind the text: in front it would move every position.
    """
    import torch

    ids = torch.full((len(rows), max(len(row.ids) for row in rows)), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        mask[number, : len(row.ids)] = 1
    return ids, mask


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    row: Row
    until: float | None
    result: Future[T] = field(default_factory=Future)


class Batches(Generic[T]):
    """A queue before a network, with one thread that empties it. Thread-safe.

    Args:
        run: gives the results of rows, in their order; what it raises, every one of them gets.
        name: of the thread.
    """

    def __init__(self, run: Callable[[Sequence[Row]], Sequence[T]], name: str) -> None:
        self._queue: SimpleQueue[_Waiting[T] | None] = SimpleQueue()
        Thread(target=_work, args=(self._queue, run), name=name, daemon=True).start()
        # The thread holds the network, and goes when nobody can ask any more.
        finalize(self, self._queue.put, None).atexit = False

    def run(self, rows: Sequence[Row], until: float | None = None) -> Sequence[T]:
        """Return the results of rows.

        Raises:
            TimeoutError: `until` came first, in seconds of `time.monotonic`.
        """
        waiting: list[_Waiting[T]] = [_Waiting(row, until) for row in rows]
        for one in waiting:
            self._queue.put(one)
        try:
            return [one.result.result(None if until is None else max(0.0, until - monotonic())) for one in waiting]
        finally:
            for one in waiting:
                one.result.cancel()


def _work(queue: "SimpleQueue[_Waiting[T] | None]", run: Callable[[Sequence[Row]], Sequence[T]]) -> None:
    held: _Waiting[T] | None = None
    while (first := held or queue.get()) is not None:
        batch, held, ended = [first], None, False
        while len(batch) < MOST_ROWS:
            try:
                more = queue.get_nowait()
            except Empty:
                break
            if more is None:
                ended = True
                break
            longest = max(len(one.row.ids) for one in (*batch, more))
            if longest * (len(batch) + 1) > MOST_TOKENS:
                held = more
                break
            batch.append(more)
        _settle(batch, run)
        if ended:
            return


def _settle(batch: Sequence[_Waiting[T]], run: Callable[[Sequence[Row]], Sequence[T]]) -> None:
    now = monotonic()
    wanted = [
        one for one in batch if (one.until is None or one.until > now) and one.result.set_running_or_notify_cancel()
    ]
    if not wanted:
        return
    try:
        results = run([one.row for one in wanted])
    except BaseException as error:  # noqa: BLE001  # whoever waits must know, whatever it was
        for one in wanted:
            one.result.set_exception(error)
        return
    for one, result in zip(wanted, results, strict=True):
        one.result.set_result(result)
