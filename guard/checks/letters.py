"""Which letters of one text stand in a row in another, whatever stands between them. Knows letters; knows no words.

Letters set apart by spaces, dots or hyphens, words run together, numbered or broken over lines are the same letters.
Read backwards, in ROT13, as base64 or base32 they are looked for as well, in any language. Twenty-four in a row are the
least that is compared: fewer are in many texts by chance.
"""

import codecs
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ringfence.guard.normalise.variant import Variant

ROW = 24
"""Letters in a row that must be the same; the shortest stretch that is one."""


@dataclass(frozen=True, slots=True, eq=False)
class Alphabet:
    """What characters count for.

    Attributes:
        kept: whether a character counts at all, in lower case and without marks.
        instead: what some that are kept count for.
        table: (256,) what each byte of ASCII counts for.
        dropped: the bytes of ASCII that do not count.
    """

    kept: Callable[[str], bool]
    instead: Mapping[int, int]
    table: bytes = field(init=False)
    dropped: bytes = field(init=False)

    def __post_init__(self) -> None:
        read = [_read(self, chr(code)) for code in range(128)]
        object.__setattr__(self, "table", bytes(ord(letter or " ") for letter in read) + bytes(128))
        object.__setattr__(self, "dropped", bytes(code for code, letter in enumerate(read) if not letter))

    def letters(self, text: str) -> str:
        """Return what a text is in this alphabet, one character after the other."""
        if text.isascii():
            return text.encode().translate(self.table, self.dropped).decode()
        return text.translate({ord(c): _read(self, c) for c in set(text)})

    def places(self, text: str) -> NDArray[np.intp]:
        """Return of each of the `letters` of a text the code point that it comes from."""
        each = {c: len(_read(self, c)) for c in set(text)}
        return np.repeat(np.arange(len(text)), [each[c] for c in text])


@lru_cache(maxsize=1 << 16)
def _read(alphabet: Alphabet, character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).casefold()
    return "".join(filter(alphabet.kept, plain)).translate(alphabet.instead)


LEET_SIGNS = "@$!|"

LETTERS = Alphabet(str.isalpha, {})
"""Letters alone: digits number words, or set them apart."""

SIGNS = Alphabet(str.isalnum, {})
"""Letters and digits."""

LEET = Alphabet(lambda c: c.isalnum() or c in LEET_SIGNS, str.maketrans("01l!|2345678@9$", "oiiiizeasgtbags"))
"""Digits and signs as the letters that they look like; which of i and l, of g and q, is not told apart."""


def ways(text: str) -> tuple[str, str, str]:
    """Return a text as it is, backwards, and in ROT13."""
    return text, text[::-1], codecs.encode(text, "rot13")


@dataclass(frozen=True, slots=True)
class Rows:
    """Every `ROW` letters in a row of a text.

    Attributes:
        numbers: (n,) one for each row, ascending; the same letters have the same number.
        weights: (n,) what the letters of the row weigh together.
        last: (n,) what the last of them weighs.
        seen: (65536,) whether a number begins with these bits: what is in no row is seldom searched for.
    """

    numbers: NDArray[np.uint64]
    weights: NDArray[np.float64]
    last: NDArray[np.float64]
    seen: NDArray[np.bool_]


Weighed = tuple[int, int, float]
"""A stretch `[start, end)` of a text, and what its letters weigh together."""


def rows(texts: Iterable[str], alphabet: Alphabet, weigh: Callable[[str], Iterable[Weighed]]) -> Rows:
    """Return the rows of one or several texts.

    Args:
        weigh: returns the words of a text; what is in none weighs nothing.
    """
    found = []
    for text in texts:
        at, words = alphabet.places(text), list(weigh(text))
        if len(at) < ROW:
            continue
        each = np.zeros(len(at))
        for (start, end), (_, _, weight) in zip(np.searchsorted(at, [word[:2] for word in words]), words, strict=True):
            each[start:end] = weight / max(1, end - start)
        sums = np.concatenate(([0.0], np.cumsum(each)))
        found.append((_numbers(alphabet.letters(text)), sums[ROW:] - sums[:-ROW], each[ROW - 1 :]))
    if not found:
        found = [(_numbers(""), np.empty(0), np.empty(0))]
    numbers, weights, last = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(numbers, kind="stable")
    seen = np.zeros(1 << 16, dtype=np.bool_)
    seen[_first_bits(numbers)] = True
    return Rows(numbers[order], weights[order], last[order], seen)


FACTOR = 0x9E3779B97F4A7C15


