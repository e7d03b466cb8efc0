"""What a text has that is not shown. Only patterns: who undoes what says what is done with it."""

import re

INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1a\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e007f-\U000e0fff]+"
)
"""What is not shown, and may be there to break a word."""

TAGS = re.compile("[\U000e0020-\U000e007e]+")
"""Characters that spell ASCII and are not shown."""

SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{3,}")
"""Variation selectors in a row, each of which can stand for a byte."""

CONTROL_STRING = "(?:\x1b[\\]P^_X]|[\x9d\x90\x9e\x9f\x98])[^\x07\x1b\x9c\n]{0,4096}"
"""What a terminal takes for itself up to where it ends, and does not show."""

_TERMINAL = (
    f"(?:\x1b\\[|\x9b)[0-?]{{0,64}}[ -/]{{0,8}}[@-~]|{CONTROL_STRING}(?:\x07|\x1b\\\\|\x9c)|\x1b[ -/]{{0,4}}[0-~]?"
)
UNSEEN = re.compile(
    f"{TAGS.pattern}|{SELECTORS.pattern}|{_TERMINAL}|(?:{INVISIBLE.pattern[:-1]}|[\x1c-\x1f\U0001bca0-\U0001bca3])+"
)
"""All that is not shown, wherever it is: the above, and what a terminal obeys."""

UNSEEN_ASCII = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
"""What ASCII has of it."""

# What no address, number or key has in it: tags, selectors, signs that only format, a blank, private use.
_SIGNS = (
    "[\U000e0020-\U000e007e\ufe00-\ufe0f\U000e0100-\U000e01ef\u0600-\u0605\u06dd\u070f\u08e2"
    "\u2800\ufffc\ue000-\uf8ff]++"
)
STRAY = re.compile(rf"(?<=\S){_SIGNS}|{_SIGNS}(?=\S)")
"""Signs in a word, or beside one."""
