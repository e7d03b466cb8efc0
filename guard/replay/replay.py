"""What another policy would have made of the exchanges on record: their findings, decided anew under two policies.

Knows no rule of precedence: every question is put to `decide`. Texts are judged again only where a policy needs
findings that nobody made then.
"""

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

from ringfence.guard.audit.record import Body
from ringfence.guard.check import Check
from ringfence.guard.guesses import guessed
from ringfence.guard.replay.groups import Log, Looked, Past, body_of, opened, past_of, read
from ringfence.guard.replay.proportions import Rate, rate
from ringfence.guard.replay.rejudge import CannotJudge, rejudge
from ringfence.guard.replay.sides import Outcome, Side, Single, same
from ringfence.guard.replay.unknown import NOBODY, UNFINISHED
from ringfence.policies.decide import fires_on, strongest
from ringfence.policies.types import Action, Counter, Finding, Policy, Stage

Cause = tuple[str, str]
"""A rule, or `failed:CHECK`, and the category of what it fired on."""

_Range = tuple[Action, Action]
"""What an exchange comes to by what is known of it, and the strongest that it could come to."""

_Ends = tuple[tuple[Action, Action], _Range, _Range, bool]
"""What exchanges come to under both policies as they count, what they may come to, and whether that is undecided."""


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange with a decision that came out otherwise.

    Attributes:
        at: when it was received, as the record has it.
        text: what the surest finding is about, as it was kept; why not, where it was not.
    """

    seq: int
    id: str
    at: str
    text: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Decisions at one stage that came out otherwise in the same way.

    Two rewrites are different where another finding is replaced, or by something else.

    Attributes:
        causes: how many of them each rule made, or makes no more; one decision may have several.
    """

    stage: Stage
    old: Action
    new: Action
    count: int
    causes: Mapping[Cause, int]
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What two policies make of the same exchanges.

    An exchange counts by what is known of it; where that may not be all, it is among the undecided as well.

    Attributes:
        exchanges: how many there are, those not among them of which nothing was judged.
        unjudged: exchanges of which nothing was judged, as the request failed before.
        rejudged: exchanges whose text was judged again.
        changed: exchanges with a decision that came out otherwise.
        changes: those decisions, the most frequent first.
        undecided: exchanges in which the policies may differ by what is not known.
        reasons: how many are undecided for which reason; one may be for several.
        blocked: exchanges that are stopped.
        rewritten: exchanges that are let through rewritten.
        reproduced: exchanges that come out as on record, of those that one of the two policies had decided. Others are
            replies that were judged window by window, as they came.
        decided_then: exchanges that one of the two policies had decided.
    """

    exchanges: int
    unjudged: int
    rejudged: int
    changed: int
    changes: tuple[Changed, ...]
    undecided: int
    reasons: Mapping[str, int]
    blocked: Rate
    rewritten: Rate
    reproduced: int
    decided_then: int


def replay(
    path: Path, old: Policy, new: Policy, checks: Mapping[str, Check], *, since: str = "", examples: int = 3
) -> Replay:
    """Decide the exchanges of an audit log under both policies.

    Replies are taken as they came, also where a policy would have sent the model another request; counters as they
    stood, also where a policy would have counted more or less.

    Args:
        checks: every installed check, for what has to be judged again.
        since: what was received before is left out; `2026-11-21T00:00:00Z` or a beginning of that.
        examples: how many to give of each change.

    Raises:
        ReplayError: the log cannot be read, or a record was altered, is none, or stands there twice.
        UnknownCheck: a rule looks at a category that no check answers for.
        PolicyError: an own check cannot be made, or a threshold is not for the check in use.
    """
    sides = (Side(old, checks), Side(new, checks))
    try:
        with opened(path) as connection:
            log = read(connection, path, (old, new), since)
            count = _Count(sides, examples)
            for group in log.groups:
                pair = _pair(group.first, sides, log)
                if not pair.can_be_judged:
                    count.add(group.first, pair, group.seqs)
                    continue
                for seq in group.seqs:
                    body = body_of(connection, path, seq)
                    past = past_of(body)
                    count.add(past, _judged_again(past, _pair(past, sides, log), sides, body), [seq])
            return count.result(log.unjudged, lambda seq: body_of(connection, path, seq))
    finally:
        for side in sides:
            side.close()


@dataclass(frozen=True, slots=True)
class _Pair:
    """What the two policies make of one exchange.

    Attributes:
        ran: by decision, who had looked.
        then: by decision, the one of the two policies that had decided; None where it was a third.
        unread: why text could not be judged again; empty where none had to be, or all could.
    """

    outcomes: tuple[Outcome, Outcome]
    ran: Sequence[Looked]
    then: Sequence[Policy | None]
    unread: str = ""
    rejudged: bool = False

    @property
    def undecided(self) -> bool:
        return not same(*self.outcomes)

    @property
    def unknown(self) -> frozenset[int]:
        """The decisions that exceptions or the windows of a reply may make alike under both, for all that is known."""
        old, new = self.outcomes
        both = zip(old.each, new.each, strict=False) if self.undecided else ()
        return frozenset(
            index
            for index, (one, other) in enumerate(both)
            if one.up_to or other.up_to
            if (one.up_to or one.decision.action).strength >= other.decision.action.strength
            if (other.up_to or other.decision.action).strength >= one.decision.action.strength
        )

    @property
    def actions(self) -> tuple[Action, Action]:
        """What it comes to under each by what is known: where a decision may be alike, as though it were."""
        old, new = self.outcomes
        alike = [one.each[index].decision.action for index in self.unknown for one in self.outcomes]
        return strongest([old.action, *alike]), strongest([new.action, *alike])

    @property
    def can_be_judged(self) -> bool:
        """Whether its text, where that is kept, could tell more."""
        return self.undecided and any(why != UNFINISHED for one in self.outcomes for why in one.reasons)

    @property
    def reasons(self) -> set[str]:
        found = self.outcomes[0].reasons | self.outcomes[1].reasons if self.undecided else set()
        return {f"{why}; {self.unread}" if self.unread and why != UNFINISHED else why for why in found}


def _pair(past: Past, sides: tuple[Side, Side], log: Log) -> _Pair:
    by_revision = {side.policy.revision: side for side in sides}
    deciders = [by_revision.get(one.revision) for one in past.decisions]
    ran = [
        side.looked(past.who, one.stage) if side else log.ran.get((one.revision, one.overlays, one.stage), Looked())
        for one, side in zip(past.decisions, deciders, strict=True)
    ]
    then = [side.policy if side else None for side in deciders]
    old, new = (side.decide(past, ran, then) for side in sides)
    return _Pair((old, new), ran, then)


def _judged_again(past: Past, pair: _Pair, sides: tuple[Side, Side], body: Body) -> _Pair:
    outcomes = []
    for side, outcome in zip(sides, pair.outcomes, strict=True):
        if not outcome.reasons - {UNFINISHED}:
            outcomes.append(outcome)
            continue
        try:
            more = rejudge(side, past, outcome, body)
        except CannotJudge as error:
            return replace(pair, unread=str(error))
        singles: Iterator[Single | None] = chain(outcome.each, repeat(None))
        ran = [
            _looked_again(side.looked(past.who, one.stage), had, single)
            for had, one, single in zip(pair.ran, past.decisions, singles, strict=False)
        ]
        read = (one.revision == side.policy.revision for one in more.decisions)
        then = [side.policy if again else one for again, one in zip(read, pair.then, strict=True)]
        outcomes.append(side.decide(more, ran, then))
    old, new = outcomes
    return replace(pair, outcomes=(old, new), rejudged=True)


def _looked_again(own: Looked, had: Looked, single: Single | None) -> Looked:
    """Return who has looked at what a decision is about once those who lacked have.

    Args:
        own: who looks where the policy itself judges.
        single: what the policy made of it before; None after a request that it blocks, where nobody was asked.
    """
    if single is None:
        return had
    if single.windows:
        return own
    asked = {source for source in single.lacking.values() if not isinstance(source, Counter)}
    return replace(had, everywhere=had.everywhere | asked)


@dataclass(slots=True)
class _Kind:
    """Changes of one kind, as they are counted."""

    count: int = 0
    causes: Tally[Cause] = field(default_factory=Tally)
    seqs: list[int] = field(default_factory=list)


class _Count:
    """Adds up what becomes of exchanges."""

    def __init__(self, sides: tuple[Side, Side], examples: int) -> None:
        self._sides = sides
        self._examples = examples
        self._numbers: Tally[str] = Tally()
        self._reasons: Tally[str] = Tally()
        self._kinds: dict[tuple[Stage, Action, Action], _Kind] = {}
        self._pairs: Tally[_Ends] = Tally()

    def add(self, past: Past, pair: _Pair, seqs: Sequence[int]) -> None:
        """Count as many exchanges like one as there are numbers of records, to each of which the same happens."""
        number, (old, new) = len(seqs), pair.outcomes
        self._pairs[pair.actions, (old.action, old.most), (new.action, new.most), pair.undecided] += number
        self._numbers["rejudged"] += number * pair.rejudged
        for why in pair.reasons:
            self._reasons[why] += number
        for side, outcome in zip(self._sides, pair.outcomes, strict=True):
            if all(one.revision == side.policy.revision for one in past.decisions):
                on_record = strongest(one.action for one in past.decisions)
                self._numbers["decided then"] += number
                self._numbers["reproduced"] += number * (outcome.action is on_record)
                break
        policies = [side.pipeline(past.who).policy for side in self._sides]
        changes = [(kind, causes) for at, kind, causes in _changes(pair.outcomes, policies) if at not in pair.unknown]
        self._numbers["changed"] += number * bool(changes)
        for kind, causes in changes:
            found = self._kinds.setdefault(kind, _Kind())
            found.count += number
            found.seqs += seqs[: self._examples]
            for cause in causes:
                found.causes[cause] += number

    def result(self, unjudged: int, body_at: Callable[[int], Body]) -> Replay:
        """Return what was counted, with examples."""
        undecided = sum(number for (*_, left_open), number in self._pairs.items() if left_open)
        return Replay(
            exchanges=self._pairs.total(),
            unjudged=unjudged,
            rejudged=self._numbers["rejudged"],
            changed=self._numbers["changed"],
            changes=tuple(
                Changed(
                    *key,
                    kind.count,
                    dict(kind.causes.most_common()),
                    tuple(_example(body_at(seq), key[0], kind.causes) for seq in sorted(kind.seqs)[: self._examples]),
                )
                for key, kind in sorted(self._kinds.items(), key=lambda item: -item[1].count)
            ),
            undecided=undecided,
            reasons=dict(self._reasons.most_common()),
            blocked=_rate(self._pairs, Action.BLOCK),
            rewritten=_rate(self._pairs, Action.REWRITE),
            reproduced=self._numbers["reproduced"],
            decided_then=self._numbers["decided then"],
        )


def _changes(
    outcomes: tuple[Outcome, Outcome], policies: Sequence[Policy]
) -> Iterator[tuple[int, tuple[Stage, Action, Action], set[Cause]]]:
    old, new = ([one.decision for one in outcome.each] for outcome in outcomes)
    for index, (before, after) in enumerate(zip(old, new, strict=False)):
        kind = (before.stage, before.action, after.action)
        if before.action is not after.action:
            # What is due to the stronger: the rules that ask for it, or do no more.
            stronger = int(after.action.strength > before.action.strength)
            yield index, kind, set(_causes(outcomes[stronger], index, policies[stronger]))
        elif before.action is Action.REWRITE:
            one, other = (_replaced(outcome, index) for outcome in outcomes)
            if one.keys() != other.keys():
                yield (
                    index,
                    kind,
                    {cause for key in one.keys() ^ other.keys() for cause in (one.get(key) or other[key],)},
                )


def _causes(outcome: Outcome, index: int, policy: Policy) -> Iterator[Cause]:
    decision, seen = outcome.each[index].decision, outcome.seen[index].findings
    for rule in policy.rules:
        if rule.id in decision.rules:
            on = [f for f in decision.findings if fires_on(rule, f, decision.stage, decision.findings, policy)]
            # Where it has a place, that is its number on record.
            on_record = [seen[one.spans[0].start] if one.spans else one for one in on]
            yield from ((rule.id, one.category) for one in _named(on_record))
    if decision.action in decision.unanswered.values():
        for finding in decision.findings:
            if finding.error is not None and finding.check != NOBODY:
                yield f"failed:{finding.check}", finding.category


def _replaced(outcome: Outcome, index: int) -> Mapping[object, Cause]:
    """Return what is replaced, and by what, with the cause of it."""
    by_rule: defaultdict[str, dict[Finding, str]] = defaultdict(dict)
    for rewrite in outcome.each[index].decision.rewrites:
        by_rule[rewrite.rule][outcome.seen[index].findings[rewrite.span.start]] = rewrite.replacement
    return {
        (finding.category, finding.score, finding.spans, by[finding]): (rule, finding.category)
        for rule, by in by_rule.items()
        for finding in _named([*by])
    }


def _named(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings of one rule without what a guard's answer does not name, where its verdict is among them."""
    guesses = guessed(findings)
    return [one for one in findings if one not in guesses]


