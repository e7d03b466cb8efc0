"""Writes characters as those that they are forms of, whatever the text says, and takes out what is not shown."""

import re
import unicodedata
from functools import lru_cache

from ringfence.guard.normalise.carriers import said_in
from ringfence.guard.normalise.characters import WORDS, as_ascii
from ringfence.guard.normalise.unseen import SELECTORS, UNSEEN, UNSEEN_ASCII
from ringfence.guard.normalise.variant import Edit

_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]")
_HYPHENS = "\u2010\u2011\u2012\u2013\u2212"
# A letter with the marks upon it, be they its own or not; what is raised behind a number, as a note or a power is.
_MARKED = re.compile(f".?{_MARKS.pattern}+", re.DOTALL)
_RAISED = re.compile("(?<=[0-9])[\u00b9\u00b2\u00b3\u2070-\u2079\u2080-\u2089]++(?![0-9])")
# Where a word mixes ASCII with letters that may look like it: Greek to Cherokee.
_MIXED = re.compile("[A-Za-z0-9][\u0370-\u058f\u13a0-\u13ff]|[\u0370-\u058f\u13a0-\u13ff][A-Za-z0-9]")


def not_shown(text: str) -> list[Edit]:
    """Remove what is not shown, wherever it is; show what tag characters and variation selectors spell."""
    if text.isascii() and not UNSEEN_ASCII.search(text):
        return []
    return [Edit(*m.span(), _shown(m[0])) for m in UNSEEN.finditer(text)]


def _shown(unseen: str) -> str:
    if "\U000e0020" <= unseen[0] <= "\U000e007e":
        return "".join(chr(ord(c) - 0xE0000) for c in unseen)
    if SELECTORS.fullmatch(unseen):
        return said_in(bytes(ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16 for c in unseen))
    return ""


def ascii_forms(text: str) -> list[Edit]:
    """Write in ASCII what is one of its characters in another form, or looks like one in the midst of others."""
    if text.isascii():
        return []
    forms = {c: form for c in set(text) if (form := _form(c)) != c}
    edits = [Edit(at, at + 1, forms[c]) for at, c in enumerate(text) if c in forms] if forms else []
    if _MIXED.search(text):
        for word in WORDS.finditer(text):
            if _MIXED.search(word[0]):
                places = range(word.start(), word.end())
                edits += [
                    Edit(i, i + 1, new)
                    for i in places
                    if text[i] not in forms and (new := as_ascii(text[i])) != text[i]
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


def composed(text: str) -> list[Edit]:
    """Write a letter and its own marks in one code point, and take off what marks it has besides."""
    found = _MARKED.finditer(text) if not text.isascii() else ()
    return [Edit(*m.span(), _MARKS.sub("", unicodedata.normalize("NFC", m[0]))) for m in found]


def plain_forms(text: str) -> list[Edit]:
    """Write in ASCII what `ascii_forms` does, but for notes and powers, and signs that stand for a word (`№`)."""
    raised = {at for m in _RAISED.finditer(text) for at in range(*m.span())} if not text.isascii() else ()
    found = (edit for edit in ascii_forms(text) if edit.start not in raised)
    return [edit for edit in found if len(edit.text) == 1 or unicodedata.category(text[edit.start]) != "So"]
