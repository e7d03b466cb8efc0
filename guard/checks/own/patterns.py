"""Finds the words and patterns that a policy names, with RE2: for each match in time linear in the text.

It knows no category; it looks in the text as it is written and in its other readings (`guard/normalise/`).

RE2 counts bytes; spans are counted in code points again here.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple
from unicodedata import normalize

import re2

from ringfence.guard.check import Finding, Passage, Span
from ringfence.guard.checks.disguise import in_disguise, joined
from ringfence.guard.checks.words import spaced
from ringfence.guard.expressions import (
    Pattern,
    Unusable,
    compiled,
    encoded,
    has_room,
    refuse_beyond_room,
    room,
    together,
)
from ringfence.guard.normalise.readings import variants, wordings
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.own import Keywords, Regex, written_at

EDGE = "\0"
"""Stands at both ends of every word while words are looked for, so that only whole ones meet."""

SPACE = r"[\s\x0b\x1c-\x1f\x85\pZ]+"
"""What a space in a keyword meets: what `str.isspace` says, which RE2's own class does not."""

MOST = 1_000
"""Matches of one pattern that are told apart in a text: each is told on record, and to look for one may take as long as
the text."""

PROBES = (b"", b"a", b"a b", b" a\n", b"1.", "ä".encode())
"""Texts that show whether a pattern matches where there is nothing, at a word's end, say."""


BYTE = re.compile(r"(?<!\\)(?:\\\\)*\\C")
"""RE2's name for any one byte, which may be a part of a character."""


class Match(NamedTuple):
    """Where one of the words or patterns matched, `[start, end)` in code points, and its number in the policy.

    Attributes:
        rest: it goes on to the end of the text, where nobody looked.
    """

    start: int
    end: int
    number: int
    rest: bool = False


