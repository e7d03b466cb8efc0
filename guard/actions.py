"""Does what a decision says to texts and bodies. Decides nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

from ringfence.guard.exchange import Part, Path
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


def rewrite_parts(parts: Sequence[Part], decision: Decision) -> dict[Path, str]:
    """Return the new text of each part that the decision rewrites, by its path."""
    touched = sorted({item.span.part for item in decision.rewrites})
    return {
        parts[index].path: rewrite(parts[index].text, (r for r in decision.rewrites if r.span.part == index))
        for index in touched
    }


def put(body: Any, path: Path, text: str) -> Any:
    """Return a copy of a JSON body with the string at `path` replaced; the rest is shared, not copied."""
    if not path:
        return text
    head, *rest = path
    copy: Any = list(body) if isinstance(body, list) else dict(body)
    copy[head] = put(copy[head], tuple(rest), text)
    return copy