def _numbers(letters: str) -> NDArray[np.uint64]:
    """Return a number for each row: its letters as digits to the base of `FACTOR`, modulo 2^64."""
    number = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(number) < ROW:
        return number[:0]
    for size in (1, 2, 4):
        number = number[:-size] * _power(size) + number[size:]
    return number[:-16] * _power(16) + number[8:-8] * _power(8) + number[16:]


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(FACTOR, exponent, 1 << 64))


def shared(letters: str, secret: Rows, known: Callable[[], Rows]) -> Iterator[Weighed]:
    """Yield each stretch `[start, end)` of some letters that are rows of the secret, and what they weigh there.

    Args:
        known: makes the rows that are no secret; asked for where there are others.
    """
    numbers = _numbers(letters)
    maybe = np.flatnonzero(secret.seen[_first_bits(numbers)])
    at = np.searchsorted(secret.numbers, numbers[maybe])
    there = secret.numbers[np.minimum(at, len(secret.numbers) - 1)] == numbers[maybe]
    at, where = at[there], maybe[there]
    if not len(where):
        return
    told = np.isin(numbers[where], known().numbers)
    at, where = at[~told], where[~told]
    ends = np.flatnonzero(np.diff(where, append=-1) != 1) + 1
    for first, end in pairwise([0, *ends.tolist()]):
        weight = secret.weights[at[first]] + secret.last[at[first + 1 : end]].sum()
        yield int(where[first]), int(where[end - 1]) + ROW, float(weight)


def _first_bits(numbers: NDArray[np.uint64]) -> NDArray[np.intp]:
    return (numbers >> np.uint64(48)).astype(np.intp)


# ---- letters in blocks


@dataclass(frozen=True, slots=True)
class Base:
    """A way to write bytes in characters.

    Attributes:
        bits: that one character holds.
        values: (128,) of each ASCII character; -1 for one that holds nothing.
        shape: what a text without a block has nowhere.
    """

    name: str
    bits: int
    values: NDArray[np.int8]
    shape: re.Pattern[str]


def _base(name: str, bits: int, shape: str, *alphabets: str) -> Base:
    values = np.full(128, -1, dtype=np.int8)
    for alphabet in alphabets:
        values[[ord(c) for c in alphabet]] = range(len(alphabet))
    return Base(name, bits, values, re.compile(shape))


_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ALPHANUMERIC = f"{_CAPITALS}{_CAPITALS.lower()}0123456789"
BASES = (
    _base("base64", 6, "[A-Za-z0-9+]{20}", f"{_ALPHANUMERIC}+/", f"{_ALPHANUMERIC}-_"),
    _base("base32", 5, "[A-Z2-7]{16}|[a-z2-7]{24}", f"{_CAPITALS}234567", f"{_CAPITALS.lower()}234567"),
)


BLOCK = re.compile("[A-Za-z0-9+]{16}")
"""What any of them has somewhere."""

TEXT = re.compile("[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]{12,}")
"""What comes out of noise once in a hundred thousand bytes."""


def decoded(text: str) -> Iterator[Variant]:
    """Yield what a text with a block in it says as base64 and base32, from each bit on that a byte may begin with.

    Where the block begins and how it is broken over lines makes no difference. What comes out as noise is left out.
    """
    for base in BASES if BLOCK.search(text) else ():
        if not base.shape.search(text):
            continue
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        values = base.values[np.minimum(codes, 127)]
        at = np.flatnonzero(values >= 0)
        bits = np.unpackbits(values[at].astype(np.uint8)[:, np.newaxis], axis=1)[:, 8 - base.bits :].ravel()
        for offset in range(0, 8, 2 if base.bits % 2 == 0 else 1):
            whole = bits[offset : offset + (len(bits) - offset) // 8 * 8]
            said = np.packbits(whole).tobytes().decode("utf-8", "surrogateescape")
            if pieces := [match.span() for match in TEXT.finditer(said)]:
                ends = offset + 8 * np.cumsum(_sizes(said))  # in bits
                starts = np.concatenate(([offset], ends[:-1]))
                kept = np.concatenate([np.arange(*piece) for piece in pieces])
                yield Variant(
                    base.name,
                    "".join(said[start:end] for start, end in pieces),
                    array("I", at[starts[kept] // base.bits].astype(np.uintc).tobytes()),
                    array("I", (at[(ends[kept] - 1) // base.bits] + 1).astype(np.uintc).tobytes()),
                )


def _sizes(said: str) -> NDArray[np.intp]:
    """Return of each code point how many bytes it was decoded from; of one that was no UTF-8 it is one."""
    codes = np.frombuffer(said.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = np.searchsorted(np.array([0x80, 0x800, 0x10000]), codes, side="right") + 1
    sizes[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1
    return sizes
