"""Decodes what carries any text whole, whatever it says and in whatever language."""

import html
import re
from collections.abc import Callable, Iterator

from ringfence.guard.normalise.encodings import BASE64, BINARY, HEX, IN_BASE64, from_base64, of_halves, opened, utf8
from ringfence.guard.normalise.unseen import UNSEEN, UNSEEN_ASCII
from ringfence.guard.normalise.variant import Edit

_ANY_ENTITY = re.compile(r"&(?:#[0-9]{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[A-Za-z][A-Za-z0-9]{1,30};)")
_ANY_PERCENT = re.compile(r"%[0-7][0-9A-Fa-f]|(?:%[89A-Fa-f][0-9A-Fa-f])++")
# Markdown escapes the signs of an address too; a string within a string has its backslashes twice.
_ANY_ESCAPE = re.compile(
    r"\\{1,8}(?:u([dD][89ABab][0-9A-Fa-f]{2})\\{1,8}u([dD][C-Fc-f][0-9A-Fa-f]{2})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})"
    r"|U(00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,5})\}|([01][0-7]{2})|([@._+-])"
    r"|([bfnrt])(?=[\w\\]))"
)
_QUOTED = re.compile(r"=(?:\r?\n|[2-7][0-9A-F])|(?:=[89A-F][0-9A-F])++")
# Escapes with nothing between that would part one field from the next, as a space or `&` does.
_QUOTED_ROW = re.compile(r"=\r?\n|(?:=[2-9A-F][0-9A-F][A-Za-z0-9_.:'-]*+)++")
_VALUE = re.compile("=(?!40)[2-7][0-9]{2}")
_NUMBER = re.compile("[0-9](?:[ :,-]?[0-9]){0,19}")
# Whether a text may hold any; they leap from digit to digit, or to a capital within a word, and prose has few.
_MAY_BE_BINARY = re.compile(r"0[01]{7}[ ,]?0[01]{7}")
_MAY_BE_HEX = re.compile(r"[2-7][0-9A-Fa-f](?:[\s,;:-]{0,3}(?:0[xX])?[0-9A-Fa-f]{2}){2}")
_MAY_BE_BASE64 = re.compile(
    f"[A-Z0-9+](?:{'|'.join(f'(?<={IN_BASE64}{{{n + 1}}})(?={IN_BASE64}{{{7 - n}}})' for n in range(1, 8))})"
)
_WHITE = {"b": " ", "f": " ", "n": "\n", "r": "\r", "t": "\t"}
_STRANGE = 10
"""One byte of so many may be no text, and the rest is looked at; of random bytes it is six of ten."""


def all_entities(text: str) -> list[Edit]:
    """Decode every entity, named ones too."""
    found = [Edit(*m.span(), html.unescape(m[0])) for m in _ANY_ENTITY.finditer(text)] if "&" in text else []
    return [edit for edit in found if edit.text != text[edit.start : edit.end]]


def all_percent(text: str) -> list[Edit]:
    """Decode all percent-encoding that is text."""
    found = _ANY_PERCENT.finditer(text) if "%" in text else ()
    return [Edit(*m.span(), said) for m in found if (said := utf8(bytes.fromhex(m[0].replace("%", ""))))]


def all_escapes(text: str) -> list[Edit]:
    """Decode escapes of code points, those of Markdown, and those of white space where a word follows."""

    def said(escape: re.Match[str]) -> str:
        high, low, x, u, long, wide, octal, sign, white = escape.groups()
        if high:
            return of_halves(high, low)
        if white:
            return _WHITE[white]
        return sign or chr(int(octal, 8) if octal else int(x or u or long or wide, 16))

    return [Edit(*m.span(), said(m)) for m in _ANY_ESCAPE.finditer(text)] if "\\" in text else []


def quoted_printable(text: str) -> list[Edit]:
    """Decode quoted-printable, and take out the breaks of its lines; a lone number (`date=20240115`) is a value."""

    def said(quoted: str) -> str:
        return utf8(bytes.fromhex(quoted.replace("=", ""))) if quoted[-1] != "\n" else ""

    found = _quoted(text) if "=" in text else ()
    return [Edit(*m.span(), new) for m in found if (new := said(m[0])) or m[0][-1] == "\n"]


def _quoted(text: str) -> Iterator[re.Match[str]]:
    for row in _QUOTED_ROW.finditer(text):
        escapes = list(_QUOTED.finditer(text, *row.span()))
        if len(escapes) > 1 or not _VALUE.match(row[0]):
            yield from escapes


def all_binary(text: str) -> list[Edit]:
    """Decode every block of bits that is text."""
    if not _MAY_BE_BINARY.search(text):
        return []
    return _all_blocks(BINARY, lambda block: bytes(int(b, 2) for b in re.findall(r"[01]{8}", block)), text)


def all_hexadecimal(text: str) -> list[Edit]:
    """Decode every block of hexadecimal that is text."""
    if not _MAY_BE_HEX.search(text):
        return []
    return _all_blocks(HEX, lambda block: bytes.fromhex(re.sub(r"0[xX]|[\s,;:-]", "", block)), text)


def hexadecimal_text(text: str) -> list[Edit]:
    """Decode what `all_hexadecimal` does, but for what is as likely a number: twenty decimal digits at most."""
    return [edit for edit in all_hexadecimal(text) if not _NUMBER.fullmatch(text, edit.start, edit.end)]


def all_base64(text: str) -> list[Edit]:
    """Decode every block of base64 that is text, or those of its lines and parts that are."""
    if not _MAY_BE_BASE64.search(text):
        return []
    found: list[Edit] = []
    for m in BASE64.finditer(text):
        found += opened(m, lambda block: said_in(from_base64(block)))
    return found


def _all_blocks(pattern: re.Pattern[str], decode: Callable[[str], bytes], text: str) -> list[Edit]:
    return [Edit(*m.span(), said) for m in pattern.finditer(text) if (said := said_in(decode(m[0])))]


_TEXT_BYTES = bytes([9, 10, 13, *range(32, 127)])


def said_in(raw: bytes) -> str:
    """Return the text in bytes, in any language or none; an empty one where they are not text."""
    if len(raw) >= 6 and len(raw) % 2 == 0 and not any(raw[1::2]):
        raw = raw[::2]  # UTF-16
    if len(raw.translate(None, _TEXT_BYTES)) * _STRANGE <= len(raw):
        return raw.decode("utf-8", "replace")
    said = utf8(raw)
    shown = said if UNSEEN_ASCII.search(said) else UNSEEN.sub("", said)  # control characters are what chance makes
    return said if shown.translate({9: 32, 10: 32, 13: 32}).isprintable() else ""
