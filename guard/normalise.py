"""Undoes disguises: what a text says once hidden letters, look-alikes and encodings are read as a person would.

It judges nothing and knows no check; most texts have no second reading. It takes English for what hides behind
ciphers, leetspeak and spaced-out letters (their tests are made of English), any language behind encodings.

A round reads every disguise of `DISGUISES` in turn, each in what the one before made of the text; a text is read
`ROUNDS` times at most, so that base64 of base64 comes out. Everything is linear in the length of the text.

`variants` is for readers of language, and undoes what hides language. `spellings` is for patterns: a key under base64
is no English, so it asks for none, and it leaves leetspeak, ciphers and spaced-out letters alone, in which any text
with numbers has another reading.
"""

import codecs
import html
import re
import unicodedata
from array import array
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain, pairwise
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

ROUNDS = 3
GROWTH = 4
"""A reading may be this many times as long as the text, not longer; only ligatures come near it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Another reading of a text.

    Attributes:
        kind: the disguises that were undone, in their order, joined by `+`: `base64`, `invisible+leet`.
        text: the whole text, with what was disguised in the clear where it stood.
    """

    kind: str
    text: str
    _starts: "array[int]" = field(repr=False, compare=False)  # for each code point of text: where it came from
    _ends: "array[int]" = field(repr=False, compare=False)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the smallest stretch of the original that `text[start:end]` came from, in code points.

        What came out of an encoded block came from all of it, a letter under marks from the letter and its marks.
        An empty stretch comes from the empty one before its code point.

        Raises:
            ValueError: the stretch is not within the text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise ValueError(f"span: [{start}, {end}) is not within the variant's {len(self.text)} code points")
        if start < end:
            return min(self._starts[start:end]), max(self._ends[start:end])
        at = self._starts[start] if start < len(self.text) else max(self._ends, default=0)
        return at, at

    def cut(self, start: int, end: int) -> "Variant":
        """Return the reading `text[start:end]`, whose spans are still those of the original."""
        return Variant(self.kind, self.text[start:end], self._starts[start:end], self._ends[start:end])

    def before(self, places: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return of places in the original how many code points here come from before each, and which part any in two.

        What came out of one encoded block, or was turned round, comes from both sides of every place within.
        """
        starts, ends = (np.frombuffer(side, dtype=np.uintc).astype(np.intp) for side in (self._starts, self._ends))
        counts = np.searchsorted(np.maximum.accumulate(ends), places, "right")
        rest = np.append(np.minimum.accumulate(starts[::-1])[::-1], np.iinfo(np.intp).max)
        return counts, rest[counts] < places

    def changed(self, original: str) -> NDArray[np.bool_]:
        """Return of each code point whether it is not as the original has it, or something was taken out before it."""
        starts, ends = (np.frombuffer(side, dtype=np.uintc) for side in (self._starts, self._ends))
        differs: NDArray[np.bool_] = (ends - starts != 1) | (_codes(self.text) != _codes(original)[starts])
        differs[1:] |= starts[1:] != ends[:-1]
        return differs


@lru_cache(maxsize=8)
def variants(text: str) -> tuple[Variant, ...]:
    """Return the other readings of a text, the least undone first; none for a text in no disguise.

    Never more than `ROUNDS`, none equal to the text or to another in all but case and white space. Any str will do,
    lone surrogates included. The last few texts are remembered: several checks ask about each.
    """
    found: list[Variant] = []
    seen = {_bare(text)}
    reading = Variant("", text, array("I"), array("I"))
    for _ in range(ROUNDS):
        before = reading.text
        for kind, look in DISGUISES:
            if edits := look(reading.text):
                reading = _edited(reading, kind, edits)
        if reading.text == before or len(reading.text) > GROWTH * len(text):
            break
        if (bare := _bare(reading.text)) not in seen:
            seen.add(bare)
            found.append(reading)
    return tuple(found)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@lru_cache(maxsize=8)
def spellings(text: str) -> tuple[Variant, ...]:
    """Return the readings of a text that may hold what patterns look for, the least undone first; none for most texts.

    Undone is what carries any text whole, whatever it says: invisible characters, other forms of ASCII's, encodings.
    Never more than four a round, twice over where a text may be in quoted-printable and where it has stray signs. The
    last few texts are remembered: several checks ask about each.
    """
    plain = Variant("", text, array("I"), array("I"))
    found = _undone(plain)
    # Beside what tags and selectors spell: one of them within a word may as well be there to break it.
    if not text.isascii() and _STRAY.search(text):
        rid = _edited(plain, "invisible", (_Edit(*m.span(), "") for m in _STRAY.finditer(text)))
        found += [rid, *_undone(rid)]
    # Beside the others and not among them: `=` and a line break are also how a base64 block ends.
    if edits := _quoted_printable(text):
        unquoted = _edited(plain, "quoted-printable", edits)
        found += [unquoted, *_undone(unquoted)]
    return tuple(found)


def _undone(reading: Variant) -> list[Variant]:
    found: list[Variant] = []
    longest = GROWTH * len(reading.text)
    for _ in range(ROUNDS):
        before = reading.text
        for step in SPELLINGS:
            old = reading.text
            for kind, look in step:
                if edits := look(reading.text):
                    reading = _edited(reading, kind, edits)
            if len(reading.text) > longest:
                return found
            if reading.text != old:
                found.append(reading)
        if reading.text == before:
            break
    return found


def blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield the stretches that hold white space and are read as one if at all, told by their form; some overlap.

    Whether a block says anything only all of it tells: one that begins with nothing may end with something.
    """
    for pattern in _BLOCKS:
        yield from (m.span() for m in pattern.finditer(text))


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold()


class _Edit(NamedTuple):
    """Put `text` for `[start, end)`: code point by code point where both are as long, else as one block."""

    start: int
    end: int
    text: str
    backwards: bool = False  # the code points are the same, last one first


def _edited(reading: Variant, kind: str, edits: Iterable[_Edit]) -> Variant:
    """Apply edits, which do not overlap and stand in order."""
    old, old_starts, old_ends = reading.text, reading._starts, reading._ends
    if not reading.kind:
        old_starts, old_ends = array("I", range(len(old))), array("I", range(1, len(old) + 1))
    pieces: list[str] = []
    starts, ends, at = array("I"), array("I"), 0
    for start, end, new, backwards in chain(edits, (_Edit(len(old), len(old), ""),)):
        pieces += old[at:start], new
        starts += old_starts[at:start]
        ends += old_ends[at:start]
        at = end
        if len(new) == end - start:
            step = -1 if backwards else 1
            starts += old_starts[start:end][::step]
            ends += old_ends[start:end][::step]
        elif new:
            starts += array("I", [min(old_starts[start:end])]) * len(new)
            ends += array("I", [max(old_ends[start:end])]) * len(new)
    kinds = reading.kind.split("+") if reading.kind else []
    return Variant("+".join(dict.fromkeys([*kinds, kind])), "".join(pieces), starts, ends)


# ---- what English looks like

_LETTERS = " abcdefghijklmnopqrstuvwxyz"
# Row: a letter, or the beginning of a word; column: what follows it, or the end of the word; digit: how many bits that
# comes as a surprise, 9 for nine and more. Counted over the English rows of classifier/data.
_BITS = """
    935456564487545458543774959 395559669595452969443667949 537992999589499299467499949 639693993594599299574599979
    149963979499787399559789959 148655779798564669345967669 249994499399699299394599999 249993973499695499459599979
    338991999399999399685699979 467455559996452579533959898 739993999689999289969199999 269992999399784789848899989
    349843799396379469856688949 335992999499868359869599949 259533839596797499954789969 377757479796543559354364989
    339983995499399355599359979 599999999999699999998079999 248752979496766489645678959 159693994596777469953697989
    259893992499799399556697969 366565859699353959333999979 749990999399999499999999989 339993992399895399469999989
    239594997499999829992699979 187895999799879279856998999 348992999398679499987597934
"""
_COST = {
    a + b: int(bits)
    for a, row in zip(_LETTERS, _BITS.split(), strict=True)
    for b, bits in zip(_LETTERS, row, strict=True)
}

# What nearly every English sentence has some of, and what is most often disguised.
_COMMON = frozenset(
    """the and you that for this with what how are can not your from have who one him her his she they them their
    would should could about when where which will was were has had but all any some into out over more than then there
    here just like know tell give show make made want need help please write read explain answer give me my we us our
    it is in on of to if an as at be by do go he so no or up am let get use best way time day people person man woman
    first only before after because without while why don does did these those very much many long new old good bad
    now never ever own off too also ignore previous instructions system prompt password bomb bombs
    kill kills killed steal hack hacked drug drugs rape raped gun guns shoot shot murder meth cocaine heroin porn nude
    nudes sexy child girl girls boys suicide dead hurt poison weapon weapons explosive attack hate fuck shit bitch
    nazi stab""".split()  # noqa: SIM905 - read as prose
)

_PROSE = 4.75
_WORD = 5.0
"""Bits a letter (its pair with the one before) up to which letters pass for English prose, and for one word of it."""


def _cost(word: str) -> float:
    """Return the mean surprise of a word's letter pairs, its beginning and end among them; letters only."""
    padded = f" {word.lower()} "
    return sum(_COST.get(a + b, 9) for a, b in pairwise(padded)) / (len(padded) - 1)


def _is_word(word: str) -> bool:
    return word.lower() in _COMMON or (len(word) >= 4 and _cost(word) <= _WORD)


def _is_english(text: str, limit: float = _PROSE) -> bool:
    words = re.findall(r"[A-Za-z]+", text)
    total = sum(map(len, words))
    return total >= 4 and sum(_cost(word) * len(word) for word in words) <= limit * total


def _is_readable(text: str, rounds: int) -> bool:
    """Whether a decoded block was meant to be read: language, or one more encoding of it."""
    visible = text.translate({9: 32, 10: 32, 13: 32})
    if len(text) < 3 or not visible.isprintable():
        return False
    letters = sum(map(str.isalpha, text))
    latin = len(re.findall(r"[A-Za-z]", text))
    if letters + text.count(" ") >= 0.75 * len(text):
        if 2 * latin < letters:
            return len(text) >= 4
        # Chance does not print twenty characters with a space among them: what they say may be disguised in turn.
        if _is_english(text, _WORD) or (len(text) >= 20 and " " in text.strip()):
            return True
    elif len(text) >= 20 and text.count(" ") >= len(text) // 12 and 2 * letters >= len(text):
        return True
    return rounds > 1 and any(look(text, rounds - 1) for _, look in _ENCODINGS)


# ---- characters

_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1a\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e007f-\U000e0fff]+"
)
# Scripts in which nothing invisible belongs between two letters: Latin to Cyrillic, kana, Han, Hangul.
_JOINED = re.compile("[A-Za-z0-9\u00c0-\u052f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]")
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{3,}")
_BLACK_FLAG = "\U0001f3f4"  # the emoji that tags belong to: Scotland's flag and its like


