"""What a rule needs to be found, and what can be found at all. Values only; who finds is none of its business."""

from collections.abc import Iterator
from dataclasses import dataclass

from ringfence.policies.types import Degrade, Rule, Stage
from ringfence.policies.words import Voice

UNREAD = {"unjudged": "what nobody can read", "count": "counters"}
"""Roots that no text by itself is of, and what they are for: no check answers for them, no case can show their rules,
and no row a threshold for them."""


@dataclass(frozen=True, slots=True)
class Findable:
    """What somebody may find.

    Attributes:
        category: in full, as findings have it.
        highest: no finding of it scores more.
        stages: where it may be found.
        roles: in whose text; in everybody's, where none is named.
        called: what people may take its last word for, beside what it is: `german` for `de`.
    """

    category: str
    highest: float = 1.0
    stages: tuple[Stage, ...] = tuple(Stage)
    roles: tuple[Voice, ...] = ()
    called: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sought:
    """A category that a rule looks at, from which score on, and the key of the rule that says so."""

    key: str
    category: str
    threshold: float


def sought(rule: Rule) -> Iterator[Sought]:
    """Yield everything that has to be looked for so that the rule can be decided."""
    yield Sought("category", rule.category, rule.least)
    if rule.escalate:
        yield Sought("escalate", rule.escalate.to, rule.escalate.threshold)
    if isinstance(rule.on_error, Degrade):
        yield Sought("on_error", rule.on_error.degrade, rule.threshold)
    if rule.when:
        yield from (Sought("when", category, least) for category, least in rule.when.leaves())


def scored_by(rule: Rule) -> Iterator[Sought]:
    """Yield what the rule's own score of a text depends on: all but what stands in for a check that failed."""
    return (one for one in sought(rule) if one.key != "on_error")