class PatternCheck:
    """Reports one category wherever one of a list matches; findings name it by its number, never by what it matched.

    Not even a keyword is named: the record would hold the text that the policy may not want kept.

    Args:
        category: what its findings are called.
        what: what the list is a list of, for the detail: `word`, `pattern`.
        look: returns the matches in a text.
        room: bytes that the list takes.
    """

    def __init__(self, category: str, what: str, look: Callable[[str], Iterable[Match]], room: int) -> None:
        self.name = category
        self.categories = frozenset({category})
        self.room = room
        self._what = what
        self._look = look

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return a finding with score 1.0 for each match, in order; of one word or pattern, one for those that overlap.

        What is found in the clear is not told again as disguised.
        """
        found: dict[int, list[Finding]] = {}
        for finding, number in self._read(passage.part, passage.text):
            found.setdefault(number, []).append(finding)
        readings = {reading.text: reading for reading in (*wordings(passage.text), *variants(passage.text))}
        readings.pop(passage.text, None)
        for reading in readings.values():
            for finding, number in self._read(passage.part, reading.text):
                found.setdefault(number, []).append(in_disguise(finding, reading))
        return sorted(chain.from_iterable(map(joined, found.values())), key=lambda finding: finding.spans[0].start)

    def _read(self, part: int, text: str) -> Iterator[tuple[Finding, int]]:
        for start, end, number, rest in self._look(text):
            detail = f"{self._what} {number} of its list" + (", and what follows: there were too many to tell" * rest)
            yield Finding(self.name, self.name, 1.0, (Span(part, start, end),), detail), number


def keywords(spec: Keywords) -> PatternCheck:
    """Make the check for a list of words. Of words that overlap, the first is found, then the longest.

    Case is that of Unicode's full folding (`STRASSE` is `straße`), and a letter with its accent is the same in one
    code point or two. In scripts without spaces between words every place is the edge of one.

    Raises:
        PolicyError: a word is nothing but white space, or they are too many.
    """
    numbers: dict[str, int] = {}
    if blank := [index for index, word in enumerate(spec.words) if not word.strip()]:
        what = "word {} is nothing but white space; write one or leave it out"
        raise PolicyError(Problem(written_at(spec, "words", index), what.format(index + 1)) for index in blank)
    for number, word in enumerate(spec.words, 1):
        for form in (normalize("NFC", word), normalize("NFD", word)):
            numbers.setdefault(_spelt(_prepared(form, spec)[0]), number)
    # A word stands before its own beginning: of alternatives RE2 takes the first. Neighbours share what they share.
    either = "|".join(SPACE.join(map(re2.escape, word.split(" "))) for word in sorted(numbers, reverse=True))
    pattern = compiled(either, spec.origin, f"its {len(spec.words):,} words are too many; make two checks of them")

    def look(text: str) -> Iterator[Match]:
        prepared, places = _prepared(text, spec)
        at = last = 0
        data = encoded(prepared)
        for match in pattern.finditer(data):
            start, end = match.span()
            at += len(data[last:start].decode().replace(EDGE, ""))
            word = data[start:end].decode()
            before, last = at, end
            at += len(word.replace(EDGE, ""))
            span = (places[before], places[at - 1] + 1) if places else (before, at)
            yield Match(*span, numbers[_spelt(word)])

    return PatternCheck(spec.category, "word", lambda text: _bounded(look(text), text), room(pattern))


def regex(spec: Regex) -> PatternCheck:
    """Make the check for a list of regular expressions.

    Raises:
        PolicyError: RE2 refuses a pattern, one matches where there is nothing, or they take too much room.
    """
    patterns: list[Pattern] = []
    problems: list[Problem] = []
    taken = 0
    for number, written in enumerate(spec.patterns, 1):
        place = written_at(spec, "patterns", number - 1)
        try:
            pattern = compiled(written, place, f"pattern {number}, '{written}', cannot be used")
        except PolicyError as error:
            problems += error.problems
            continue
        patterns.append(pattern)
        taken += room(pattern)
        if not has_room(taken):
            break
        if any(match.start() == match.end() for probe in PROBES for match in pattern.finditer(probe)):
            what = f"pattern {number}, '{written}', matches where there is nothing"
            problems.append(Problem(place, f"{what}; write `+` for `*`, or what must stand"))
        if BYTE.search(written):
            what = f"pattern {number}, '{written}', takes characters apart with \\C; write `(?s:.)` for any character"
            problems.append(Problem(place, what))
    try:
        refuse_beyond_room(taken, spec.origin)
    except PolicyError as error:
        problems += error.problems
    if problems:
        raise Unusable(problems, taken)
    matching = _together(spec)

    def look(text: str) -> Iterator[Match]:
        data = encoded(text)
        for index in matching(data):
            yield from _bounded(one_by_one(index, data), text)

    def one_by_one(index: int, data: bytes) -> Iterator[Match]:
        at = last = 0
        for match in patterns[index].finditer(data):
            start, end = match.span()
            before = at + _length(data[last:start])
            at, last = before + _length(data[start:end]), end
            if before < at:
                yield Match(before, at, index + 1)

    return PatternCheck(spec.category, "pattern", look, taken)


def _bounded(matches: Iterable[Match], text: str) -> Iterator[Match]:
    """Yield the first matches of one pattern; from the next on, the rest of the text is one, as nobody looks there."""
    for count, match in enumerate(matches):
        if count == MOST:
            yield match._replace(end=len(text), rest=True)
            return
        yield match


def _together(spec: Regex) -> Callable[[bytes], list[int]]:
    """Return what says in one pass which of the patterns match, counted from 0."""
    try:
        return together(spec.patterns)
    except re2.error:
        what = f"its {len(spec.patterns):,} patterns are too large together; make two checks of them"
        raise PolicyError([Problem(spec.origin, what)]) from None


def _prepared(text: str, spec: Keywords) -> tuple[str, list[int] | None]:
    """Return a text as words are looked for in it, and of each code point where it came from; None where it stayed."""
    text = text.replace(EDGE, " ")
    folded = text if spec.case_sensitive else text.casefold()
    # Folding may put two letters for one, never one for two.
    moved = len(folded) > len(text)
    places = [place for place, character in enumerate(text) for _ in character.casefold()] if moved else None
    return (spaced().sub(rf"{EDGE}\g<0>{EDGE}", folded) if spec.whole_words else folded), places


def _spelt(text: str) -> str:
    return " ".join(text.split())


def _length(data: bytes) -> int:
    return len(data.decode())
