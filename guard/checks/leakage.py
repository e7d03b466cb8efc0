"""Finds what a reply gives away of the system message. Knows the two texts and what the user said; no meaning.

The score goes by the longest stretch of the reply, L words, that stands in the system message word for word:

    1 - 2 ** (-L / h)    h = 12 words, or half of the system message where it is shorter

so 12 words are 0.5, 24 are 0.75, 40 are 0.9, and all of a short message is 0.75. It goes by the length and not by a
share, because a streamed reply is judged in windows, which show little of it at a time. Stretches below six words are
nothing: everybody's helpful assistant. A character of a script without spaces between words counts as half a word.
What the user said last is no secret, so its words in a row do not count. Facts that the message has for being told
(opening hours, a list of answers) are found as well: see what a rule of yours does on them.

A canary is a word of at least eight characters, a digit among them, after `canary:` in the system message; a reply that
has it is 0.99.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from ringfence.guard.check import Findable, Finding, Passage, Span
from ringfence.guard.checks.disguise import in_disguise
from ringfence.guard.checks.words import UNSPACED, tokens
from ringfence.guard.normalise import variants
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
        best = {finding.category: finding for finding in self._read(passage, passage.text)}
        for variant in variants(passage.text):
            for finding in self._read(passage, variant.text):
                if finding.category not in best or finding.score > best[finding.category].score:
                    best[finding.category] = in_disguise(finding, variant)
        return list(best.values())

    def _read(self, passage: Passage, text: str) -> Iterator[Finding]:
        if stretches := list(_shared(text, passage.system, passage.prompt)):
            longest = max(stretch.words for stretch in stretches)
            score = round(1 - 2 ** (-longest / min(HALF, _told(passage.system).words / 2)), 4)
            spans = tuple(Span(passage.part, stretch.start, stretch.end) for stretch in stretches)
            yield Finding(self.name, "leak.system_prompt", score, spans, f"{longest:g} words of it in a row")
        for canary in _told(passage.system).canaries:
            spans = tuple(Span(passage.part, *m.span()) for m in re.finditer(re.escape(canary), text, re.IGNORECASE))
            if spans and canary.casefold() not in passage.prompt.casefold():
                yield Finding(self.name, "leak.canary", 0.99, spans, "a canary of the system message")


class Told(NamedTuple):
    """What a text says: its rows of words, how many words it has, and its canaries."""

    rows: frozenset[tuple[str, ...]]
    words: float
    canaries: tuple[str, ...]


@lru_cache(maxsize=16)
def _told(text: str) -> Told:
    said = [match[0].casefold() for match in tokens().finditer(text)]
    canaries = dict.fromkeys(match["word"] for match in CANARY.finditer(text))
    return Told(frozenset(_rows(said)), _words(said), tuple(canaries))


def _rows(said: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(said[at:] for at in range(ROW)), strict=False)


def _words(said: Sequence[str]) -> float:
    return sum(0.5 if UNSPACED_CHARACTER.match(word) else 1 for word in said)


def _shared(text: str, system: str, prompt: str) -> Iterator[Stretch]:
    """Yield the stretches of a text that are rows of the system message, and none of the prompt."""
    matches = list(tokens().finditer(text))
    said = [match[0].casefold() for match in matches]
    secret, known = _told(system).rows, _told(prompt).rows
    start = end = 0  # of the stretch that goes on, in words
    for at, row in enumerate(_rows(said)):
        if row not in secret or row in known:
            continue
        if at > end - ROW + 1:
            yield from _stretch(matches[start:end], said[start:end])
            start = at
        end = at + ROW
    yield from _stretch(matches[start:end], said[start:end])


def _stretch(matches: Sequence[re.Match[str]], said: Sequence[str]) -> Iterator[Stretch]:
    if (words := _words(said)) >= ROW:
        yield Stretch(matches[0].start(), matches[-1].end(), words)
