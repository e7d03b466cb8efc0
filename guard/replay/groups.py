"""Reads an audit log into groups of exchanges that two policies cannot tell apart. Decides nothing.

What a policy can tell of a finding is its category, its text's role, and which thresholds its score reaches; findings
below all of them are as good as none. Where a rule escalates, it matters as well which text a finding is about. So a
million records come to a few hundred groups. Which parts an exchange had is nothing that its group tells, but for which
roles that a policy exempts had one: whoever looks into one record asks `past_of` for its own.
"""

import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from ringfence.guard.audit.record import VERSION, Body, decisions_of, lengths_of, who_in
from ringfence.guard.audit.store import SELECT
from ringfence.guard.checks.guards.check import UNNAMED
from ringfence.guard.exchange import Judged, Kind, unread
from ringfence.policies.findable import sought
from ringfence.policies.overlay import about, changed, meets
from ringfence.policies.own import OwnCheck
from ringfence.policies.types import Action, Counter, Decision, Policy, Rule, Stage, StreamSettings
from ringfence.policies.windows import by_window
from ringfence.policies.words import Origin, covers, root

Mark = tuple[str, int, bool, str, bool, str, tuple[str, ...], str, tuple[tuple[int, int, int], ...]]
"""Of a finding, all that a rule may depend on, and whether it is named; level -1 is an error."""

Source = str | OwnCheck | Counter
"""Who finds: an installed check, by its name; an own check or a counter, by what the policy says of it."""


