"""Says what a rule made of a reply that was judged in several windows, as far as records tell. Pure.

What else was found counts where it was found in the same window, and a record has what was found in all of them. Which
of that stood together depends on the text, and on what was rewritten in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ringfence.policies.decide import alone
from ringfence.policies.findable import sought
from ringfence.policies.types import Action, Condition, Decision, Degrade, Escalate, Finding, Rule, RuleException, Stage
from ringfence.policies.words import covers

NEVER = Condition(any=())
"""What holds nowhere."""

ELSEWHERE = "*"
"""A category that is nobody's."""

NOTHING = False, None
"""What a rule made of a text that neither made it fire nor left it open."""


def by_window(rule: Rule) -> bool:
    """Whether a rule looks at more in a window of a reply than what it fires on."""
    return Stage.OUTPUT in rule.stages and bool(rule.when or rule.escalate or isinstance(rule.on_error, Degrade))


def settled(
    rule: Rule,
    found: Sequence[Finding],
    exceptions: tuple[RuleException, ...] = (),
    said: Decision | None = None,
    then: Rule | None = None,
) -> Rule | None:
    """Return a rule that makes of all that was found what this one made of it window by window; None if nobody knows.

    Args:
        found: all of it, wherever in the reply.
        said: what was decided then, where it was by the same rule.
        then: that rule, where it asked for something else, or was in shadow.
    """
    if not by_window(rule):
        return rule
    anyhow = replace(rule, when=None)
    most, least = (alone(anyhow, Stage.OUTPUT, some, exceptions) for some in (found, list(_its_own(rule, found))))
    if rule.escalate and said is None and any(_may_be_doubted(rule, rule.escalate, one) for one in found):
        return None
    certain = rule.when is None or _everywhere(rule.when, found) is not None
    if certain and (_made(rule, most), most.rewrites) == (_made(rule, least), least.rewrites):
        return rule
    if _made(rule, most) == NOTHING:
        return anyhow
    if said is None:
        return None
    fired, asked = _made(rule, said)
    was = then or rule
    if not fired and asked is None:
        return replace(rule, when=NEVER)
    if rule.shadow:
        return anyhow
    if was.shadow:  # of such a rule a record does not tell whether it fired, or was left open
        return anyhow if _made(rule, most) == (True, None) else None
    if asked and was.on_error != rule.on_error:
        if isinstance(rule.on_error, Degrade):
            return None
        asked = rule.on_error
    if asked and not (fired and asked.strength <= rule.action.strength):
        return _left_open(rule, asked, found)
    if was.action is rule.action and _was_gone(rule, most, said):
        anyhow = replace(anyhow, action=Action.LOG)
    # Where the condition did not hold, what failed left nothing open.
    return replace(anyhow, on_error=Action.ALLOW) if most.rules or most.logged else None


def at_most(rule: Rule, found: Sequence[Finding], exceptions: tuple[RuleException, ...] = ()) -> Action:
    """Return the strongest that a rule may have asked for in any window: what it doubts is so, and what failed there
    leaves it open.
    """
    sure = replace(rule, when=None, escalate=None, threshold=rule.least)
    looked_at = {one.category for one in sought(rule)}
    failed = {one.category for one in found if one.error is not None}
    if any(covers(one, other) or covers(other, one) for one in failed for other in looked_at):
        found = [*found, Finding(ELSEWHERE, rule.category, 0.0, error=ELSEWHERE)]
    return alone(sure, Stage.OUTPUT, found, exceptions).action


def _left_open(rule: Rule, asked: Action, found: Sequence[Finding]) -> Rule | None:
    """Return a rule that what failed leaves open, and that then asks for something; None where nothing did."""
    failed = next((one.category for one in found if one.error is not None), None)
    if failed is None or asked is Action.REWRITE:
        return None
    unknown = Condition(category=failed, threshold=1.0)
    return replace(rule, when=unknown, escalate=None, threshold=rule.least, on_error=asked)


def _was_gone(rule: Rule, most: Decision, said: Decision) -> bool:
    """Whether what a rule fired on, and would have rewritten, was gone by then: the text went on, or had left."""
    nothing = said.action is rule.action is Action.REWRITE and all(one.rule != rule.id for one in said.rewrites)
    return nothing or most.action.strength > said.action.strength


def _may_be_doubted(rule: Rule, escalate: Escalate, finding: Finding) -> bool:
    """Whether a rule is, in some window, unsure of something: where windows overlap, a record has the highest score."""
    return covers(rule.category, finding.category) and finding.score < escalate.between[1]


def _made(rule: Rule, decision: Decision) -> tuple[bool, Action | None]:
    """Return whether a rule fired, and what it asked for where a check behind it could not answer."""
    fired = rule.id in {*decision.rules, *decision.logged, *decision.shadow}
    return fired, decision.unanswered.get(rule.id)


def _its_own(rule: Rule, found: Iterable[Finding]) -> Iterator[Finding]:
    """Yield what was found but for what others say beside the rule's own check."""
    others = {one.category for one in sought(rule) if one.key in ("escalate", "on_error")} - {rule.category}
    for one in found:
        failed = one.error is not None
        if not any(covers(other, one.category) or (failed and covers(one.category, other)) for other in others):
            yield one


def _everywhere(condition: Condition, found: Sequence[Finding]) -> bool | None:
    """Whether a condition holds in every window, or in none; None where it may be otherwise in one than in another."""
    probe = Rule(ELSEWHERE, ELSEWHERE, Action.LOG, when=condition)
    said = alone(probe, Stage.OUTPUT, [Finding(ELSEWHERE, ELSEWHERE, 1.0), *_may_be_missing(condition, found)])
    return None if said.unanswered else bool(said.rules)


def _may_be_missing(condition: Condition, found: Iterable[Finding]) -> Iterator[Finding]:
    """Yield what counts for a condition and may be in one window only, as a check that failed: it leaves that open."""
    for one in found:
        if one.error is not None:
            yield one
        for category, least in condition.leaves():
            if one.error is None and covers(category, one.category) and not one.score < least:
                yield Finding(ELSEWHERE, category, 0.0, error=ELSEWHERE)
