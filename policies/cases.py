"""Examples of what a policy must catch and must leave alone, and the run of a policy against them.

Knows no check and no pipeline: who judges is handed in.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from ringfence.policies.document import PolicyError, Problem, did_you_mean, read_document
from ringfence.policies.findable import UNREAD
from ringfence.policies.types import Action, Decision, Policy, Rule, Stage
from ringfence.policies.words import STRICT_KEYS, Name, Origin, Route, Voice, Written, lineage, root


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
class Whose:
    """Whose exchange a case is, as scopes ask for it; what is left out is known to none of them.

    Attributes:
        tenant: whose exchange it is.
        key: by which key the caller came; the key's id, never the key.
        model: the model that the caller asks for.
        route: how the exchange came.
    """

    __pydantic_config__ = STRICT_KEYS

    tenant: str = ""
    key: str = ""
    model: str = ""
    route: Route | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One example.

    Attributes:
        text: what is judged.
        expect: what must come of it.
        stage: when it is judged.
        prompt: on the output stage, what the text answers.
        system: on the output stage, what the operator told the model.
        role: whose text it is, as rules name it: `tool`, `tool_call` …; where it is left out, the user's on the input
            stage and the assistant's on the output stage.
        for_: written `for`: whose exchange it is, for overlays and exceptions that are about some exchanges only.
        why: what the case is there for.
        known: why it does not pass yet, and is kept all the same: it is shown, and makes no run fail.
    """

    __pydantic_config__ = STRICT_KEYS

    text: Pieces
    expect: Expected
    stage: Stage = Stage.INPUT
    prompt: Pieces = ""
    system: Pieces = ""
    role: Voice | None = None
    for_: Annotated[Whose, Field(alias="for")] = Whose()
    why: str = ""
    known: str = ""
    origin: Written = field(default_factory=Origin, compare=False)

    @property
    def voice(self) -> str:
        """Whose text it is, also where the case does not say."""
        return self.role or ("user" if self.stage is Stage.INPUT else "assistant")


Judge = Callable[[Case], tuple[Decision, str]]
"""Judges the text of a case; returns the decision and the text as rewritten by it."""


class Outcome(StrEnum):
    """What came of a case; KNOWN where it fails as it says of itself, ERROR where a check could not answer."""

    PASS = "pass"  # noqa: S105 — no password
    KNOWN = "known"
    FAIL = "fail"
    ERROR = "error"


COUNTED = {Outcome.PASS: "passing", Outcome.KNOWN: "known", Outcome.FAIL: "failing", Outcome.ERROR: "failing"}
"""As what a tally counts an outcome."""