def _invisible(text: str) -> list[_Edit]:
    """Remove what is not shown from inside words, and show what tag characters and variation selectors spell."""
    beyond_ascii = "" if text.isascii() else text
    shown = [
        _Edit(*m.span(), "".join(chr(ord(c) - 0xE0000) for c in m[0]))
        for m in _TAGS.finditer(beyond_ascii)
        if text[m.start() - 1 : m.start()] != _BLACK_FLAG
    ]
    for m in _SELECTORS.finditer(beyond_ascii):
        spelt = bytes(ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16 for c in m[0])
        if said := _text_of(spelt, ROUNDS):
            shown.append(_Edit(*m.span(), said))
    if shown:
        return sorted(shown)  # the rest is for the next round
    hidden = []
    evident = False
    for m in _INVISIBLE.finditer(text) if beyond_ascii or _UNSEEN_ASCII.search(text) else ():
        beside = [bool(_JOINED.match(text[i : i + 1])) for i in (max(m.start() - 1, 0), m.end())]
        if any(beside):
            hidden.append(_Edit(*m.span(), ""))
            evident |= all(beside)
    return hidden if evident else []


_CLUSTERS = re.compile("([A-Za-z])(?:[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]+)")
_OVERLAYS = re.compile("[\u0334-\u0338\u20d2\u20d3\u20d8-\u20da\u20e5\u20e6\u20ea\u20eb]")


