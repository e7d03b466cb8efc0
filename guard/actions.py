"""Does what a decision says to texts and bodies. Decides nothing."""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ringfence.guard.exchange import Part, Path, Piece
from ringfence.guard.unicode import whole
from ringfence.policies.types import Decision, Rewrite


def rewrite(text: str, rewrites: Iterable[Rewrite]) -> str:
    """Return the text with every span replaced.

    Args:
        rewrites: disjoint, ordered by start; spans count the code points of `text`.
    """
    pieces, done = [], 0
    for item in rewrites:
        pieces += [text[done : item.span.start], item.replacement]
        done = item.span.end
    return "".join([*pieces, text[done:]])


def rewrite_body(body: Any, parts: Sequence[Part], decision: Decision) -> Any:
    """Return a copy of a JSON body with every rewrite made; what is not rewritten is shared, not copied.

    Args:
        parts: those that the decision's spans count; none of its spans crosses a seam between a part's pieces.
    """
    by_part: defaultdict[int, list[Rewrite]] = defaultdict(list)
    for item in decision.rewrites:
        by_part[item.span.part].append(item)
    texts: dict[Path, str] = {}
    for index, items in by_part.items():
        text = parts[index].text
        for piece, inside in by_piece(parts[index], items):
            if inside and piece.path is not None:
                moved = [_moved(item, -piece.start) for item in inside]
                texts[piece.path] = rewrite(text[piece.start : piece.end], moved)
    return put(body, texts) if texts else body


def by_piece(part: Part, rewrites: Sequence[Rewrite]) -> Iterator[tuple[Piece, Sequence[Rewrite]]]:
    """Yield every piece of a part with the rewrites that start in it.

    Args:
        rewrites: of this part, ordered by start.
    """
    starts = [item.span.start for item in rewrites]
    for piece in part.pieces or (Piece(0, len(part.text), part.path),):
        yield piece, rewrites[bisect_left(starts, piece.start) : bisect_left(starts, piece.end)]


def put(body: Any, texts: Mapping[Path, str]) -> Any:
    """Return a copy of a JSON body with texts at some paths, none of which leads on from another.

    A path may lead on into JSON inside a string.
    """
    if () in texts:
        return texts[()]
    if isinstance(body, str):
        return whole(json.dumps(put(json.loads(body), texts), ensure_ascii=False))
    below: defaultdict[str | int, dict[Path, str]] = defaultdict(dict)
    for (step, *rest), text in texts.items():
        below[step][tuple(rest)] = text
    copy: Any = dict(body) if isinstance(body, Mapping) else list(body)
    for step, inner in below.items():
        copy[step] = put(copy[step], inner)
    return copy


def _moved(item: Rewrite, by: int) -> Rewrite:
    return replace(item, span=replace(item.span, start=item.span.start + by, end=item.span.end + by))
