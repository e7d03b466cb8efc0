"""Texts that were sent in pieces, as they read with a line break between these.

Servers put the pieces of a message together with nothing between, or with a line break, and nobody knows which: a word
cut in two shows in the one reading, a number that was put beside another in the other. Both are judged.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ringfence.guard.check import Finding, Passage, Span
from ringfence.guard.exchange import Part

CLOSING = frozenset(".!?:;,)]}\"'”’»")
"""What a letter after it is not read with."""


def seams(part: Part) -> tuple[int, ...]:
    """Return where two pieces meet with nothing between, and what stands there may be read together."""
    ends = [piece.end for piece, after in pairwise(part.pieces) if piece.end == after.start]
    return tuple(end for end in ends if 0 < end < len(part.text) and _meet(part.text[end - 1], part.text[end]))


def _meet(before: str, after: str) -> bool:
    return not (before.isspace() or after.isspace() or (before in CLOSING and after.isalpha()))


@dataclass(frozen=True, slots=True)
class Parted:
    """A passage as it reads with a line break at each seam.

    Attributes:
        passage: with the breaks; its part is a number that no other passage has.
        part: index of the text that it is a reading of.
        breaks: where they stand, in code points of `passage.text`.
    """

    passage: Passage
    part: int
    breaks: Sequence[int]

    def back(self, span: Span) -> Span:
        """Return a span of the reading as one of the text."""
        start, end = (at - bisect_left(self.breaks, at) for at in (span.start, span.end))
        return Span(self.part, start, end)


def parted(passages: Sequence[Passage]) -> list[Parted]:
    """Return the other reading of each passage that has one."""
    free = max((passage.part for passage in passages), default=0) + 1
    found: list[Parted] = []
    for passage in passages:
        if at := passage.seams:
            edges = [0, *at, len(passage.text)]
            text = "\n".join(passage.text[a:b] for a, b in pairwise(edges))
            moved = passage.rewritable and tuple(
                (start + bisect_right(at, start), end + bisect_left(at, end)) for start, end in passage.rewritable
            )
            again = replace(passage, text=text, part=free + len(found), rewritable=moved, seams=())
            found.append(Parted(again, passage.part, [seam + index for index, seam in enumerate(at)]))
    return found


def home(findings: Iterable[Finding], readings: Sequence[Parted]) -> list[Finding]:
    """Return what was found as found in the texts; of what a reading shows as its text does, the surer."""
    of = {reading.passage.part: reading for reading in readings}
    kept: list[Finding] = []
    others: list[Finding] = []
    for finding in findings:
        (others if any(span.part in of for span in finding.spans) else kept).append(finding)
    known = {_place(finding): at for at, finding in enumerate(kept) if finding.spans}
    for finding in others:
        spans = (of[span.part].back(span) if span.part in of else span for span in finding.spans)
        told = replace(finding, spans=tuple(dict.fromkeys(spans)))
        at = known.setdefault(_place(told), len(kept))
        if at == len(kept):
            kept.append(told)
        elif kept[at].score < told.score:
            kept[at] = told
    return kept


def _place(finding: Finding) -> tuple[object, ...]:
    return finding.check, finding.category, finding.error, finding.spans
