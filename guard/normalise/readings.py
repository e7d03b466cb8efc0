"""Undoes disguises: what a text says once hidden letters, look-alikes and encodings are read as a person would.

It judges nothing and knows no check; most texts have no second reading. It takes English for what hides behind
ciphers, leetspeak and spaced-out letters (their tests are made of English), any language behind encodings.

A round reads every disguise of `DISGUISES` in turn, each in what the one before made of the text; a text is read
`ROUNDS` times at most, so that base64 of base64 comes out. Everything is linear in the length of the text.

`variants` is for readers of language, and undoes what hides language. `spellings` is for patterns: a key under base64
is no English, so it asks for none, and it leaves leetspeak, ciphers and spaced-out letters alone, in which any text
with numbers has another reading. `wordings` is for words and patterns that anybody may have written, in any script:
it does the same, but a letter with its accent stays one, and a word of two scripts is read in either.
"""

from array import array
from collections.abc import Callable
from functools import lru_cache

from ringfence.guard.normalise.carriers import (
    all_base64,
    all_binary,
    all_entities,
    all_escapes,
    all_hexadecimal,
    all_percent,
    hexadecimal_text,
    quoted_printable,
)
from ringfence.guard.normalise.characters import invisible, lookalikes, marks
from ringfence.guard.normalise.ciphers import backwards, rot13
from ringfence.guard.normalise.encodings import ENCODINGS, ROUNDS
from ringfence.guard.normalise.forms import ascii_forms, composed, not_shown, plain_forms
from ringfence.guard.normalise.letters import leet, spaced
from ringfence.guard.normalise.scripts import native
from ringfence.guard.normalise.unseen import STRAY
from ringfence.guard.normalise.variant import Edit, Variant, edited

GROWTH = 4
"""A reading may be this many times as long as the text, not longer; only ligatures come near it."""


def _whole(look: Callable[[str, int], list[Edit]]) -> Callable[[str], list[Edit]]:
    return lambda text: look(text, ROUNDS)


DISGUISES: tuple[tuple[str, Callable[[str], list[Edit]]], ...] = (
    ("invisible", invisible),
    ("marks", marks),
    ("lookalike", lookalikes),
    *((kind, _whole(look)) for kind, look in ENCODINGS),
    ("rot13", rot13),
    ("reversed", backwards),
    ("spaced", spaced),
    ("leet", leet),
)
"""Each disguise by its name, in the order in which they are undone."""

Steps = tuple[tuple[tuple[str, Callable[[str], list[Edit]]], ...], ...]

SPELLINGS: Steps = (
    (("invisible", not_shown), ("lookalike", ascii_forms)),
    (("entities", all_entities), ("percent", all_percent), ("escapes", all_escapes), ("binary", all_binary)),
    (("hex", all_hexadecimal),),
    (("base64", all_base64),),
)
"""What `spellings` undoes, in this order; after each of the four steps the text is a reading.

What came out of one step is looked at before the next may take digits for hexadecimal, or a web token for base64.
"""

WORDINGS: Steps = (
    (("invisible", not_shown), ("marks", composed)),
    (("lookalike", plain_forms),),
    SPELLINGS[1],
    (("hex", hexadecimal_text),),
    SPELLINGS[3],
)
"""What `wordings` undoes; before letters are written in ASCII the text is a reading, too."""


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
                reading = edited(reading, kind, edits)
        if reading.text == before or len(reading.text) > GROWTH * len(text):
            break
        if (bare := _bare(reading.text)) not in seen:
            seen.add(bare)
            found.append(reading)
    return tuple(found)


@lru_cache(maxsize=8)
def spellings(text: str) -> tuple[Variant, ...]:
    """Return the readings of a text that may hold what patterns look for, the least undone first; none for most texts.

    Undone is what carries any text whole, whatever it says: invisible characters, other forms of ASCII's, encodings.
    Never more than four a round, twice over where a text may be in quoted-printable and where it has stray signs. The
    last few texts are remembered: several checks ask about each.
    """
    return tuple(_respelt(text, SPELLINGS))


@lru_cache(maxsize=8)
def wordings(text: str) -> tuple[Variant, ...]:
    """Return the readings of a text that may hold what somebody wrote down to be looked for, as `spellings` does.

    But an accent is part of its letter, what is raised behind a number (`2019²`) is none of it, a telephone number is
    no hexadecimal; and a word in which one script takes letters of another is there in ASCII and in the other script.
    None of them decodes what no spelling does, and each has its words where a spelling has them: where a stream may be
    parted for the spellings, it may be for these.
    """
    found = _respelt(text, WORDINGS)
    for reading in (Variant("", text, array("I"), array("I")), *found):
        if edits := native(reading.text):
            found.append(edited(reading, "lookalike", edits))
    return tuple(found)


def _respelt(text: str, steps: Steps) -> list[Variant]:
    plain = Variant("", text, array("I"), array("I"))
    found = _undone(plain, steps)
    # Beside what tags and selectors spell: one of them within a word may as well be there to break it.
    if not text.isascii() and STRAY.search(text):
        rid = edited(plain, "invisible", (Edit(*m.span(), "") for m in STRAY.finditer(text)))
        found += [rid, *_undone(rid, steps)]
    # Beside the others and not among them: `=` and a line break are also how a base64 block ends.
    if edits := quoted_printable(text):
        unquoted = edited(plain, "quoted-printable", edits)
        found += [unquoted, *_undone(unquoted, steps)]
    return found


def _undone(reading: Variant, steps: Steps) -> list[Variant]:
    found: list[Variant] = []
    longest = GROWTH * len(reading.text)
    for _ in range(ROUNDS):
        before = reading.text
        for step in steps:
            old = reading.text
            for kind, look in step:
                if edits := look(reading.text):
                    reading = edited(reading, kind, edits)
            if len(reading.text) > longest:
                return found
            if reading.text != old:
                found.append(reading)
        if reading.text == before:
            break
    return found


def _bare(text: str) -> str:
    return " ".join(text.split()).casefold()
