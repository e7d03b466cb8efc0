"""What a word is, in any script. Knows characters; knows no language.

Python's `\\w` takes a word of Hindi apart at its vowel signs, RE2's `\\b` one of German at its umlauts.
"""

import re
import unicodedata
from functools import cache
from itertools import groupby

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\U00020000-\U0003ffff"
)
"""Scripts that put no space between words, as a character class: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han."""


ASCII = re.compile("[0-9A-Za-z_]+")
"""What `tokens` matches in ASCII."""


@cache
def spaced() -> re.Pattern[str]:
    """Return what matches one word of the scripts that put spaces between them: letters, marks, digits, `_`."""
    without = re.compile(f"[{UNSPACED}]")
    planes: tuple[list[str], list[str]] = ([], [])
    for inside, run in groupby(range(0x20000), lambda code: (_is_part(chr(code), without), code > 0xFFFF)):
        if inside[0]:
            codes = list(run)
            planes[inside[1]].append(f"\\U{codes[0]:08x}-\\U{codes[-1]:08x}")
    # The engine looks the first plane up in a table, and goes through the others range by range: not at every space.
    first, others = map("".join, planes)
    return re.compile(f"(?:[{first}]++|[\U00010000-\U0001ffff](?<=[{others}]))++")


@cache
def tokens() -> re.Pattern[str]:
    """Return what matches one word, or one character of a script that puts no space between words."""
    return re.compile(f"{spaced().pattern}|[{UNSPACED}]")


def said(text: str) -> list[str]:
    """Return the words of a text in order, as they are compared: whatever their case."""
    if text.isascii():
        return ASCII.findall(text.lower())
    return [word.casefold() for word in tokens().findall(text)]


def _is_part(character: str, without: re.Pattern[str]) -> bool:
    return (character == "_" or unicodedata.category(character)[0] in "LMN") and not without.match(character)
