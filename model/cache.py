"""Where keys and values of the sequences under way are kept: pages of slots, handed out and given back. No attention.

A sequence holds a list of pages; of what lies in neighbouring slots, attention reads one view and copies nothing, so
pages are handed out next to each other where there are such. A full page is remembered by its tokens and all before
them, so that sequences that begin alike share it, and one that comes later finds it again (Kwon et al. 2023, arXiv
2309.06180, section 4.4).
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from ringfence.model.config import Config

PAGE = 64
"""Slots of a page."""

ROOM = 8
"""Pages that a sequence finds free beside its first ones, in a cache of many: one stretch is computed faster."""

Name = tuple[int, tuple[int, ...]]
"""Which text ended before a page, by its number, and the page's own tokens."""


class OutOfPages(RuntimeError):
    """There are not as many free pages; nothing was handed out."""


@dataclass(slots=True)
class Held:
    """What one sequence holds.

    Attributes:
        pages: in the order of its tokens.
        length: tokens whose keys and values are there.
        texts: numbers of the texts that its first pages end, as far as these are remembered.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    texts: list[int] = field(default_factory=list)

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


def stretches(free: Iterable[bool]) -> Iterator[range]:
    """Yield the stretches of pages that are free; one at least, which may be empty."""
    yield range(0)
    start = 0
    for page, one in enumerate((*free, False)):
        if not one:
            yield range(start, page)
            start = page + 1


def lacking(held: Held, length: int) -> int:
    """Return how many pages a sequence lacks for so many tokens."""
    return -(-length // PAGE) - len(held.pages)


class Cache:
    """Keys and values of every layer, for so many tokens in all.

    Attributes:
        keys, values: (layers, kv heads, slots, head).
    """

    def __init__(self, config: Config, tokens: int, dtype: torch.dtype) -> None:
        self._pages = -(-tokens // PAGE)
        shape = (len(config.layers), config.kv_heads, self._pages * PAGE, config.head)
        # Nothing is read before it was written; what is never written takes no memory.
        self.keys, self.values = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        self._blank = [True] * self._pages
        self._holders = [0] * self._pages
        self._texts: dict[Name, tuple[int, int]] = {}  # → the text's number, and the page
        self._names: dict[int, Name] = {}  # of remembered pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered, held by nobody, the longest unused first
        self._room = min(ROOM, self._pages // 16)
        self._numbers = count(1)

    @property
    def tokens(self) -> int:
        """How many tokens there is room for in all."""
        return self._pages * PAGE

    @property
    def size(self) -> int:
        """Bytes that it takes once all of it is in use."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return sum(self._blank) + len(self._idle)

    def fits(self, *wanted: tuple[Held, int]) -> bool:
        """Say whether there is room for so many tokens of each of some sequences."""
        return sum(max(0, lacking(held, length)) for held, length in wanted) <= self.free

    def begin(self, held: Held, tokens: Sequence[int], copies: bool = True) -> None:
        """Give a sequence that holds nothing what is remembered of its beginning, up to its last token but one.

        Args:
            copies: whether it may have a copy where it could not grow, as another sequence holds the same or has said
                something after it. Who lies in one stretch is computed faster, and what the other said stays
                remembered.
        """
        found = list(self._remembered(tokens))
        pages = [page for _, page in found]
        whole = lacking(held, len(tokens) + 1)
        grows = not pages or self._may_grow(pages, whole)
        for page in pages:
            self._holders[page] += 1
            self._idle.pop(page, None)
        if copies and not grows and (fresh := self._cleared(whole, self._room)[: len(pages)]):
            self._hold(fresh)
            for page, copy in zip(pages, fresh, strict=True):
                for kept in (self.keys, self.values):
                    kept[:, :, copy * PAGE : (copy + 1) * PAGE] = kept[:, :, page * PAGE : (page + 1) * PAGE]
            self._give_back(pages)
            pages = list(fresh)
        held.pages, held.texts, held.length = pages, [text for text, _ in found], len(pages) * PAGE

    def _remembered(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield number and page of each text that a sequence begins with."""
        text = 0
        for start in range(0, (len(tokens) - 1) // PAGE * PAGE, PAGE):
            found = self._texts.get((text, tuple(tokens[start : start + PAGE])))
            if found is None:
                return
            text, _ = found
            yield found

    def _may_grow(self, pages: Sequence[int], whole: int) -> bool:
        """Say whether a sequence that takes these pages would lie in one stretch, and nothing were lost by it."""
        stretch = range(pages[0], pages[0] + whole)
        after = stretch[len(pages) :]
        return (
            pages == list(stretch[: len(pages)])
            and stretch.stop <= self._pages
            and not any(self._holders[page] for page in pages)
            and all(self._blank[page] for page in after)
        )

    def remember(self, held: Held, tokens: Sequence[int]) -> None:
        """Let others find the full pages of a sequence, whose tokens these are."""
        while len(held.texts) < held.length // PAGE:
            start = len(held.texts) * PAGE
            name = (held.texts[-1] if held.texts else 0, tuple(tokens[start : start + PAGE]))
            if name not in self._texts:  # else another sequence has computed the same meanwhile
                page = held.pages[len(held.texts)]
                self._texts[name], self._names[page] = (next(self._numbers), page), name
            held.texts.append(self._texts[name][0])

    def make_room(self, held: Held, length: int) -> None:
        """Hand a sequence the pages that it lacks for so many tokens, next to those that it has where these are free.

        Raises:
            OutOfPages: there are too few.
        """
        more = lacking(held, length)
        if more > self.free:
            raise OutOfPages(f"{more} pages are wanted, {self.free} are free")
        if more > 0:
            held.pages += self._take(more, after=held.pages[-1] if held.pages else None)

    def cut(self, held: Held, length: int) -> None:
        """Take back every page beyond the first so many tokens.

        Of a page that is cut in two, the rest stays, unless another sequence reads it: then all of it goes, and what
        is lost of the first tokens must be computed again.
        """
        length = min(length, held.length)
        kept, rest = divmod(length, PAGE)
        if rest and self._holders[held.pages[kept]] > 1:
            length -= rest
        elif rest:
            self._forget(held.pages[kept])
            kept += 1
        self._give_back(held.pages[kept:])
        del held.pages[kept:], held.texts[length // PAGE :]
        held.length = length

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values (kv heads, N, head) of one layer in slots (N,)."""
        self.keys[layer].index_copy_(1, slots, keys.to(self.keys.dtype))
        self.values[layer].index_copy_(1, slots, values.to(self.values.dtype))

    def _take(self, count: int, after: int | None) -> list[int]:
        taken = list(self._next(count, after) or self._stretch(count, self._room if after is None else 0))
        for page in taken:
            self._free(page)
        self._hold(taken)
        return taken

    def _hold(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._blank[page] = False
            self._holders[page] = 1

    def _next(self, count: int, after: int | None) -> Sequence[int]:
        """Return the pages that follow one, if nobody holds them; else none."""
        if after is None or after + count >= self._pages or any(self._holders[after + 1 : after + 1 + count]):
            return ()
        return range(after + 1, after + 1 + count)

    def _stretch(self, count: int, room: int) -> Sequence[int]:
        """Return pages that are blank by now: in one stretch where there can be one, else wherever they are."""
        if found := self._cleared(count, room):
            return found
        while sum(self._blank) < count:
            self._free(next(iter(self._idle)))
        return [page for page, blank in enumerate(self._blank) if blank][:count]

    def _cleared(self, count: int, room: int) -> Sequence[int]:
        """Return pages from the middle of the longest blank stretch, so that whoever is beside them can grow as well.

        As long as it is too short for them and some room, what was unused for the longest is forgotten; nothing is
        where that would not help, as others hold too much between. Returns none where it is too short without room.
        """
        most = max(map(len, stretches(not holders for holders in self._holders)))
        if most < count + room:
            return self._cleared(count, 0) if room else ()
        while len(longest := max(stretches(self._blank), key=len)) < count + room:
            self._free(next(iter(self._idle)))
        start = longest.start + (len(longest) - count) // 2
        return range(start, start + count)

    def _free(self, page: int) -> None:
        """Forget a page that nobody holds."""
        if page in self._idle:
            del self._idle[page]
            self._forget(page)
            self._blank[page] = True

    def _give_back(self, pages: Iterable[int]) -> None:
        # The last first: of a text that is found no more from its beginning, the rest is of no use.
        for page in reversed(list(pages)):
            self._holders[page] -= 1
            if self._holders[page] == 0 and page in self._names:
                self._idle[page] = None
            elif self._holders[page] == 0:
                self._blank[page] = True

    def _forget(self, page: int) -> None:
        if name := self._names.pop(page, None):
            del self._texts[name]
