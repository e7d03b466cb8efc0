"""Checks are run, their failures settled, their findings decided."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from ringfence.guard.actions import put, rewrite_body
from ringfence.guard.audit.record import Body, Receipt, decisions_of
from ringfence.guard.check import CannotAnswer, Check, Finding, Passage, Span, UnknownCheck, own_checks
from ringfence.guard.exchange import Exchange, Kind, Part
from ringfence.guard.guard import Guard, TooLong
from ringfence.guard.pipeline import Pipeline, Pipelines
from ringfence.policies.own import Keywords
from ringfence.policies.types import Action, Condition, Degrade, Escalate, Exemption, Limits, Policy, Rule, Stage
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


LOOKS, TRIAL = Rule("looks", "hang", Action.LOG), Rule("trial", "hang", Action.BLOCK, shadow=True, seconds=0.1)
DOUBTS = Rule("doubts", "bomb", Action.LOG, escalate=Escalate("hang", (0.15, 0.85)))


@pytest.mark.parametrize(
    ("rules", "seconds"),
    [
        ([replace(LOOKS, seconds=0.2), TRIAL], "0.2"),
        ([LOOKS, TRIAL], "0.3"),
        ([replace(LOOKS, seconds=0.05), TRIAL], "0.05"),
        ([replace(DOUBTS, seconds=0.2), TRIAL], "0.2"),
        ([LOOKS, replace(DOUBTS, seconds=0.2), TRIAL], "0.3"),
        ([TRIAL, replace(TRIAL, id="longer", seconds=0.2)], "0.1"),
    ],
    ids=["its own", "the policy's", "shorter", "of one that doubts", "of one that looks", "all in shadow"],
)
def test_what_a_rule_in_shadow_says_of_time_takes_none_from_the_others(
    hanging: HangingCheck, checks: dict[str, Check], rules: list[Rule], seconds: str
) -> None:
    policy = Policy(name="p", rules=tuple(rules), limits=Limits(check_seconds=0.3))
    decision = Pipeline(policy, {"hanging": hanging, **checks}).judge(Stage.INPUT, [passage("a flower")])
    assert f"took longer than its {seconds} s" in decision.errors[0]


def conversation() -> list[Passage]:
    return [Passage(Stage.INPUT, role, f"{role} bomb", part=at) for at, role in enumerate(("system", "user", "tool"))]


BOMBS = Rule("tools", "bomb", Action.BLOCK, roles=("tool",))


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        ([BOMBS], "tool"),
        ([replace(BOMBS, shadow=True), replace(BOMBS, id="u", category="bomb.pipe", roles=("user",))], "user tool"),
        ([BOMBS, Rule("all", "bomb", Action.LOG)], "system user tool"),
        ([BOMBS, replace(BOMBS, id="reply", roles=("user",), stages=(Stage.OUTPUT,))], "tool"),
        ([Rule("k", "knife", Action.BLOCK, roles=("tool",), when=Condition("bomb"))], "system user tool"),
        ([Rule("k", "knife", Action.BLOCK, roles=("user",), on_error=Degrade("bomb"))], "user"),
        ([BOMBS, Rule("k", "knife", Action.LOG, roles=("user",), escalate=Escalate("bomb", (0, 0.5)))], "user tool"),
    ],
    ids=["one rule", "shadow and below", "of no role", "of another stage", "condition", "stand-in", "second opinion"],
)
def test_a_check_is_shown_what_a_rule_that_has_it_look_is_about_and_nothing_else(
    checks: dict[str, Check], rules: list[Rule], shown: str
) -> None:
    decision = Pipeline(Policy("p", tuple(rules)), checks).judge(Stage.INPUT, conversation())
    assert checks["word-bomb"].seen == [f"{role} bomb" for role in shown.split()]  # type: ignore[attr-defined]
    unheard = {"system", "user", "tool"}.difference(shown.split())
    assert set(decision.unheard.get("word-bomb", ())) == unheard


def test_text_of_a_role_that_no_rule_can_name_is_shown_to_every_check(checks: dict[str, Check]) -> None:
    decision = Pipeline(Policy("p", (BOMBS,)), checks).judge(Stage.INPUT, [Passage(Stage.INPUT, "critic", "bomb")])
    assert (decision.action, decision.unheard) == (Action.BLOCK, {})


def test_where_no_rule_is_about_any_text_no_check_is_run_and_the_record_says_that_none_looked(
    checks: dict[str, Check],
) -> None:
    kept: list[Body] = []

    class Memory:
        def append(self, body: Body) -> Receipt:
            kept.append(body)
            return Receipt(1, "")

    guard = Guard(Policy("p", (BOMBS,)), checks=checks, store=Memory())
    exchange = Exchange("test", "m", [Part(Kind.TEXT, "user", ("m", 0), "a bomb")])
    assert guard.judge_request(exchange).action is Action.ALLOW
    reply = guard.open_reply(exchange)
    reply.feed(("r", 0), "a bomb")
    assert reply.release(("r", 0), last=True) == "a bomb"
    reply.finish()
    guard.record(exchange)
    assert checks["word-bomb"].seen == []  # type: ignore[attr-defined]
    [body] = kept
    assert [(one["status"], one["why"]) for one in body["coverage"]] == [
        ("unjudged", "no rule of the policy has a check read the input of the role user"),
        ("unjudged", "no rule of the policy has a check read the output of the role assistant"),
    ]
    assert [one["unheard"] for one in body["decisions"]] == [{"word-bomb": ["user"]}, {"word-bomb": ["assistant"]}]
    assert decisions_of(body)[0].unheard == {"word-bomb": ("user",)}


def test_record_of_a_reply_alone_names_the_versions_that_judged_it(checks: dict[str, Check]) -> None:
    checks["word-bomb"].revision = "b-1"  # type: ignore[attr-defined]
    guard = Guard(Policy("p", (Rule("bombs", "bomb", Action.BLOCK),)), checks=checks)
    exchange = Exchange("test", "m", [Part(Kind.TEXT, "user", ("m", 0), "hello")])
    reply = guard.open_reply(exchange)
    reply.feed(("r", 0), "fine")
    reply.release(("r", 0), last=True)
    reply.finish()
    assert exchange.revisions == {"word-bomb": "b-1"}


@dataclass
class Forgetful:
    """Cannot read what one role says."""

    role: str
    name: str = "forgetful"
    categories: frozenset[str] = frozenset({"broken"})

    def find(self, passage: Passage) -> Sequence[Finding]:
        if passage.role == self.role:
            raise RuntimeError
        return []


def test_a_failure_is_about_the_roles_whose_text_could_not_be_looked_at() -> None:
    rules = (
        Rule("users", "broken", Action.BLOCK, roles=("user",), on_error=Action.LOG),
        Rule("tools", "broken", Action.BLOCK, roles=("tool",)),
    )
    pipeline = Pipeline(Policy("p", rules), {"forgetful": Forgetful("user")})
    assert pipeline.judge(Stage.INPUT, [conversation()[1]]).unanswered == {"users": Action.LOG}
    assert pipeline.judge(Stage.INPUT, [conversation()[2]]).unanswered == {}
    decision = pipeline.judge(Stage.INPUT, conversation())
    assert decision.unanswered == {"users": Action.LOG}  # of the others it has read every text
    assert [(one.role, [span.part for span in one.spans]) for one in decision.findings] == [("user", [1])]


@dataclass
class Choosy(Forgetful):
    """Finds every text, and cannot read those that mention one thing."""

    def find(self, passage: Passage) -> Sequence[Finding]:
        if self.role in passage.text:
            raise CannotAnswer("nobody can read that")
        return [Finding(self.name, "broken", 1.0, (Span(passage.part, 0, len(passage.text)),))]


def test_a_text_that_cannot_be_read_says_nothing_of_those_beside_it() -> None:
    pipeline = Pipeline(Policy("p", (Rule("r", "broken", Action.LOG),)), {"choosy": Choosy("riddle", "choosy")})
    texts = [Passage(Stage.INPUT, "user", text, part=part) for part, text in enumerate(["a", "a riddle", "b"])]
    found = pipeline.find(Stage.INPUT, texts, apart=True)
    assert sorted((one.spans[0].part, one.error) for one in found if one.error is None) == [(0, None), (2, None)]
    assert [(one.spans, one.error) for one in found if one.error] == [((Span(1, 0, 8),), "nobody can read that")]
    every = pipeline.find(Stage.INPUT, [texts[1], replace(texts[1], part=0)])
    assert [(one.spans, one.error) for one in every] == [((), "nobody can read that")]  # about all of them


def test_texts_that_are_apart_are_decided_each_and_nothing_beside_them(checks: dict[str, Check]) -> None:
    unless = Rule("r", "broken", Action.BLOCK, when=Condition(not_=Condition(category="number")))
    pipeline = Pipeline(Policy("p", (unless,)), {"forgetful": Forgetful("user"), **checks})
    texts = [passage("it is 12345"), passage("it is 54321", 1)]
    assert pipeline.judge(Stage.INPUT, texts, apart=True).action is Action.ALLOW
    assert pipeline.judge(Stage.INPUT, [*texts, passage("it is not", 2)], apart=True).action is Action.BLOCK


@dataclass
class Asking:
    """Asks somebody, who answers once three are asked about."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(3, timeout=20))
    name: str = "asking"
    categories: frozenset[str] = frozenset({"asked"})

    def away(self) -> str | None:
        return None

    def find(self, passage: Passage) -> Sequence[Finding]:
        self.barrier.wait()
        return []


