"""Says why a decision came out as it did, rule by rule, and what little would have changed it. Pure.

Knows no rule of precedence of its own: every question is put to `decide`, of the policy as its overlays have it for the
exchange.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from operator import itemgetter
from types import MappingProxyType
from typing import Literal

from ringfence.policies.decide import about_the_same, alone, decide, errors_of, escalations, hears, strongest
from ringfence.policies.overlay import about, effective, written_in
from ringfence.policies.types import Action, Decision, Degrade, Escalate, Finding, Policy, Rule, Stage
from ringfence.policies.windows import NEVER, at_most, settled
from ringfence.policies.words import covers

STEP = Decimal("0.0001")
"""What a proposed threshold is rounded to: the guard model's scores have as many digits."""

CHANGEABLE = ("threshold", "escalate", "action", "on_error", "shadow")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule made of one text or of one request.

    Attributes:
        finding: the one with the highest score of those that the rule looks at; None where there was none.
        doubts: what another check was to settle; first what that agreed to, then what it could not answer.
        asks: what the rule asks for, having fired (a shadow rule only would); None where it did not fire.
        unanswered: what its `on_error` asks for, where a check behind it could not answer; None where all could.
        errors: one line for each check that could not.
        excepted: the exceptions because of which it did not fire on something.
        unknown: whether it goes by what was found in one window of a reply, which is not on record; then it counts as
            not fired.
    """

    rule: Rule
    finding: Finding | None
    doubts: tuple["Doubt", ...]
    asks: Action | None
    unanswered: Action | None
    errors: tuple[str, ...]
    excepted: tuple[str, ...]
    unknown: bool = False

    @property
    def short_by(self) -> float | None:
        """How far the highest score is from mattering to the rule; None where it does matter, or there is none."""
        if self.finding is None or not self.finding.score < self.rule.least:
            return None
        return self.rule.least - self.finding.score

    @property
    def decided_by(self) -> str:
        """Of a rule that escalates, whose score decided, in words; empty of any other, and where nothing mattered."""
        if self.rule.escalate is None or self.finding is None or self.short_by is not None:
            return ""
        if not self.doubts or (self.asks and not self.doubts[0].agrees):
            return f"{self.finding.score:g} lay beyond the band" if self.asks else ""
        alone = isinstance(self.rule.on_error, Degrade) and self.rule.on_error.degrade == self.rule.category
        held = f"; held to {self.rule.threshold:g} instead" if self.unanswered and alone else ""
        return f"{self.doubts[0]}{held}"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A score that lay within the band of a rule that escalates.

    Attributes:
        told: the surest that the other check said of the same text, or why it could not answer; None where nothing of
            that is on record, which counts as not found.
    """

    finding: Finding
    escalate: Escalate
    told: Finding | None

    @property
    def agrees(self) -> bool | None:
        """Whether the other check found what it was asked about; None where it could not answer."""
        if self.told is None:
            return False
        return None if self.told.error is not None else not self.told.score < self.escalate.threshold

    def __str__(self) -> str:
        within = f"{self.finding.score:g} lay within the band"
        if self.told is None:
            return f"{within}; of {self.escalate.to} nothing is on record"
        if self.told.error is not None:
            return f"{within}; {self.escalate.to} could not be asked: {self.told.error}"
        sign = "≥" if self.agrees else "<"
        return f"{within}; {self.told.category} said {self.told.score:g} {sign} {self.escalate.threshold:g}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One decision as it was recorded, what the policy makes of the same findings, and each rule's part in that."""

    recorded: Decision
    decided: Decision
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Another value for one key of one rule.

    Attributes:
        overlay: the id of the overlay that the value belongs into; empty where the policy itself says it.
    """

    rule: str
    key: str
    old: object
    new: object
    overlay: str = ""


@dataclass(frozen=True, slots=True)
class Flip:
    """Changes that together give the exchange another outcome, and that outcome.

    Attributes:
        ended: ids of exceptions that would no longer hold.
        bound: whether it is that at least, or at most, for all that is on record of the windows of a reply; empty where
            that is known.
    """

    changes: tuple[Change, ...]
    action: Action
    ended: tuple[str, ...] = ()
    bound: Literal["", "at least", "at most"] = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an exchange ended as it did.

    Attributes:
        policy: as the overlays that are about the exchange have it; `applied` names them, `removed` what they took.
        recorded: the strongest action of the decisions on record.
        decided: the strongest action of what the policy makes of the same findings.
        same_policy: whether the policy is the one that decided then.
        milder: the smallest change for a weaker outcome; None where there is no weaker one.
        stronger: the smallest change for a stronger outcome, to one rule or to what is excepted from one; None where no
            rule is near enough to tell. Both are None where a rule in force is unknown.
    """

    policy: Policy
    judgements: tuple[Judgement, ...]
    recorded: Action
    decided: Action
    same_policy: bool
    milder: Flip | None
    stronger: Flip | None

    @property
    def unknown(self) -> bool:
        """Whether of a rule in force nobody knows if it fired."""
        return any(one.unknown and not one.rule.shadow for judgement in self.judgements for one in judgement.verdicts)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One decision on record.

    Attributes:
        parted: whether it is about a reply that may have been judged in several windows.
        by: the policy that decided, with its overlays; None where that is another than the one given.
        bold: whether what nobody knows of its windows counts as held, doubts as shared and failures as there; else it
            counts as not held.
    """

    recorded: Decision
    parted: bool
    by: Policy | None
    bold: bool = False

    @property
    def stage(self) -> Stage:
        """The stage that it is about."""
        return self.recorded.stage

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found at that stage."""
        return self.recorded.findings

    def settled(self, rule: Rule, policy: Policy) -> Rule | None:
        """Return a rule as it is to be put to all that was found; None where nobody knows what it made of it."""
        if not self.parted:
            return rule
        then = self._asked(rule, policy)
        return settled(rule, self.findings, policy.exceptions, self.recorded if then else None, then)

    def rule(self, rule: Rule, policy: Policy) -> Rule:
        """Return a rule as it is to be put to all that was found, as far as is known."""
        if known := self.settled(rule, policy):
            return known
        if not self.bold:
            return replace(rule, when=NEVER)
        most = at_most(rule, self.findings, policy.exceptions)
        return replace(rule, when=None, escalate=None, threshold=rule.least, action=most)

    def _asked(self, rule: Rule, policy: Policy) -> Rule | None:
        """Return the rule of the deciding policy that fired just where this one does, whatever it asks for."""
        if self.by is None or not all(one in policy.exceptions for one in self.by.exceptions if rule.id in one.rules):
            return None
        for one in self.by.rules:
            if replace(one, action=rule.action, on_error=rule.on_error, shadow=rule.shadow) == rule:
                return one
        return None


