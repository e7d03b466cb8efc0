"""Decodes what somebody would read: language in any script, or one more encoding of it.

A look takes the text and how many rounds of decoding are left.
"""

import html
import re
from base64 import b64decode
from collections.abc import Callable
from itertools import chain

from ringfence.guard.normalise.english import WORD, is_english
from ringfence.guard.normalise.variant import Edit

ROUNDS = 3
"""A text is read so many times at most; as deep may one encoding lie within another."""

_ENTITIES = re.compile(r"(?:&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});)+")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_PHRASE = re.compile(r"[^\W_]*[^\W\d_](?:%20[^\W_]++)++[.,!?]?")  # words, and nothing of an address
_ESCAPES = re.compile(
    r"(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}"
    r"|\\[0-3][0-7]{2})++"
)
_PAIR = re.compile(r"\\u([dD][89ABab][0-9A-Fa-f]{2})\\u([dD][C-Fc-f][0-9A-Fa-f]{2})")
# INVARIANT: what must not follow is asked after every part, so that no long run is walked again from its second part.
HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:0[xX][0-9A-Fa-f]{2}(?:[\s,;]{1,3}0[xX][0-9A-Fa-f]{2}(?![0-9A-Za-z])){2,}+"
    r"|[0-9A-Fa-f]{2}(?:[ :,-][0-9A-Fa-f]{2}(?![0-9A-Za-z])){3,}+|(?:0[xX])?(?:[0-9A-Fa-f]{2}){4,}+(?![0-9A-Za-z]))"
)
# What each alternative has somewhere, once every hex digit is a 0 and every sign between two is a space.
_HEX_SHAPES = (b"0x00", b"00 00 00 00", b"00000000")
_HEX_SHAPE = bytes.maketrans(b"123456789abcdefABCDEFX:,-", b"0" * 21 + b"x   ")
BINARY = re.compile(r"(?<![0-9A-Za-z])(?:[01]{8}(?:[ ,][01]{8}(?![0-9A-Za-z])){2,}+|(?:[01]{8}){3,}+(?![0-9A-Za-z]))")
_EIGHT_BITS = re.compile("[01]" * 8)  # what prose has none of is seen sooner without looking behind
# A line of forty and more goes on in the next: that is how mail wraps it.
BASE64_LINES = r"[A-Za-z0-9+/_-]{40,}+(?:\r?\n[A-Za-z0-9+/_-]{4,}+)++={0,2}"
BASE64 = re.compile(BASE64_LINES + r"|[A-Za-z0-9+/_-]{8,}+={0,2}")
# A block has a capital after its first character, or is a word (see `from_base64`); of lines, one may begin with it.
IN_BASE64 = "[A-Za-z0-9+/_-]"
_CAPITAL_IN_BASE64 = re.compile(
    f"[A-Z](?:{'|'.join(f'(?<={IN_BASE64}{{{n + 1}}})(?={IN_BASE64}{{{7 - n}}})' for n in range(1, 8))}|"
    + "|".join(rf"(?<={IN_BASE64}{{4}}{end}{IN_BASE64}{{{n}}}[A-Z])" for n in range(7) for end in (r"\n", r"\r\n"))
    + ")"
)
_BASE64_PARTS = (re.compile(r"[^\r\n]+"), re.compile(r"[^\r\n/_+-]+"))
MORSE = re.compile(r"[.·•\-–—−](?<!\S.)[.·•\-–—−]{0,5}(?:[ \t/|]{1,5}[.·•\-–—−]{1,6}(?![^\s/|])){3,}+")

_MORSE_SIGNS = """
    .- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
    ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. ..--.. .-.-.- --..-- -.-.--
"""
_MORSE_CODE = dict(zip(_MORSE_SIGNS.split(), "abcdefghijklmnopqrstuvwxyz0123456789?.,!", strict=True))


def _entities(text: str, rounds: int) -> list[Edit]:
    """Decode numeric entities where they stand for plain letters, or for words of any others."""
    found = [Edit(*m.span(), html.unescape(m[0])) for m in _ENTITIES.finditer(text)] if "&#" in text else []
    plain = sum(c.isascii() and c.isalnum() for edit in found for c in edit.text)
    return found if plain >= 2 else [edit for edit in found if len(edit.text) > 2 and _is_readable(edit.text, rounds)]


