"""Makes the text of strangers safe to look at. Knows nothing of where it is shown."""

import unicodedata


def visible(text: str) -> str:
    r"""Spell out what cannot be seen, `\u001b`: control characters, which could move a terminal's cursor, and
    direction marks, which could make a text read other than it is. Line breaks and tabs stay.
    """
    return "".join(
        char if char in "\n\t" or not unicodedata.category(char).startswith("C") else f"\\u{ord(char):04x}"
        for char in text
    )
