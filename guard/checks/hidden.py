"""Finds characters that a model reads and a person does not see, or sees in another order: what text is hidden with.

It knows characters; it does not know white text on white, styles that hide, letters that look like others, or blanks.

Ordinary use is no finding: joiners in emoji and in scripts that join letters (Persian, Hindi), marks in right-to-left
text, soft hyphens, a selector after a character that has variants, a byte order mark at the start, the flags of
England, Scotland and Wales, embeddings and isolates that are closed and hold right-to-left text.

Scores say how sure the characters alone make it:
    0.99  nothing else looks like it: text in tag characters, a run of four or more invisible characters of two kinds
    0.9   an override or a right-to-left embedding around Latin text, a word with an invisible character after each
          letter, a terminal sequence that moves, erases, hides or sets anything but a style
    0.6   one word split by an invisible character, a selector that selects nothing, a control character, a flag that
          few systems draw, an override around anything else
    0.3   odd, and what copying leaves behind: a lone zero-width space between words, an unclosed embedding in
          right-to-left text, colours of a terminal, quotes of an old code page
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple
from unicodedata import category

from ringfence.guard.check import Findable, Finding, Passage, Span

SURE, LIKELY, ODD, GUESS = 0.99, 0.9, 0.6, 0.3

NEAR = 16
"""Stretches of one kind that stand no further apart are one finding: a word with ten holes is told once."""

# Unicode's Default_Ignorable_Code_Point, less the controls of direction and the tags, which have rules of their own.
IGNORED = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2065\u206a-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0080-\U000e0fff"
)
INVISIBLE = re.compile(f"[{IGNORED}]+")
SELECTOR = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
MARKS, OPERATORS = "\u200e\u200f\u061c", "\u2061\u2062\u2063\u2064"
SOFT_HYPHEN, NON_JOINER, JOINER, BYTE_ORDER = "\u00ad", "\u200c", "\u200d", "\ufeff"

# Digits, and alphabets whose letters never join: Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee.
APART = (
    "0-9A-Za-zªµºÀ-ÖØ-öø-\u02af\u0370-\u058f\u10a0-\u10ff\u13a0-\u13ff\u1c80-\u1cbf\u1d00-\u1fff"
    "\u2c00-\u2dff\ua640-\ua69f\ua720-\ua7ff\uab30-\uabbf\ufb00-\ufb17\uff10-\uff5a\U0001d400-\U0001d7ff"
)
LETTER = re.compile(f"[{APART}]")
RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
RTL_LETTER = re.compile(f"[{RIGHT_TO_LEFT}]")

TAGS = re.compile("[\U000e0000-\U000e007f]+")
BLACK_FLAG = "\U0001f3f4"
FLAG = re.compile("[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
DRAWN_FLAGS = tuple("".join(chr(0xE0000 + ord(c)) for c in f"{land}\x7f") for land in ("gbeng", "gbsct", "gbwls"))

DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
BIDI = re.compile(f"[\u202a-\u202e\u2066-\u2069]|[\n\r\x85\u2029]|[{APART}]+|[{RIGHT_TO_LEFT}]+")
OVERRIDES, EMBEDDINGS, ISOLATES = "\u202d\u202e", "\u202a\u202b", "\u2066\u2067\u2068"
TO_THE_RIGHT = "\u202a\u2066\u2068"  # embedding, isolate, and the isolate that goes by its first letter
POP_EMBEDDING, POP_ISOLATE = "\u202c", "\u2069"

# A whole sequence is one match, so that taking it out leaves no litter; an unfinished one is its introducer alone.
ESCAPES = re.compile(
    r"(?:\x1b\[|(?<!\x80)\x9b)(?P<csi>[0-?]{0,64}[ -/]{0,8}[@-~])?"
    r"|(?P<text>(?:\x1b[\]P^_X]|[\x9d\x90\x9e\x9f\x98])(?:[^\x07\x1b\x90\x98\x9c-\x9f\n]{0,4096}(?:\x07|\x1b\\|\x9c))?)"
    r"|\x1b[ -/]{0,4}[0-~]?"
)
STYLE = re.compile(r"[0-9;:]*m")
CONCEALED = re.compile(r"(?<![345]8;5;)(?<![0-9])8[;m]")  # not the eighth of the colours
ASCII_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]+|[\x80-\x84\x86-\x8f\x91-\x97\x99\x9a\x9c]+")


class Seen(NamedTuple):
    """Stretches `[start, end)` that belong together, and what they are."""

    category: str
    score: float
    what: str
    spans: tuple[tuple[int, int], ...]


class HiddenCheck:
    """Reports `hidden.invisible`, `hidden.bidi`, `hidden.tag`, `hidden.escape`, `hidden.control`."""

    name = "hidden"
    categories = frozenset({"hidden"})
    finds = tuple(Findable(f"hidden.{kind}", SURE) for kind in ("invisible", "bidi", "tag", "escape", "control"))

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return every stretch of hidden characters. Time is linear in the length of the passage.

        A finding has a span for each stretch, which holds the hidden characters and nothing else: with nothing in
        their place, the text reads as it looks.
        """
        text = passage.text
        if text.isascii() and not ASCII_CONTROLS.search(text):
            return ()
        seen = chain(_tags(text), _invisible(text), _directions(text), _escapes(text), _controls(text))
        findings = [
            Finding(self.name, s.category, s.score, tuple(Span(passage.part, *span) for span in s.spans), s.what)
            for s in _gathered(seen)
        ]
        return sorted(findings, key=lambda finding: finding.spans[0].start)


