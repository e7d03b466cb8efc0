"""Where JSON stands in a text that comes in pieces, and what its strings say. Knows no placeholders; changes nothing.

What reads as JSON is JSON, wherever in a text: objects and arrays, fenced or not. What a string of it says is a text
again, with JSON in it or not. A string that stands in no JSON is a quotation; only who is told so takes it for JSON.

Until its first `"name":` JSON is a guess, and a sign that does not fit makes prose of it. From there on its strings are
strings until the brackets are closed, whatever else does not fit: comments, ellipses, commas too many.
"""

import json
import re
from typing import NamedTuple

DEEPEST = 6
"""Strings within strings that are read; with each, the backslashes double of what is put into it."""

_VALUE = '"[{0'
"""What a value begins with; 0 stands for a word."""

_CLOSING = {"[": "]", "{": "}"}
_IN_WORD = re.compile(r"[-+.\\\w]")
# JSON's words, and a name in capitals: `[EMAIL_1]` without quotes stands where a value should, and breaks nothing.
_WORD = re.compile(r"-?[0-9][0-9.eE+-]*|true|false|null|[A-Z0-9_\\]+")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_QUIET = re.compile(r'[^\x00-\x1f\[\]{}"\\]+')


class Sign(NamedTuple):
    r"""A character as it is meant, or several that are no more than letters.

    Attributes:
        text: `[` also where `\u005b` was written in a string.
        start, end: what was written, in code points of the text as it came.
        depth: how many strings it stands in, one within the other.
        bare: whether it stands in JSON, and there in no string.
    """

    text: str
    start: int
    end: int
    depth: int = 0
    bare: bool = False


class Reader:
    """Reads one text that comes in pieces. Sans-io; what it finds is a function of the text alone.

    Args:
        is_json: all of it is JSON, whatever it looks like.
    """

    def __init__(self, *, is_json: bool = False) -> None:
        self._outermost = _Layer(0, is_json=is_json)
        self._at = 0

    def read(self, text: str) -> list[Sign]:
        """Return the signs of more text, in order, down to a depth of one more than `DEEPEST`."""
        signs: list[Sign] = []
        before, here = self._at, 0
        while here < len(text):
            calm = self._outermost.calm()
            if calm and (run := _QUIET.match(text, here)):
                signs.append(Sign(run[0], before + here, before + run.end(), calm.depth))
                here = run.end()
            else:
                self._outermost.take(Sign(text[here], before + here, before + here + 1), signs)
                here += 1
        self._at = before + here
        return signs

    @property
    def settled(self) -> int:
        """How many code points are read for good: all but an escape that has only begun."""
        return self._outermost.escape_begun(self._at)


class _Layer:
    """A text at one depth: prose, JSON in it, and the layer within the string that is open."""

    def __init__(self, depth: int, *, is_json: bool = False) -> None:
        self.depth = depth
        self._is_json = is_json
        self._inner: _Layer | None = None
        self._escape: list[Sign] = []
        self._open: list[str] = []
        self._word: list[str] = []
        self._sure = is_json
        self._expected = _VALUE if is_json else None  # None in prose, and in JSON once something did not fit

    def calm(self) -> "_Layer | None":
        """Return the innermost layer where letters change nothing in any."""
        layer = self
        while layer._inner is not None:
            if layer._escape:
                return None
            layer = layer._inner
        return layer if layer._expected is None else None

    def escape_begun(self, otherwise: int) -> int:
        """Return where the escape begins that has begun at any depth."""
        layer: _Layer | None = self
        while layer is not None:
            otherwise = min(otherwise, layer._escape[0].start) if layer._escape else otherwise
            layer = layer._inner
        return otherwise

    def take(self, sign: Sign, signs: list[Sign]) -> None:
        """Take one character and add to the signs what it completes."""
        if self._inner is None:
            bare = self._sure and (self._is_json or self._expected is not None)
            signs.append(sign._replace(depth=self.depth, bare=bare))
            if self.depth <= DEEPEST:
                self._step(sign.text)
        elif self._escape or sign.text == "\\":
            self._take_escape(sign, self._inner, signs)
        elif sign.text == '"' or (sign.text < " " and not self._sure):
            self._inner = None
            signs.append(sign._replace(depth=self.depth))
            self._end_string(whole=sign.text == '"')
        else:
            self._inner.take(sign, signs)

    def _take_escape(self, sign: Sign, inner: "_Layer", signs: list[Sign]) -> None:
        self._escape.append(sign)
        written = "".join(part.text for part in self._escape)
        if _ESCAPE_BEGUN.fullmatch(written):
            return
        (first, *_), self._escape, parts = self._escape, [], self._escape
        if _ESCAPE.fullmatch(written):
            inner.take(Sign(json.loads(f'"{written}"'), first.start, sign.end), signs)
        else:  # no escape of JSON's, such as `\_`: taken as written
            for part in parts[:-1]:
                inner.take(part, signs)
            self.take(sign, signs)

    def _step(self, char: str) -> None:
        """Go on by a character that stands in no string."""
        if self._expected is None and not self._open and not self._is_json:
            self._expected = "[{" if char in _CLOSING else None
        if self._expected is None:
            self._step_loosely(char)
        elif not self._fits(char):
            self._expected = None
            self._word.clear()
            if not self._sure:
                self._open.clear()
            self._step(char)

    def _step_loosely(self, char: str) -> None:
        if not self._open and not self._is_json:
            return
        if char == '"':
            self._inner = _Layer(self.depth + 1)
        elif char in _CLOSING:
            self._open.append(char)
        elif char in "]}" and self._open:
            self._open.pop()
            self._sure = bool(self._open) or self._is_json

    def _fits(self, char: str) -> bool:
        """Go on by a character as JSON has it, or say that it does not."""
        if _IN_WORD.match(char):
            self._word.append(char)
            return "0" in (self._expected or "")
        if self._word:
            if not _WORD.fullmatch("".join(self._word)):
                return False
            self._word.clear()
            self._end_value()
        if char in " \t\r\n":
            return True
        if char not in (self._expected or ""):
            return False
        if char == '"':
            self._inner = _Layer(self.depth + 1)
        elif char in _CLOSING:
            self._open.append(char)
            self._expected = '"}' if char == "{" else f"{_VALUE}]"
        elif char == ",":
            self._expected = '"' if self._open[-1] == "{" else _VALUE
        elif char == ":":
            self._expected, self._sure = _VALUE, True
        else:
            self._open.pop()
            self._end_value()
        return True

    def _end_string(self, *, whole: bool) -> None:
        if not whole:
            self._expected = None
            self._open.clear()
        elif self._expected is not None:
            if "[" in self._expected:
                self._end_value()
            else:
                self._expected = ":"

    def _end_value(self) -> None:
        if self._open:
            self._expected = f",{_CLOSING[self._open[-1]]}"
        else:
            self._expected, self._sure = "" if self._is_json else None, self._is_json