def _marks(text: str) -> list[_Edit]:
    """Remove what strikes letters through, and heaps of marks that no language sets."""
    if text.isascii():
        return []
    clusters = [m for m in _CLUSTERS.finditer(text) if len(m[0]) > 3 or _OVERLAYS.search(m[0])]
    return [_Edit(*m.span(), m[1]) for m in clusters] if len(clusters) >= 3 else []


def _lookalikes(text: str) -> list[_Edit]:
    """Write words in ASCII whose letters only look like it: styled letters, or those of another script."""
    if text.isascii():
        return []
    evident, latin, foreign = 0.0, 0, 0
    edits: list[_Edit] = []
    whole: list[_Edit] = []  # of words all of whose letters are of another script: they may mean what they are
    for m in _WORDS.finditer(text):
        word = m[0]
        if word.isascii():
            latin += 1
            continue
        letters = [_ascii(c) for c in word]
        folded = "".join(letters)
        if folded == word:
            foreign += unicodedata.name(word[0], "")[:5] != "LATIN"
            continue
        if not all(c < "\u0250" for c in folded):
            foreign += 1
            continue
        each = [_Edit(m.start() + i, m.start() + i + 1, new) for i, new in enumerate(letters) if new != word[i]]
        mixed = [c.isascii() for c in word if c.isalpha()]
        if any(mixed) and not all(mixed):
            latin += 1
            edits += each
            cased = folded.islower() or folded.isupper() or folded.istitle()  # not TNFα
            turns = sum(a != b for a, b in pairwise(mixed))
            evident += (
                len(word) >= 3 and folded.isascii() and ((cased and _is_word(folded)) or (turns > 1 and len(word) > 3))
            )
            foreign += turns == 1
        else:
            styled = all(map(_is_styled, word))
            (edits if styled else whole).extend(each)
            if styled:
                evident += sum(map(str.isdigit, folded)) >= 7 or (len(folded) >= 3 and _is_word(folded))
            else:
                evident += 0.5 * (len(folded) >= 3 and folded.lower() in _COMMON)
    if evident < (1 if foreign <= latin else 3):
        return []
    if foreign <= latin:
        signs = (_Edit(*m.span(), unicodedata.normalize("NFKC", m[0])) for m in _FULLWIDTH_SIGN.finditer(text))
        edits += chain(whole, signs)
    return sorted(edits)


_WORDS = re.compile("(?:[^\\W_]|[\u24b6-\u24e9\U0001f130-\U0001f189])+")  # letters in circles and squares among them
_FULLWIDTH_SIGN = re.compile("[\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff5e\u3000]")


def _is_styled(character: str) -> bool:
    """Whether a letter or digit is Latin in another shape, not of another script."""
    named = unicodedata.name(character, "").startswith(("LATIN", "NEGATIVE"))
    return named or unicodedata.normalize("NFKC", character).isascii()


@lru_cache(maxsize=1 << 16)
def _ascii(character: str) -> str:
    """Return the ASCII letters or digits that a character stands for or looks like; itself where there are none."""
    if character < "\u0180":  # the letters of Europe's languages mean what they are
        return character
    plain = unicodedata.normalize("NFKC", character)
    if plain.isascii():
        return plain if plain.isalnum() else character
    looks = _confusables()
    return looks.get(character) or looks.get(plain) or _by_name(plain) or character


@cache
def _confusables() -> dict[str, str]:
    """Load Unicode's confusables (UTS #39) that look like one ASCII letter or its small capital."""
    from confusable_homoglyphs.confusables import confusables_data  # 9,600 entries, read when first needed

    found = {"κ": "k", "к": "k", "ĸ": "k", "м": "m", "п": "n", "и": "u"}  # near enough for a reader, not for UTS #39
    for character, entries in cast("dict[str, list[dict[str, str]]]", confusables_data).items():
        for look in (entry["c"] for entry in entries):
            letter = look if look.isascii() else _by_name(look)
            if len(character) == 1 and len(letter) == 1 and letter.isalpha():
                # The table has one shape for l and I: the case of the character says which.
                found.setdefault(character, "I" if letter == "l" and character.isupper() else letter)
    return found


