"""The parts of a running proxy, and how they are put together: the composition root."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check, load_checks, renewed
from ringfence.guard.guard import Guard
from ringfence.guard.history import History
from ringfence.policies.document import PolicyError, Problem, name_of
from ringfence.policies.load import SHIPPED, load_policy
from ringfence.policies.types import Policy, UpstreamChoice
from ringfence.policies.words import Origin
from ringfence.proxy.keys import Keys, read_keys
from ringfence.proxy.live import Live
from ringfence.proxy.reply import Upstream
from ringfence.proxy.settings import Settings, policy_path
from ringfence.proxy.upstreams import open_upstream


class UnsafeBinding(ValueError):
    """The server would be open to other machines, and nobody set a key."""


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that a running proxy is made of."""

    settings: Settings
    live: Live
    upstream: Upstream
    store: Store
    keys: Keys = field(default_factory=dict)


def build(
    settings: Settings,
    *,
    upstream: Upstream | None = None,
    checks: Mapping[str, Check] | None = None,
    warm: bool = False,
) -> Service:
    """Put the parts together.

    Args:
        upstream, checks: stand in for those that the policy names.
        warm: have the checks load what they need now, and not at the first exchange.

    Raises:
        PolicyError, UnknownCheck, UnknownUpstream, WeightsMissing, StoreError, UnsafeBinding: nothing is served.
    """
    if not settings.needs_key and not settings.is_local:
        raise UnsafeBinding(
            f"refusing to listen on {settings.host} without a key: set RINGFENCE_API_KEY, or keep to 127.0.0.1"
        )
    keys = read_keys(settings.keys) if settings.keys else {}
    path = policy_path(settings.policy) or SHIPPED  # settled here: while it is gone, no other takes its place
    first = load_policy(path)
    store = Store.open(settings.audit_path or Path(first.audit.path))
    with ThreadPoolExecutor(1) as beside:  # a model and the guard's take seconds each: side by side, fewer
        opening = beside.submit(lambda: upstream or open_upstream(_choice(first, settings)))
        live = Live(_maker(path, first, settings, store, load_checks() if checks is None else checks), path)
        if warm:
            live.guard.warm()
        return Service(settings, live, opening.result(), store, keys)


def _maker(
    path: Path, first: Policy, settings: Settings, store: Store, installed: Mapping[str, Check]
) -> Callable[[], Guard]:
    """Return what makes a guard of what the policy's files hold at the time.

    Args:
        first: what they held when the server started.
    """
    history = History()

    def make() -> Guard:
        nonlocal installed
        installed = renewed(installed)
        policy = load_policy(path)
        problems = list(_unchangeable(_settled(first, settings), _settled(policy, settings), policy, path))
        if first.rules and not policy.rules:  # half a file that a save has not finished, say
            what = "there is no rule any more, so that everything would pass; restart the server if that is meant"
            problems.append(Problem(Origin(name_of(path)), what))
        if problems:
            raise PolicyError(problems)
        return Guard(policy, checks=installed, store=store, history=history)

    return make


def _choice(policy: Policy, settings: Settings) -> UpstreamChoice:
    return replace(policy.upstream, use=settings.upstream or policy.upstream.use)


def _settled(policy: Policy, settings: Settings) -> Mapping[str, object]:
    """Return what is settled while a server runs: one log is one chain, and an upstream may be a model in memory."""
    upstream = {f"upstream.{key}": value for key, value in asdict(_choice(policy, settings)).items()}
    return upstream | {"audit.path": str(settings.audit_path or policy.audit.path)}


def _unchangeable(
    then: Mapping[str, object], now: Mapping[str, object], policy: Policy, path: Path
) -> Iterator[Problem]:
    for key, value in now.items():
        if value != then[key]:
            written = policy.origins.get(key) or policy.origins.get(key.partition(".")[0]) or Origin(name_of(path))
            what = f"'{key}' is {then[key]!r} in the running server, and cannot become {value!r}"
            yield Problem(written, f"{what}; restart the server to change it")
