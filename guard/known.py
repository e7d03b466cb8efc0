"""Says of which categories anything can be found at all, with the checks there are. Judges nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ringfence.guard.check import Bounded, Check, UnknownCheck
from ringfence.policies.document import PolicyError, Problem, did_you_mean
from ringfence.policies.findable import Findable, sought
from ringfence.policies.overlay import as_any_overlay_has_them
from ringfence.policies.types import Policy, Stage
from ringfence.policies.words import root

UNJUDGED = ("unjudged.media", "unjudged.field")
"""What whoever lists the parts of an exchange finds, where nobody can read one."""


def refuse_unknown(policy: Policy, checks: Iterable[Check]) -> None:
    """Refuse a policy that looks at what nobody answers for, in a rule or in what an overlay makes of one.

    Args:
        checks: the installed ones; the policy's own need not be made.

    Raises:
        UnknownCheck: with every such place.
    """
    answered = {category for check in checks for category in check.categories}
    known = sorted(answered | {own.category for own in policy.checks} | {"count", *map(root, UNJUDGED)})
    problems = dict.fromkeys(_unknown(policy, known))
    if problems:
        raise UnknownCheck(str(PolicyError(problems)))


def findable(policy: Policy, checks: Iterable[Check]) -> Mapping[str, Sequence[Findable]]:
    """Return by first word of what rules look at all that can ever be found; where anything can, it is missing."""
    looked_at = {root(one.category) for rule in as_any_overlay_has_them(policy) for one in sought(rule)}
    own = [Findable(check.category) for check in policy.checks]
    in_requests = [*UNJUDGED, *(f"count.{counter.id}" for counter in policy.counters)]
    known: dict[str, list[Findable]] = {"count": []}
    # Who is not asked need not say what there is: to tell languages apart takes a model.
    asked = (check for check in checks if not looked_at.isdisjoint(check.categories))
    said = (one for check in asked if isinstance(check, Bounded) for one in check.finds)
    for one in (*own, *(Findable(name, stages=(Stage.INPUT,)) for name in in_requests), *said):
        known.setdefault(root(one.category), []).append(one)
    return known


def _unknown(policy: Policy, known: Sequence[str]) -> Iterator[Problem]:
    for rule in as_any_overlay_has_them(policy):
        for one in sought(rule):
            if (name := root(one.category)) not in known:
                what = f"rule '{rule.id}' looks at category '{one.category}', which no check answers for"
                yield Problem(rule.written_at(one.key), what + did_you_mean(name, known))