def _by_name(character: str) -> str:
    """Return the letter in a name like LATIN LETTER SMALL CAPITAL B or NEGATIVE SQUARED LATIN CAPITAL LETTER B."""
    name = unicodedata.name(character, "") if len(character) == 1 else ""
    if m := re.fullmatch(r"LATIN LETTER SMALL CAPITAL ([A-Z])|NEGATIVE \w+ LATIN CAPITAL LETTER ([A-Z])", name):
        return (m[1] or m[2]).lower()
    return ""


# ---- encodings: a look takes the text and how many rounds of decoding are left

_ENTITIES = re.compile(r"(?:&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});)+")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_PHRASE = re.compile(r"[^\W_]*[^\W\d_](?:%20[^\W_]++)++[.,!?]?")  # words, and nothing of an address
_ESCAPES = re.compile(r"(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|\\[0-3][0-7]{2})++")
# INVARIANT: what must not follow is asked after every part, so that no long run is walked again from its second part.
_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:0[xX][0-9A-Fa-f]{2}(?:[\s,;]{1,3}0[xX][0-9A-Fa-f]{2}(?![0-9A-Za-z])){2,}+"
    r"|[0-9A-Fa-f]{2}(?:[ :,-][0-9A-Fa-f]{2}(?![0-9A-Za-z])){3,}+|(?:0[xX])?(?:[0-9A-Fa-f]{2}){4,}+(?![0-9A-Za-z]))"
)
# What each alternative has somewhere, once every hex digit is a 0 and every sign between two is a space.
_HEX_SHAPES = (b"0x00", b"00 00 00 00", b"00000000")
_HEX_SHAPE = bytes.maketrans(b"123456789abcdefABCDEFX:,-", b"0" * 21 + b"x   ")
_BINARY = re.compile(r"(?<![0-9A-Za-z])(?:[01]{8}(?:[ ,][01]{8}(?![0-9A-Za-z])){2,}+|(?:[01]{8}){3,}+(?![0-9A-Za-z]))")
_EIGHT_BITS = re.compile("[01]" * 8)  # what prose has none of is seen sooner without looking behind
# A line of forty and more goes on in the next: that is how mail wraps it.
_BASE64_LINES = r"[A-Za-z0-9+/_-]{40,}+(?:\r?\n[A-Za-z0-9+/_-]{4,}+)++={0,2}"
_BASE64 = re.compile(_BASE64_LINES + r"|[A-Za-z0-9+/_-]{8,}+={0,2}")
# A block has a capital after its first character, or is a word (see `_from_base64`); of lines, one may begin with it.
_IN_BASE64 = "[A-Za-z0-9+/_-]"
_CAPITAL_IN_BASE64 = re.compile(
    f"[A-Z](?:{'|'.join(f'(?<={_IN_BASE64}{{{n + 1}}})(?={_IN_BASE64}{{{7 - n}}})' for n in range(1, 8))}|"
    + "|".join(rf"(?<={_IN_BASE64}{{4}}{end}{_IN_BASE64}{{{n}}}[A-Z])" for n in range(7) for end in (r"\n", r"\r\n"))
    + ")"
)
_BASE64_PARTS = (re.compile(r"[^\r\n]+"), re.compile(r"[^\r\n/_+-]+"))
_MORSE = re.compile(r"[.·•\-–—−](?<!\S.)[.·•\-–—−]{0,5}(?:[ \t/|]{1,5}[.·•\-–—−]{1,6}(?![^\s/|])){3,}+")

_MORSE_SIGNS = """
    .- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
    ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. ..--.. .-.-.- --..-- -.-.--
"""
_MORSE_CODE = dict(zip(_MORSE_SIGNS.split(), "abcdefghijklmnopqrstuvwxyz0123456789?.,!", strict=True))


def _entities(text: str, rounds: int) -> list[_Edit]:
    """Decode numeric entities where they stand for plain letters, or for words of any others."""
    found = [_Edit(*m.span(), html.unescape(m[0])) for m in _ENTITIES.finditer(text)] if "&#" in text else []
    plain = sum(c.isascii() and c.isalnum() for edit in found for c in edit.text)
    return found if plain >= 2 else [edit for edit in found if len(edit.text) > 2 and _is_readable(edit.text, rounds)]


def _percent(text: str, rounds: int) -> list[_Edit]:
    """Decode percent-encoding that no address needs: of letters, of itself, of whole sentences outside of addresses."""
    found: list[_Edit] = []
    if "%" not in text:
        return []
    for chunk in re.finditer(r"\S+", text):
        if "%" not in chunk[0]:
            continue
        edits = [
            _Edit(chunk.start() + m.start(), chunk.start() + m.end(), said)
            for m in _PERCENT.finditer(chunk[0])
            if (said := _utf8(bytes.fromhex(m[0].replace("%", ""))))
        ]
        needless = sum(c.isascii() and c.isalnum() for edit in edits for c in edit.text)
        spaces = sum(edit.text == " " for edit in edits)
        itself = re.search(r"%25[0-9A-Fa-f]{2}", chunk[0])
        foreign = any(len(edit.text) > 3 and _is_readable(edit.text, rounds) for edit in edits)
        if (
            needless >= 2
            or itself
            or _PHRASE.fullmatch(chunk[0])
            or ("://" not in chunk[0] and (spaces >= 3 or foreign))
        ):
            found += edits
    return found


