"""Makes the policy that is in effect for one exchange, with those of its overlays that are about it. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase

from ringfence.policies.types import Overlay, Override, Policy, Rule, Scope
from ringfence.policies.words import Origin


def effective(policy: Policy, applied: Iterable[str]) -> Policy:
    """Return the policy with the overlays of these ids applied, in the policy's order.

    Its revision is the whole policy's: the record names the overlays beside it. Its decisions do too.
    """
    wanted = set(applied)
    overlays = [overlay for overlay in policy.overlays if overlay.id in wanted]
    if not overlays:
        return policy
    rules = list(policy.rules)
    message = policy.message
    for overlay in overlays:
        rules = [_overridden(rule, overlay) for rule in rules if rule.id not in overlay.remove] + list(overlay.rules)
        message = overlay.message or message
    return replace(policy, rules=tuple(rules), message=message, applied=tuple(overlay.id for overlay in overlays))


def about(policy: Policy, who: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of the overlays that are about an exchange.

    Args:
        who: its tenant, key, model and route, as far as they are known; see `Scope`.
    """
    return tuple(overlay.id for overlay in policy.overlays if meets(overlay.scope, who))


def meets(scope: Scope, who: Mapping[str, str]) -> bool:
    """Whether an exchange is within a scope; what is not known of it meets no list."""
    return all(
        any(fnmatchcase(who.get(f.name, ""), pattern) for pattern in wanted)
        for f in fields(scope)
        if (wanted := getattr(scope, f.name))
    )


def changed(rule: Rule, change: Override, written_at: Callable[[str], Origin]) -> Rule:
    """Return the rule with what the change gives.

    Args:
        written_at: the place of each key that it gives.
    """
    given = {f.name: value for f in fields(change) if (value := getattr(change, f.name)) is not None}
    origins = {**rule.origins, **{key: written_at(key) for key in given}}
    if "threshold" in given:
        given["target"] = given["fitted"] = None  # it takes the place of the target
    return replace(rule, **given, origins=origins)


def _overridden(rule: Rule, overlay: Overlay) -> Rule:
    change = overlay.override.get(rule.id)
    return changed(rule, change, lambda _: overlay.origin) if change else rule
