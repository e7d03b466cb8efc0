"""Says what a policy makes of findings. Pure: precedence, defaults and error rules live here and nowhere else."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import get_args

from ringfence.policies.types import (
    Action,
    Condition,
    Decision,
    Degrade,
    Escalate,
    Finding,
    Message,
    Policy,
    Rewrite,
    Rule,
    RuleException,
    Span,
    Stage,
)
from ringfence.policies.words import Voice, covers, lineage

_VOICES = frozenset(get_args(Voice))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one rule asks for, having fired on `on`, or because it was left open: then on nothing."""

    rule: Rule
    action: Action
    on: tuple[Finding, ...] = ()


def decide(policy: Policy, stage: Stage, findings: Iterable[Finding], language: str = "") -> Decision:
    """Return what the policy says about one stage, given what the checks found.

    A rule looks at findings of its own category and of those below it, in texts of its roles, and fires where a score
    reaches its threshold and its condition holds; of a rule that escalates, where the score is beyond its band, or is
    within and the other check's score of the same text reaches the threshold for that. Where a check behind it could
    not answer, so that nobody can say whether it would have fired, it asks for its `on_error`, and has not fired. The
    strongest action asked for wins, whatever the order of the rules; shadow rules are recorded and change nothing.

    Args:
        language: ISO 639 code of the language to tell the caller in, where a message comes in several.
    """
    found = tuple(findings)
    touched, seen, failed, spared = _gather(policy, stage, found)
    fired: list[_Asked] = []
    left_open: list[_Asked] = []
    for rule in touched:
        on, unsettled = _settled(rule, seen.get(rule.id, ()), found)
        holds = True if rule.when is None else _holds(rule.when, found)
        if on and holds:
            fired.append(_Asked(rule, strongest(_asks(rule, finding) for finding in on), tuple(on)))
        if (rule.id in failed and holds is not False) or (on and holds is None):
            left_open.append(_Asked(rule, _on_error(rule, found)))
        elif unsettled and holds is not False:
            left_open.append(_Asked(rule, _on_error(rule, _beside(rule, unsettled, found))))
    live = [one for one in fired if not one.rule.shadow]
    unanswered = {one.rule.id: one.action for one in left_open if not one.rule.shadow}
    winner = strongest([Action.ALLOW, *(one.action for one in live), *unanswered.values()])
    deciding = sorted((one for one in live if one.action is winner), key=_surest_first)
    return Decision(
        stage=stage,
        action=winner,
        rules=tuple(one.rule.id for one in deciding),
        logged=tuple(one.rule.id for one in sorted(live, key=_surest_first) if one.action is not winner),
        unanswered=unanswered,
        escalated={rule.id: escalate.to for rule, escalate, _ in _doubts(touched, seen, found)},
        shadow={
            one.rule.id: one.action
            for one in sorted((*fired, *left_open), key=lambda one: one.action.strength)
            if one.rule.shadow
        },
        excepted={rule: tuple(sorted(ids)) for rule, ids in spared.items()},
        overlays=policy.applied,
        findings=found,
        rewrites=tuple(_disjoint(_rewrites(one for one in live if one.rule.action is Action.REWRITE))),
        errors=errors_of(found),
        message=_message(policy, deciding, language) if winner is Action.BLOCK else "",
        revision=policy.revision,
    )