def _escapes(text: str, rounds: int) -> list[_Edit]:
    r"""Decode `\x62`, `\u0062` and `\142` where they spell something."""
    found = []
    for m in _ESCAPES.finditer(text) if "\\" in text else ():
        if "\\u" in m[0]:
            units = re.sub(r"\\u\{?([0-9A-Fa-f]+)\}?|\\x(..)", lambda e: f"&#x{e[1] or e[2]};", m[0])
            said = html.unescape(units)
        else:
            codes = re.findall(r"\\(?:x(..)|(\d{3}))", m[0])
            said = _utf8(bytes(int(a, 16) if a else int(b, 8) for a, b in codes))
        if _is_readable(said, rounds):
            found.append(_Edit(*m.span(), said))
    return found


def _hexadecimal(text: str, rounds: int) -> list[_Edit]:
    shape = text.encode("ascii", "replace").translate(_HEX_SHAPE)
    if not any(part in shape for part in _HEX_SHAPES):
        return []
    return _decoded(_HEX, lambda block: bytes.fromhex(re.sub(r"0[xX]|[\s,;:-]", "", block)), text, rounds)


def _binary(text: str, rounds: int) -> list[_Edit]:
    if not _EIGHT_BITS.search(text):
        return []
    return _decoded(_BINARY, lambda block: bytes(int(b, 2) for b in re.findall(r"[01]{8}", block)), text, rounds)


def _base64(text: str, rounds: int) -> list[_Edit]:
    """Decode base64 of either alphabet, padded or not, also wrapped in lines or as one part of an address."""
    found: list[_Edit] = []
    for m in _BASE64.finditer(text) if _CAPITAL_IN_BASE64.search(text) else ():
        found += _opened(m, lambda block: _text_of(_from_base64(block), rounds))
    return found


def _opened(block: re.Match[str], read: Callable[[str], str]) -> list[_Edit]:
    """Read a block, or where it says nothing its lines, or the parts of an address that it is."""
    if said := read(block[0]):
        return [_Edit(*block.span(), said)]
    found: list[_Edit] = []
    for pattern in _BASE64_PARTS:
        for part in pattern.finditer(block[0]) if not found else ():
            if 8 <= len(part[0]) < len(block[0]) and (said := read(part[0])):
                found.append(_Edit(block.start() + part.start(), block.start() + part.end(), said))
    return found


_NO_BREAKS = str.maketrans("", "", "\r\n=")


def _from_base64(block: str) -> bytes:
    """Return what a block encodes; nothing for one that is plainly a word or a number."""
    kept = block.translate(_NO_BREAKS)
    if len(kept) % 4 == 1 or kept.upper() == kept or kept[1:].lower() == kept[1:]:
        return b""
    raw = b64decode(kept.replace("-", "+").replace("_", "/") + "=" * (-len(kept) % 4))
    wide = len(raw) >= 8 and len(raw) % 2 == 0 and not any(raw[1::2])
    return raw[::2] if wide else raw  # PowerShell encodes UTF-16


def _morse(text: str, rounds: int) -> list[_Edit]:
    """Decode Morse: letters apart by a space, words by more, a slash or a bar."""
    found = []
    for m in _MORSE.finditer(text):
        signs = m[0].translate(str.maketrans("·•–—−", "..---"))
        words = [[_MORSE_CODE.get(sign, "") for sign in word.split()] for word in re.split(r"\s*[/|]\s*|\s{2,}", signs)]
        if (
            all(chain.from_iterable(words))
            and {".", "-"} <= set(signs)
            and _is_english(said := " ".join(map("".join, words)), _WORD)
        ):
            found.append(_Edit(*m.span(), said))
    return found


def _decoded(pattern: re.Pattern[str], decode: Callable[[str], bytes], text: str, rounds: int) -> list[_Edit]:
    return [_Edit(*m.span(), said) for m in pattern.finditer(text) if (said := _text_of(decode(m[0]), rounds))]


def _text_of(raw: bytes, rounds: int) -> str:
    """Return the text in bytes; an empty one where they are not text that somebody would read."""
    said = _utf8(raw)
    return said if said and _is_readable(said, rounds) else ""


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""


_ENCODINGS: tuple[tuple[str, Callable[[str, int], list[_Edit]]], ...] = (
    ("entities", _entities),
    ("percent", _percent),
    ("escapes", _escapes),
    ("binary", _binary),
    ("hex", _hexadecimal),
    ("base64", _base64),
    ("morse", _morse),
)


# ---- letters

_SPACED = re.compile(r"(?<!\S)[^\W_][!?.,;:]?(?:[ \t]{1,4}\S(?!\S))++")
_DOTTED = re.compile(
    r"(?<![^\W_])[A-Za-z]([.\-_*|~·•/+])[A-Za-z'’](?![^\W_])(?:\1[A-Za-z'’](?![^\W_]))++(?:\1(?=[^\w\s]))?"
)
# Whether a text may hold either: a character alone after another, or a letter between two marks.
_SPACED_GOES_ON = re.compile(
    r"[ \t](?=\S(?!\S))(?:(?<=[ \t]{2})|(?<=(?<!\S)[^\W_][ \t])|(?<=(?<!\S)[^\W_][!?.,;:][ \t]))"
)
_DOTTED_GOES_ON = re.compile(r"[.\-_*|~·•/+][A-Za-z'’][.\-_*|~·•/+]")