def test_who_is_asked_elsewhere_is_asked_about_several_texts_at_once() -> None:
    pipeline = Pipeline(Policy("p", (Rule("r", "asked", Action.BLOCK),)), {"asking": Asking()})
    texts = [Passage(Stage.INPUT, "user", text, part=part) for part, text in enumerate("abc")]
    assert pipeline.judge(Stage.INPUT, texts).action is Action.ALLOW


def test_what_stands_in_for_a_failed_check_is_looked_for_in_text_of_the_rules_roles(checks: dict[str, Check]) -> None:
    rules = (
        Rule("tools", "broken", Action.BLOCK, roles=("tool",), on_error=Degrade("number")),
        Rule("numbers", "number", Action.LOG),
    )
    pipeline = Pipeline(Policy("p", rules), {"forgetful": Forgetful("tool"), **checks})
    by_user, by_tool = Passage(Stage.INPUT, "user", "it is 12345"), Passage(Stage.INPUT, "tool", "none", part=1)
    assert pipeline.judge(Stage.INPUT, [by_user, by_tool]).action is Action.LOG
    assert pipeline.judge(Stage.INPUT, [by_user, replace(by_tool, text="12345")]).action is Action.BLOCK


def test_only_a_check_that_ordinary_text_is_shown_to_stops_everything_where_it_is_missing(
    checks: dict[str, Check],
) -> None:
    assert not Pipeline(Policy("p", (BOMBS,)), checks).stops_without(["word-bomb"])
    assert Pipeline(Policy("p", (replace(BOMBS, roles=("user",)),)), checks).stops_without(["word-bomb"])
    assert Pipeline(Policy("p", (replace(BOMBS, roles=("assistant",)),)), checks).stops_without(["word-bomb"])


@pytest.mark.parametrize("apart", [True, False])
def test_many_texts_in_one_request_take_time_that_grows_with_their_number(
    policy: Policy, checks: dict[str, Check], apart: bool, grows_with_its_length: Callable[..., bool]
) -> None:
    guard = Guard(replace(policy, limits=Limits(text=200_000)), checks=checks)

    def judge(texts: str) -> None:
        parts = [Part(Kind.TEXT, "user", ("input", index), text) for index, text in enumerate(texts.split())]
        assert guard.judge_request(Exchange("test", "m", parts, apart=apart)).action is Action.BLOCK

    assert grows_with_its_length(judge, "bomb 1234 ")


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
    assert put("whole", {(): "new"}) == "new"
