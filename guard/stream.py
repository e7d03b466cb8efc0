"""The hold-back window: text goes in as it comes, and comes out only once it was judged.

Sans-io: `feed` takes text, `window` names the next stretch to judge, `settle` takes the verdict and returns what may
leave. Who judges, and on which thread, is the caller's affair.

INVARIANT: every cut is a function of the text alone, never of how it was chunked. Windows end where the text says so
(white space after some more code points), and only once at least one code point beyond is known, so that the last
window is always the one that the end of the text closes.

INVARIANT: text is parted only where no check could read on across the place, whatever disguise it undoes: where the
text and each of its readings (`guard/normalise/`) has white space, or a letter of a script without, outside of every
encoded block, with `reach` code points of each reading beyond. What cannot be parted is held until it ends, however
long it is: a part of it was never judged by itself. The longer what is held, the rarer it is judged, so that the time
stays linear; where a check takes too long over it, that is settled as ever.

It does not know what a check makes of a whole text and not of a stretch: how much of it there is, what it says on the
whole.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from ringfence.guard.actions import rewrite
from ringfence.guard.checks.words import UNSPACED
from ringfence.guard.normalise.blocks import blocks
from ringfence.guard.normalise.readings import spellings, variants
from ringfence.policies.decide import strongest_of
from ringfence.policies.own import Keywords
from ringfence.policies.types import Action, Decision, Finding, Policy, Rewrite, Span, StreamSettings

LONG = 4_096
"""Code points of context beyond which it is no longer than it must be."""

LEAST_CONTEXT = 64
"""Patterns may know a thing by the words before it, at most this far."""

LEAST_REACH = 24
"""So far beyond a place it is known whether an encoded block goes across it: binary takes three groups of nine."""

PARTING = re.compile(rf"[\s{UNSPACED}]")
"""What text may be parted after."""

BLANKS = re.compile(r"\s{2,}")


def hold_back(policy: Policy) -> StreamSettings:
    """Return how far a policy holds replies back: at least as far as its longest keyword reaches."""
    words = (word for check in policy.checks if isinstance(check, Keywords) for word in check.words)
    longest = max((len(normalize("NFD", word)) for word in words), default=0)
    return replace(policy.stream, reach=max(policy.stream.reach, longest))


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch to judge next: `text[start:end]` of everything fed, and whether the text ends there."""

    start: int
    end: int
    text: str
    last: bool