def _spaced(text: str) -> list[_Edit]:
    """Close up letters set apart: by spaces, with wider ones between words or none, or by one mark throughout."""
    evident, found = False, []
    for m in _DOTTED.finditer(text) if _DOTTED_GOES_ON.search(text) else ():
        word = m[0].replace(m[1], "")
        if word.isupper() and m[1] in ".-" and len(word) < 6:
            continue  # initials
        evident |= len(word) >= 4 and _is_word(word.replace("'", "").replace("’", ""))
        found += [_Edit(m.start() + i, m.start() + i + 1, "") for i, c in enumerate(m[0]) if c == m[1]]
    found = found if evident else []
    for m in _SPACED.finditer(text) if _SPACED_GOES_ON.search(text) else ():
        wide = re.search(r"\S[ \t]{2,}\S", m[0])
        words = [re.sub(r"\s", "", word) for word in (re.split(r"[ \t]{2,}", m[0]) if wide else [m[0]])]
        said = " ".join(words)
        letters = sum(map(str.isalpha, said))
        apart = max(map(len, words)) > 1 and letters >= 4 and letters >= 0.7 * (len(said) - said.count(" "))
        other = wide and letters >= 12 and not said.isascii()  # a script of which no table is kept here
        if apart and (other or _is_english(said, _WORD)):
            gaps = [gap.span() for gap in re.finditer(r"(?<=\S)[ \t](?=\S)" if wide else r"[ \t]+", m[0])]
            if not wide and said[0] in "aAI" and len(said) > 4 and said[1:].lower() in _COMMON:
                del gaps[0]  # `a b o m b`
            found += [_Edit(m.start() + start, m.start() + end, "") for start, end in gaps]
    return sorted(found)


_LEET = str.maketrans("0134578@$!|", "oieastbasil")
_LEET_SIGN = re.compile(r"[0134578@$!|](?:(?<=[A-Za-z].)|(?<=[0134578@$])[A-Za-z])")  # beside a letter
# Whole words only: nothing of an address, a path, a version, an assignment.
_LEET_WORD = re.compile(r"(?<!\S)[\"'“‘(\[*]*+([A-Za-z0-9@$!|'’-]{2,32})(?=[.,;:?\"'”’)\]*]*+(?!\S))")
_WHITE = re.compile(r"\s")
_LEET_ORDINARY = re.compile(
    r"[0-9]+[a-z]+|[a-z]+[0-9]{1,4}|[a-z]+[0-9][a-z]|[a-z]{1,2}[0-9]+[a-z]{0,3}[0-9]*|\$[a-z]+|[a-z]+\|[a-z|]+",
    re.IGNORECASE,
)
_LEET_HEX = re.compile(r"[0-9a-f]{4,}", re.IGNORECASE)
_LEET_NEVER = re.compile(r"0[xob][0-9a-f]+|@[a-z0-9]{4,}|\|.*|.*\||\$.*\$|[a-z]{3,}[@!|$]+[a-z]{3,}.*", re.IGNORECASE)


def _leet(text: str) -> list[_Edit]:
    """Read digits and signs as letters in words that are written so, where the words come out English."""
    evidence: dict[str, float] = {}
    edits: list[_Edit] = []
    for chunk in _leet_words(text):
        for m in re.finditer(r"[^'’-]+", chunk[1]):
            word = m[0].rstrip("!")
            if not _LEET_SIGN.search(word):
                continue
            read = _as_letters(word)
            if read.isalpha() and _is_word(read) and not _LEET_NEVER.fullmatch(word):
                start = chunk.start(1) + m.start()
                edits += [_Edit(start + i, start + i + 1, c) for i, c in enumerate(read) if c != word[i]]
                evidence[word.lower()] = _leet_evidence(word, read)
    return edits if sum(evidence.values()) >= 1 else []


def _leet_words(text: str) -> Iterator[re.Match[str]]:
    """Yield the words with a sign in them; what has none, which is most of a text, is leapt over."""
    done = 0
    for sign in _LEET_SIGN.finditer(text):
        start = sign.start()
        if start < done:
            continue
        while start > done and not text[start - 1].isspace():
            start -= 1
        end = _WHITE.search(text, sign.end())
        done = end.start() if end else len(text)
        if (word := _LEET_WORD.match(text, start)) and _LEET_SIGN.search(word[1]):
            yield word


def _as_letters(word: str) -> str:
    """Return a word with its signs read as letters: 1, ! and | as i, or as l where that makes the better word."""
    as_i = word.translate(_LEET)
    as_l = re.sub("[1!|]", "l", word).translate(_LEET)
    return min((as_i, as_l), key=lambda read: (read.lower() not in _COMMON, _cost(read) if read.isalpha() else 9))


def _leet_evidence(word: str, read: str) -> float:
    """Return how much a word shows by itself that its text is leetspeak: 1 is enough."""
    if _LEET_HEX.fullmatch(word) or len(word) > 14:
        return 0.0
    if read.lower() in _COMMON and len(read) >= 3:
        return 1.0 if len(read) > 3 or not _LEET_ORDINARY.fullmatch(word) else 0.5
    if _LEET_ORDINARY.fullmatch(word) or len(read) < 4 or (word.isupper() and len(word) < 6):
        return 0.0
    return 0.5 if word[1:].islower() or word[1:].isupper() else 0.0  # not IPv4Address


# ---- ciphers of letters


class _Tables(NamedTuple):
    codes: NDArray[np.intp]  # (256,) of a byte: its letter's place in _LETTERS, 0 for any other
    rot13: NDArray[np.int64]  # (729,) bits that a pair of letters loses when it is read so: 27 x the first + the second
    reversed: NDArray[np.int64]  # (729,)


@cache
def _tables() -> _Tables:
    codes = np.zeros(256, dtype=np.intp)
    for place, letter in enumerate(_LETTERS[1:], 1):
        codes[[ord(letter), ord(letter.upper())]] = place
    bits = np.array([[_COST[a + b] for b in _LETTERS] for a in _LETTERS], dtype=np.int64)
    bits[0, 0] = 0
    turn = np.array([0, *(1 + (i + 13) % 26 for i in range(26))], dtype=np.intp)
    return _Tables(codes, (bits - bits[np.ix_(turn, turn)]).ravel(), (bits - bits.T).ravel())