def explain(
    policy: Policy,
    recorded: Sequence[Decision],
    who: Mapping[str, str] = MappingProxyType({}),
    lengths: Sequence[int] = (),
) -> Explanation:
    """Explain what was recorded of one exchange, of which there is at least one decision, by a policy.

    The overlays are those that applied then; of another policy than the one that decided then, those that are about the
    exchange. Only recorded findings count, with the exceptions that were found to apply to them: under another policy,
    checks may be missing among them that nobody asked for at that time.

    Args:
        who: whose exchange it is; see `overlay.about`.
        lengths: by decision, how long the text is that was judged in windows; 0, or nothing, for what was judged whole.
    """
    same_policy = all(one.revision == policy.revision for one in recorded)
    applied = {name for one in recorded for name in one.overlays} if same_policy else about(policy, who)
    policy = effective(policy, applied)
    parted = [not policy.stream.at_once(length) for length in lengths] or [False] * len(recorded)
    by = policy if same_policy else None
    seen = [_Seen(one, several, by) for one, several in zip(recorded, parted, strict=True)]
    judgements = tuple(_judgement(policy, one) for one in seen)
    outcome = strongest(one.decided.action for one in judgements)
    told = Explanation(
        policy=policy,
        judgements=judgements,
        recorded=strongest(one.action for one in recorded),
        decided=outcome,
        same_policy=same_policy,
        milder=None,
        stronger=None,
    )
    if told.unknown:
        return told
    # A changed rule of which nobody knows what it would have made of the windows proves no change, either way.
    cautious = [replace(one, bold=True) for one in seen]
    milder, stronger = _milder(policy, outcome, cautious), _stronger(policy, outcome, seen)
    return replace(told, milder=_flip(policy, milder, cautious, seen), stronger=_flip(policy, stronger, seen, cautious))


def _judgement(policy: Policy, one: _Seen) -> Judgement:
    looking = [rule for rule in policy.rules if one.stage in rule.stages]
    verdicts = tuple(_verdict(policy, rule, one) for rule in looking)
    return Judgement(one.recorded, _decided(policy, one), verdicts)