class StreamGuard:
    """Holds one stream of text back until it is judged.

    Attributes:
        judged: code points of it that were judged.
        released: code points of it that left, in whatever form.
        stopped: the decision that ended the stream; nothing leaves after it.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._reach = max(settings.reach, LEAST_REACH)
        self._pieces: list[str] = []
        self._length = 0
        self._closed = False
        self._verdicts: list[Decision] = []
        self._rewrites: list[Rewrite] = []
        self._text = ""
        # Where the text was parted, and how many code points of it, read as briefly as can be, stand before.
        self._cuts = [(0, 0)]
        self._start = 0
        self._step = settings.window
        self.judged = 0
        self.released = 0
        self.stopped: Decision | None = None

    @property
    def text(self) -> str:
        """Everything fed so far."""
        if self._pieces:
            self._text = "".join([self._text, *self._pieces])
            self._pieces.clear()
        return self._text

    def feed(self, text: str) -> None:
        """Take more text."""
        self._pieces.append(text)
        self._length += len(text)

    def close(self) -> None:
        """Say that no more will come."""
        self._closed = True

    def window(self) -> Window | None:
        """Return the next stretch to judge, or None while there is none."""
        if self.stopped or not (self._closed or self._length > self.judged + self._step):
            return None
        text = self.text
        end = self._boundary(text)
        if end is None:
            return None
        return Window(self._start, end, text[self._start : end], last=end == len(text))

    def settle(self, window: Window, decision: Decision) -> str:
        """Take the verdict on a window and return the text that may leave, rewritten where it says so.

        Args:
            decision: its spans count the code points of `window.text`.
        """
        decision = _moved(decision, window.start)
        self._verdicts.append(decision)
        self.judged = window.end
        spans = [_clipped(r, self.released) for r in decision.rewrites if r.span.end > self.released]
        if decision.action is Action.BLOCK:
            self.stopped = decision
            self._rewrites += spans  # nothing leaves, but the record must not show what a rule would have hidden
            return ""
        cut = window.end if window.last else self._cut(window, decision.rewrites)
        leaving = [r for r in spans if r.span.start < cut]
        text, base = self.text, self.released
        self.released = cut
        self._rewrites += leaving
        self._plan()
        return rewrite(text[base:cut], (_shifted(r, -base) for r in leaving))

    @property
    def decision(self) -> Decision | None:
        """Everything decided so far as one decision over the whole text; None where nothing was judged."""
        return _together(self._verdicts, self._rewrites) if self._verdicts else None

    def _boundary(self, text: str) -> int | None:
        """Return where the next window ends, or None while more text is needed to say."""
        first, limit = self.judged + self._step, self.judged + self._step + self._settings.window
        if end := PARTING.search(text, first, min(limit, len(text) - 1)):
            return end.end()
        if len(text) > limit:
            return limit
        return len(text) if self._closed and len(text) > self.judged else None

    def _cut(self, window: Window, rewrites: Iterable[Rewrite]) -> int:
        """Return the last place up to which what was judged may leave, and remember it."""
        text, start = window.text, window.start
        plain = _parted(text)
        for item in rewrites:
            plain.may[max(0, item.span.start - start + 1) : item.span.end - start] = False
        # The last word may go on, and read otherwise once it does: it counts for nothing.
        ends = np.array([self.released - start, np.flatnonzero(plain.may)[-1]])
        places = np.arange(ends[0] + 1, ends[1] + 1)
        places = places[plain.may[places] & plain.reached(places, ends[1], self._reach)]
        readings = [(reading, _parted(reading.text)) for reading in (*spellings(text), *variants(text))]
        for reading, parted in readings:
            at, parts = reading.before(places)
            places = places[parted.may[at] & ~parts & parted.reached(at, reading.before(ends)[0][1], self._reach)]
        if not len(places):
            return self.released
        cut = int(places[-1])
        stretch = np.array([ends[0], cut])
        shown = [plain.between(stretch), *(parted.between(reading.before(stretch)[0]) for reading, parted in readings)]
        self._cuts.append((start + cut, self._cuts[-1][1] + min(shown)))
        return start + cut

    def _plan(self) -> None:
        """Say where the next window begins and how much more it takes.

        Context stands before what is still held back, not before what is new: a key is known by the name before it. It
        begins where the text was parted: half a word can look like something that the whole is not.
        """
        context = max(self._settings.context, LEAST_CONTEXT)
        near = bisect_right(self._cuts, self._cuts[-1][1] - LEAST_CONTEXT, key=itemgetter(1))
        far = min(near, bisect_right(self._cuts, self.released - context, key=itemgetter(0)))
        self._start = self._cuts[max(0, far - 1)][0]
        if self.released - self._start > context + LONG:
            self._start = self._cuts[max(0, near - 1)][0]
        self._step = max(self._settings.window, (self.judged - self._start - context - self._reach) // 4)


class _Parted(NamedTuple):
    """Of each place in a text, the first before it and the last behind, in code points.

    Attributes:
        may: whether the text may be parted there.
        shown: how many code points stand before; white space in a row is one.
    """

    may: NDArray[np.bool_]
    shown: NDArray[np.intp]

    def reached(self, places: NDArray[np.intp], end: int, reach: int) -> NDArray[np.bool_]:
        """Return of places whether that much stands between them and the end."""
        found: NDArray[np.bool_] = self.shown[end] - self.shown[places] >= reach
        return found

    def between(self, places: NDArray[np.intp]) -> int:
        """Return how much stands between two places."""
        first, last = self.shown[places]
        return int(last - first)


def _parted(text: str) -> _Parted:
    may = np.zeros(len(text) + 1, dtype=np.bool_)
    may[[0, *(m.end() for m in PARTING.finditer(text))]] = True
    for start, end in blocks(text):
        may[start + 1 : end + (end == len(text))] = False  # what ends with the text may go on
    counted = np.ones(len(text) + 1, dtype=np.intp)
    counted[0] = 0
    for m in BLANKS.finditer(text):
        counted[m.start() + 2 : m.end() + 1] = 0
    return _Parted(may, counted.cumsum())


def _clipped(item: Rewrite, start: int) -> Rewrite:
    return replace(item, span=replace(item.span, start=max(item.span.start, start)))


def _shifted(item: Rewrite, by: int) -> Rewrite:
    return replace(item, span=replace(item.span, start=item.span.start + by, end=item.span.end + by))


def _moved(decision: Decision, by: int) -> Decision:
    def move(span: Span) -> Span:
        return replace(span, start=span.start + by, end=span.end + by)

    return replace(
        decision,
        findings=tuple(replace(f, spans=tuple(map(move, f.spans))) for f in decision.findings),
        rewrites=tuple(_shifted(r, by) for r in decision.rewrites),
    )


def _together(verdicts: list[Decision], rewrites: list[Rewrite]) -> Decision:
    last = verdicts[-1]
    action = max((v.action for v in verdicts), key=lambda a: a.strength)
    if action is Action.REWRITE and not rewrites:
        action = Action.LOG  # what looked like a match at the end of one window was none once the text went on
    rules = dict.fromkeys(rule for v in verdicts if v.action is action for rule in v.rules)
    fired = dict.fromkeys(rule for v in verdicts for rule in (*v.rules, *v.logged))
    findings = _best(f for v in verdicts for f in v.findings)
    return replace(
        last,
        action=action,
        rules=tuple(rules),
        logged=tuple(rule for rule in fired if rule not in rules),
        unanswered=strongest_of(v.unanswered for v in verdicts),
        escalated={rule: to for v in verdicts for rule, to in v.escalated.items()},
        shadow=strongest_of(v.shadow for v in verdicts),
        excepted=_spared(verdicts, findings),
        findings=findings,
        rewrites=tuple(rewrites),
        errors=tuple(dict.fromkeys(error for v in verdicts for error in v.errors)),
    )


def _spared(verdicts: Iterable[Decision], findings: Iterable[Finding]) -> dict[str, tuple[str, ...]]:
    """Return what exceptions kept from firing, but where a thing was excepted by its beginning only."""
    applied = {exception for finding in findings for exception in finding.excepted}
    spared: dict[str, set[str]] = {}
    for verdict in verdicts:
        for rule, exceptions in verdict.excepted.items():
            spared.setdefault(rule, set()).update(applied.intersection(exceptions))
    return {rule: tuple(sorted(exceptions)) for rule, exceptions in spared.items() if exceptions}


def _best(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Windows overlap, so a thing is found several times: keep the surest, then the longest, of those that overlap."""
    groups: dict[tuple[str, str, str | None], list[Finding]] = {}
    for finding in sorted(findings, key=_extent):
        group = groups.setdefault((finding.check, finding.category, finding.error), [])
        apart = bool(finding.spans) and bool(group) and _extent(group[-1])[1] <= _extent(finding)[0]
        if not group or apart:
            group.append(finding)
        else:
            group[-1] = max(group[-1], finding, key=lambda f: (f.score, _extent(f)[1] - _extent(f)[0]))
    return tuple(finding for group in groups.values() for finding in group)


def _extent(finding: Finding) -> tuple[int, int]:
    return min((s.start for s in finding.spans), default=0), max((s.end for s in finding.spans), default=0)