class ReplayError(Exception):
    """The log cannot be replayed; the message says at which record, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Past:
    """What was decided of one exchange.

    Attributes:
        decisions: their findings point into its own parts.
        roles: who said each part of the request.
        exempt: roles of which some text was not judged.
        who: tenant, key, model and route.
        day: when it was received.
        images: of those that came with it, by whom, whether checks read some, and whether nobody read some.
        stopped: whether it was, so that there is no reply, or not all of it.
        lengths: by decision, how long the text is that was judged in windows; 0 for what was judged whole.
        revisions: which version of a check had looked, by its name, where it has versions.
        apart: whether the texts of the request had nothing to do with each other.
    """

    decisions: tuple[Decision, ...]
    roles: tuple[str, ...]
    exempt: frozenset[str]
    who: Mapping[str, str]
    day: date
    stopped: bool
    lengths: tuple[int, ...]
    images: frozenset[tuple[str, bool]] = frozenset()
    revisions: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Looked:
    """Who had looked at the texts that a decision was about.

    Attributes:
        everywhere: at all of them.
        where_unsure: at those that a rule was not sure of; what they were asked about has a finding.
        by: revision of the policy whose rules were not sure; empty where that is not known.
    """

    everywhere: frozenset[Source] = frozenset()
    where_unsure: frozenset[Source] = frozenset()
    by: str = ""

    def without(self, some: frozenset[Source]) -> "Looked":
        """Return who had looked, but for some."""
        return replace(self, everywhere=self.everywhere - some, where_unsure=self.where_unsure - some)


@dataclass(frozen=True, slots=True)
class Group:
    """Exchanges that are alike to both policies: what these make of the first by what was found, they make of each.

    Attributes:
        first: without findings below every threshold; its parts, spans and subject are no other's.
        seqs: the numbers of all the records.
    """

    first: Past
    seqs: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class Log:
    """What a log holds of exchanges.

    Attributes:
        unjudged: exchanges without a decision.
        ran: the checks that found something under a policy, by its revision, the overlays that applied, and stage:
            there they ran every time, but for those that a rule escalated to.
    """

    groups: Sequence[Group]
    unjudged: int
    ran: Mapping[tuple[str, tuple[str, ...], str], Looked]


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The log, to read; its errors as `ReplayError`."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise ReplayError(f"{path}: cannot be read: {error}; `ringfence audit verify` says where") from None


def read(connection: sqlite3.Connection, path: Path, policies: Sequence[Policy], since: str = "") -> Log:
    """Return the exchanges of a log, received at `since` or later, in groups.

    Raises:
        ReplayError: a record was altered, is not one, or tells of an exchange that another one tells of.
    """
    twice = "SELECT id, min(seq), max(seq) FROM records WHERE id NOT NULL GROUP BY id HAVING count(*) > 1 LIMIT 1"
    for name, first, last in connection.execute(twice):
        raise ReplayError(
            f"{path}: the records {first} and {last} are both about exchange {name}, which would count twice; "
            "replay a log with one of them"
        )
    lens = _Lens.of(policies)
    groups: dict[Any, Group] = {}
    ran: dict[tuple[str, tuple[str, ...], str], tuple[set[str], set[str]]] = {}
    unjudged = 0
    [start] = connection.execute("SELECT min(seq) FROM records WHERE at >= ?", (since,)).fetchone()
    for row in connection.execute(f"{SELECT} WHERE seq >= ? ORDER BY seq", (start or 2**63 - 1,)):
        body = _body(path, *row)
        try:
            if body["at"] < since:
                continue
            if not body["decisions"]:
                unjudged += 1
                continue
            _admit(body)
            key = _key(body, lens)
            group = groups.get(key)
            if group is None:
                group = groups[key] = Group(_seen_through(lens, past_of(body)))
            group.seqs.append(row[0])
            for decision in body["decisions"]:
                if decision["revision"] not in lens.revisions:
                    place = (decision["revision"], tuple(decision.get("overlays", ())), decision["stage"])
                    second = {root(category) for category in decision.get("escalated", {}).values()}
                    found, asked = ran.setdefault(place, (set(), set()))
                    found.update(finding["check"] for finding in decision["findings"])
                    asked.update(one["check"] for one in decision["findings"] if root(one["category"]) in second)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            what = f"{path}: record {row[0]} is not as this version of ringfence writes them"
            raise ReplayError(f"{what} ({type(error).__name__}: {str(error).splitlines()[0]})") from None
    looked = {place: Looked(frozenset(found - asked), frozenset(asked)) for place, (found, asked) in ran.items()}
    return Log(list(groups.values()), unjudged, looked)


def body_of(connection: sqlite3.Connection, path: Path, seq: int) -> Body:
    """Return one record, which is there."""
    return _body(path, *connection.execute(f"{SELECT} WHERE seq = ?", (seq,)).fetchone())


def past_of(body: Body) -> Past:
    """Return what was decided of the exchange that a record is about."""
    return Past(
        decisions_of(body),
        tuple(part["role"] for part in body["request"]),
        _exempt(body),
        who_in(body),
        _day(body),
        any(decision["action"] == Action.BLOCK for decision in body["decisions"]),
        lengths_of(body),
        _images(body),
        dict(body["revisions"]),
        body.get("apart", False),
    )


def _body(path: Path, seq: int, digest: bytes, raw: bytes) -> Body:
    if sha256(raw).hexdigest().encode() != digest:
        raise ReplayError(
            f"{path}: record {seq} was altered, so what it says decides nothing; see `ringfence audit verify`"
        )
    try:
        body = from_json(raw)
        version = body["version"]
    except (ValueError, LookupError, TypeError):
        raise ReplayError(f"{path}: record {seq} is not a record; see `ringfence audit verify`") from None
    if version != VERSION:
        raise ReplayError(f"{path}: record {seq} has version {version}, this ringfence reads {VERSION}; upgrade it")
    return dict(body)


@dataclass(frozen=True, slots=True)
class _Lens:
    """What the policies can tell.

    Attributes:
        looked_at: the categories that rules look at, with the thresholds that they have for them.
        paired: categories of which it matters what else is found in the same text.
        exempt: roles that a policy exempts.
        roles: whether some rule is for some roles only.
        scoped: whether something depends on whose exchange it is.
        windows: how each policy cuts replies into windows, where some rule looks at more in one than it fires on.
        cuts: the thresholds that a category's score may reach, ascending; filled as categories come up.
    """

    policies: Sequence[Policy]
    revisions: frozenset[str]
    looked_at: Mapping[str, frozenset[float]]
    paired: frozenset[str]
    exempt: frozenset[str]
    roles: bool
    scoped: bool
    windows: tuple[StreamSettings, ...]
    cuts: dict[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, policies: Sequence[Policy]) -> "_Lens":
        looked_at: dict[str, frozenset[float]] = {}
        forms = [form for policy in policies for form in _forms(policy)]
        for category, level in (one for form in forms for rule in form for one in _levels(rule)):
            looked_at[category] = looked_at.get(category, frozenset()) | {level}
        escalating = [(rule.category, rule.escalate.to) for form in forms for rule in form if rule.escalate]
        return cls(
            policies,
            frozenset(policy.revision for policy in policies),
            looked_at,
            frozenset(category for pair in escalating for category in pair),
            frozenset(one.role for policy in policies for one in policy.exempt),
            any(rule.roles for form in forms for rule in form),
            any(policy.overlays or policy.exceptions for policy in policies),
            tuple(policy.stream for policy in policies if any(by_window(rule) for form in forms for rule in form)),
        )

    def level(self, category: str, score: float | None) -> int:
        """Return how many of the thresholds for a category a score reaches; of what is no number, all."""
        at = self.cuts.get(category)
        if at is None:
            meeting = [levels for other, levels in self.looked_at.items() if covers(other, category)]
            at = self.cuts[category] = sorted(frozenset().union(*meeting))
        return len(at) if score is None else bisect_right(at, score)

    def places(self, category: str, spans: Sequence[Body]) -> tuple[tuple[int, int, int], ...]:
        """Return where a finding is, if that matters."""
        if not any(covers(one, category) or covers(category, one) for one in self.paired):
            return ()
        return tuple((span["part"], span["start"], span["end"]) for span in spans)


def _forms(policy: Policy) -> Iterator[list[Rule]]:
    """Yield each rule with all that overlays, of which several may be about one exchange, may make of it."""
    for rule in policy.every_rule:
        changes = [overlay.override[rule.id] for overlay in policy.overlays if rule.id in overlay.override]
        forms = [rule, *(changed(rule, change, lambda _: Origin()) for change in changes)]
        # Each of these may come from another overlay; every other key decides by itself.
        together = ("threshold", "escalate", "on_error")
        values = [dict.fromkeys(getattr(form, key) for form in forms) for key in together]
        mixed = (dict(zip(together, ways, strict=True)) for ways in product(*values))
        yield [*forms, *(replace(rule, **given) for given in mixed)]


def _levels(rule: Rule) -> Iterator[tuple[str, float]]:
    """Yield the categories that a rule looks at, each with a score from which on it makes a difference."""
    yield from ((one.category, one.threshold) for one in sought(rule))
    if rule.escalate:
        yield rule.category, rule.escalate.between[1]
        yield rule.escalate.to, 0.0  # that it was asked about matters too


def _admit(body: Body) -> None:
    """Raise of a record with words that this version does not know, or with a finding in a part that it has not."""
    for part in (*body["request"], *body["reply"]):
        Kind(part["kind"])
    for decision in body["decisions"]:
        parts = body["request" if Stage(decision["stage"]) is Stage.INPUT else "reply"]
        for finding in decision["findings"]:
            for span in finding["spans"]:
                if not 0 <= span["part"] < len(parts):
                    raise IndexError(f"a finding in part {span['part']} of {len(parts)}")


def _seen_through(lens: _Lens, past: Past) -> Past:
    def seen(decision: Decision) -> Decision:
        findings = (f for f in decision.findings if f.error is not None or lens.level(f.category, f.score))
        return replace(decision, findings=tuple(findings))

    return replace(past, decisions=tuple(map(seen, past.decisions)))


def _key(body: Body, lens: _Lens) -> tuple[Any, ...]:
    parts = body["request"]
    decisions = tuple(
        (
            one["stage"],
            one["action"],
            one["revision"],
            tuple(one.get("overlays", ())),
            tuple((check, tuple(roles)) for check, roles in one.get("unheard", {}).items()),
            *sorted({*_marks(one, parts, lens)}),
            *(_shared(one, parts) if body.get("apart") else ()),
        )
        for one in body["decisions"]
    )
    fired = tuple(_fired(body, lens.windows)) if lens.windows else ()
    may_be_exempt = lens.exempt and lens.exempt.intersection(part["role"] for part in parts)
    alike = (decisions, may_be_exempt, _exempt(body), _images(body), tuple(sorted(body["revisions"].items())), fired)
    if not lens.scoped:
        return alike
    who, day = who_in(body), _day(body)
    scopes = tuple(
        (
            about(policy, who),
            *(day <= one.until and (one.scope is None or meets(one.scope, who)) for one in policy.exceptions),
        )
        for policy in lens.policies
    )
    return (*alike, scopes)


def _fired(body: Body, windows: Sequence[StreamSettings]) -> Iterator[tuple[Any, ...]]:
    """Yield what decisions say of their rules, where replies were judged in several windows."""
    for decision, length in zip(body["decisions"], lengths_of(body), strict=True):
        at_once = tuple(one.at_once(length) for one in windows)
        rules = (
            () if all(at_once) else ({*decision["rules"], *decision["logged"]}, decision.get("unanswered", {}).items())
        )
        yield (at_once, *map(frozenset, rules))


def _shared(decision: Body, parts: Sequence[Body]) -> Iterator[tuple[Any, ...]]:
    """Yield whose the texts are that are apart, and in which of them everything was found: it counts there alone."""
    yield tuple(part["role"] for part in parts)
    for finding in decision["findings"]:
        yield finding["category"], finding["score"], *sorted({span["part"] for span in finding["spans"]})


def _marks(decision: Body, parts: Sequence[Body], lens: _Lens) -> Iterator[Mark]:
    exempt = lens.exempt if decision["stage"] == Stage.INPUT else ()
    for finding in decision["findings"]:
        category, failed = finding["category"], finding["error"] is not None
        # What is not a number is null in a record.
        level = -1 if failed else lens.level(category, finding["score"])
        if level:
            spans = finding["spans"]
            yield (
                category,
                level,
                UNNAMED in finding["detail"],
                finding["check"] if failed else "",
                bool(spans) and finding.get("rewritable", True),
                finding.get("role", "") if lens.roles else "",
                tuple(finding.get("excepted", ())),
                parts[spans[0]["part"]]["role"] if exempt and spans else "",
                lens.places(category, spans),
            )


def _exempt(body: Body) -> frozenset[str]:
    left = [one["where"] for one in body["coverage"] if one["status"] == Judged.EXEMPT]
    return frozenset(part["role"] for part in body["request"] if part["where"] in left) if left else frozenset()


def _images(body: Body) -> frozenset[tuple[str, bool]]:
    shown = {part["where"]: part["role"] for part in body["request"] if "media_type" in part}
    if not shown:
        return frozenset()
    kept = [one for one in body["coverage"] if one["where"] in shown and one["status"] != Judged.EXEMPT]
    return frozenset((shown[one["where"]], one["why"] != unread(Kind.MEDIA)) for one in kept)


def _day(body: Body) -> date:
    return date.fromisoformat(body["at"][:10])
