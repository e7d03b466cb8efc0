"""Does what a decision says to texts and bodies. Decides nothing."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ringfence.guard.exchange import Part, Path, Piece
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
    by_part: dict[int, list[Rewrite]] = {}
    for item in decision.rewrites:
        by_part.setdefault(item.span.part, []).append(item)
    for index, items in by_part.items():
        part = parts[index]
        for piece in part.pieces or (Piece(0, len(part.text), part.path),):
            inside = [_moved(r, -piece.start) for r in items if piece.start <= r.span.start < piece.end]
            if inside and piece.path is not None:
                body = put(body, piece.path, rewrite(part.text[piece.start : piece.end], inside))
    return body


def put(body: Any, path: Path, text: str) -> Any:
    """Return a copy of a JSON body with the string at `path` replaced; a path may lead on into JSON inside a string."""
    if not path:
        return text
    if isinstance(body, str):
        return json.dumps(put(json.loads(body), path, text), ensure_ascii=False)
    head, *rest = path
    copy: Any = dict(body) if isinstance(body, Mapping) else list(body)
    copy[head] = put(copy[head], tuple(rest), text)
    return copy


def _moved(item: Rewrite, by: int) -> Rewrite:
    return replace(item, span=replace(item.span, start=item.span.start + by, end=item.span.end + by))
