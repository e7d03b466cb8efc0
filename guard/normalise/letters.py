"""Undoes disguises of words by their letters: set apart, or written as digits and signs."""

import re
from collections.abc import Iterator

from ringfence.guard.normalise.english import COMMON, WORD, is_english, is_word, surprise
from ringfence.guard.normalise.variant import Edit

SPACED = re.compile(r"(?<!\S)[^\W_][!?.,;:]?(?:[ \t]{1,4}\S(?!\S))++")
_DOTTED = re.compile(
    r"(?<![^\W_])[A-Za-z]([.\-_*|~·•/+])[A-Za-z'’](?![^\W_])(?:\1[A-Za-z'’](?![^\W_]))++(?:\1(?=[^\w\s]))?"
)
# Whether a text may hold either: a character alone after another, or a letter between two marks.
_SPACED_GOES_ON = re.compile(
    r"[ \t](?=\S(?!\S))(?:(?<=[ \t]{2})|(?<=(?<!\S)[^\W_][ \t])|(?<=(?<!\S)[^\W_][!?.,;:][ \t]))"
)
_DOTTED_GOES_ON = re.compile(r"[.\-_*|~·•/+][A-Za-z'’][.\-_*|~·•/+]")


def spaced(text: str) -> list[Edit]:
    """Close up letters set apart: by spaces, with wider ones between words or none, or by one mark throughout."""
    evident, found = False, []
    for m in _DOTTED.finditer(text) if _DOTTED_GOES_ON.search(text) else ():
        word = m[0].replace(m[1], "")
        if word.isupper() and m[1] in ".-" and len(word) < 6:
            continue  # initials
        evident |= len(word) >= 4 and is_word(word.replace("'", "").replace("’", ""))
        found += [Edit(m.start() + i, m.start() + i + 1, "") for i, c in enumerate(m[0]) if c == m[1]]
    found = found if evident else []
    for m in SPACED.finditer(text) if _SPACED_GOES_ON.search(text) else ():
        wide = re.search(r"\S[ \t]{2,}\S", m[0])
        words = [re.sub(r"\s", "", word) for word in (re.split(r"[ \t]{2,}", m[0]) if wide else [m[0]])]
        said = " ".join(words)
        letters = sum(map(str.isalpha, said))
        apart = max(map(len, words)) > 1 and letters >= 4 and letters >= 0.7 * (len(said) - said.count(" "))
        other = wide and letters >= 12 and not said.isascii()  # a script of which no table is kept here
        if apart and (other or is_english(said, WORD)):
            gaps = [gap.span() for gap in re.finditer(r"(?<=\S)[ \t](?=\S)" if wide else r"[ \t]+", m[0])]
            if not wide and said[0] in "aAI" and len(said) > 4 and said[1:].lower() in COMMON:
                del gaps[0]  # `a b o m b`
            found += [Edit(m.start() + start, m.start() + end, "") for start, end in gaps]
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


def leet(text: str) -> list[Edit]:
    """Read digits and signs as letters in words that are written so, where the words come out English."""
    evidence: dict[str, float] = {}
    edits: list[Edit] = []
    for chunk in _leet_words(text):
        for m in re.finditer(r"[^'’-]+", chunk[1]):
            word = m[0].rstrip("!")
            if not _LEET_SIGN.search(word):
                continue
            read = _as_letters(word)
            if read.isalpha() and is_word(read) and not _LEET_NEVER.fullmatch(word):
                start = chunk.start(1) + m.start()
                edits += [Edit(start + i, start + i + 1, c) for i, c in enumerate(read) if c != word[i]]
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
    return min((as_i, as_l), key=lambda read: (read.lower() not in COMMON, surprise(read) if read.isalpha() else 9))


def _leet_evidence(word: str, read: str) -> float:
    """Return how much a word shows by itself that its text is leetspeak: 1 is enough."""
    if _LEET_HEX.fullmatch(word) or len(word) > 14:
        return 0.0
    if read.lower() in COMMON and len(read) >= 3:
        return 1.0 if len(read) > 3 or not _LEET_ORDINARY.fullmatch(word) else 0.5
    if _LEET_ORDINARY.fullmatch(word) or len(read) < 4 or (word.isupper() and len(word) < 6):
        return 0.0
    return 0.5 if word[1:].islower() or word[1:].isupper() else 0.0  # not IPv4Address
