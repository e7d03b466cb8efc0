"""Where an exchange is answered: one small module an upstream, found by entry point."""

from importlib.metadata import EntryPoint, entry_points
from typing import cast

from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.reply import Upstream

ENTRY_POINTS = "ringfence.upstreams"


class UnknownUpstream(LookupError):
    """No upstream has this name; the message lists those that do."""


def find_upstream(use: str) -> EntryPoint:
    """Return who opens the upstream of a name or a URL.

    Raises:
        UnknownUpstream: there is none of that name.
    """
    known = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    by_url = known.pop("http", None)
    found = by_url if use.startswith(("http://", "https://")) else known.get(use.partition(":")[0])
    if found is None:
        raise UnknownUpstream(
            f"upstream '{use}' is not known; use an OpenAI-compatible base URL (http://…/v1) or one of: "
            + ", ".join(sorted(known))
        )
    return found


def open_upstream(choice: UpstreamChoice) -> Upstream:
    """Open the upstream that a policy or a flag names: an entry point's name, or a URL for the `http` one.

    What follows a colon after the name, such as which model, is for the upstream to read.

    Raises:
        UnknownUpstream: there is none of that name.
        WeightsMissing, PullFailed: the embedded engine's weights were not pulled, or cannot be by that name.
    """
    return cast(Upstream, find_upstream(choice.use).load()(choice))
