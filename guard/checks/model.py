"""One guard model for all the checks of a process, and one reading of a text for all who ask for it at once.

Knows no category and no head: a reading is what the encoder says of a text's windows.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from time import monotonic
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ringfence.guard.classifier.scorer import FILES, Scorer, weights_folder
from ringfence.guard.classifier.tokens import Window
from ringfence.guard.stamps import Stamp, stamp, stamps

Vector = NDArray[np.float64]

KEPT = 32
"""Readings kept for who asks next: the checks of one stage ask together. The longest text takes 1.6 MB."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the encoder says of one text that stands alone.

    Attributes:
        features: (windows, W).
        windows: in the order of the text, at least one.
        cut_off: some of the text is in none of them.
    """

    features: Vector
    windows: Sequence[Window]
    cut_off: bool


class Reader:
    """Reads texts with the guard model's encoder. Thread-safe.

    Args:
        folder: where the weights stand.
        seen: what tells the files in it from others, as they were before they were read.
    """

    def __init__(self, scorer: Scorer, folder: Path, seen: frozenset[Stamp] = frozenset()) -> None:
        self.scorer = scorer
        self._folder = folder
        self._seen = seen
        self._lock = Lock()
        self._known: OrderedDict[bytes, Future[Reading]] = OrderedDict()

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of these."""
        return _state_of(self._folder) != self._seen

    @cached_property
    def ordinary(self) -> Vector:
        """The moments (W + 1, W + 1) of ordinary texts' features, a one behind each text's.

        Raises:
            WeightsError: the weights come without.
        """
        from ringfence.guard.classifier.ordinary import ALONE, read_ordinary  # learning loads what judging need not

        return read_ordinary(self._folder)[ALONE]

    @cached_property
    def root(self) -> Vector:
        """Their Cholesky factor: what measures by how much a head moves ordinary texts."""
        from ringfence.guard.classifier.correction import root_of

        return root_of(self.ordinary)

    def read(self, text: str, until: float | None = None) -> Reading:
        """Read a text; whoever asks for one that is being read shares that reading.

        Raises:
            TimeoutError: `until` has come, in seconds of `time.monotonic`.
        """
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        while True:
            with self._lock:
                known = self._known.get(key)
                if known is None:
                    mine = self._known[key] = Future()
                    while len(self._known) > KEPT:
                        self._known.popitem(last=False)
            if known is None:
                return self._settle(key, mine, text, until)
            try:
                return known.result(None if until is None else max(0.0, until - monotonic()))
            except Exception:  # noqa: BLE001  # another's time ran out, or its pass failed; mine has not been tried
                if until is not None and monotonic() >= until:
                    raise TimeoutError("took longer than it was given") from None

    def _settle(self, key: bytes, mine: Future[Reading], text: str, until: float | None) -> Reading:
        try:
            ((features, windows, cut_off),) = self.scorer.read([(text, None)], until)
        except BaseException as error:
            with self._lock:
                if self._known.get(key) is mine:
                    del self._known[key]
            mine.set_exception(error)
            raise
        reading = Reading(features.astype(float), windows, cut_off)
        mine.set_result(reading)
        return reading


# Nobody hands a check its model: entry points make checks from nothing, or from what stands in a policy. Weak, so that
# the model goes with the last check that holds it.
_shared: WeakValueDictionary[tuple[Path, frozenset[Stamp]], Reader] = WeakValueDictionary()
_one_at_a_time = Lock()


def shared_reader() -> Reader:
    """Return the reader of the weights in use, loading them where no check has yet, or where they have changed.

    Raises:
        WeightsError: they cannot be used.
    """
    folder = weights_folder()
    with _one_at_a_time:
        seen = _state_of(folder)
        key = folder, seen
        reader = _shared.get(key)
        if reader is None:
            reader = _shared[key] = Reader(Scorer.load(folder), folder, seen)
        return reader


def _state_of(folder: Path) -> frozenset[Stamp]:
    """Return what tells the weights in a folder from others; a card beside them does not count."""
    return stamps(folder, "*.safetensors") | {stamp(folder / name) for name in FILES}