_GAIN = 24
_DROP = 20
"""Bits by which another reading must be the likelier for a stretch, and by which it must be less so to end one."""


def _rot13(text: str) -> list[_Edit]:
    return [
        _Edit(start, end, read)
        for start, end in _stretches(text, _tables().rot13)
        if _is_meant(read := codecs.encode(text[start:end], "rot13"), text[start:end])
    ]


def _reversed(text: str) -> list[_Edit]:
    return [
        _Edit(start, end, read, backwards=True)
        for start, end in _stretches(text, _tables().reversed)
        if _is_meant(read := text[start:end][::-1], text[start:end])
    ]


def _is_meant(read: str, written: str) -> bool:
    """Whether a reading is English prose, and what was written is not."""
    words = re.findall(r"[a-z]+", read.lower())
    common = sum(word in _COMMON for word in words)
    if sum(map(len, words)) < 0.7 * len(re.sub(r"\s", "", read)):
        return False  # an id, a hash, a line of numbers
    if "://" in written:
        return False
    there = sum(word in _COMMON for word in re.findall(r"[a-z]+", written.lower()))
    if common >= 2 and common > 3 * there:
        return _is_english(read, _WORD)
    prose = sum(c.isalpha() or c == " " for c in read) >= 0.9 * len(read)  # code is not
    return prose and common >= 2 * there and len(words) >= 3 and _is_english(read) and not _is_english(written, _WORD)


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


def _whole(look: Callable[[str, int], list[_Edit]]) -> Callable[[str], list[_Edit]]:
    return lambda text: look(text, ROUNDS)


DISGUISES: tuple[tuple[str, Callable[[str], list[_Edit]]], ...] = (
    ("invisible", _invisible),
    ("marks", _marks),
    ("lookalike", _lookalikes),
    *((kind, _whole(look)) for kind, look in _ENCODINGS),
    ("rot13", _rot13),
    ("reversed", _reversed),
    ("spaced", _spaced),
    ("leet", _leet),
)
"""Each disguise by its name, in the order in which they are undone."""


# ---- what carries any text whole

_CONTROL_STRING = "(?:\x1b[\\]P^_X]|[\x9d\x90\x9e\x9f\x98])[^\x07\x1b\x9c\n]{0,4096}"
_TERMINAL = (
    f"(?:\x1b\\[|\x9b)[0-?]{{0,64}}[ -/]{{0,8}}[@-~]|{_CONTROL_STRING}(?:\x07|\x1b\\\\|\x9c)|\x1b[ -/]{{0,4}}[0-~]?"
)
_UNSEEN = re.compile(
    f"{_TAGS.pattern}|{_SELECTORS.pattern}|{_TERMINAL}|(?:{_INVISIBLE.pattern[:-1]}|[\x1c-\x1f\U0001bca0-\U0001bca3])+"
)
# What no address, number or key has in it: tags, selectors, signs that only format, a blank, private use.
_SIGNS = (
    "[\U000e0020-\U000e007e\ufe00-\ufe0f\U000e0100-\U000e01ef\u0600-\u0605\u06dd\u070f\u08e2"
    "\u2800\ufffc\ue000-\uf8ff]++"
)
_STRAY = re.compile(rf"(?<=\S){_SIGNS}|{_SIGNS}(?=\S)")
_UNSEEN_ASCII = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]")
_HYPHENS = "\u2010\u2011\u2012\u2013\u2212"
# Where a word mixes ASCII with letters that may look like it: Greek to Cherokee.
_MIXED = re.compile("[A-Za-z0-9][\u0370-\u058f\u13a0-\u13ff]|[\u0370-\u058f\u13a0-\u13ff][A-Za-z0-9]")

_ANY_ENTITY = re.compile(r"&(?:#[0-9]{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[A-Za-z][A-Za-z0-9]{1,30};)")
_ANY_PERCENT = re.compile(r"%[0-7][0-9A-Fa-f]|(?:%[89A-Fa-f][0-9A-Fa-f])++")
# Markdown escapes the signs of an address too; a string within a string has its backslashes twice.
_ANY_ESCAPE = re.compile(
    r"\\{1,8}(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,5})\}|([01][0-7]{2})|([@._+-]))"
)
_QUOTED = re.compile(r"=(?:\r?\n|[2-7][0-9A-F])|(?:=[89A-F][0-9A-F])++")
# Whether a text may hold any; they leap from digit to digit, or to a capital within a word, and prose has few.
_MAY_BE_BINARY = re.compile(r"0[01]{7}[ ,]?0[01]{7}")
_MAY_BE_HEX = re.compile(r"[2-7][0-9A-Fa-f](?:[\s,;:-]{0,3}(?:0[xX])?[0-9A-Fa-f]{2}){2}")
_MAY_BE_BASE64 = re.compile(
    f"[A-Z0-9+](?:{'|'.join(f'(?<={_IN_BASE64}{{{n + 1}}})(?={_IN_BASE64}{{{7 - n}}})' for n in range(1, 8))})"
)
_STRANGE = 10
"""One byte of so many may be no text, and the rest is looked at; of random bytes it is six of ten."""


def _unseen(text: str) -> list[_Edit]:
    """Remove what is not shown, wherever it is; show what tag characters and variation selectors spell."""
    if text.isascii() and not _UNSEEN_ASCII.search(text):
        return []
    return [_Edit(*m.span(), _shown(m[0])) for m in _UNSEEN.finditer(text)]