def _decided(policy: Policy, one: _Seen) -> Decision:
    rules = tuple(one.rule(rule, policy) for rule in policy.rules)
    return decide(replace(policy, rules=rules), one.stage, one.findings)


def _verdict(policy: Policy, written: Rule, one: _Seen) -> Verdict:
    rule, stage, findings = one.rule(written, policy), one.stage, one.findings
    answered = [f for f in findings if f.error is None]
    failed = [f for f in findings if f.error is not None and alone(rule, stage, [f, *answered]).unanswered]
    by_itself = alone(rule, stage, findings, policy.exceptions)
    seen = [finding for finding in findings if _looks_at(rule, finding)]
    return Verdict(
        rule=written,
        # What is not a number fires, so it counts as the highest.
        finding=max(seen, key=_sureness, default=None),
        doubts=tuple(sorted(_doubts(policy, rule, stage, findings), key=_clearest_first)),
        # Beside a stronger `on_error` it only logs; then it is a rule that does not block, and asks for what it says.
        asks=by_itself.action if by_itself.rules else rule.action if by_itself.logged else None,
        unanswered=strongest(by_itself.unanswered.values()) if by_itself.unanswered else None,
        errors=errors_of(failed),
        excepted=by_itself.excepted.get(rule.id, ()),
        unknown=one.settled(written, policy) is None,
    )


def _doubts(policy: Policy, rule: Rule, stage: Stage, findings: Sequence[Finding]) -> Iterator[Doubt]:
    for _, escalate, finding in escalations(replace(policy, rules=(rule,)), stage, findings):
        same = [f for f in findings if about_the_same(finding, f)]
        said = [f for f in same if covers(escalate.to, f.category) or (f.error and covers(f.category, escalate.to))]
        told = [Doubt(finding, escalate, f) for f in said] or [Doubt(finding, escalate, None)]
        yield min(told, key=_clearest_first)


def _clearest_first(doubt: Doubt) -> tuple[int, float]:
    # An agreement is enough, whatever failed beside it; without one, what failed leaves it open.
    rank = {True: 0, None: 1, False: 2}[doubt.agrees]
    return rank, -(_sureness(doubt.told) if doubt.told else 0.0)


def _sureness(finding: Finding) -> float:
    return math.inf if math.isnan(finding.score) else finding.score


def _milder(policy: Policy, outcome: Action, seen: Sequence[_Seen]) -> Policy:
    """Return the policy with every rule that asks for the outcome changed as little as keeps it from doing so."""
    if outcome is Action.ALLOW:
        return policy
    # Not one step down from block: to rewrite is something else than to block less.
    softer: Literal[Action.ALLOW, Action.LOG] = Action.ALLOW if outcome is Action.LOG else Action.LOG

    def soften(rule: Rule) -> Rule:
        if rule.shadow or _asked(policy, rule, seen) is not outcome:
            return rule
        if any(outcome in _alone(policy, rule, one).unanswered.values() for one in seen):
            rule = replace(rule, on_error=softer)
        above = sorted({floor(score) + STEP for score in _scores(rule, seen)})
        raised = [replace(rule, threshold=float(at)) for at in above if rule.threshold < float(at) <= 1]
        if rule.escalate:
            raised += [_asking_from(rule, rule.escalate, at) for at in _second_scores(rule, seen, up=True)]
        tried = [rule, *raised, replace(rule, action=softer)]
        return next(one for one in tried if _asked(policy, one, seen).strength < outcome.strength)

    return replace(policy, rules=tuple(map(soften, policy.rules)))


