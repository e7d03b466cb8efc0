"""Makes the policy that is in effect for one exchange, with those of its overlays that are about it. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase

from ringfence.policies.types import Overlay, Override, Policy, Removal, Rule, Scope
from ringfence.policies.words import Origin


def effective(policy: Policy, applied: Iterable[str]) -> Policy:
    """Return the policy with the overlays of these ids applied, in the policy's order.

    Its revision is the whole policy's: the record names the overlays beside it. Its decisions do too.
    """
    wanted = set(applied)
    overlays = [overlay for overlay in policy.overlays if overlay.id in wanted]
    if not overlays:
        return policy
    rules = {rule.id: rule for rule in policy.rules}
    removed, message, origins = list(policy.removed), policy.message, policy.origins
    for overlay in overlays:
        gone = [name for name in dict.fromkeys(overlay.remove) if rules.pop(name, None)]
        removed += [Removal(name, f"overlay {overlay.id}", overlay.written_at(f"remove.{name}")) for name in gone]
        rules |= {name: _overridden(rules[name], overlay) for name in overlay.override if name in rules}
        rules |= {rule.id: rule for rule in overlay.rules}
        if overlay.message:
            message, origins = overlay.message, {**origins, "message": overlay.written_at("message")}
    return replace(
        policy,
        rules=tuple(rules.values()),
        message=message,
        applied=tuple(overlay.id for overlay in overlays),
        removed=tuple(removed),
        origins=origins,
    )


def written_in(policy: Policy, rule: str, key: str) -> str:
    """Return the id of the overlay, of those applied, that a rule has a value from; empty where it is none's."""
    applied = [overlay for overlay in policy.overlays if overlay.id in policy.applied]
    for overlay in reversed(applied):
        change = overlay.override.get(rule)
        if rule in {one.id for one in overlay.rules} or (change and key in change.given):
            return overlay.id
    return ""


def as_any_overlay_has_them(policy: Policy) -> Iterator[Rule]:
    """Yield every rule of the policy and of its overlays, and each once more for every overlay that changes it."""
    yield from policy.every_rule
    rules = {rule.id: rule for rule in policy.every_rule}
    for overlay in policy.overlays:
        yield from (_overridden(rules[name], overlay) for name in overlay.override if name in rules)


def about(policy: Policy, who: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of the overlays that are about an exchange.

    Args:
        who: its tenant, key, model and route, as far as they are known; see `Scope`.
    """
    return tuple(overlay.id for overlay in policy.overlays if meets(overlay.scope, who))


def meets(scope: Scope, who: Mapping[str, str]) -> bool:
    """Whether an exchange is within a scope; what is not known of it meets no list."""
    return all(
        (value := who.get(f.name, "")) and any(fnmatchcase(value, pattern) for pattern in wanted)
        for f in fields(scope)
        if (wanted := getattr(scope, f.name))
    )


def changed(rule: Rule, change: Override, written_at: Callable[[str], Origin]) -> Rule:
    """Return the rule with what the change gives.

    Args:
        written_at: the place of each key that it gives.
    """
    given = {**change.given}
    origins = {**rule.origins, **{key: written_at(key) for key in given}}
    if "threshold" in given:
        given["target"] = given["fitted"] = None  # it takes the place of the target
        origins.pop("target", None)
    return replace(rule, **given, origins=origins)


def _overridden(rule: Rule, overlay: Overlay) -> Rule:
    return changed(rule, overlay.override[rule.id], lambda key: overlay.written_at(f"override.{rule.id}.{key}"))
