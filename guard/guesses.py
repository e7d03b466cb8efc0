"""Tells what a guard's answer names from what it merely scores for its verdict's sake. Reads findings only."""

from collections.abc import Mapping, Sequence

from ringfence.guard.checks.guards.check import UNNAMED
from ringfence.policies.types import Finding


def guessed(findings: Sequence[Finding]) -> Mapping[Finding, Finding]:
    """Return the categories that a guard's answer does not name, each with the verdict that they merely score as.

    Of a text that was asked about in the clear as well, one answer may name some, and the other none: the verdict is
    then the higher.
    """
    verdicts = {(one.check, one.category, one.spans): one for one in findings}
    unnamed = (one for one in findings if UNNAMED in one.detail)
    found = ((one, verdicts.get((one.check, one.category.rpartition(".")[0], one.spans))) for one in unnamed)
    return {one: verdict for one, verdict in found if verdict}
