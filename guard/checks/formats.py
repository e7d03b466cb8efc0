"""Finds texts that have a known format: a table of formats, one row each. Knows no format itself."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import re2

from ringfence.guard.check import Finding, Passage, Span
from ringfence.guard.expressions import encoded, together


class Hit(NamedTuple):
    """`[start, end)` in code points of the text, and how sure the format is of it, 0 to 1."""

    start: int
    end: int
    score: float


Finder = Callable[[str], Iterable[Hit]]


@dataclass(frozen=True, slots=True)
class Format:
    """One row.

    Attributes:
        category: of its findings.
        what: a few words for a person to read.
        find: linear in the length of the text, whatever the text.
        hints: text of which one must be there for it to be found; none where that cannot be said.
    """

    category: str
    what: str
    find: Finder
    hints: tuple[str, ...] = ()


class Table:
    """Formats, first those that keep what others have too. One pass over a text says which it can have at all."""

    def __init__(self, rows: Iterable[Format]) -> None:
        self.rows = tuple(rows)
        hinted = [(at, hint) for at, row in enumerate(self.rows) for hint in row.hints]
        self._row_of_hint = [at for at, _ in hinted]
        self._hints_in = together(re2.escape(hint) for _, hint in hinted)
        self._without = {at for at, row in enumerate(self.rows) if not row.hints}

    def possible(self, text: str) -> list[Format]:
        """Return the rows that may find something in a text, in order.

        Raises:
            MemoryError: RE2 ran out of it.
        """
        places = self._without.union(self._row_of_hint[hint] for hint in self._hints_in(encoded(text)))
        return [self.rows[at] for at in sorted(places)]


def by_pattern(
    pattern: str,
    score: float,
    valid: Callable[[str], bool] = lambda _: True,
    flags: re.RegexFlag = re.NOFLAG,
) -> Finder:
    """Return a finder of what a regular expression matches.

    Args:
        pattern: its one group is what is found; without a group, all of it. To stay linear, a repetition without
            an upper bound may only begin where the character before cannot belong to it.
        valid: a second look at what was found.
    """
    expression = re.compile(pattern, flags)

    def find(text: str) -> Iterator[Hit]:
        for match in expression.finditer(text):
            group = match.lastindex or 0
            if valid(match[group]):
                yield Hit(*match.span(group), score)

    return find


def by_word(
    words: Sequence[str],
    pattern: str,
    score: float,
    valid: Callable[[str], bool] = lambda _: True,
    flags: re.RegexFlag = re.NOFLAG,
) -> Finder:
    """Return a finder of what a regular expression matches from one of some words on.

    Looking for the words first costs a twentieth of letting the expression try them at every character.

    Args:
        words: in lower case; where one stands, in any case, the pattern is tried. It may look behind itself.
        pattern: the group of it that matches is what is found. To stay linear, all its repetitions need an upper bound.
        valid: a second look at what was found.
    """
    expression = re.compile(pattern, flags)
    looked_for = tuple(words)

    def hits(text: str, places: Iterable[int]) -> Iterator[Hit]:
        done = 0
        for start in places:
            if start >= done and (match := expression.match(text, start)):
                done, group = match.end(), match.lastindex or 0
                if valid(match[group]):
                    yield Hit(*match.span(group), score)

    def find(text: str) -> Iterable[Hit]:
        places = _places_of(looked_for, text)
        return hits(text, places) if places else ()

    return find


@lru_cache(maxsize=64)  # rows that stand together in a table have their words in common
def _places_of(words: tuple[str, ...], text: str) -> tuple[int, ...]:
    """Return where any of some words begins in a text, in order."""
    # The one letter that lower() makes two of; offsets must stay.
    folded = text.replace("\u0130", "I").lower()
    found = []
    for word in words:
        start = folded.find(word)
        while start >= 0:
            found.append(start)
            start = folded.find(word, start + len(word))
    return tuple(sorted(found))


def find_formats(check: str, formats: Sequence[Format], passage: Passage) -> list[Finding]:
    """Return one finding for each stretch that has a format; where two formats overlap, the earlier row keeps it."""
    findings = []
    taken = bytearray(len(passage.text))
    for row in formats:
        for start, end, score in row.find(passage.text):
            if taken.find(1, start, end) < 0:
                taken[start:end] = b"\1" * (end - start)
                findings.append(Finding(check, row.category, score, (Span(passage.part, start, end),), row.what))
    return sorted(findings, key=lambda finding: finding.spans[0].start)


def hint_of(words: re.Pattern[str]) -> Callable[[str], bool]:
    """Return what says whether a text may hold any of some words; never False where it does.

    In ASCII it looks in lower case, a tenth of the work that it is where case is ignored.
    """
    lower = re.sub(r"(?<!\\)[A-Z]", lambda letter: letter[0].lower(), words.pattern.replace("(?-i:", "(?:"))
    expression = re.compile(lower)
    return lambda text: not text.isascii() or expression.search(text.lower()) is not None


def before(text: str, start: int, length: int = 24) -> str:
    """Return the characters just before a place, in lower case: what a number is, is said in front of it."""
    return text[max(0, start - length) : start].lower()


def lead(text: str, start: int, length: int = 48) -> str:
    """Return what stands between the number or line before and a place: the words that name what begins there."""
    return END_OF_NUMBER.split(text[max(0, start - length) : start])[-1]


END_OF_NUMBER = re.compile(r"[0-9\n]+")
