"""The hold-back window: text goes in as it comes, and comes out only once it was judged.

Sans-io: `feed` takes text, `window` names the next stretch to judge, `settle` takes the verdict and returns what may
leave. Who judges, and on which thread, is the caller's affair.

INVARIANT: every cut is a function of the text alone, never of how it was chunked. Windows end where the text says so
(white space after `window` code points), and only once at least one code point beyond is known, so that the last
window is always the one that the end of the text closes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ringfence.guard.actions import rewrite
from ringfence.policies.types import Action, Decision, Finding, Rewrite, Span, StreamSettings

LONGEST_WORD = 4_096
"""A run without white space is released whole, up to this length: no pattern without spaces is cut before it ends."""

LEAST_CONTEXT = 64
"""Patterns may know a thing by the words before it, at most this far."""

UNSPACED_SCRIPTS = 0x0590
"""From this code point on scripts may write without spaces, and no pattern of addresses, numbers or keys uses them."""


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
        self._pieces: list[str] = []
        self._length = 0
        self._closed = False
        self._verdicts: list[Decision] = []
        self._rewrites: list[Rewrite] = []
        self._text = ""
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
        if self.stopped or not (self._closed or self._length > self.judged + self._settings.window):
            return None
        text = self.text
        end = self._boundary(text)
        if end is None:
            return None
        # Context stands before what is still held back, not before what is new: a key is known by the name before it.
        start = max(0, self.released - max(self._settings.context, LEAST_CONTEXT))
        # Not in the middle of a word: half a word can look like something that the whole is not.
        floor = max(0, start - LONGEST_WORD)
        while start > floor and not _parts(text[start - 1]):
            start -= 1
        return Window(start, end, text[start:end], last=end == len(text))

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
        cut = window.end if window.last else self._cut(window.end - self._settings.reach, spans)
        leaving = [r for r in spans if r.span.start < cut]
        text, base = self.text, self.released
        self.released = cut
        self._rewrites += leaving
        return rewrite(text[base:cut], (_shifted(r, -base) for r in leaving))

    @property
    def decision(self) -> Decision | None:
        """Everything decided so far as one decision over the whole text; None where nothing was judged."""
        return _together(self._verdicts, self._rewrites) if self._verdicts else None

    def _boundary(self, text: str) -> int | None:
        """Return where the next window ends, or None while more text is needed to say."""
        first, limit = self.judged + self._settings.window, self.judged + 2 * self._settings.window
        for index in range(first, min(limit, len(text) - 1)):
            if _parts(text[index]):
                return index + 1
        if len(text) > limit:
            return limit
        return len(text) if self._closed and len(text) > self.judged else None

    def _cut(self, limit: int, rewrites: list[Rewrite]) -> int:
        """Return the last place at or before `limit` where the text may be parted."""
        text, floor = self.text, max(self.released, limit - LONGEST_WORD)
        cut = max(limit, self.released)
        while cut > floor and not _parts(text[cut - 1]):
            cut -= 1
        if cut == floor > self.released:
            cut = limit
        return min([cut, *(r.span.start for r in rewrites if r.span.start < cut < r.span.end)])


def _parts(character: str) -> bool:
    return character.isspace() or ord(character) >= UNSPACED_SCRIPTS


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
    return replace(
        last,
        action=action,
        rules=tuple(rules),
        logged=tuple(rule for rule in fired if rule not in rules),
        unanswered={rule: asked for v in verdicts for rule, asked in v.unanswered.items()},
        shadow={rule: would for v in verdicts for rule, would in v.shadow.items()},
        excepted={rule: exception for v in verdicts for rule, exception in v.excepted.items() if rule not in fired},
        findings=_best(f for v in verdicts for f in v.findings),
        rewrites=tuple(rewrites),
        errors=tuple(dict.fromkeys(error for v in verdicts for error in v.errors)),
    )


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
