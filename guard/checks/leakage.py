"""Finds what a reply gives away of the system message. Knows the two texts and what the user said; no meaning.

The score goes by the longest stretch of the reply, L words, that stands in the system message word for word:

    1 - 2 ** (-L / h)    h = 12 words, or half of the system message where it is shorter

so 12 words are 0.5, 24 are 0.75, 40 are 0.9, and all of a short message is 0.75. It goes by the length and not by a
share, because a streamed reply is judged in windows, which show little of it at a time. Stretches below six words are
nothing: everybody's helpful assistant. A character of a script without spaces between words counts as half a word.
What the user said last is no secret, so its words in a row do not count. Facts that the message has for being told
(opening hours, a list of answers) are found as well: see what a rule of yours does on them.

A stretch in disguise is one whose letters stand there in a row, whatever stands between them (`letters`): as many words
as it has all the letters of. Letters alone say nothing of numbers, so numbers count only where digits are read as
letters.

A canary is a word of at least eight characters, a digit among them, after `canary:` in the system message; a reply that
has it is 0.99. In disguise it is its letters and digits in a row: set apart, backwards, in ROT13, in leetspeak.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from math import floor
from typing import NamedTuple

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.checks.disguise import in_disguise
from ringfence.guard.checks.letters import (
    LEET,
    LETTERS,
    SIGNS,
    Alphabet,
    Rows,
    Weighed,
    decoded,
    rows,
    shared,
    ways,
)
from ringfence.guard.checks.words import UNSPACED, said, tokens
from ringfence.guard.normalise.readings import spellings, variants
from ringfence.policies.types import Stage

ROW = 6
"""Words in a row that must be the same; the shortest stretch that is one."""

HALF = 12
"""Words in a row that score 0.5."""

CANARY = re.compile(
    r"canary(?:[ _-]?(?:token|word|string|id))?[\"'`*]{0,2}\s{0,4}[:=]\s{0,4}[\"'`*]{0,2}"
    r"(?P<word>(?=[\w-]{0,200}\d)[\w-]{8,200})",
    re.IGNORECASE,
)

SHORTEST = 8
"""Letters and digits that a canary must have to be looked for by them alone."""

ALPHABETS = (LETTERS, LEET)

UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")


class Stretch(NamedTuple):
    """What stands in both texts: `[start, end)` in code points of the reply, and how many words that is."""

    start: int
    end: int
    words: float


class LeakageCheck:
    """Reports `leak.system_prompt` and `leak.canary` in what a model says, also in disguise."""

    name = "leakage"
    categories = frozenset({"leak"})
    finds = (
        Findable("leak.system_prompt", stages=(Stage.OUTPUT,)),
        Findable("leak.canary", 0.99, stages=(Stage.OUTPUT,)),
    )

    def warm(self) -> object:
        """Make the table of what a word is."""
        return tokens()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return at most one finding of each, the surest; time is linear in the length of the texts.

        The system message and the prompt are taken apart once for all the windows of a reply.
        """
        if passage.stage is not Stage.OUTPUT or not passage.system:
            return ()
        best = {finding.category: finding for finding in self._read(passage, passage.text, words=True)}
        words = ((variant, True) for variant in variants(passage.text))
        letters = ((variant, False) for variant in chain(spellings(passage.text), decoded(passage.text)))
        for variant, has_words in chain(words, letters):
            for finding in self._read(passage, variant.text, has_words):
                if finding.category not in best or finding.score > best[finding.category].score:
                    best[finding.category] = in_disguise(finding, variant)
        return list(best.values())

    def _read(self, passage: Passage, text: str, words: bool) -> Iterator[Finding]:
        told = _told(passage.system)
        each = [alphabet.letters(text) for alphabet in ALPHABETS]
        # Without digits and signs to read as letters, the second says no more.
        alphabets = range(1 + (len(each[1]) > len(each[0])))
        found = [list(_spelt(text, each[at], at, passage.system, passage.prompt)) for at in alphabets]
        if words:  # which have their exact places, so that letters must say more
            found.insert(0, list(_shared(text, passage.system, passage.prompt)))
        if stretches := max(found, key=_longest):
            longest = _longest(stretches)
            score = round(1 - 2 ** (-longest / min(HALF, told.words / 2)), 4)
            spans = tuple(Span(passage.part, stretch.start, stretch.end) for stretch in stretches)
            yield Finding(self.name, "leak.system_prompt", score, spans, f"{longest:g} words of it in a row")
        for canary in told.canaries:
            if (places := canary.find(text)) and not canary.find(passage.prompt):
                spans = tuple(Span(passage.part, start, end) for start, end in places)
                yield Finding(self.name, "leak.canary", 0.99, spans, "a canary of the system message")


