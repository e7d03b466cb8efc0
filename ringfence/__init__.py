"""ringfence: a safety layer for language models that you run yourself.

`Guard` judges texts by a policy, `guarded` wraps any function that returns or yields text; the rest are the values
that they speak in. The proxy and the command line live below `ringfence.proxy`.
"""

from ringfence.guard.check import Check, Passage
from ringfence.guard.decorator import guarded
from ringfence.guard.guard import Blocked, Guard
from ringfence.policies.load import PolicyError, load_policy
from ringfence.policies.types import Action, Decision, Finding, Policy, Rule, Span, Stage

__all__ = [
    "Action",
    "Blocked",
    "Check",
    "Decision",
    "Finding",
    "Guard",
    "Passage",
    "Policy",
    "PolicyError",
    "Rule",
    "Span",
    "Stage",
    "guarded",
    "load_policy",
]
