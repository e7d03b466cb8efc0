"""The stretches of a text that are read as one or not at all: encoded blocks, letters set apart."""

import re
from collections.abc import Iterator

from ringfence.guard.normalise.encodings import BASE64_LINES, BINARY, HEX, IN_BASE64, MORSE
from ringfence.guard.normalise.letters import SPACED
from ringfence.guard.normalise.unseen import CONTROL_STRING

# A long run without a second line is not walked again from its second character.
_WHOLE_BASE64_LINES = re.compile(rf"(?<!{IN_BASE64}){BASE64_LINES}")
_BLOCKS = (BINARY, HEX, _WHOLE_BASE64_LINES, MORSE, SPACED, re.compile(CONTROL_STRING))


def blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield the stretches that hold white space and are read as one if at all, told by their form; some overlap.

    Whether a block says anything only all of it tells: one that begins with nothing may end with something.
    """
    for pattern in _BLOCKS:
        yield from (m.span() for m in pattern.finditer(text))
