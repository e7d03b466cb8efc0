"""Warns of what a policy may say but hardly means. Reads a policy only; judges nothing."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date

from ringfence.policies.cases import Suite, without_cases
from ringfence.policies.document import Problem, name_of
from ringfence.policies.types import Action, Policy, Rule, Stage
from ringfence.policies.words import Origin, covers, lineage

Reach = Callable[[str], tuple[float, float] | None]
"""The lowest and the highest score of a category that anything is known of; None where there are no such bounds."""


def lint(policy: Policy, suites: Sequence[Suite], today: date, reach: Reach = lambda _: None) -> Iterator[Problem]:
    """Yield a warning for each rule that cannot decide anything, or always would, and for each that no case shows.

    Args:
        today: what has run out by then is told.
    """
    if not policy.rules:
        yield Problem(
            Origin(name_of(policy.layers[-1]) if policy.layers else policy.name),
            "the policy has no rule: everything passes unjudged",
        )
    over: dict[str, list[Rule]] = {}
    for rule in policy.rules:
        over.setdefault(rule.category, []).append(rule)
    for rule in policy.rules:
        others = [other for category in lineage(rule.category) for other in over.get(category, ())]
        if stronger := next((other for other in others if _always_beats(other, rule)), None):
            yield Problem(
                rule.origin,
                f"rule '{rule.id}' never decides: '{stronger.id}' ({stronger.origin}) asks for {stronger.action} "
                f"from {stronger.threshold:g} on, where this one asks for {rule.action} from {rule.threshold:g}",
            )
        elif same := next((other for other in others if _says_the_same(other, rule)), None):
            what = f"rule '{rule.id}' adds nothing: '{same.id}' ({same.origin}) asks for {same.action} wherever it does"
            yield Problem(rule.origin, what)
        yield from _out_of_reach(rule, reach(rule.category))
    scopes = [(one.id, one.scope, one.origin) for kind in (policy.overlays, policy.exceptions) for one in kind]
    for name, scope, origin in scopes:
        if scope and (scope.tenant or scope.key):
            what = f"'{name}' asks for a tenant or a key: every caller is of tenant 'default' and has no key id"
            yield Problem(origin, what)
    for rule in policy.rules:
        if rule.restore and (rule.action is not Action.REWRITE or Stage.INPUT not in rule.stages):
            what = f"rule '{rule.id}' has 'restore', and rewrites no request: there is nothing to give back"
            yield Problem(rule.origin, what)
    for one in policy.exceptions:
        if one.until < today:
            yield Problem(one.origin, f"exception '{one.id}' ran out on {one.until}: renew it, or take it out")
    for rule in without_cases(policy, suites):
        yield Problem(rule.origin, f"rule '{rule.id}' has no case: add one with expect.rules: [{rule.id}]")


def _always_beats(other: Rule, rule: Rule) -> bool:
    return other.action.strength > rule.action.strength and _always_fires_with(other, rule)


def _says_the_same(other: Rule, rule: Rule) -> bool:
    # A rewriting rule replaces what the other does not; of two that are equal the first one counts.
    same = other is not rule and other.action is rule.action is not Action.REWRITE
    later = not _always_fires_with(rule, other) or _place(other) < _place(rule)
    return same and other.message == rule.message and _always_fires_with(other, rule) and later


def _always_fires_with(other: Rule, rule: Rule) -> bool:
    return (
        not other.shadow
        and not rule.shadow
        and other.when is None
        and (not other.roles or (bool(rule.roles) and set(other.roles) >= set(rule.roles)))
        and other.threshold <= rule.threshold
        and covers(other.category, rule.category)
        and set(other.stages) >= set(rule.stages)
    )


def _place(rule: Rule) -> tuple[str, int]:
    return rule.origin.file, rule.origin.line


def _out_of_reach(rule: Rule, scores: tuple[float, float] | None) -> Iterator[Problem]:
    if scores is None:
        return
    lowest, highest = scores
    if not lowest < rule.threshold <= highest:
        what = f"rule '{rule.id}' fires from {rule.threshold:g} on; '{rule.category}' was calibrated on texts that"
        yield Problem(
            rule.written_at("threshold"),
            f"{what} scored {lowest:g} to {highest:g}: beyond, nobody knows what a score means",
        )
