"""Where keys and values of the sequences under way are kept: pages of slots, handed out and given back. No attention.

A sequence holds a list of pages; of what lies in neighbouring slots, attention reads one view and copies nothing, so
pages are handed out next to each other where there are such.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ringfence.model.config import Config

PAGE = 64
"""Slots of a page."""


class OutOfPages(RuntimeError):
    """There are not as many free pages; nothing was handed out."""


@dataclass(slots=True)
class Held:
    """What one sequence holds.

    Attributes:
        pages: in the order of its tokens.
        length: tokens whose keys and values are there.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0

    def slots(self, first: int, last: int) -> Iterator[slice]:
        """Yield the slots of positions `first` up to `last`, as few stretches as there are."""
        start = end = -1
        while first < last:
            page, offset = divmod(first, PAGE)
            size = min(PAGE - offset, last - first)
            at = self.pages[page] * PAGE + offset
            if at != end:
                if end > start:
                    yield slice(start, end)
                start = at
            end = at + size
            first += size
        if end > start:
            yield slice(start, end)


class Cache:
    """Keys and values of every layer, for so many tokens in all.

    Attributes:
        keys, values: (layers, kv heads, slots, head).
    """

    def __init__(self, config: Config, tokens: int, dtype: torch.dtype) -> None:
        pages = -(-tokens // PAGE)
        shape = (len(config.layers), config.kv_heads, pages * PAGE, config.head)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self._free = [True] * pages
        self._left = pages

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return self._left

    def make_room(self, held: Held, length: int) -> None:
        """Hand a sequence the pages that it lacks for so many tokens, next to those that it has where these are free.

        Raises:
            OutOfPages: there are too few.
        """
        lacking = -(-length // PAGE) - len(held.pages)
        if lacking > self._left:
            raise OutOfPages(f"{lacking} pages are wanted, {self._left} are free")
        if lacking > 0:
            held.pages += self._take(lacking, after=held.pages[-1] if held.pages else None)

    def cut(self, held: Held, length: int) -> None:
        """Take back every page beyond the first so many tokens, which stay as they are."""
        kept = -(-length // PAGE)
        self._give_back(held.pages[kept:])
        del held.pages[kept:]
        held.length = min(held.length, length)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values (kv heads, N, head) of one layer in slots (N,)."""
        self.keys[layer].index_copy_(1, slots, keys)
        self.values[layer].index_copy_(1, slots, values)

    def _take(self, count: int, after: int | None) -> list[int]:
        taken = list(self._run(count, after))
        for page in taken:
            self._free[page] = False
        self._left -= count
        return taken

    def _run(self, count: int, after: int | None) -> Sequence[int]:
        """Return free pages: those that follow `after`, the first stretch that holds them all, or any."""
        if after is not None and all(self._free[after + 1 : after + 1 + count]) and after + count < len(self._free):
            return range(after + 1, after + 1 + count)
        start = 0
        for page, free in enumerate(self._free):
            if not free:
                start = page + 1
            elif page + 1 - start == count:
                return range(start, page + 1)
        return [page for page, free in enumerate(self._free) if free][:count]

    def _give_back(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._free[page] = True
            self._left += 1
