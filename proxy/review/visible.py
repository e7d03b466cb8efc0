"""Makes the text of strangers safe to look at. Knows nothing of where it is shown."""

import json
import unicodedata


def visible(text: str) -> str:
    r"""Spell out what cannot be seen, `\u001b`: control characters, which could move a terminal's cursor, and
    direction marks, which could make a text read other than it is. Line breaks and tabs stay.
    """
    return "".join(
        char if char in "\n\t" or not unicodedata.category(char).startswith("C") else f"\\u{ord(char):04x}"
        for char in text
    )


def visible_json(value: object) -> str:
    """Write a value as one line of JSON, its texts as they read; only what cannot be seen is escaped, as JSON does it.

    Separators of lines and paragraphs are escaped as well: some readers of lines would end one there.
    """
    line = json.dumps(value, ensure_ascii=False)
    hidden = {char for char in set(line) if unicodedata.category(char)[0] == "C" or char in "\u2028\u2029"}
    return line.translate({ord(char): json.dumps(char)[1:-1] for char in hidden})