def _gathered(seen: Iterable[Seen]) -> Iterator[Seen]:
    """Join neighbours of one kind; each finder yields from left to right."""
    last: Seen | None = None
    spans: list[tuple[int, int]] = []
    for item in seen:
        if last and item[:3] == last[:3] and 0 <= item.spans[0][0] - spans[-1][1] <= NEAR:
            spans += item.spans
            continue
        if last:
            yield last._replace(spans=tuple(spans))
        last, spans = item, list(item.spans)
    if last:
        yield last._replace(spans=tuple(spans))


def _tags(text: str) -> Iterator[Seen]:
    for match in TAGS.finditer(text):
        tags, start = match[0], match.start()
        flag = text[start - 1 : start] == BLACK_FLAG
        # A stream is judged in windows, which may begin or end inside a flag.
        begun = start == 0 and any(drawn.endswith(tags) for drawn in DRAWN_FLAGS)
        cut = flag and match.end() == len(text) and any(drawn.startswith(tags) for drawn in DRAWN_FLAGS)
        if (flag and tags in DRAWN_FLAGS) or begun or cut:
            continue
        score, what = (ODD, "flag of a region") if flag and FLAG.fullmatch(tags) else (SURE, "text in tag characters")
        yield Seen("hidden.tag", score, what, (match.span(),))


def _invisible(text: str) -> Iterator[Seen]:
    rtl = bool(RTL_LETTER.search(text))
    for match in INVISIBLE.finditer(text):
        start, end = match.span()
        if text[max(0, start - 1) : start] and _selects(text[start - 1], text[start]):
            start += 1
        if start < end and (verdict := _judged(text, start, end, rtl)):
            yield Seen("hidden.invisible", *verdict, ((start, end),))


def _judged(text: str, start: int, end: int, rtl: bool) -> tuple[float, str] | None:
    """Return how sure a run of invisible characters is of hiding something, and what it is; None where ordinary."""
    run = text[start:end]
    kinds = len(set(run))
    if len(run) >= 4 and kinds > 1:
        return SURE, "a run of invisible characters, as text is hidden in"
    if len(run) >= 4:
        return ODD, "a run of one invisible character"
    if len(run) > 1 and kinds > 1 and all(map(SELECTOR.match, run)):
        return LIKELY, "variation selectors in a row"
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    if _lone_letter(text, start - 1) or _lone_letter(text, end):
        return None if run in MARKS and rtl else (LIKELY, "a word with an invisible character after each letter")
    if LETTER.match(before) and LETTER.match(after):
        return _split(text, start, end)
    if not before and len(run) == 1 and (run in (BYTE_ORDER, JOINER) or SELECTOR.match(run)):
        return None  # a window of a stream may begin inside an emoji
    if len(run) > 1:
        return None if _joins(before) or _joins(after) else (GUESS, "invisible characters in a row")
    if run == before:
        return GUESS, "an invisible character written twice"
    if SELECTOR.match(run):
        return ODD, "a variation selector that selects nothing"
    if run == JOINER and _draws(before) and (_draws(after) or not after):
        return None
    if _joins(before) or _joins(after) or run == SOFT_HYPHEN or (run in MARKS and rtl) or run in OPERATORS:
        return None
    return GUESS, "an invisible character between words"


def _split(text: str, start: int, end: int) -> tuple[float, str] | None:
    """Judge a short run between two letters of alphabets that have no use for one."""
    run = text[start:end]
    around = text[max(0, start - 2) : start], text[end : end + 2]
    # Formulas are copied with `apply` and `times` between a name and its variable.
    named = run in OPERATORS and not all(len(side) == 2 and side.isalpha() for side in around)
    ligature = run == NON_JOINER and around[0].endswith("f")  # German sets `Auf|lage` without one
    return None if run == SOFT_HYPHEN or named or ligature else (ODD, "a word split by an invisible character")


def _lone_letter(text: str, at: int) -> bool:
    """Whether a letter stands alone between two invisible characters."""
    letter = text[at - 1 : at + 2] if at > 0 else ""
    return len(letter) == 3 and all(map(re.Pattern.match, (INVISIBLE, LETTER, INVISIBLE), letter))


def _selects(base: str, selector: str) -> bool:
    """Whether a character has variants of the kind that a selector selects."""
    if not SELECTOR.match(selector):
        return False
    if selector in "\ufe0e\ufe0f":  # as a sign, as a picture
        return base in "#*0123456789" or not (base < "\x80" or base.isspace() or LETTER.match(base))
    if selector == "\ufe00" and (base == "0" or category(base) == "Sm"):
        return True
    return category(base) == "Lo" and not LETTER.match(base)


