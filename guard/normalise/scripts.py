"""Reads a word of several scripts in the one that most of it is written in."""

import re
from collections import Counter
from functools import cache

from ringfence.guard.normalise.characters import WORDS, as_ascii
from ringfence.guard.normalise.variant import Edit

# Scripts that lend each other their letters; what most words are written with comes first.
_SCRIPTS = {
    "ascii": "A-Za-z",
    "greek": "\u0391-\u03c9\u0370-\u03ff",
    "cyrillic": "\u0410-\u044f\u0400-\u052f",
    "armenian": "\u0531-\u058f",
    "cherokee": "\u13a0-\u13ff",
}
_LENT = re.compile(
    "|".join(
        f"[{own}](?=[{''.join(other for name, other in _SCRIPTS.items() if name != script)}])"
        for script, own in _SCRIPTS.items()
    )
)


def native(text: str) -> list[Edit]:
    """Write words of several scripts in the one that most of their letters beyond ASCII are of, if all of it can be."""
    edits: list[Edit] = []
    for word in WORDS.finditer(text) if not text.isascii() and _LENT.search(text) else ():
        if _LENT.search(word[0]):
            letters = [(at, c) for at, c in enumerate(word[0], word.start()) if c.isalpha()]
            of = Counter(script for _, c in letters for script in _SCRIPTS if script != "ascii" and _is_of(script, c))
            script = max(of, key=lambda one: of[one])
            new = [(at, _letters_of(script).get(as_ascii(c), "")) for at, c in letters if not _is_of(script, c)]
            edits += [Edit(at, at + 1, c) for at, c in new] if all(c for _, c in new) else []
    return edits


def _is_of(script: str, character: str) -> bool:
    return re.match(f"[{_SCRIPTS[script]}]", character) is not None


@cache
def _letters_of(script: str) -> dict[str, str]:
    """Return of ASCII letters the one of a script that looks like each, and is as large."""
    ranges = re.findall("(.)-(.)", _SCRIPTS[script])
    letters = [chr(code) for first, last in ranges for code in range(ord(first), ord(last) + 1)]
    alike = [(as_ascii(c), c) for c in letters if as_ascii(c).isascii() and as_ascii(c).islower() == c.islower()]
    return dict(reversed(alike))
