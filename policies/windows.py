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
    if _made(rule, said) == NOTHING:
        return replace(rule, when=NEVER)
    was = then or rule
    if not was.shadow and was.action is rule.action and most.action.strength > said.action.strength:
        anyhow = replace(anyhow, action=Action.LOG)  # what it would have rewritten was gone once the text went on
    # Of a shadow rule a record does not tell whether it fired, or was left open.
    return anyhow if _made(rule, said) == _made(rule, most) or rule.shadow else None


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
