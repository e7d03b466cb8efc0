"""The lock file beside a policy: the thresholds that its targets came to. Knows files; knows nothing of fitting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter

from ringfence.policies.document import PolicyError, Problem, name_of, read_document
from ringfence.policies.types import Fitted, Policy, Rule
from ringfence.policies.words import STRICT_KEYS, Name

HEADER = "# Written by `ringfence policy fit`. Keep it with the policy; do not edit it, fit anew.\n"


@dataclass(frozen=True, slots=True)
class LockFile:
    """What was fitted.

    Attributes:
        version: of this format.
        rules: by id.
    """

    __pydantic_config__ = STRICT_KEYS

    version: Literal[1] = 1
    rules: Mapping[Name, Fitted] = field(default_factory=dict)


def lock_beside(path: Path) -> Path:
    """Return where the lock file of a policy is kept: `policy.yaml`, `policy.lock.yaml`."""
    return path.with_suffix(".lock.yaml")


def dumps_lock(lock: LockFile) -> str:
    """Return the text of a lock file."""
    return HEADER + yaml.safe_dump(TypeAdapter(LockFile).dump_python(lock, mode="json"), sort_keys=False)


def resolve(policy: Policy, path: Path | None) -> Policy:
    """Return the policy with the threshold of every target.

    Args:
        path: the policy's own file; None where it has none, and so no lock file.

    Raises:
        PolicyError: a target has no threshold, or one that was fitted to something else.
    """
    if all(rule.target is None for rule in policy.rules):
        return policy
    there = path is not None and lock_beside(path).is_file()
    lock = read_document(lock_beside(path), LockFile).value if path and there else LockFile()
    if path is None:
        hint = "only a policy read from its file has a lock file: write a 'threshold'"
    else:
        hint = f"run: ringfence policy fit {name_of(path)} --data LABELLED.jsonl"
    unfit = ((rule, _unfit(rule, lock.rules.get(rule.id))) for rule in policy.rules)
    problems = [Problem(rule.written_at("target"), f"rule '{rule.id}' {what}; {hint}") for rule, what in unfit if what]
    if problems:
        raise PolicyError(problems)
    return replace(policy, rules=tuple(_with_threshold(rule, lock.rules.get(rule.id)) for rule in policy.rules))


def _unfit(rule: Rule, fitted: Fitted | None) -> str | None:
    if rule.target is None:
        return None
    if fitted is None:
        return f"has a target ({rule.target}) that no threshold was fitted to"
    then = (str(fitted.target), fitted.category, ", ".join(sorted(fitted.samples)))
    now = (str(rule.target), rule.category, ", ".join(sorted(rule.stages)))
    if then != now:
        return f"has changed since its threshold was fitted: from {' · '.join(then)} to {' · '.join(now)}"
    return None


def _with_threshold(rule: Rule, fitted: Fitted | None) -> Rule:
    if rule.target is None or fitted is None:
        return rule
    return replace(rule, threshold=fitted.threshold, fitted=fitted)
