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


@dataclass(frozen=True, slots=True)
class Parted:
    """A passage as it reads with a line break at each place where it matters.

    Attributes:
        passage: with the breaks.
        part: index of the text that it is a reading of.
        breaks: where they stand, in code points of `passage.text`.
    """

    passage: Passage
    part: int
    breaks: Sequence[int]

    def back(self, finding: Finding) -> Finding:
        """Return what was found in the passage as found in the text."""
        return replace(finding, spans=tuple(self._back(span) for span in finding.spans))

    def _back(self, span: Span) -> Span:
        start, end = (at - bisect_left(self.breaks, at) for at in (span.start, span.end))
        return Span(self.part, start, end)


def parted(passages: Iterable[Passage], parts: Sequence[Part]) -> list[Parted]:
    """Return the other reading of each passage that has one, as parts of their own behind the others.

    Args:
        passages: on the parts of these indices.
    """
    found: list[Parted] = []
    for passage in passages:
        if seams := _seams(parts[passage.part]):
            breaks = [seam + index for index, seam in enumerate(seams)]
            edges = [0, *seams, len(passage.text)]
            text = "\n".join(passage.text[a:b] for a, b in pairwise(edges))
            moved = passage.rewritable and tuple(
                (start + bisect_right(seams, start), end + bisect_left(seams, end)) for start, end in passage.rewritable
            )
            again = replace(passage, text=text, part=len(parts) + len(found), rewritable=moved)
            found.append(Parted(again, passage.part, breaks))
    return found


def home(findings: Iterable[Finding], readings: Sequence[Parted]) -> list[Finding]:
    """Return findings in the texts, those of other readings too; of what was found alike in both, the surer."""
    of = {reading.passage.part: reading for reading in readings}
    found: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        reading = of.get(finding.spans[0].part) if finding.spans else None
        told = reading.back(finding) if reading else finding
        alike = (told.check, told.category, told.error, told.spans)
        if alike not in found or found[alike].score < told.score:
            found[alike] = told
    return list(found.values())


def _seams(part: Part) -> list[int]:
    """Return where two pieces meet with nothing between, and what stands there may be read together."""
    ends = [piece.end for piece, after in pairwise(part.pieces) if piece.end == after.start]
    return [end for end in ends if 0 < end < len(part.text) and _meet(part.text[end - 1], part.text[end])]


def _meet(before: str, after: str) -> bool:
    return not (before.isspace() or after.isspace() or (before in CLOSING and after.isalpha()))
