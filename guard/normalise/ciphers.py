"""Undoes ciphers of letters, in the stretches that are the likelier English for it."""

import codecs
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringfence.guard.normalise.english import COMMON, COST, LETTERS, WORD, is_english
from ringfence.guard.normalise.variant import Edit


class _Tables(NamedTuple):
    codes: NDArray[np.intp]  # (256,) of a byte: its letter's place in LETTERS, 0 for any other
    rot13: NDArray[np.int64]  # (729,) bits that a pair of letters loses when it is read so: 27 x the first + the second
    reversed: NDArray[np.int64]  # (729,)


@cache
def _tables() -> _Tables:
    codes = np.zeros(256, dtype=np.intp)
    for place, letter in enumerate(LETTERS[1:], 1):
        codes[[ord(letter), ord(letter.upper())]] = place
    bits = np.array([[COST[a + b] for b in LETTERS] for a in LETTERS], dtype=np.int64)
    bits[0, 0] = 0
    turn = np.array([0, *(1 + (i + 13) % 26 for i in range(26))], dtype=np.intp)
    return _Tables(codes, (bits - bits[np.ix_(turn, turn)]).ravel(), (bits - bits.T).ravel())


_GAIN = 24
_DROP = 20
"""Bits by which another reading must be the likelier for a stretch, and by which it must be less so to end one."""


def rot13(text: str) -> list[Edit]:
    """Read the stretches that are English thirteen letters on."""
    return [
        Edit(start, end, read)
        for start, end in _stretches(text, _tables().rot13)
        if _is_meant(read := codecs.encode(text[start:end], "rot13"), text[start:end])
    ]


def backwards(text: str) -> list[Edit]:
    """Read the stretches that are English from their end."""
    return [
        Edit(start, end, read, backwards=True)
        for start, end in _stretches(text, _tables().reversed)
        if _is_meant(read := text[start:end][::-1], text[start:end])
    ]


def _is_meant(read: str, written: str) -> bool:
    """Whether a reading is English prose, and what was written is not."""
    words = re.findall(r"[a-z]+", read.lower())
    common = sum(word in COMMON for word in words)
    if sum(map(len, words)) < 0.7 * len(re.sub(r"\s", "", read)):
        return False  # an id, a hash, a line of numbers
    if "://" in written:
        return False
    there = sum(word in COMMON for word in re.findall(r"[a-z]+", written.lower()))
    if common >= 2 and common > 3 * there:
        return is_english(read, WORD)
    prose = sum(c.isalpha() or c == " " for c in read) >= 0.9 * len(read)  # code is not
    return prose and common >= 2 * there and len(words) >= 3 and is_english(read) and not is_english(written, WORD)


def _stretches(text: str, gain: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the stretches of whole words that another reading makes the likelier English, by the pairs of letters."""
    codes = _tables().codes[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]
    if len(codes) < 8:
        return
    sums = np.cumsum(gain[27 * codes[:-1] + codes[1:]])
    if (sums - np.minimum.accumulate(sums)).max() < _GAIN:
        return  # nearly every text, in a few microseconds a kilobyte
    total = best = 0
    start = end = -1
    for word in re.finditer(r"\S+", text):
        last = min(word.end(), len(sums)) - 1
        total += int(sums[last] - (sums[word.start() - 1] if word.start() else 0))
        if start < 0:
            start = word.start()
        if total > best:
            best, end = total, word.end()
        elif total <= 0 or total < best - _DROP:
            if best >= _GAIN:
                yield start, end
            total, best, start = 0, 0, -1
    if best >= _GAIN:
        yield start, end