def _shown(unseen: str) -> str:
    if "\U000e0020" <= unseen[0] <= "\U000e007e":
        return "".join(chr(ord(c) - 0xE0000) for c in unseen)
    if _SELECTORS.fullmatch(unseen):
        return _said(bytes(ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16 for c in unseen))
    return ""


def _ascii_forms(text: str) -> list[_Edit]:
    """Write in ASCII what is one of its characters in another form, or looks like one in the midst of others."""
    if text.isascii():
        return []
    forms = {c: form for c in set(text) if (form := _form(c)) != c}
    edits = [_Edit(at, at + 1, forms[c]) for at, c in enumerate(text) if c in forms] if forms else []
    if _MIXED.search(text):
        for word in _WORDS.finditer(text):
            if _MIXED.search(word[0]):
                places = range(word.start(), word.end())
                edits += [
                    _Edit(i, i + 1, new) for i in places if text[i] not in forms and (new := _ascii(text[i])) != text[i]
                ]
        edits.sort()
    return edits


@lru_cache(maxsize=1 << 16)
def _form(character: str) -> str:
    """Return the ASCII that a character is a form of: full-width, bold, a digit of any script; nothing for a mark."""
    if _MARKS.match(character):
        return ""
    if character in _HYPHENS:
        return "-"
    plain = unicodedata.normalize("NFKC", character)
    digit = unicodedata.decimal(character, None)
    return plain if plain.isascii() else character if digit is None else str(digit)


def _all_entities(text: str) -> list[_Edit]:
    found = [_Edit(*m.span(), html.unescape(m[0])) for m in _ANY_ENTITY.finditer(text)] if "&" in text else []
    return [edit for edit in found if edit.text != text[edit.start : edit.end]]


def _all_percent(text: str) -> list[_Edit]:
    found = _ANY_PERCENT.finditer(text) if "%" in text else ()
    return [_Edit(*m.span(), said) for m in found if (said := _utf8(bytes.fromhex(m[0].replace("%", ""))))]


def _all_escapes(text: str) -> list[_Edit]:
    def said(escape: re.Match[str]) -> str:
        x, u, wide, octal, sign = escape.groups()
        return sign or chr(int(octal, 8) if octal else int(x or u or wide, 16))

    return [_Edit(*m.span(), said(m)) for m in _ANY_ESCAPE.finditer(text)] if "\\" in text else []


def _quoted_printable(text: str) -> list[_Edit]:
    def said(quoted: str) -> str:
        return _utf8(bytes.fromhex(quoted.replace("=", ""))) if quoted[-1] != "\n" else ""

    found = _QUOTED.finditer(text) if "=" in text else ()
    return [_Edit(*m.span(), new) for m in found if (new := said(m[0])) or m[0][-1] == "\n"]


def _all_binary(text: str) -> list[_Edit]:
    if not _MAY_BE_BINARY.search(text):
        return []
    return _all_blocks(_BINARY, lambda block: bytes(int(b, 2) for b in re.findall(r"[01]{8}", block)), text)


def _all_hexadecimal(text: str) -> list[_Edit]:
    if not _MAY_BE_HEX.search(text):
        return []
    return _all_blocks(_HEX, lambda block: bytes.fromhex(re.sub(r"0[xX]|[\s,;:-]", "", block)), text)


def _all_base64(text: str) -> list[_Edit]:
    if not _MAY_BE_BASE64.search(text):
        return []
    found: list[_Edit] = []
    for m in _BASE64.finditer(text):
        found += _opened(m, lambda block: _said(_from_base64(block)))
    return found


def _all_blocks(pattern: re.Pattern[str], decode: Callable[[str], bytes], text: str) -> list[_Edit]:
    return [_Edit(*m.span(), said) for m in pattern.finditer(text) if (said := _said(decode(m[0])))]


_TEXT_BYTES = bytes([9, 10, 13, *range(32, 127)])


def _said(raw: bytes) -> str:
    """Return the text in bytes, in any language or none; an empty one where they are not text."""
    if len(raw) >= 6 and len(raw) % 2 == 0 and not any(raw[1::2]):
        raw = raw[::2]  # UTF-16
    if len(raw.translate(None, _TEXT_BYTES)) * _STRANGE <= len(raw):
        return raw.decode("utf-8", "replace")
    said = _utf8(raw)
    shown = said if _UNSEEN_ASCII.search(said) else _UNSEEN.sub("", said)  # control characters are what chance makes
    return said if shown.translate({9: 32, 10: 32, 13: 32}).isprintable() else ""


SPELLINGS: tuple[tuple[tuple[str, Callable[[str], list[_Edit]]], ...], ...] = (
    (("invisible", _unseen), ("lookalike", _ascii_forms)),
    (("entities", _all_entities), ("percent", _all_percent), ("escapes", _all_escapes), ("binary", _all_binary)),
    (("hex", _all_hexadecimal),),
    (("base64", _all_base64),),
)
"""What `spellings` undoes, in this order; after each of the four steps the text is a reading.

What came out of one step is looked at before the next may take digits for hexadecimal, or a web token for base64.
"""

# A long run without a second line is not walked again from its second character.
_WHOLE_BASE64_LINES = re.compile(rf"(?<!{_IN_BASE64}){_BASE64_LINES}")
_BLOCKS = (_BINARY, _HEX, _WHOLE_BASE64_LINES, _MORSE, _SPACED, re.compile(_CONTROL_STRING))
