"""Warns of what a policy may say but hardly means. Reads a policy only; judges nothing."""

from collections.abc import Iterator, Sequence

from ringfence.policies.cases import Suite, without_cases
from ringfence.policies.decide import covers
from ringfence.policies.document import Problem
from ringfence.policies.types import Origin, Policy, Rule


def lint(policy: Policy, suites: Sequence[Suite]) -> Iterator[Problem]:
    """Yield a warning for each rule that cannot decide anything, and for each that no case shows."""
    if not policy.rules:
        yield Problem(Origin(policy.name), "the policy has no rule: everything passes unjudged")
    for rule in policy.rules:
        if stronger := next((other for other in policy.rules if _always_beats(other, rule)), None):
            yield Problem(
                rule.origin,
                f"rule '{rule.id}' never decides: '{stronger.id}' ({stronger.origin}) asks for {stronger.action} "
                f"from {stronger.threshold:g} on, where this one asks for {rule.action} from {rule.threshold:g}",
            )
    for rule in without_cases(policy, suites):
        yield Problem(rule.origin, f"rule '{rule.id}' has no case: add one with expect.rules: [{rule.id}]")


def _always_beats(other: Rule, rule: Rule) -> bool:
    return (
        not other.shadow
        and not rule.shadow
        and other.action.strength > rule.action.strength
        and other.threshold <= rule.threshold
        and covers(other.category, rule.category)
        and set(other.stages) >= set(rule.stages)
    )
