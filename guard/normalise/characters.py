"""Undoes disguises of characters: what hides in words, marks through letters, letters that look like others."""

import re
import unicodedata
from functools import cache, lru_cache
from itertools import chain, pairwise
from typing import cast

from ringfence.guard.normalise.encodings import ROUNDS, text_of
from ringfence.guard.normalise.english import COMMON, is_word
from ringfence.guard.normalise.unseen import INVISIBLE, SELECTORS, TAGS, UNSEEN_ASCII
from ringfence.guard.normalise.variant import Edit

# Scripts in which nothing invisible belongs between two letters: Latin to Cyrillic, kana, Han, Hangul.
_JOINED = re.compile("[A-Za-z0-9\u00c0-\u052f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]")
_BLACK_FLAG = "\U0001f3f4"  # the emoji that tags belong to: Scotland's flag and its like


def invisible(text: str) -> list[Edit]:
    """Remove what is not shown from inside words, and show what tag characters and variation selectors spell."""
    beyond_ascii = "" if text.isascii() else text
    shown = [
        Edit(*m.span(), "".join(chr(ord(c) - 0xE0000) for c in m[0]))
        for m in TAGS.finditer(beyond_ascii)
        if text[m.start() - 1 : m.start()] != _BLACK_FLAG
    ]
    for m in SELECTORS.finditer(beyond_ascii):
        spelt = bytes(ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16 for c in m[0])
        if said := text_of(spelt, ROUNDS):
            shown.append(Edit(*m.span(), said))
    if shown:
        return sorted(shown)  # the rest is for the next round
    hidden = []
    evident = False
    for m in INVISIBLE.finditer(text) if beyond_ascii or UNSEEN_ASCII.search(text) else ():
        beside = [bool(_JOINED.match(text[i : i + 1])) for i in (max(m.start() - 1, 0), m.end())]
        if any(beside):
            hidden.append(Edit(*m.span(), ""))
            evident |= all(beside)
    return hidden if evident else []


_CLUSTERS = re.compile("([A-Za-z])(?:[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]+)")
_OVERLAYS = re.compile("[\u0334-\u0338\u20d2\u20d3\u20d8-\u20da\u20e5\u20e6\u20ea\u20eb]")


def marks(text: str) -> list[Edit]:
    """Remove what strikes letters through, and heaps of marks that no language sets."""
    if text.isascii():
        return []
    clusters = [m for m in _CLUSTERS.finditer(text) if len(m[0]) > 3 or _OVERLAYS.search(m[0])]
    return [Edit(*m.span(), m[1]) for m in clusters] if len(clusters) >= 3 else []


def lookalikes(text: str) -> list[Edit]:
    """Write words in ASCII whose letters only look like it: styled letters, or those of another script."""
    if text.isascii():
        return []
    evident, latin, foreign = 0.0, 0, 0
    edits: list[Edit] = []
    whole: list[Edit] = []  # of words all of whose letters are of another script: they may mean what they are
    for m in WORDS.finditer(text):
        word = m[0]
        if word.isascii():
            latin += 1
            continue
        letters = [as_ascii(c) for c in word]
        folded = "".join(letters)
        if folded == word:
            foreign += unicodedata.name(word[0], "")[:5] != "LATIN"
            continue
        if not all(c < "\u0250" for c in folded):
            foreign += 1
            continue
        each = [Edit(m.start() + i, m.start() + i + 1, new) for i, new in enumerate(letters) if new != word[i]]
        mixed = [c.isascii() for c in word if c.isalpha()]
        if any(mixed) and not all(mixed):
            latin += 1
            edits += each
            cased = folded.islower() or folded.isupper() or folded.istitle()  # not TNFα
            turns = sum(a != b for a, b in pairwise(mixed))
            evident += (
                len(word) >= 3 and folded.isascii() and ((cased and is_word(folded)) or (turns > 1 and len(word) > 3))
            )
            foreign += turns == 1
        else:
            styled = all(map(_is_styled, word))
            (edits if styled else whole).extend(each)
            if styled:
                evident += sum(map(str.isdigit, folded)) >= 7 or (len(folded) >= 3 and is_word(folded))
            else:
                evident += 0.5 * (len(folded) >= 3 and folded.lower() in COMMON)
    if evident < (1 if foreign <= latin else 3):
        return []
    if foreign <= latin:
        signs = (Edit(*m.span(), unicodedata.normalize("NFKC", m[0])) for m in _FULLWIDTH_SIGN.finditer(text))
        edits += chain(whole, signs)
    return sorted(edits)


WORDS = re.compile("(?:[^\\W_]|[\u24b6-\u24e9\U0001f130-\U0001f189])+")  # letters in circles and squares among them
_FULLWIDTH_SIGN = re.compile("[\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff5e\u3000]")


def _is_styled(character: str) -> bool:
    """Whether a letter or digit is Latin in another shape, not of another script."""
    named = unicodedata.name(character, "").startswith(("LATIN", "NEGATIVE"))
    return named or unicodedata.normalize("NFKC", character).isascii()


@lru_cache(maxsize=1 << 16)
def as_ascii(character: str) -> str:
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
