"""Examples of what a policy must catch and must leave alone, and the run of a policy against them.

Knows no check and no pipeline: who judges is handed in.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from ringfence.policies.decide import covers
from ringfence.policies.document import read_document
from ringfence.policies.types import STRICT_KEYS, Action, Decision, Name, Origin, Policy, Rule, Stage, Written

Judge = Callable[[Stage, str, str], tuple[Decision, str]]
"""Judges `(stage, text, prompt)`; returns the decision and the text as rewritten by it."""


def _joined(value: object) -> object:
    pieces = isinstance(value, list) and all(isinstance(piece, str) for piece in value)
    return "".join(value) if pieces and isinstance(value, list) else value


Pieces = Annotated[
    str,
    BeforeValidator(_joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""Text, or a list of pieces put together without a gap: a key in two pieces alarms no scanner of repositories."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of a case.

    Attributes:
        action: what the decision must be.
        rules: ids that must have fired, among others perhaps.
        text: what the text must have become; None where that does not matter.
    """

    __pydantic_config__ = STRICT_KEYS

    action: Action
    rules: tuple[Name, ...] = ()
    text: Pieces | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One example.

    Attributes:
        text: what is judged.
        expect: what must come of it.
        stage: when it is judged.
        prompt: on the output stage, what the text answers.
        why: what the case is there for.
    """

    __pydantic_config__ = STRICT_KEYS

    text: Pieces
    expect: Expected
    stage: Stage = Stage.INPUT
    prompt: Pieces = ""
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)


class Outcome(StrEnum):
    """What came of a case; ERROR where a check could not answer."""

    PASS = "pass"  # noqa: S105 — no password
    FAIL = "fail"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Result:
    """A case, what came of it, and how that differs from what must."""

    case: Case
    outcome: Outcome
    difference: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases and the rules that they are about: those of one file."""

    policy: Policy
    cases: tuple[Case, ...]


def cases_beside(path: Path) -> Path:
    """Return where the cases of a policy or pack file are kept: `pii.yaml`, `pii.cases.yaml`."""
    return path.with_suffix(".cases.yaml")


def read_cases(path: Path) -> tuple[Case, ...]:
    """Read a case file: a list of cases.

    Raises:
        PolicyError: with every problem of the file.
    """
    document = read_document(path, tuple[Case, ...])
    return tuple(replace(case, origin=document.at(i)) for i, case in enumerate(document.value))


def suites_of(policy: Policy, path: Path | None = None) -> Iterator[Suite]:
    """Yield the cases of each file that the policy has rules from, and those beside the policy itself.

    A pack's cases are about the pack's rules alone, as this policy has them; the policy's own cases are about
    everything together.

    Args:
        path: the policy's own file; None where it has none.

    Raises:
        PolicyError: a case file has problems.
    """
    files = dict.fromkeys(Path(rule.origin.file) for rule in policy.rules)
    for file in files:
        if (path is None or file.resolve() != path.resolve()) and cases_beside(file).is_file():
            of_file = tuple(rule for rule in policy.rules if Path(rule.origin.file) == file)
            yield Suite(replace(policy, rules=of_file), read_cases(cases_beside(file)))
    if path and cases_beside(path).is_file():
        yield Suite(policy, read_cases(cases_beside(path)))


def run_cases(cases: Iterable[Case], judge: Judge) -> Iterator[Result]:
    """Judge each case and compare."""
    for case in cases:
        decision, rewritten = judge(case.stage, case.text, case.prompt)
        if decision.errors:
            yield Result(case, Outcome.ERROR, "; ".join(decision.errors))
        elif difference := "; ".join(_differences(case.expect, decision, rewritten)):
            yield Result(case, Outcome.FAIL, difference)
        else:
            yield Result(case, Outcome.PASS)


def without_cases(policy: Policy, suites: Sequence[Suite]) -> list[Rule]:
    """Return the rules that no case names under `expect.rules`; of what nobody can read there are no cases."""
    named = {rule_id for suite in suites for case in suite.cases for rule_id in case.expect.rules}
    return [rule for rule in policy.rules if rule.id not in named and not covers("unjudged", rule.category)]


def _differences(expect: Expected, decision: Decision, rewritten: str) -> Iterator[str]:
    fired = (*decision.rules, *decision.logged, *decision.shadow)
    if decision.action is not expect.action:
        yield f"expected {expect.action}, got {decision.action} by {', '.join(fired) or 'no rule'}"
    if missing := [rule_id for rule_id in expect.rules if rule_id not in fired]:
        yield f"did not fire: {', '.join(missing)}"
    if expect.text is not None and rewritten != expect.text:
        yield f"expected the text {expect.text!r}, got {rewritten!r}"
