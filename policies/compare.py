"""What is different between two policies, rule by rule and key by key. Pure; says nothing of what it comes to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ringfence.policies.load import canonical
from ringfence.policies.types import Policy
from ringfence.policies.words import Origin, lineage

NAMED = {
    "rules": "id",
    "checks": "category",
    "counters": "id",
    "exceptions": "id",
    "overlays": "id",
    "exempt": "role",
}
"""Lists of a policy, and what their items are called by."""


NULL = "null"
"""What a null is told as that only one of two changes has: it takes something out, which is more than no value."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One key with another value, and where each was written.

    Attributes:
        old: as JSON; None where there was none.
        old_at: None for what nobody wrote: it is the default.
    """

    key: str
    old: Any
    new: Any
    old_at: Origin | None
    new_at: Origin | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What is different about one rule, about another named part of a policy, or about its settings.

    Attributes:
        section: `rules`, `checks` …; `settings` for all that has no name.
        name: the rule's id; of settings, none.
        edits: none for what was added or removed.
        old: where it was written; None for what was added, and for settings.
        new: where it is written; None for what was removed, and for settings.
    """

    section: str
    name: str
    edits: tuple[Edit, ...]
    old: Origin | None = None
    new: Origin | None = None


def compare(old: Policy, new: Policy) -> tuple[Difference, ...]:
    """Return what the new policy has different: packs, overrides and defaults count as what they come to.

    In the order of the new policy, what was removed last. The order of rules means nothing, and is no difference.
    """
    was, now = canonical(old), canonical(new)
    found = [
        difference for section, key in NAMED.items() for difference in _in_section(section, key, (was, old), (now, new))
    ]
    settings = [key for key in dict.fromkeys([*was, *now]) if key not in NAMED]
    edits = tuple(
        Edit(key, one, other, old.origins.get(key), new.origins.get(key))
        for setting in settings
        for key, one, other in _edits(setting, was.get(setting), now.get(setting))
    )
    return (*found, *([Difference("settings", "", edits)] if edits else []))


def _in_section(
    section: str, key: str, before: tuple[Mapping[str, Any], Policy], after: tuple[Mapping[str, Any], Policy]
) -> Iterator[Difference]:
    was, now = ({one[key]: one for one in plain.get(section, ())} for plain, _ in (before, after))
    old, new = ({getattr(one, key): one for one in getattr(policy, section)} for _, policy in (before, after))
    for name in dict.fromkeys([*now, *was]):
        if name not in was or name not in now:
            places = [items[name].origin if name in items else None for items in (old, new)]
            yield Difference(section, name, (), *places)
        elif was[name] != now[name]:
            edits = tuple(
                Edit(*edit, _origin(old[name], edit[0]), _origin(new[name], edit[0]))
                for field in dict.fromkeys([*was[name], *now[name]])
                for edit in _edits(field, was[name].get(field), now[name].get(field))
            )
            yield Difference(section, name, edits, old[name].origin, new[name].origin)


def _edits(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for inner in dict.fromkeys([*old, *new]):
            yield from _edits(f"{key}.{inner}", _value(inner, old, new), _value(inner, new, old))
    elif old != new:
        yield key, old, new


def _value(key: str, mapping: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
    value = mapping.get(key)
    return NULL if value is None and key in mapping and key not in other else value


def _origin(item: Any, key: str) -> Origin:
    """Return where one value was written, or the nearest thing around it; rules and overlays know that of each key."""
    origins: Mapping[str, Origin] = getattr(item, "origins", {})
    found: Origin = next((origins[one] for one in lineage(key) if one in origins), item.origin)
    return found