@dataclass(frozen=True, slots=True)
class Result:
    """A case, what came of it, how that differs from what must, seconds that judging took, and which rules decided."""

    case: Case
    outcome: Outcome
    difference: str = ""
    seconds: float = 0.0
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases and the rules that they are about: those of one file."""

    policy: Policy
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many cases pass, fail as they say of themselves, and fail otherwise or have no answer."""

    passing: int = 0
    known: int = 0
    failing: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """How many cases show what the rules over one category, or one above it, do.

    Attributes:
        caught: cases that name such a rule under `expect.rules`; or that name none and expect more than `allow`, and
            such a rule decided, or they did not pass and their file is about categories of this first word alone.
        left_alone: cases that expect `allow` and name no rule, in a file about these rules among others perhaps.
    """

    caught: Tally
    left_alone: Tally


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

    A pack's cases are about the pack's rules alone, as this policy has them without its overlays; the policy's own
    cases, and those of the policies that it extends, are about everything together. Those of others that name a rule
    which the policy removed are left out.

    Args:
        path: the policy's own file; None where it has none.

    Raises:
        PolicyError: a case file has problems, or names a rule that there is not.
    """
    gone = frozenset(removal.rule for removal in policy.removed)
    whole = dict.fromkeys(file.resolve() for file in (*policy.layers, *([path] if path else [])))
    for file in dict.fromkeys(Path(rule.origin.file) for rule in policy.rules):
        if file.resolve() not in whole and cases_beside(file).is_file():
            of_file = tuple(rule for rule in policy.rules if Path(rule.origin.file) == file)
            yield _suite(replace(policy, rules=of_file, overlays=()), cases_beside(file), "pack", gone)
    own = path.resolve() if path else None
    for file in whole:
        if cases_beside(file).is_file():
            yield _suite(policy, cases_beside(file), "policy", frozenset() if file == own else gone)


def _suite(policy: Policy, path: Path, about: str, gone: Set[str]) -> Suite:
    """Return the cases of a file that name none but rules of the policy.

    Args:
        about: what the policy is called where it has no such rule.
        gone: ids of rules that it has not, and whose cases are left out.

    Raises:
        PolicyError: the file has problems, or names a rule that there is not.
    """
    cases = read_cases(path)
    known = dict.fromkeys(rule.id for rule in policy.every_rule)
    named = [(case, name) for case in cases for name in case.expect.rules]
    if strange := [(case, name) for case, name in named if name not in known and name not in gone]:
        whats = ((case, f"no rule '{name}' in the {about}" + did_you_mean(name, known)) for case, name in strange)
        raise PolicyError(Problem(case.origin, what) for case, what in whats)
    return Suite(policy, tuple(case for case in cases if known.keys() >= {*case.expect.rules}))


def run_cases(cases: Iterable[Case], judge: Judge, clock: Callable[[], float] = perf_counter) -> Iterator[Result]:
    """Judge each case and compare."""
    for case in cases:
        started = clock()
        decision, rewritten = judge(case)
        seconds = clock() - started
        outcome, told = _outcome(case, decision, rewritten)
        yield Result(case, outcome, told, seconds, decision.rules)


def without_cases(policy: Policy, suites: Sequence[Suite]) -> list[Rule]:
    """Return the rules that no case names under `expect.rules`; of what nobody can read there are no cases."""
    named = {rule_id for suite in suites for case in suite.cases for rule_id in case.expect.rules}
    return [rule for rule in policy.every_rule if rule.id not in named and root(rule.category) not in UNREAD]


def coverage_of(policy: Policy, runs: Iterable[tuple[Suite, Sequence[Result]]]) -> dict[str, Shown]:
    """Count the cases of each category that the policy's rules look at, in the order of its rules.

    Args:
        runs: the cases of each file, and what came of them.
    """
    looks_at = {rule.id: rule.category for rule in policy.every_rule}
    caught, left_alone = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for suite, results in runs:
        about = {rule.category for rule in suite.policy.every_rule}
        for result in results:
            counted = COUNTED[result.outcome]
            if not result.case.expect.rules and result.case.expect.action is Action.ALLOW:
                left_alone.update((name, counted) for name in about)
            else:
                # A rule over `harm` looks at what is found of `harm.S9` too.
                shown = {above for name in _shown_by(result, looks_at, about) for above in lineage(name)}
                caught.update((name, counted) for name in shown)
    return {
        name: Shown(
            *(Tally(**{one.name: counts[name, one.name] for one in fields(Tally)}) for counts in (caught, left_alone))
        )
        for name in looks_at.values()
        if root(name) not in UNREAD
    }


def _shown_by(result: Result, looks_at: Mapping[str, str], about: Set[str]) -> Set[str]:
    """Return the categories of the rules that a case is about, which expects one to fire."""
    if result.case.expect.rules:
        return {looks_at[rule_id] for rule_id in result.case.expect.rules if rule_id in looks_at}
    if result.outcome is Outcome.PASS:
        return {looks_at[rule_id] for rule_id in result.rules}
    return about if len(set(map(root, about))) == 1 else set()


def _outcome(case: Case, decision: Decision, rewritten: str) -> tuple[Outcome, str]:
    if decision.errors:
        return Outcome.ERROR, "; ".join(decision.errors)
    if difference := "; ".join(_differences(case.expect, decision, rewritten)):
        return (Outcome.KNOWN, f"{difference} (known: {case.known})") if case.known else (Outcome.FAIL, difference)
    return Outcome.PASS, "it passes by now: take 'known' out" if case.known else ""


def _differences(expect: Expected, decision: Decision, rewritten: str) -> Iterator[str]:
    fired = (*decision.rules, *decision.logged, *decision.shadow)
    if decision.action is not expect.action:
        yield f"expected {expect.action}, got {decision.action} by {', '.join(fired) or 'no rule'}"
    if missing := [rule_id for rule_id in expect.rules if rule_id not in fired]:
        yield f"did not fire: {', '.join(missing)}"
    if expect.text is not None and rewritten != expect.text:
        yield f"expected the text {expect.text!r}, got {rewritten!r}"