def _rate(pairs: Mapping[_Ends, int], action: Action) -> Rate:
    """Return how often an action is what exchanges come to."""
    known, low, high = [0, 0], [0, 0], [0, 0]
    count = [0, 0]
    for (ends, old, new, left_open), number in pairs.items():
        before, after = (one is action for one in ends)
        count[0] += number * before
        count[1] += number * after
        known[0] += number * (after and not before)
        known[1] += number * (before and not after)
        if left_open:
            low[0] += number * (_must(new, action) and not _may(old, action))
            low[1] += number * (_may(old, action) and not _must(new, action))
            high[0] += number * (_may(new, action) and not _must(old, action))
            high[1] += number * (_must(old, action) and not _may(new, action))
        else:
            for one in (low, high):
                one[0] += number * (after and not before)
                one[1] += number * (before and not after)
    total = sum(pairs.values())
    return rate((count[0], count[1]), (known[0], known[1]), (low[0], low[1]), (high[0], high[1]), total)


def _may(known: _Range, action: Action) -> bool:
    return known[0].strength <= action.strength <= known[1].strength


def _must(known: _Range, action: Action) -> bool:
    return known == (action, action)


def _example(body: Body, stage: Stage, causes: Mapping[Cause, int]) -> Example:
    categories = {category for _, category in causes}
    found = [
        (finding["score"] is None, finding["score"] or 0.0, span["part"])
        for decision in body["decisions"]
        if decision["stage"] == stage
        for finding in decision["findings"]
        if finding["category"] in categories
        for span in finding["spans"]
    ]
    parts = body["request" if stage is Stage.INPUT else "reply"]
    part = parts[max(found)[2]] if found else parts[-1] if parts else {}
    return Example(body["seq"], body["id"], body["at"], part.get("text", part.get("withheld", "not kept")))
