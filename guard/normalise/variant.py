"""Another reading of a text, made by edits: it knows of everything in it where in the text it came from."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Edit(NamedTuple):
    """Put `text` for `[start, end)`: code point by code point where both are as long, else as one block."""

    start: int
    end: int
    text: str
    backwards: bool = False  # the code points are the same, last one first


@dataclass(frozen=True, slots=True)
class Variant:
    """Another reading of a text.

    Attributes:
        kind: the disguises that were undone, in their order, joined by `+`: `base64`, `invisible+leet`.
        text: the whole text, with what was disguised in the clear where it stood.
    """

    kind: str
    text: str
    _starts: "array[int]" = field(repr=False, compare=False)  # for each code point of text: where it came from
    _ends: "array[int]" = field(repr=False, compare=False)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the smallest stretch of the original that `text[start:end]` came from, in code points.

        What came out of an encoded block came from all of it, a letter under marks from the letter and its marks.
        An empty stretch comes from the empty one before its code point.

        Raises:
            ValueError: the stretch is not within the text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"span: [{start}, {end}) is not within the variant's {len(self.text)} code points")
        if start < end:
            return min(self._starts[start:end]), max(self._ends[start:end])
        at = self._starts[start] if start < len(self.text) else max(self._ends, default=0)
        return at, at

    def cut(self, start: int, end: int) -> "Variant":
        """Return the reading `text[start:end]`, whose spans are still those of the original."""
        return Variant(self.kind, self.text[start:end], self._starts[start:end], self._ends[start:end])

    def before(self, places: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return of places in the original how many code points here come from before each, and which part any in two.

        What came out of one encoded block, or was turned round, comes from both sides of every place within.
        """
        starts, ends = (np.frombuffer(side, dtype=np.uintc).astype(np.intp) for side in (self._starts, self._ends))
        counts = np.searchsorted(np.maximum.accumulate(ends), places, "right")
        rest = np.append(np.minimum.accumulate(starts[::-1])[::-1], np.iinfo(np.intp).max)
        return counts, rest[counts] < places

    def changed(self, original: str) -> NDArray[np.bool_]:
        """Return of each code point whether it is not as the original has it, or something was taken out before it."""
        starts, ends = (np.frombuffer(side, dtype=np.uintc) for side in (self._starts, self._ends))
        differs: NDArray[np.bool_] = (ends - starts != 1) | (_codes(self.text) != _codes(original)[starts])
        differs[1:] |= starts[1:] != ends[:-1]
        return differs


def edited(reading: Variant, kind: str, edits: Iterable[Edit]) -> Variant:
    """Apply edits, which do not overlap and stand in order."""
    old, old_starts, old_ends = reading.text, reading._starts, reading._ends
    if not reading.kind:
        old_starts, old_ends = array("I", range(len(old))), array("I", range(1, len(old) + 1))
    pieces: list[str] = []
    starts, ends, at = array("I"), array("I"), 0
    for start, end, new, backwards in chain(edits, (Edit(len(old), len(old), ""),)):
        pieces += old[at:start], new
        starts += old_starts[at:start]
        ends += old_ends[at:start]
        at = end
        if len(new) == end - start:
            step = -1 if backwards else 1
            starts += old_starts[start:end][::step]
            ends += old_ends[start:end][::step]
        elif new:
            starts += array("I", [min(old_starts[start:end])]) * len(new)
            ends += array("I", [max(old_ends[start:end])]) * len(new)
    kinds = reading.kind.split("+") if reading.kind else []
    return Variant("+".join(dict.fromkeys([*kinds, kind])), "".join(pieces), starts, ends)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
