"""Compiles regular expressions with RE2, those of a policy above all, and says how much room they take. Knows no check.

RE2 reads UTF-8. A program's size is known; what it remembers of texts that it has read is bounded beside it, by the
`max_mem` of each.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast

import re2

from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.words import Origin

MEMORY = 64 << 20
"""Bytes that RE2 may take for one check's words, or for one pattern; 10,000 words need a third of it."""

ROOM = 256 << 20
"""Bytes that the programs of all words and patterns of one policy may take together."""

INSTRUCTION = 3 * 24
"""Bytes an instruction of a program takes: it is there forwards, backwards, and once more in a set."""

LEAST = 2_048
"""Bytes that the smallest pattern takes."""


class Unusable(PolicyError):
    """Words or patterns cannot be used as a policy has them; `room` is what those take that were compiled, in bytes."""

    def __init__(self, problems: Iterable[Problem], room: int) -> None:
        super().__init__(problems)
        self.room = room


class Pattern(Protocol):
    """What RE2 makes of a regular expression; it ships no types."""

    @property
    def programsize(self) -> int:
        """Its instructions, read forwards."""
        ...

    def finditer(self, text: bytes) -> Iterator[re.Match[bytes]]:
        """As `re.Pattern.finditer`."""
        ...


class Alternatives(Protocol):
    """Patterns of which one pass over a text says which match."""

    def Match(self, text: bytes) -> Sequence[int] | None:
        """Return the places of those that do; nothing also where memory ran out."""
        ...


def compiled(pattern: str, origin: Origin, otherwise: str) -> Pattern:
    """Compile a pattern.

    Args:
        otherwise: what to say where RE2 refuses it; its reason follows.

    Raises:
        PolicyError: RE2 refuses it.
    """
    try:
        return cast(Pattern, re2.compile(encoded(pattern), options()))
    except re2.error as error:
        hint = "RE2 has no look-around and no backreferences, and refuses what grows too large"
        raise PolicyError([Problem(origin, f"{otherwise}: {_words(error)}; {hint}")]) from None


def together(patterns: Iterable[str]) -> Callable[[bytes], list[int]]:
    """Return what says in one pass over a text which of some patterns match, counted from 0.

    It raises MemoryError where RE2 runs out of memory.

    Raises:
        re2.error: they are too large together.
    """
    alternatives = re2.Set.SearchSet(options())
    always = [alternatives.Add(encoded(pattern)) for pattern in (*patterns, "")][-1]
    alternatives.Compile()

    def matching(text: bytes) -> list[int]:
        found = alternatives.Match(text) or []
        # Where RE2 runs out of memory it says that nothing matches: then the empty pattern did not either.
        if always not in found:
            raise MemoryError("RE2 ran out of memory over patterns that are looked for together")
        return sorted(index for index in found if index != always)

    return matching


def room(pattern: Pattern) -> int:
    """Return how many bytes the programs of a pattern take."""
    return LEAST + INSTRUCTION * pattern.programsize


def has_room(taken: int) -> bool:
    """Whether so many bytes are no more than the words and patterns of a policy may take."""
    return taken <= ROOM


def refuse_beyond_room(taken: int, origin: Origin) -> None:
    """Refuse a policy whose words and patterns take more room than they may, up to and with those of this place.

    Raises:
        PolicyError: they do.
    """
    if not has_room(taken):
        what = f"with these, the words and patterns of the policy take {_mebibytes(taken)} MiB"
        hint = "repeat less in a pattern: `\\pL{1,100}` is a hundred times as large as `\\pL+`"
        raise PolicyError([Problem(origin, f"{what}; together they may take {_mebibytes(ROOM)}; {hint}")])


def options(memory: int | None = None) -> re2.Options:
    """Return how something is compiled: with so many bytes for its program and what it remembers of texts."""
    chosen = re2.Options()
    chosen.max_mem = memory or MEMORY
    chosen.log_errors = False
    return chosen


def encoded(text: str) -> bytes:
    """Return a text as RE2 reads it; half a surrogate pair becomes `?`."""
    return text.encode("utf-8", "replace")


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def _mebibytes(number: int) -> str:
    return f"{-(-number >> 20):,}"