def decide_apart(
    policy: Policy, stage: Stage, findings: Iterable[Finding], language: str = "", texts: Collection[int] = ()
) -> Decision:
    """Return what the policy says where the texts have nothing to do with each other: each is decided by itself.

    The strongest action wins; what rules did in any text is told.

    Args:
        texts: all of them, by number.
    """
    found = tuple(findings)
    each = [decide(policy, stage, some, language) for some in by_text(found, texts)]
    winner = strongest(one.action for one in each)
    deciding = [one for one in each if one.action is winner]
    rules = tuple(dict.fromkeys(rule for one in deciding for rule in one.rules))
    fired = dict.fromkeys(rule for one in each for rule in (*one.rules, *one.logged))
    return replace(
        deciding[0],
        rules=rules,
        logged=tuple(rule for rule in fired if rule not in rules),
        unanswered=strongest_of(one.unanswered for one in each),
        escalated={rule: to for one in each for rule, to in one.escalated.items()},
        shadow=strongest_of(one.shadow for one in each),
        excepted={
            rule: tuple(sorted({*chain.from_iterable(one.excepted.get(rule, ()) for one in each)}))
            for rule in dict.fromkeys(rule for one in each for rule in one.excepted)
        },
        findings=found,
        rewrites=tuple(_disjoint(rewrite for one in each for rewrite in one.rewrites)),
        errors=errors_of(found),
    )


def by_text(found: Sequence[Finding], texts: Collection[int]) -> Iterator[Sequence[Finding]]:
    """Yield of each text what was found in it, together with what is about none in particular; that alone of none."""
    everywhere, by_part = sorted_by_part(found)
    yield from ([*everywhere, *by_part.get(one, ())] for one in texts)
    if not texts:
        yield everywhere


def sorted_by_part(found: Iterable[Finding]) -> tuple[Sequence[Finding], Mapping[int, Sequence[Finding]]]:
    """Return what is about every part, as what a check says that could not answer; and by index what is about one."""
    everywhere: list[Finding] = []
    by_part: defaultdict[int, list[Finding]] = defaultdict(list)
    for finding in found:
        for part in {span.part for span in finding.spans}:
            by_part[part].append(finding)
        if not finding.spans:
            everywhere.append(finding)
    return everywhere, by_part


def strongest_of(asked: Iterable[Mapping[str, Action]]) -> dict[str, Action]:
    """Return of each rule the strongest that it asked for."""
    found: dict[str, Action] = {}
    for rule, action in chain.from_iterable(one.items() for one in asked):
        found[rule] = strongest([action, found.get(rule, action)])
    return found


def alone(
    rule: Rule, stage: Stage, findings: Iterable[Finding], exceptions: tuple[RuleException, ...] = ()
) -> Decision:
    """Return what one rule by itself says, in shadow or not."""
    return decide(Policy(rule.id, (replace(rule, shadow=False),), exceptions=exceptions), stage, findings)


def fires_on(rule: Rule, finding: Finding, stage: Stage, found: Iterable[Finding], policy: Policy) -> bool:
    """Whether a rule that fired did so on this finding: without the others that it looks at, it still would."""
    second = [other for other in found if rule.escalate and covers(rule.escalate.to, other.category)]
    return bool(alone(replace(rule, when=None), stage, [finding, *second], policy.exceptions).rules)


def escalations(policy: Policy, stage: Stage, findings: Iterable[Finding]) -> Iterator[tuple[Rule, Escalate, Finding]]:
    """Yield every finding that a rule is not sure of, and whom it asks about the text of that."""
    found = tuple(findings)
    touched, seen, _, _ = _gather(policy, stage, found)
    yield from _doubts(touched, seen, found)


def about_the_same(one: Finding, other: Finding) -> bool:
    """Whether two findings may be about one text; what has no place is about every one."""
    parts, others = ({span.part for span in finding.spans} for finding in (one, other))
    return not (parts and others) or not parts.isdisjoint(others)


def reasons(decision: Decision) -> tuple[str, ...]:
    """Name what asked for a decision's action: rules that fired, and `failed:CHECK`, which no rule can be called."""
    asked = decision.action in decision.unanswered.values()
    failed = [f"failed:{finding.check}" for finding in decision.findings if asked and finding.error is not None]
    return tuple(dict.fromkeys([*decision.rules, *failed]))


