"""Says of what was found in another reading of a text where the text itself has it. Knows no check.

For checks that know forms it has them look wherever a spelling differs from the text, and no further: the rest of a
long text is not read again because of one disguised word. Checks that know language are given the whole text in the
clear beside the text as it came.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ringfence.guard.check import Finding, Passage, Span
from ringfence.guard.normalise.readings import spellings, variants
from ringfence.guard.normalise.variant import Variant


def in_disguise(finding: Finding, variant: Variant) -> Finding:
    """Return a finding of a variant as one of the text: spans where it stands there, the disguise in the detail."""
    spans = tuple(Span(span.part, *variant.span(span.start, span.end)) for span in finding.spans)
    return replace(finding, spans=spans, detail=", ".join(filter(None, (f"read as {variant.kind}", finding.detail))))


def in_every_reading(
    find: Callable[[Sequence[Passage]], Sequence[Iterable[Finding]]], passage: Passage
) -> Sequence[Finding]:
    """Return of each category the highest of what is found in a passage and in its other readings, as `worst` does.

    Args:
        find: returns the findings of each of them, the passage as it came first; asked once, about all together.
    """
    readings = variants(passage.text)
    plain, *others = find([passage, *(replace(passage, text=reading.text) for reading in readings)])
    disguised = (
        in_disguise(finding, reading) for reading, found in zip(readings, others, strict=True) for finding in found
    )
    return list(worst([*plain, *disguised]))


def worst(found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield of each category the finding with the highest score, the first of equals, and every error once."""
    best: dict[str, Finding] = {}
    for finding in found:
        if finding.error is None and (finding.category not in best or finding.score > best[finding.category].score):
            best[finding.category] = finding
    yield from best.values()
    yield from {finding.category: finding for finding in found if finding.error is not None}.values()


def in_every_spelling(find: Callable[[Passage], Sequence[Finding]], passage: Passage) -> Sequence[Finding]:
    """Return what is found in a passage and in its other spellings, in order; time stays linear if that of `find` is.

    Args:
        find: returns findings of one span each.
    """
    plain = list(find(passage))
    readings = spellings(passage.text)
    if not readings:
        return plain
    known = {(finding.category, finding.spans) for finding in plain}
    disguised: list[Finding] = []
    seen: set[tuple[tuple[int, int], str]] = set()
    for reading in readings:
        for finding in _around_changes(find, passage, reading, seen):
            if (finding.category, finding.spans) not in known:
                disguised.append(finding)
    return joined(chain(plain, disguised)) if disguised else plain


MARGIN = 192
"""Characters on each side of a change that are read with it: what a thing is may be said before it."""

BLIND = 64
"""Of these, what stands first has lost the words before it, by which it may be something else."""

LONGEST_WORD = 4_096
"""No word is cut, up to this length."""


def _around_changes(
    find: Callable[[Passage], Sequence[Finding]],
    passage: Passage,
    reading: Variant,
    seen: set[tuple[tuple[int, int], str]],
) -> Iterator[Finding]:
    """Yield what is found where a reading differs from the text.

    Args:
        seen: what was read of other readings, which need not be read again; grows.
    """
    changed, size, done = reading.changed(passage.text), len(reading.text), 0
    for first, last in _stretches(changed):
        if last <= done:
            continue
        # From before the word that the change is in: a long key in disguise at its end only has its own beginning.
        start, margin = _start_of_word(reading.text, _start_of_word(reading.text, first) - MARGIN), MARGIN
        while True:
            end = _end_of_word(reading.text, last + margin)
            excerpt = reading.cut(start, end)
            key = excerpt.span(0, end - start), excerpt.text
            found = find(replace(passage, text=excerpt.text)) if key not in seen else ()
            seen.add(key)
            # A private key may go on for long after its first line.
            if end == size or all(finding.spans[0].end < end - start for finding in found):
                break
            margin *= 4
        done = end - MARGIN
        for finding in found:
            span = finding.spans[0]
            if start == 0 or span.start >= BLIND:
                yield in_disguise(finding, excerpt)


def _stretches(changed: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the changes, in order, those together that are read together."""
    at = np.flatnonzero(changed)
    parts = np.split(at, np.flatnonzero(np.diff(at) > 2 * MARGIN) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]


def _start_of_word(text: str, at: int) -> int:
    floor = max(0, at - LONGEST_WORD)
    while at > floor and not text[at - 1].isspace():
        at -= 1
    return max(0, at)


def _end_of_word(text: str, at: int) -> int:
    limit = min(len(text), at + LONGEST_WORD)
    while at < limit and not text[at - 1].isspace():
        at += 1
    return min(len(text), at)


def joined(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings, each once, and one over all that those of a category cover which overlap: the surest.

    Part of a disguised value may be one by itself, and what is taken out must be the whole. Each is told as well, for
    what spares the whole may be about another: an address of one's own, behind which a stranger's stands in disguise.
    """
    by_category: dict[str, list[list[Finding]]] = {}
    for finding in sorted(found, key=_extent):
        groups = by_category.setdefault(finding.category, [])
        if groups and finding.spans[0].start < max(one.spans[0].end for one in groups[-1]):
            groups[-1].append(finding)
        else:
            groups.append([finding])
    return sorted(chain.from_iterable(map(_with_whole, chain.from_iterable(by_category.values()))), key=_extent)


def _with_whole(group: Sequence[Finding]) -> Iterable[Finding]:
    surest = max(group, key=lambda one: one.score)
    first = group[0].spans[0]
    whole = replace(first, end=max(one.spans[0].end for one in group))
    parts = {one.spans[0]: one for one in reversed(group) if one.spans[0] != whole}
    return [replace(surest, spans=(whole,)), *parts.values()]


def _extent(finding: Finding) -> tuple[int, int]:
    return finding.spans[0].start, -finding.spans[0].end
