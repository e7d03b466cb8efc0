"""Tells a secret from what only stands where one could: placeholders, references, code, words. Knows no provider."""

import re
from base64 import b64decode
from collections import Counter
from itertools import pairwise
from math import log2

from ringfence.guard.normalise.english import surprise

PLACEHOLDER = re.compile(
    r"your|xxxx|placeholder|changeme|change_me|dummy|redacted|replace|insert|example|\.\.\.|\*\*\*|[<>{}]",
    re.IGNORECASE,
)
FILLER = re.compile(r"\$|abcdefgh|1234567890abc", re.IGNORECASE)
# The half of a pair of keys that is meant to be seen, in a web page say.
PUBLISHABLE = re.compile(r"pk[._]|sb_publishable_|FLWPUBK")
# What stands for a value that is elsewhere: `$NAME`, `%NAME%`, `@name`, `var.name`, `a_name`, `/a/path`, `file:/path`.
REFERENCE = re.compile(
    r"\$|.*\$[({]|%\w+%$|[a-z_]{2,12}:/|(?:~|\.{1,2})?/\w|[A-Za-z]:\\"
    r"|[@:]?(?:[a-z]+_)+[a-z]+_?\d?$|[@:]?(?:[A-Z]+_)+[A-Z]+_?\d?$"
    r"|[@:]?[A-Za-z_]*(?i:pass(?:word|wd|phrase)?|pwd|secret)_?\d?$"
    r"|(?=[a-z])[A-Za-z_]+\d?(?:(?:\.|->|::|\?\.)[A-Za-z_]+\d?)+$"
    r"|(?:os|env|process|config|self|this|settings|vault|secrets?|var|data|local|module)\."
)
CODE = re.compile(r"[()\[\]{}<>]|(?:required|nullable|string|confirmed)\||\|(?:min|max|string|confirmed)\b")
# Names of methods and standards have digits too, and stand after "password" more often than a password does.
TERM = re.compile(r"sha-?\d|md5|oauth|bcrypt|pbkdf|argon|scrypt|rfc|utf|aes|base64|x509|saml|http|2fa", re.IGNORECASE)
LETTERS = re.compile(r"[A-Za-z]+")
PROSE = re.compile(
    r"\b(?:must|should|at|least|is|are|not|be|the|a|an|of|to|for|your|and|or|too|contain)\b", re.IGNORECASE
)


def is_meant(value: str) -> bool:
    """Whether a value stands for itself, and for a secret: not `sk-xxxx…`, not `YOUR_API_KEY`, not `pk_live_…`."""
    stands_for_itself = not (PLACEHOLDER.search(value) or FILLER.search(value))
    return stands_for_itself and len(set(value)) > 5 and not PUBLISHABLE.match(value)


def is_random(value: str) -> bool:
    """Whether a value looks drawn, not written: digits among its letters, or letters in no order that words have."""
    mixed = sum(c.isdigit() for c in value) >= 2 and any(c.isalpha() for c in value)
    return is_meant(value) and _entropy(value) >= 3 and (mixed or _is_scrambled(value))


def is_strewn(value: str) -> bool:
    """Whether a random value changes its kind of character often, as words with numbers and dates do not."""
    return is_random(value) and (_changes(value) >= 0.22 or _is_scrambled(value))


def is_password(value: str) -> bool:
    """Whether a value after `password =` is one: no placeholder, no reference, no code, no word of prose."""
    # A digit or a symbol that prose does not end or join its words with, or letters that are no words.
    drawn = re.search(r"[0-9!@#$%^&*_+=~?]", value.rstrip(".!?")) or _is_scrambled(value)
    stands_for_itself = not (PLACEHOLDER.search(value) or REFERENCE.match(value) or CODE.search(value))
    return bool(drawn) and stands_for_itself and len(set(value)) > 3


def is_lettered_password(value: str) -> bool:
    """Whether it is a password after a name that could also say something else: `pass: 100.0%` is none."""
    return is_password(value) and sum(c.isalpha() for c in value) >= 3


def is_password_in_prose(value: str) -> bool:
    """Whether a word right after "password", with nothing between, can only be one."""
    cased = any(c.islower() for c in value) and any(c.isupper() for c in value) and any(c.isdigit() for c in value)
    odd = re.search(r"[!@#$%^&*_+=~?]", value[:-1]) or _changes(value) >= 0.22
    return bool(cased and odd and is_password(value) and not TERM.search(value)) or is_strewn(value)


def is_passphrase(value: str) -> bool:
    """Whether some words in quotes are a passphrase and not a sentence about one."""
    return 3 <= len(value.split()) <= 12 and not PROSE.search(value) and not PLACEHOLDER.search(value)


def is_web_token(value: str) -> bool:
    """Whether the first of the three parts of a JWT says how it is signed."""
    return b'"alg"' in _decoded(value.split(".", 1)[0])


def is_basic(value: str) -> bool:
    """Whether HTTP basic credentials decode to `user:password`."""
    decoded = _decoded(value)
    return b":" in decoded and all(32 <= byte < 127 for byte in decoded)


def is_private_key(value: str) -> bool:
    """Whether a base64 text decodes to the head of a private key."""
    return b"PRIVATE KEY-----" in _decoded(value[:80])


SCRAMBLED = 7.2
"""Bits from which on letters are drawn. Of the long names in code one in 500 has as many, mostly data."""


def _is_scrambled(value: str) -> bool:
    """Letters that follow each other as in no word, and change between capital, small and digit as humps do not."""
    words = LETTERS.findall(value)
    pairs = sum(len(word) + 1 for word in words)
    surprises = sum(surprise(word) * (len(word) + 1) for word in words)
    changes = sum(_kind(a) != _kind(b) for a, b in pairwise(value) if a.isalnum() and b.isalnum())
    return pairs >= 10 and surprises / pairs + 4 * changes / len(value) >= SCRAMBLED


def _kind(character: str) -> tuple[bool, bool]:
    return character.isdigit(), character.isupper()


def _changes(value: str) -> float:
    """Return how often a digit follows a letter, a letter a digit, or a capital a small letter, per character."""
    changes = sum(
        (a.isdigit() != b.isdigit()) or (a.islower() and b.isupper())
        for a, b in pairwise(value)
        if a.isalnum() and b.isalnum()
    )
    return changes / len(value)


def _decoded(value: str) -> bytes:
    value = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return b64decode(value + "=" * (-len(value) % 4))
    except ValueError:
        return b""


def _entropy(value: str) -> float:
    """Return Shannon's measure of the characters, in bits a character."""
    return -sum(n / len(value) * log2(n / len(value)) for n in Counter(value).values())