def errors_of(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return one line for each check that could not answer."""
    return tuple(dict.fromkeys(f"{f.check}: {f.error}" for f in findings if f.error is not None))


def hears(rule: Rule, finding: Finding) -> bool:
    """Whether a rule is about text of whoever said what was found."""
    return is_about(rule.roles, finding.role)


def is_about(roles: Collection[str], voice: str) -> bool:
    """Whether somebody's text is that of some roles: everybody's where none is named, and that of whom none names."""
    return not roles or voice not in _VOICES or voice in roles


def strongest(actions: Iterable[Action]) -> Action:
    """Return the strongest of some actions, of which there is at least one."""
    return max(actions, key=lambda action: action.strength)


def _gather(
    policy: Policy, stage: Stage, found: Sequence[Finding]
) -> tuple[Iterable[Rule], Mapping[str, list[Finding]], set[str], Mapping[str, set[str]]]:
    """Return the rules that have to do with any finding; by their ids what makes them fire, whose check failed, and
    because of which exceptions one does not fire."""
    touched: dict[str, Rule] = {}
    seen: dict[str, list[Finding]] = {}
    failed: set[str] = set()
    spared: dict[str, set[str]] = {}
    meant = {one.id: one.rules for one in policy.exceptions} if any(one.excepted for one in found) else {}
    for finding in found:
        for rule in _looking(policy, stage, finding):
            if not hears(rule, finding):
                continue
            if finding.error is not None:
                failed.add(rule.id)
            # Written as "not below", so that a score that is not a number fires: fail closed.
            elif finding.score < rule.least:
                continue
            elif ids := [one for one in finding.excepted if rule.id in meant.get(one, ())]:
                spared.setdefault(rule.id, set()).update(ids)
            else:
                seen.setdefault(rule.id, []).append(finding)
            touched[rule.id] = rule
    return touched.values(), seen, failed, spared


def _looking(policy: Policy, stage: Stage, finding: Finding) -> Iterator[Rule]:
    """Yield the rules that a finding concerns: those over its category, or over one above it."""
    for category in lineage(finding.category):
        yield from policy.looking.get((stage, category), ())
    if finding.error is not None:
        # A check that failed as `pii` has failed for a rule over `pii.email` too.
        below = f"{finding.category}."
        yield from (rule for rule in policy.rules if stage in rule.stages and rule.category.startswith(below))


def _parted(rule: Rule, escalate: Escalate, seen: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """Part what a rule sees into what it is sure of and what another check is to settle.

    Where the rule fires on a text anyway, nobody is asked about that; but every stretch to rewrite counts by itself.
    """
    _, end = escalate.between
    sure, doubtful = [f for f in seen if not f.score < end], [f for f in seen if f.score < end]
    if rule.action is not Action.REWRITE:
        settled = _about_any(sure)
        doubtful = [f for f in doubtful if not settled(f)]
    return sure, doubtful


def _doubts(
    rules: Iterable[Rule], seen: Mapping[str, Sequence[Finding]], found: Sequence[Finding]
) -> Iterator[tuple[Rule, Escalate, Finding]]:
    for rule in rules:
        if rule.escalate and (rule.when is None or _holds(rule.when, found) is not False):
            for finding in _parted(rule, rule.escalate, seen.get(rule.id, ()))[1]:
                yield rule, rule.escalate, finding


def _settled(
    rule: Rule, seen: Sequence[Finding], found: Sequence[Finding]
) -> tuple[Sequence[Finding], Sequence[Finding]]:
    """Return what a rule fires on of what it sees, and what could not be settled, as the other check failed."""
    if rule.escalate is None:
        return seen, ()
    sure, doubtful = _parted(rule, rule.escalate, seen)
    answers = [(other, _meets(rule.escalate.to, rule.escalate.threshold, other)) for other in found if doubtful]
    agreed = _about_any([other for other, meets in answers if meets])
    failed = _about_any([other for other, meets in answers if meets is None])
    return [*sure, *filter(agreed, doubtful)], [f for f in doubtful if failed(f) and not agreed(f)]


def _about_any(findings: Sequence[Finding]) -> Callable[[Finding], bool]:
    """Return what says whether a finding is `about_the_same` as any of these, however many there are."""
    parts = [{span.part for span in finding.spans} for finding in findings]
    everywhere, somewhere = not all(parts), set[int]().union(*parts)

    def same(finding: Finding) -> bool:
        own = {span.part for span in finding.spans}
        return everywhere or not own.isdisjoint(somewhere) or (not own and bool(parts))

    return same


def _beside(rule: Rule, unsettled: Sequence[Finding], found: Sequence[Finding]) -> Sequence[Finding]:
    """Return what stands in for a second opinion that could not be had: only what is about the same texts."""
    if isinstance(rule.on_error, Degrade) and rule.on_error.degrade == rule.category:
        return unsettled
    return list(filter(_about_any(unsettled), found))


def _holds(condition: Condition, found: Sequence[Finding]) -> bool | None:
    """Whether a condition holds; None where a failed check leaves that open (Kleene's three-valued logic)."""
    if condition.not_ is not None:
        inner = _holds(condition.not_, found)
        return None if inner is None else not inner
    if condition.any is not None:
        return _either(_holds(one, found) for one in condition.any)
    if condition.all is not None:
        none = _either(None if (inner := _holds(one, found)) is None else not inner for one in condition.all)
        return None if none is None else not none
    category = condition.category or ""
    return _either(_meets(category, condition.least, finding) for finding in found)


def _meets(category: str, threshold: float, finding: Finding) -> bool | None:
    if finding.error is None:
        return not finding.score < threshold and covers(category, finding.category)
    return None if covers(category, finding.category) or covers(finding.category, category) else False


def _either(answers: Iterable[bool | None]) -> bool | None:
    left_open = False
    for answer in answers:
        if answer:
            return True
        left_open = left_open or answer is None
    return None if left_open else False


def _asks(rule: Rule, finding: Finding) -> Action:
    # A finding that leaves nothing to rewrite may not pass for a rewritten one.
    possible = bool(finding.spans) and finding.rewritable
    return rule.action if possible or rule.action is not Action.REWRITE else Action.BLOCK


def _on_error(rule: Rule, found: Sequence[Finding]) -> Action:
    if not isinstance(rule.on_error, Degrade):
        return rule.on_error
    instead = [_meets(rule.on_error.degrade, rule.threshold, finding) for finding in found if hears(rule, finding)]
    if (meets := _either(instead)) is False:
        return Action.ALLOW
    # What stood in points at other stretches than the rule's own check would have: nothing to rewrite by.
    return Action.BLOCK if meets is None or rule.action is Action.REWRITE else rule.action


def _surest_first(one: _Asked) -> tuple[float, str]:
    # What is not a number fires, so it counts as the highest.
    return -max(math.inf if math.isnan(finding.score) else finding.score for finding in one.on), one.rule.id


def _message(policy: Policy, deciding: Iterable[_Asked], language: str) -> str:
    message: Message = next((one.rule.message for one in deciding if one.rule.message), policy.message)
    return message if isinstance(message, str) else message.get(language, next(iter(message.values())))


def _rewrites(asked: Iterable[_Asked]) -> Iterator[Rewrite]:
    for one in asked:
        for finding in one.on:
            text = one.rule.replacement.replace("{category}", finding.category.upper().replace(".", "_"))
            yield from (Rewrite(span, text, one.rule.id) for span in finding.spans)


def _disjoint(rewrites: Iterable[Rewrite]) -> Iterator[Rewrite]:
    """Join overlapping spans, so that nothing of either stays readable; the first to start, then the longest, names."""
    current: Rewrite | None = None
    for item in sorted(rewrites, key=lambda r: (r.span.part, r.span.start, -r.span.end, r.rule, r.replacement)):
        if current and item.span.part == current.span.part and item.span.start < current.span.end:
            end = max(current.span.end, item.span.end)
            current = Rewrite(Span(item.span.part, current.span.start, end), current.replacement, current.rule)
        else:
            if current:
                yield current
            current = item
    if current:
        yield current
