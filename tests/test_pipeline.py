"""Checks are run, their failures settled, their findings decided."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from ringfence.guard.actions import put, rewrite_body
from ringfence.guard.check import Check, Finding, Passage, Span, UnknownCheck, own_checks
from ringfence.guard.exchange import Exchange, Kind, Part
from ringfence.guard.guard import Guard, TooLong
from ringfence.guard.pipeline import Pipeline, Pipelines
from ringfence.policies.own import Keywords
from ringfence.policies.types import Action, Exemption, Limits, Policy, Rule, Stage
from ringfence.policies.words import Origin


@dataclass
class HangingCheck:
    """Answers only once it is let go."""

    name: str = "hanging"
    categories: frozenset[str] = frozenset({"hang"})
    let_go: threading.Event = field(default_factory=threading.Event)

    def find(self, passage: Passage) -> Sequence[Finding]:
        self.let_go.wait(30)
        return []


@pytest.fixture
def hanging() -> Iterator[HangingCheck]:
    check = HangingCheck()
    yield check
    check.let_go.set()


def passage(text: str, part: int = 0) -> Passage:
    return Passage(Stage.INPUT, "user", text, part=part)


def test_a_rule_over_a_category_that_nobody_answers_for_names_the_known_ones(checks: dict[str, Check]) -> None:
    policy = Policy(name="p", rules=(Rule("typo", "bonb", Action.BLOCK),))
    with pytest.raises(UnknownCheck, match="category 'bonb', which no check answers for; did you mean 'bomb'"):
        Pipeline(policy, checks)


def test_two_checks_for_one_category_are_refused(policy: Policy, checks: dict[str, Check], word_check: type) -> None:
    impostor = word_check("bomb", "never")
    with pytest.raises(UnknownCheck, match="both answer for category 'bomb'"):
        Pipeline(policy, {"impostor": impostor, **checks})


def test_a_category_of_the_policys_own_that_an_installed_check_has_is_told_where_it_is_written(
    policy: Policy, checks: dict[str, Check]
) -> None:
    own = Keywords("keywords", "bomb", ("fuse",), origin=Origin("shop.yaml", 7, 5))
    place = (
        r"shop\.yaml:7:5: the checks 'word-bomb' and 'bomb' both answer for category 'bomb', of which one is installed"
    )
    with pytest.raises(UnknownCheck, match=place):
        Pipelines(replace(policy, checks=(own,)), {**checks, **own_checks([own])})


def test_only_checks_behind_a_rule_of_the_stage_are_run(policy: Policy, checks: dict[str, Check]) -> None:
    pipeline = Pipeline(policy, checks)
    pipeline.judge(Stage.INPUT, [passage("a leak")])
    assert checks["word-bomb"].seen == ["a leak"]  # type: ignore[attr-defined]
    assert checks["word-leak"].seen == []  # type: ignore[attr-defined]
    pipeline.judge(Stage.OUTPUT, [passage("a leak")])
    assert checks["word-leak"].seen == ["a leak"]  # type: ignore[attr-defined]


def test_spans_carry_the_part_of_their_passage(policy: Policy, checks: dict[str, Check]) -> None:
    decision = Pipeline(policy, checks).judge(Stage.INPUT, [passage("none"), passage("it is 12345", part=3)])
    assert [r.span for r in decision.rewrites] == [Span(3, 6, 11)]


@pytest.mark.parametrize("on_error", list(Action))
def test_a_check_that_raises_is_settled_by_the_rules_on_error(broken_check: Check, on_error: Action) -> None:
    policy = Policy(name="p", rules=(Rule("r", "broken", Action.LOG, on_error=on_error),))
    decision = Pipeline(policy, {"broken": broken_check}).judge(Stage.INPUT, [passage("x")])
    assert decision.action is on_error
    assert decision.errors == ("broken: failed with RuntimeError",)


@pytest.mark.parametrize("texts", [["0.9", "nan"], ["nan", "0.1"]])
def test_a_check_that_gives_no_number_has_failed(texts: list[str]) -> None:
    class Numbers:
        name = "numbers"
        categories = frozenset({"number"})

        def find(self, passage: Passage) -> Sequence[Finding]:
            return [Finding("numbers", "number", float(passage.text), (Span(0, 0, 1),))]

    policy = Policy(name="p", rules=(Rule("r", "number", Action.LOG, threshold=0.95),))
    decision = Pipeline(policy, {"n": Numbers()}).judge(Stage.INPUT, [passage(t, at) for at, t in enumerate(texts)])
    assert (decision.action, decision.unanswered) == (Action.BLOCK, {"r": Action.BLOCK})
    assert decision.errors == (
        "numbers: the check 'numbers' gave a score that is not a number; look at what it runs on",
    )


def test_a_check_that_hangs_counts_as_failed_and_the_others_still_count(
    hanging: HangingCheck, checks: dict[str, Check]
) -> None:
    rules = (Rule("h", "hang", Action.LOG, on_error=Action.LOG), Rule("b", "bomb", Action.BLOCK))
    policy = Policy(name="p", rules=rules, limits=Limits(check_seconds=0.2))
    decision = Pipeline(policy, {"hanging": hanging, **checks}).judge(Stage.INPUT, [passage("a bomb")])
    assert decision.action is Action.BLOCK
    assert (decision.rules, decision.unanswered) == (("b",), {"h": Action.LOG})
    assert "limits.check_seconds" in decision.errors[0]


def test_an_exempt_role_is_left_alone_and_the_coverage_names_the_policy_line(
    policy: Policy, checks: dict[str, Check]
) -> None:
    trusting = replace(policy, exempt=(Exemption("system", "the operator wrote it"),))
    parts = [
        Part(Kind.TEXT, "system", ("messages", 0, "content"), "never say bomb"),
        Part(Kind.TEXT, "user", ("messages", 1, "content"), "hi"),
        Part(Kind.MEDIA, "user", ("messages", 2, "content", 0)),
    ]
    exchange = Exchange("test", "m", parts)
    assert Guard(trusting, checks=checks).judge_request(exchange).action is Action.ALLOW
    assert [(c.where, c.status.value) for c in exchange.coverage] == [
        ("messages[0].content", "exempt"),
        ("messages[1].content", "judged"),
        ("messages[2].content[0]", "unjudged"),
    ]
    assert exchange.coverage[0].why == "<memory>:1:1: the operator wrote it"


def test_what_nobody_can_read_is_a_finding_that_rules_settle(policy: Policy, checks: dict[str, Check]) -> None:
    strict = replace(policy, rules=(*policy.rules, Rule("no-media", "unjudged.media", Action.BLOCK)))
    exchange = Exchange("test", "m", [Part(Kind.MEDIA, "user", ("messages", 0, "content", 0))])
    decision = Guard(strict, checks=checks).judge_request(exchange)
    assert (decision.action, decision.rules) == (Action.BLOCK, ("no-media",))


def test_text_beyond_the_limit_is_not_judged_and_never_called_judged(policy: Policy, checks: dict[str, Check]) -> None:
    guard = Guard(replace(policy, limits=Limits(text=10)), checks=checks)
    exchange = Exchange("test", "m", [Part(Kind.TEXT, "user", ("p",), "x" * 11)])
    with pytest.raises(TooLong, match="11 characters of text; this service takes 10"):
        guard.judge_request(exchange)
    assert [c.status.value for c in exchange.coverage] == ["unjudged"]
    assert exchange.decisions == []


def test_rewriting_touches_the_named_strings_only(guard: Guard) -> None:
    parts = [Part(Kind.TEXT, "user", ("m", 1, "text"), "it is 12345 or 6789")]
    exchange = Exchange("test", "m", parts, body={"m": [{"text": "12345"}, {"text": parts[0].text}], "n": [1]})
    before = exchange.body
    decision = guard.judge_request(exchange)
    assert exchange.body == {"m": [{"text": "12345"}, {"text": "it is [NUMBER] or [NUMBER]"}], "n": [1]}
    assert before["m"][1]["text"] == parts[0].text
    assert rewrite_body(before, parts, decision) == exchange.body
    assert put("whole", (), "new") == "new"
