"""The lock file beside a policy: the thresholds that its targets came to. Knows files; knows nothing of fitting.

The sum of an entry shows that somebody edited it, not who; against somebody who sums anew it protects nothing.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import rfc8785
import yaml
from pydantic import TypeAdapter

from ringfence.policies.document import Document, PolicyError, Problem, name_of, read_document
from ringfence.policies.types import Condition, Fitted, Policy, Rule, Target
from ringfence.policies.words import STRICT_KEYS, WHOLE, Name

HEADER = "# Written by `ringfence policy fit`. Keep it with the policy; do not edit it, fit anew.\n"


@dataclass(frozen=True, slots=True)
class Entry(Fitted):
    """What was fitted for one rule.

    Attributes:
        sha256: over the canonical form (RFC 8785) of the rest, hexadecimal.
    """

    sha256: str


@dataclass(frozen=True, slots=True)
class LockFile:
    """What was fitted.

    Attributes:
        version: of this format.
        rules: by id.
    """

    __pydantic_config__ = STRICT_KEYS

    version: Annotated[Literal[3], WHOLE] = 3
    rules: Mapping[Name, Entry] = field(default_factory=dict)


def lock_beside(path: Path) -> Path:
    """Return where the lock file of a policy is kept: `policy.yaml`, `policy.lock.yaml`."""
    return path.with_suffix(".lock.yaml")


def entry_of(fitted: Fitted) -> Entry:
    """Return what was fitted with the sum over it."""
    values = {f.name: getattr(fitted, f.name) for f in fields(Fitted)}
    plain = TypeAdapter(Fitted).dump_python(Fitted(**values), mode="json", by_alias=True)
    return Entry(**values, sha256=sha256(rfc8785.dumps(plain)).hexdigest())


def dumps_lock(lock: LockFile) -> str:
    """Return the text of a lock file."""
    return HEADER + yaml.safe_dump(TypeAdapter(LockFile).dump_python(lock, mode="json", by_alias=True), sort_keys=False)


def resolve(policy: Policy, path: Path | None) -> Policy:
    """Return the policy with the threshold of every target.

    Args:
        path: the policy's own file; None where it has none, and so no lock file.

    Raises:
        PolicyError: a target has no threshold, or one that was fitted to something else; the lock file cannot be read,
            or somebody edited it.
    """
    if all(rule.target is None for rule in policy.rules):
        return policy
    if path is None:
        hint = "only a policy read from its file has a lock file: write a 'threshold'"
    else:
        hint = f"run: ringfence policy fit {name_of(path)} --data LABELLED.jsonl"
    there = path is not None and lock_beside(path).is_file()
    lock = _read(lock_beside(path), hint) if path and there else Document(LockFile(), {})
    unfit = ((rule, _unfit(rule, lock.value.rules.get(rule.id), policy.layers[:-1])) for rule in policy.rules)
    problems = [Problem(rule.written_at("target"), f"rule '{rule.id}' {what}; {hint}") for rule, what in unfit if what]
    if problems:
        raise PolicyError(problems)
    return replace(policy, rules=tuple(_with_threshold(rule, lock) for rule in policy.rules))


def _read(path: Path, hint: str) -> Document[LockFile]:
    try:
        document = read_document(path, LockFile)
    except PolicyError as error:
        raise PolicyError(replace(problem, what=f"{problem.what}; {hint}") for problem in error.problems) from None
    what = "was edited since it was fitted: its sha256 is not that of the rest"
    edited = [
        Problem(document.at("rules", name), f"the entry of rule '{name}' {what}; {hint}")
        for name, entry in document.value.rules.items()
        if entry != entry_of(entry)
    ]
    if edited:
        raise PolicyError(edited)
    return document


def _unfit(rule: Rule, fitted: Fitted | None, extended: Iterable[Path]) -> str | None:
    if rule.target is None:
        return None
    if fitted is None:
        return f"has a target ({rule.target}) that no threshold was fitted to{_elsewhere(rule, extended)}"
    then = _promised(fitted.target, fitted.category, fitted.samples, fitted.roles, fitted.when)
    now = _promised(rule.target, rule.category, rule.stages, rule.roles, rule.when)
    return None if then == now else f"has changed since its threshold was fitted: from {then} to {now}"


def _elsewhere(rule: Rule, extended: Iterable[Path]) -> str:
    """Name a lock file of a policy extended that has a threshold for the rule: no policy has another's thresholds."""
    for path in map(lock_beside, extended):
        with suppress(PolicyError):  # what is wrong with it is for that policy to say
            if path.is_file() and rule.id in read_document(path, LockFile).value.rules:
                return f" for this policy ({name_of(path)} counts only for the policy beside it)"
    return ""


def _promised(
    target: Target, category: str, stages: Iterable[str], roles: Iterable[str], when: Condition | None
) -> str:
    """Say what a promise is about: with any of it another, its threshold is too."""
    of = f" of {', '.join(sorted(roles))}" if roles else ""
    only = f" when {_CONDITION.dump_json(when, by_alias=True, exclude_none=True).decode()}" if when else ""
    return f"{target} · {category} · {', '.join(sorted(stages))}{of}{only}"


_CONDITION = TypeAdapter(Condition)


def _with_threshold(rule: Rule, lock: Document[LockFile]) -> Rule:
    if rule.target is None:
        return rule
    fitted = lock.value.rules[rule.id]
    origins = {**rule.origins, "threshold": lock.at("rules", rule.id, "threshold")}
    return replace(rule, threshold=fitted.threshold, fitted=fitted, origins=origins)