@dataclass(frozen=True, slots=True)
class Canary:
    """A word that nobody may say.

    Attributes:
        forms: what it is in an alphabet: as it is, backwards and in ROT13; none where it is digits alone, or too short,
            so that other numbers and words may run together to the same.
    """

    word: str
    forms: tuple[tuple[Alphabet, tuple[str, ...]], ...]

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return the stretches of a text that are the word in one of its forms, in order and disjoint."""
        found = [match.span() for match in re.finditer(re.escape(self.word), text, re.IGNORECASE)]
        for alphabet, forms in self.forms:
            letters = alphabet.letters(text)
            at = [match.span() for form in forms if form in letters for match in re.finditer(re.escape(form), letters)]
            source = alphabet.places(text) if at else ()
            spelt = [(int(source[start]), int(source[end - 1]) + 1) for start, end in at]
            # Leetspeak has more digits, never fewer: `release it` is not `release-1`.
            found += [(start, end) for start, end in spelt if _digits(text[start:end]) >= _digits(self.word)]
        disjoint: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if disjoint and start < disjoint[-1][1]:
                disjoint[-1] = disjoint[-1][0], max(end, disjoint[-1][1])
            else:
                disjoint.append((start, end))
        return disjoint


class Told(NamedTuple):
    """What a text says: its rows of words, how many words it has, and its canaries."""

    rows: frozenset[tuple[str, ...]]
    words: float
    canaries: tuple[Canary, ...]


@lru_cache(maxsize=16)
def _told(text: str) -> Told:
    words = said(text)
    canaries = dict.fromkeys(match["word"] for match in CANARY.finditer(text))
    return Told(frozenset(_rows(words)), _words(words), tuple(map(_canary, canaries)))


def _canary(word: str) -> Canary:
    plain = SIGNS.letters(word)
    if len(plain) < SHORTEST or plain.isdigit():
        return Canary(word, ())
    return Canary(word, tuple((a, tuple({a.letters(way) for way in ways(word)})) for a in (SIGNS, LEET)))


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _rows(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(ROW)), strict=False)


def _words(words: Sequence[str]) -> float:
    return sum(0.5 if UNSPACED_CHARACTER.match(word) else 1 for word in words)


def _shared(text: str, system: str, prompt: str) -> Iterator[Stretch]:
    """Yield the stretches of a text that are rows of the system message, and none of the prompt."""
    words = said(text)
    secret = _told(system).rows
    if secret.isdisjoint(_rows(words)):  # nearly always
        return
    matches, known = list(tokens().finditer(text)), _told(prompt).rows
    start = end = 0  # of the stretch that goes on, in words
    for at, row in enumerate(_rows(words)):
        if row not in secret or row in known:
            continue
        if at > end - ROW + 1:
            yield from _stretch(matches[start:end], words[start:end])
            start = at
        end = at + ROW
    yield from _stretch(matches[start:end], words[start:end])


def _spelt(text: str, letters: str, alphabet: int, system: str, prompt: str) -> Iterator[Stretch]:
    """Yield the stretches of a text that are rows of the system message letter for letter, and none of the prompt."""
    found = list(shared(letters, _letters(system)[alphabet], lambda: _letters(prompt)[alphabet]))
    places = ALPHABETS[alphabet].places(text) if found else ()
    for start, end, weight in found:
        # As many words as it has all the letters of; a sum of shares may miss the whole by a rounding.
        if (words := floor(weight + 1e-6)) >= ROW:
            yield Stretch(int(places[start]), int(places[end - 1]) + 1, words)


@lru_cache(maxsize=16)
def _letters(text: str) -> tuple[Rows, ...]:
    """Return the letters of a text in rows, for each alphabet."""

    @cache  # which both alphabets ask for
    def words(text: str) -> list[Weighed]:
        unspaced = UNSPACED_CHARACTER.match
        return [(*match.span(), 0.5 if unspaced(match[0]) else 1) for match in tokens().finditer(text)]

    return tuple(rows(ways(text), alphabet, words) for alphabet in ALPHABETS)


def _longest(stretches: Sequence[Stretch]) -> float:
    return max((stretch.words for stretch in stretches), default=0.0)


def _stretch(matches: Sequence[re.Match[str]], said: Sequence[str]) -> Iterator[Stretch]:
    if (words := _words(said)) >= ROW:
        yield Stretch(matches[0].start(), matches[-1].end(), words)
