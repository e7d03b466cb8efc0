"""pytest: what an application's own tests say about a policy. Costs nothing until a test asks for it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # pytest loads this file in every run, whoever's tests they are
    from ringfence.guard.guard import Guard
    from ringfence.policies.types import Decision, Span

AssertSafe = Callable[..., None]
AssertBlocked = Callable[..., None]

AROUND = 30
"""Code points shown on either side of what was found."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("ringfence").addoption(
        "--ringfence-policy", metavar="FILE", help="the policy that assert_safe and assert_blocked judge by"
    )


@pytest.fixture(scope="session")
def ringfence_guard(pytestconfig: pytest.Config) -> "Guard":
    """The guard that the assertions ask: by the policy of `--ringfence-policy`, or by the one that ships. No record."""
    from ringfence.guard.guard import Guard

    return Guard(pytestconfig.getoption("ringfence_policy"))


@pytest.fixture
def assert_safe(ringfence_guard: "Guard") -> AssertSafe:
    """`assert_safe(text, stage="output")`: the policy lets the text pass as it is, and every check could answer."""

    def check(text: str, stage: str = "output", *, prompt: str = "", role: str = "") -> None:
        __tracebackhide__ = True
        decision = _judged(ringfence_guard, text, stage, prompt, role)
        if decision.action in ("block", "rewrite") or decision.errors:
            what = (
                "nobody knows whether the text passes" if decision.errors else f"the policy would {decision.action} it"
            )
            pytest.fail(_told(f"expected the {stage} to pass, but {what}", text, decision), pytrace=False)

    return check


@pytest.fixture
def assert_blocked(ringfence_guard: "Guard") -> AssertBlocked:
    """`assert_blocked(text, rule="pii")`: a rule of the policy blocks the text, this one where one is named.

    A block because a check could not answer is none.
    """

    def check(text: str, stage: str = "input", *, rule: str | None = None, prompt: str = "", role: str = "") -> None:
        __tracebackhide__ = True
        decision = _judged(ringfence_guard, text, stage, prompt, role)
        known = [known.id for known in ringfence_guard.policy.rules]
        if rule is not None and rule not in known:
            pytest.fail(f"the policy has no rule '{rule}'; it has: {', '.join(known) or 'none'}", pytrace=False)
        if decision.action != "block" or not decision.rules or (rule is not None and rule not in decision.rules):
            wanted = f" by '{rule}'" if rule else ""
            pytest.fail(_told(f"expected the {stage} to be blocked{wanted}", text, decision), pytrace=False)

    return check


def _judged(guard: "Guard", text: str, stage: str, prompt: str, role: str) -> "Decision":
    from ringfence.policies.types import Stage

    if stage not in list(Stage):
        pytest.fail(f"there is no stage '{stage}'; there are: {', '.join(Stage)}", pytrace=False)
    return guard.check(text, Stage(stage), prompt, role=role)


def _told(what: str, text: str, decision: "Decision") -> str:
    return "\n".join([what, f"  decision: {decision.action}", *_reasons(text, decision)])


def _reasons(text: str, decision: "Decision") -> Iterator[str]:
    if decision.rules:
        yield f"  by rules: {', '.join(decision.rules)}"
    for error in decision.errors:
        yield f"  failed: {error}"
    for finding in sorted(decision.findings, key=lambda finding: -finding.score):
        where = "; ".join(_shown(text, span) for span in finding.spans)
        yield f"  {finding.category} {finding.score:g} ({finding.check}){': ' + where if where else ''}"


def _shown(text: str, span: "Span") -> str:
    before, after = text[max(0, span.start - AROUND) : span.start], text[span.end : span.end + AROUND]
    return f"[{span.start}:{span.end}] {before!r} >>> {text[span.start : span.end]!r} <<< {after!r}"
