"""The parts of a running proxy, and how they are put together: the composition root."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check, load_checks
from ringfence.guard.guard import Guard
from ringfence.policies.load import load_policy
from ringfence.policies.types import Policy
from ringfence.proxy.reply import Upstream
from ringfence.proxy.settings import Settings, policy_path
from ringfence.proxy.upstreams import open_upstream


class UnsafeBinding(ValueError):
    """The server would be open to other machines, and nobody set a key."""


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that a running proxy is made of."""

    settings: Settings
    policy: Policy
    guard: Guard
    upstream: Upstream
    store: Store


def build(
    settings: Settings, *, upstream: Upstream | None = None, checks: Mapping[str, Check] | None = None
) -> Service:
    """Put the parts together.

    Args:
        upstream, checks: stand in for those that the policy names.

    Raises:
        PolicyError, UnknownCheck, UnknownUpstream, WeightsMissing, StoreError, UnsafeBinding: nothing is served.
    """
    if settings.api_key is None and not settings.is_local:
        raise UnsafeBinding(
            f"refusing to listen on {settings.host} without a key: set RINGFENCE_API_KEY, or keep to 127.0.0.1"
        )
    policy = load_policy(policy_path(settings.policy))
    store = Store.open(settings.audit_path or Path(policy.audit.path))
    guard = Guard(policy, checks=load_checks() if checks is None else checks, store=store)
    choice = replace(policy.upstream, use=settings.upstream or policy.upstream.use)
    return Service(settings, policy, guard, upstream or open_upstream(choice), store)