def _stronger(policy: Policy, outcome: Action, seen: Sequence[_Seen]) -> Policy:
    """Return the policy with one rule changed so that the outcome is stronger; as it is where none can.

    What has fired is nearest: a rule that only exceptions kept from it comes first, then a shadow rule, then the
    threshold that has the shortest way to go, then the action of a rule that fired.
    """
    for fewer in _with_fewer_exceptions(policy, seen):
        if _outcome(fewer, seen).strength > outcome.strength:
            return fewer
    harder = Action.LOG if outcome is Action.ALLOW else Action.BLOCK
    live = [rule for rule in policy.rules if not rule.shadow]
    lowered = [
        (rule.threshold - at, replace(rule, threshold=at))
        for rule in live
        for score in _scores(rule, seen)
        if 0 < (at := float(floor(score))) < rule.threshold  # at 0 it would fire on everything
    ]
    lowered += [
        (rule.escalate.threshold - at, _asking_from(rule, rule.escalate, at))
        for rule in live
        if rule.escalate
        for at in _second_scores(rule, seen, up=False)
    ]
    candidates = [
        *(replace(rule, shadow=False) for rule in policy.rules if rule.shadow),
        *(rule for _, rule in sorted(lowered, key=itemgetter(0))),
        *(replace(rule, action=harder) for rule in live if rule.action.strength < harder.strength),
    ]
    stronger = (one for one in candidates if _asked(policy, one, seen).strength > outcome.strength)
    if (changed := next(stronger, None)) is None:
        return policy
    return replace(policy, rules=tuple(changed if rule.id == changed.id else rule for rule in policy.rules))


def _with_fewer_exceptions(policy: Policy, seen: Sequence[_Seen]) -> Iterator[Policy]:
    """Yield the policy without one exception that spared something, then without all that spared a rule."""
    spared = [ids for one in seen for ids in _decided(policy, one).excepted.values()]
    singly = ((one,) for one in sorted({one for ids in spared for one in ids}))
    for ended in dict.fromkeys((*singly, *spared)):
        yield replace(policy, exceptions=tuple(one for one in policy.exceptions if one.id not in ended))


def _flip(policy: Policy, changed: Policy, seen: Sequence[_Seen], otherwise: Sequence[_Seen]) -> Flip | None:
    """Return what was changed and what comes of it; None of nothing.

    Args:
        otherwise: the same as `seen`, with what is unknown the other way.
    """
    changes = tuple(
        Change(old.id, key, getattr(old, key), getattr(new, key), written_in(policy, old.id, key))
        for old, new in zip(policy.rules, changed.rules, strict=True)
        for key in CHANGEABLE
        if getattr(old, key) != getattr(new, key)
    )
    left = {one.id for one in changed.exceptions}
    ended = tuple(one.id for one in policy.exceptions if one.id not in left)
    if not (changes or ended):
        return None
    action, other = _outcome(changed, seen), _outcome(changed, otherwise)
    bound: Literal["", "at least", "at most"] = "at least" if other.strength > action.strength else "at most"
    return Flip(changes, action, ended, "" if other is action else bound)


def _outcome(policy: Policy, seen: Iterable[_Seen]) -> Action:
    return strongest(_decided(policy, one).action for one in seen)


def _asked(policy: Policy, rule: Rule, seen: Iterable[_Seen]) -> Action:
    """Return the strongest that the rule asks for in any of the decisions, in shadow or not."""
    return strongest(_alone(policy, rule, one).action for one in seen)


def _alone(policy: Policy, rule: Rule, one: _Seen) -> Decision:
    return alone(one.rule(rule, policy), one.stage, one.findings, policy.exceptions)


def _scores(rule: Rule, seen: Iterable[_Seen]) -> Iterator[float]:
    for one in seen:
        if one.stage in rule.stages:
            for finding in one.findings:
                if _looks_at(rule, finding) and math.isfinite(finding.score):
                    yield finding.score


def _second_scores(rule: Rule, seen: Iterable[_Seen], *, up: bool) -> Sequence[float]:
    """Return other thresholds for what a rule escalates to, by the scores on record: ascending beyond, or all below."""
    if rule.escalate is None:
        return ()
    category, now = rule.escalate.to, rule.escalate.threshold
    found = (f for one in seen if one.stage in rule.stages for f in one.findings if f.error is None)
    scores = {f.score for f in found if covers(category, f.category) and math.isfinite(f.score)}
    if up:
        return sorted(at for score in scores if now < (at := float(floor(score) + STEP)) <= 1)
    return sorted(at for score in scores if 0 < (at := float(floor(score))) < now)


def _asking_from(rule: Rule, escalate: Escalate, threshold: float) -> Rule:
    return replace(rule, escalate=replace(escalate, threshold=threshold))


def _looks_at(rule: Rule, finding: Finding) -> bool:
    return finding.error is None and covers(rule.category, finding.category) and hears(rule, finding)


def floor(score: float) -> Decimal:
    """Round a score down to a threshold that it reaches."""
    return Decimal(repr(score)).quantize(STEP, ROUND_FLOOR)