def _percent(text: str, rounds: int) -> list[Edit]:
    """Decode percent-encoding that no address needs: of letters, of itself, of whole sentences outside of addresses."""
    found: list[Edit] = []
    if "%" not in text:
        return []
    for chunk in re.finditer(r"\S+", text):
        if "%" not in chunk[0]:
            continue
        edits = [
            Edit(chunk.start() + m.start(), chunk.start() + m.end(), said)
            for m in _PERCENT.finditer(chunk[0])
            if (said := utf8(bytes.fromhex(m[0].replace("%", ""))))
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


def _escapes(text: str, rounds: int) -> list[Edit]:
    r"""Decode `\x62`, `\u0062`, `\U00000062` and `\142` where they spell something."""
    found = []
    for m in _ESCAPES.finditer(text) if "\\" in text else ():
        if "\\u" in m[0].lower():
            paired = _PAIR.sub(lambda halves: of_halves(*halves.groups()), m[0])
            units = re.sub(r"\\[uU]\{?([0-9A-Fa-f]+)\}?|\\x(..)", lambda e: f"&#x{e[1] or e[2]};", paired)
            said = html.unescape(units)
        else:
            codes = re.findall(r"\\(?:x(..)|(\d{3}))", m[0])
            said = utf8(bytes(int(a, 16) if a else int(b, 8) for a, b in codes))
        if _is_readable(said, rounds):
            found.append(Edit(*m.span(), said))
    return found


def of_halves(high: str, low: str) -> str:
    """Return the character beyond 16 bits that is written as a surrogate pair, in hexadecimal."""
    return bytes.fromhex(high + low).decode("utf-16-be")


def _hexadecimal(text: str, rounds: int) -> list[Edit]:
    shape = text.encode("ascii", "replace").translate(_HEX_SHAPE)
    if not any(part in shape for part in _HEX_SHAPES):
        return []
    return _decoded(HEX, lambda block: bytes.fromhex(re.sub(r"0[xX]|[\s,;:-]", "", block)), text, rounds)


def _binary(text: str, rounds: int) -> list[Edit]:
    if not _EIGHT_BITS.search(text):
        return []
    return _decoded(BINARY, lambda block: bytes(int(b, 2) for b in re.findall(r"[01]{8}", block)), text, rounds)


def _base64(text: str, rounds: int) -> list[Edit]:
    """Decode base64 of either alphabet, padded or not, also wrapped in lines or as one part of an address."""
    found: list[Edit] = []
    for m in BASE64.finditer(text) if _CAPITAL_IN_BASE64.search(text) else ():
        found += opened(m, lambda block: text_of(from_base64(block), rounds))
    return found


def opened(block: re.Match[str], read: Callable[[str], str]) -> list[Edit]:
    """Read a block, or where it says nothing its lines, or the parts of an address that it is."""
    if said := read(block[0]):
        return [Edit(*block.span(), said)]
    found: list[Edit] = []
    for pattern in _BASE64_PARTS:
        for part in pattern.finditer(block[0]) if not found else ():
            if 8 <= len(part[0]) < len(block[0]) and (said := read(part[0])):
                found.append(Edit(block.start() + part.start(), block.start() + part.end(), said))
    return found


_NO_BREAKS = str.maketrans("", "", "\r\n=")


def from_base64(block: str) -> bytes:
    """Return what a block encodes; nothing for one that is plainly a word or a number."""
    kept = block.translate(_NO_BREAKS)
    if len(kept) % 4 == 1 or kept.upper() == kept or kept[1:].lower() == kept[1:]:
        return b""
    raw = b64decode(kept.replace("-", "+").replace("_", "/") + "=" * (-len(kept) % 4))
    wide = len(raw) >= 8 and len(raw) % 2 == 0 and not any(raw[1::2])
    return raw[::2] if wide else raw  # PowerShell encodes UTF-16


def _morse(text: str, rounds: int) -> list[Edit]:
    """Decode Morse: letters apart by a space, words by more, a slash or a bar."""
    found = []
    for m in MORSE.finditer(text):
        signs = m[0].translate(str.maketrans("·•–—−", "..---"))
        words = [[_MORSE_CODE.get(sign, "") for sign in word.split()] for word in re.split(r"\s*[/|]\s*|\s{2,}", signs)]
        if (
            all(chain.from_iterable(words))
            and {".", "-"} <= set(signs)
            and is_english(said := " ".join(map("".join, words)), WORD)
        ):
            found.append(Edit(*m.span(), said))
    return found


def _decoded(pattern: re.Pattern[str], decode: Callable[[str], bytes], text: str, rounds: int) -> list[Edit]:
    return [Edit(*m.span(), said) for m in pattern.finditer(text) if (said := text_of(decode(m[0]), rounds))]


def text_of(raw: bytes, rounds: int) -> str:
    """Return the text in bytes; an empty one where they are not text that somebody would read."""
    said = utf8(raw)
    return said if said and _is_readable(said, rounds) else ""


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
        if is_english(text, WORD) or (len(text) >= 20 and " " in text.strip()):
            return True
    elif len(text) >= 20 and text.count(" ") >= len(text) // 12 and 2 * letters >= len(text):
        return True
    return rounds > 1 and any(look(text, rounds - 1) for _, look in ENCODINGS)


def utf8(raw: bytes) -> str:
    """Return the text that bytes encode; an empty one where they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""


ENCODINGS: tuple[tuple[str, Callable[[str, int], list[Edit]]], ...] = (
    ("entities", _entities),
    ("percent", _percent),
    ("escapes", _escapes),
    ("binary", _binary),
    ("hex", _hexadecimal),
    ("base64", _base64),
    ("morse", _morse),
)
"""Each encoding by its name, in the order in which they are undone."""