def _draws(character: str) -> bool:
    """Whether a character is a symbol, as emoji are, or ends one."""
    return bool(character) and (category(character)[0] == "S" or character == "\ufe0f")


def _joins(character: str) -> bool:
    """Whether a character is of a script that has a use for joiners, or sets no spaces between words."""
    return bool(character) and category(character)[0] in "LM" and not LETTER.match(character)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A control of direction that is open, with the letters of each direction that stood before it in its line."""

    character: str
    at: int
    latin: int
    rtl: int


def _directions(text: str) -> Iterator[Seen]:
    """Follow embeddings, overrides and isolates line by line, as the Unicode bidirectional algorithm closes them."""
    if not DIRECTION.search(text):
        return
    line: list[tuple[_Opened, int, int, int]] = []  # what was opened, where it was closed, letters before that
    opened: list[_Opened] = []
    stray: list[int] = []
    isolates = latin = rtl = 0
    for match in chain(BIDI.finditer(text), [None]):
        what = match[0] if match else "\n"
        if what in "\n\r\x85\u2029":
            line += [(one, -1, latin, rtl) for one in opened]
            yield from sorted(_closed_line(line, stray, rtl > 0), key=lambda seen: seen.spans)
            line, opened, stray, isolates, latin, rtl = [], [], [], 0, 0, 0
            continue
        assert match is not None
        at = match.start()
        if what in OVERRIDES + EMBEDDINGS + ISOLATES:
            opened.append(_Opened(what, at, latin, rtl))
            isolates += what in ISOLATES
        elif what == POP_ISOLATE and isolates:
            while (one := opened.pop()).character not in ISOLATES:
                line.append((one, -1, latin, rtl))
            line.append((one, at, latin, rtl))
            isolates -= 1
        elif what == POP_EMBEDDING and opened and opened[-1].character not in ISOLATES:
            line.append((opened.pop(), at, latin, rtl))
        elif what in POP_EMBEDDING + POP_ISOLATE:
            stray.append(at)
        elif RTL_LETTER.match(what):
            rtl += 1
        else:
            latin += 1


def _closed_line(line: Sequence[tuple[_Opened, int, int, int]], stray: Sequence[int], rtl: bool) -> Iterator[Seen]:
    turned = rtl or any(one.character not in TO_THE_RIGHT for one, *_ in line)
    for one, closed, latin, right in line:
        verdict = _turned(one.character, closed >= 0, latin > one.latin, right > one.rtl, rtl, turned)
        if verdict:
            spans = ((one.at, one.at + 1), (closed, closed + 1)) if closed >= 0 else ((one.at, one.at + 1),)
            yield Seen("hidden.bidi", *verdict, spans)
    for at in stray:
        yield Seen("hidden.bidi", GUESS, "the end of an embedding that was not begun", ((at, at + 1),))


def _turned(
    control: str, closed: bool, latin: bool, right: bool, rtl_line: bool, turned: bool
) -> tuple[float, str] | None:
    """Return how sure a control is of showing text in another order than it is read, and what it is.

    Args:
        latin: whether letters that run to the right stand within it; `right`: letters that run to the left.
        rtl_line: whether letters that run to the left stand in its line.
        turned: whether anything in its line runs, or is made to run, to the left.
    """
    if control in OVERRIDES:
        return (LIKELY, "an override of direction around Latin text") if latin else (ODD, "an override of direction")
    if control not in TO_THE_RIGHT:
        if latin and not right:
            return LIKELY, "Latin text made to run from right to left"
        return None if closed and right else (GUESS, "a right-to-left embedding that is not closed or holds nothing")
    if turned and not rtl_line:
        return LIKELY, "an embedding beside text that is made to run from right to left"
    if not closed:
        return GUESS, "an embedding that is not closed"
    return None if rtl_line or control == "\u2068" else (GUESS, "a left-to-right embedding in Latin text")


def _escapes(text: str) -> Iterator[Seen]:
    for match in ESCAPES.finditer(text):
        sequence = match["csi"]
        if sequence and STYLE.fullmatch(sequence) and not CONCEALED.search(sequence):
            score, what = GUESS, "a colour or style of a terminal"
        elif sequence:
            score, what = LIKELY, "a terminal sequence that moves, erases or hides"
        elif match["text"] and len(match["text"]) > 2:
            score, what = LIKELY, "a command to a terminal"
        elif match[0][0] == "\x1b":
            score, what = ODD, "an escape character"
        else:
            score, what = GUESS, "a character of an old code page"
        yield Seen("hidden.escape", score, what, (match.span(),))


def _controls(text: str) -> Iterator[Seen]:
    for match in CONTROLS.finditer(text):
        old = match[0] >= "\x80"
        score, what = (GUESS, "characters of an old code page") if old else (ODD, "control characters")
        yield Seen("hidden.control", score, what, (match.span(),))
