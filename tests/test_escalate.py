"""The cascade: the small check settles what it is sure of, another is asked about the rest, and its failure is settled."""

import json
import math
import re
import threading
from collections import Counter as Tally
from dataclasses import dataclass, field, replace
from datetime import date
from hashlib import sha256

import httpx
import pytest
import yaml
from fastapi import FastAPI, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from ringfence.guard.audit.record import record_of
from ringfence.guard.audit.store import Store
from ringfence.guard.budget import Escalations
from ringfence.guard.check import CannotAnswer, Finding, Passage, Span
from ringfence.guard.exchange import Exchange, Judged, Kind, Part
from ringfence.guard.guard import Guard
from ringfence.guard.pipeline import Pipeline, Pipelines
from ringfence.guard.replay.replay import replay
from ringfence.policies.cases import Case, Expected
from ringfence.policies.compare import compare
from ringfence.policies.decide import decide, escalations, reasons
from ringfence.policies.document import PolicyError
from ringfence.policies.explain import Change, explain
from ringfence.policies.findable import Findable
from ringfence.policies.lint import lint
from ringfence.policies.load import canonical, load_policy, loads_policy
from ringfence.policies.overlay import effective
from ringfence.policies.types import (
    Action,
    Condition,
    Degrade,
    Escalate,
    Limits,
    Policy,
    Rule,
    RuleException,
    Stage,
    StreamSettings,
)
from ringfence.proxy.app import create_app
from ringfence.proxy.cli import app
from ringfence.proxy.cli.policy import judge_of
from ringfence.proxy.service import build
from ringfence.proxy.settings import Settings
from ringfence.proxy.upstreams.fake import FakeUpstream
from ringfence.proxy.wire.openai_moderations import judge, read_request

BAND = Escalate("guard", (0.15, 0.85))
HARM = Rule("harm", "harm", Action.BLOCK, threshold=0.6, escalate=BAND)
OWN = Degrade("harm")
FAR = date(2999, 1, 1)


def of(*rules, **more):
    return Policy("p", rules, revision="r", **more)


def small(score, part=0, **more):
    return Finding("small", "harm", score, (Span(part, 3, 5),), **more)


def big(score, part=0, category="guard"):
    return Finding("big", category, score, (Span(part, 0, 9),))


def down(part=None):
    return Finding("big", "guard", 0.0, () if part is None else (Span(part, 0, 9),), error="down")


def decided(rule, *found, **more):
    return decide(of(rule, **more), Stage.INPUT, found)


# --- what a decision goes by


@pytest.mark.parametrize(
    ("found", "action"),
    [
        ([small(0.1499), big(1.0)], Action.ALLOW),
        ([small(0.15), big(0.5)], Action.BLOCK),
        ([small(0.15), big(0.4999)], Action.ALLOW),
        ([small(0.84), big(0.1)], Action.ALLOW),
        ([small(0.85), big(0.1)], Action.BLOCK),
        ([small(math.nan), big(0.1)], Action.BLOCK),
        ([small(0.4), big(math.nan)], Action.BLOCK),
        ([small(0.4)], Action.ALLOW),
        ([small(0.4), big(0.9, category="guard.S9")], Action.BLOCK),
        ([big(0.9)], Action.ALLOW),
    ],
)
def test_rule_goes_by_its_own_check_outside_of_the_band_and_by_the_other_within(found, action):
    decision = decided(HARM, *found)
    assert decision.action is action
    assert decision.rules == (("harm",) if action is Action.BLOCK else ())
    assert decision.findings == tuple(found)


def test_what_was_said_of_another_text_settles_nothing():
    assert decided(HARM, small(0.4, 0), big(0.1, 0), big(0.9, 1)).action is Action.ALLOW
    assert decided(HARM, small(0.4, 0), big(0.1, 0), small(0.4, 1), big(0.9, 1)).action is Action.BLOCK


def test_decision_names_the_rules_that_were_not_sure_and_whom_they_asked():
    assert decided(HARM, small(0.4), big(0.1)).escalated == {"harm": "guard"}
    assert decided(HARM, small(0.9), big(0.1)).escalated == {}


def test_other_category_of_a_text_that_a_rule_fires_on_anyway_is_not_asked_about():
    policy = of(HARM)
    assert not list(escalations(policy, Stage.INPUT, [small(0.9), small(0.3)]))
    assert [one.score for _, _, one in escalations(policy, Stage.INPUT, [small(0.9, 0), small(0.3, 1)])] == [0.3]


def test_every_stretch_to_rewrite_is_asked_about_by_itself():
    rule = replace(HARM, action=Action.REWRITE)
    sure, doubtful = small(0.9), replace(small(0.3), spans=(Span(0, 7, 9),))
    assert [one for _, _, one in escalations(of(rule), Stage.INPUT, [sure, doubtful])] == [doubtful]
    assert [one.span.start for one in decided(rule, sure, doubtful, big(0.9)).rewrites] == [3, 7]
    assert [one.span.start for one in decided(rule, sure, doubtful, big(0.2)).rewrites] == [3]


@pytest.mark.parametrize(
    ("on_error", "score", "action"),
    [
        (Action.BLOCK, 0.2, Action.BLOCK),
        (Action.LOG, 0.8, Action.LOG),
        (Action.ALLOW, 0.8, Action.ALLOW),
        (OWN, 0.5999, Action.ALLOW),
        (OWN, 0.6, Action.BLOCK),
        (Degrade("words"), 0.8, Action.ALLOW),
    ],
)
@pytest.mark.parametrize("failure", [down(), down(0)])
def test_failure_of_the_other_check_is_settled_by_on_error_and_named(on_error, score, action, failure):
    decision = decided(replace(HARM, on_error=on_error), small(score), failure)
    assert (decision.action, decision.rules, decision.unanswered) == (action, (), {"harm": action})
    assert decision.errors == ("big: down",)
    assert reasons(decision) == ("failed:big",)
    for sure in (0.1, 0.9):
        assert decided(replace(HARM, on_error=on_error), small(sure), failure).unanswered == {}


def test_falling_back_on_its_own_score_goes_by_the_texts_that_nobody_else_could_judge():
    rule = replace(HARM, on_error=OWN)
    refused = [small(0.8, 0), big(0.1, 0)]
    assert decided(rule, *refused, small(0.3, 1), down(1)).action is Action.ALLOW
    assert decided(rule, *refused, small(0.7, 1), down(1)).action is Action.BLOCK


def test_degrading_to_a_third_category_blocks_where_that_failed_too():
    rule = replace(HARM, on_error=Degrade("words"), action=Action.LOG)
    words = Finding("w", "words", 1.0, (Span(0, 0, 2),))
    assert decided(rule, small(0.4), down(0), words).unanswered == {"harm": Action.LOG}
    assert decided(rule, small(0.4), down(0), replace(words, error="x")).unanswered == {"harm": Action.BLOCK}


def test_condition_that_does_not_hold_leaves_nothing_to_ask():
    rule = replace(HARM, when=Condition(category="minors"))
    assert not list(escalations(of(rule), Stage.INPUT, [small(0.4)]))
    assert decided(rule, small(0.4), down(0)).action is Action.ALLOW
    minors = Finding("m", "minors", 0.9, (Span(0, 0, 1),))
    assert decided(rule, small(0.4), big(0.9), minors).action is Action.BLOCK


def test_shadow_rule_asks_and_changes_nothing():
    decision = decided(replace(HARM, shadow=True), small(0.4), big(0.9))
    assert (decision.action, decision.shadow, decision.escalated) == (
        Action.ALLOW,
        {"harm": Action.BLOCK},
        {"harm": "guard"},
    )


def test_time_to_decide_grows_with_the_number_of_findings_and_no_faster(seconds):
    def found(number):
        return [one for part in range(number) for one in (small(0.4, part), small(0.9, part + number), big(0.1, part))]

    few, many = found(300), found(3_000)
    policy = of(replace(HARM, on_error=OWN), replace(HARM, id="rewrite", action=Action.REWRITE))
    assert seconds(lambda: decide(policy, Stage.INPUT, many)) < 30 * seconds(lambda: decide(policy, Stage.INPUT, few))


# --- who is asked, and when


@dataclass
class Small:
    """Finds harm as surely as the text says: `0.43` in it is the score."""

    name: str = "small"
    categories: frozenset = frozenset({"harm"})

    def find(self, passage):
        told = re.search(r"harm (\d\.\d+)", passage.text)
        return [Finding("small", "harm", float(told[1]), (Span(0, *told.span()),))] if told else []


@dataclass
class Big:
    """Keeps what it was asked, and says what the text says; nothing where that says nothing."""

    name: str = "big"
    categories: frozenset = frozenset({"guard"})
    seen: list = field(default_factory=list)
    together: threading.Barrier | None = None

    def find(self, passage):
        self.seen.append(passage.text)
        if self.together:
            self.together.wait(20)
        if "fail" in passage.text:
            raise CannotAnswer("down for today")
        told = re.search(r"guard (\d\.\d+)", passage.text)
        return [Finding("big", "guard.S9", float(told[1]), (Span(0, 0, len(passage.text)),))] if told else []


def said(*texts):
    return [Passage(Stage.INPUT, "user", text, part=part) for part, text in enumerate(texts)]


def run(policy, *texts, other=None, **more):
    other = other or Big()
    pipeline = Pipeline(policy, {"small": Small(), "big": other}, **more)
    return pipeline.judge(Stage.INPUT, said(*texts)), other.seen


def test_other_check_is_asked_about_the_unsure_texts_alone():
    decision, seen = run(of(HARM), "calm", "harm 0.1 guard 1.0", "harm 0.4 guard 0.9", "harm 0.9 guard 0.1")
    assert seen == ["harm 0.4 guard 0.9"]
    assert decision.rules == ("harm",)
    assert [(f.category, f.score, f.spans[0].part) for f in decision.findings if f.check == "big"] == [
        ("guard.S9", 0.9, 2)
    ]


@pytest.mark.parametrize(("apart", "asked"), [(True, ["harm 0.4 guard 0.9"]), (False, [])])
def test_what_is_said_beside_a_text_leaves_it_unasked_only_where_they_belong_together(apart, asked):
    sure, other = Condition(category="harm", threshold=0.9), Big()
    pipeline = Pipeline(of(replace(HARM, when=Condition(not_=sure))), {"small": Small(), "big": other})
    pipeline.find(Stage.INPUT, said("harm 0.95", "harm 0.4 guard 0.9", "harm 0.1"), apart=apart)
    assert other.seen == asked


def test_strings_of_one_call_of_moderations_are_each_asked_about_by_themselves():
    rule = replace(HARM, when=Condition(not_=Condition(category="harm", threshold=0.9)))
    guard = Guard(of(rule), checks={"small": Small(), "big": Big()})
    answer = judge(guard, *read_request({"input": ["harm 0.95", "harm 0.4 guard 0.9", "harm 0.4"]}))
    assert [one["flagged"] for one in answer["results"]] == [False, True, False]


def test_what_was_asked_about_and_not_found_is_among_the_findings():
    decision, seen = run(of(HARM), "harm 0.4")
    assert (decision.action, seen) == (Action.ALLOW, ["harm 0.4"])
    assert decision.findings[-1] == Finding("big", "guard", 0.0, (Span(0, 0, 8),), "asked, and not found", role="user")


def test_two_rules_that_are_not_sure_of_one_text_ask_once():
    _, seen = run(of(HARM, replace(HARM, id="second", escalate=replace(BAND, between=(0.3, 0.5)))), "harm 0.4")
    assert seen == ["harm 0.4"]


def test_check_that_reads_every_text_anyway_is_not_asked_again():
    always = Rule("always", "guard", Action.LOG, threshold=0.95)
    decision, seen = run(of(HARM, always), "harm 0.4 guard 0.9", "calm")
    assert sorted(seen) == ["calm", "harm 0.4 guard 0.9"]
    assert decision.rules == ("harm",)


@pytest.mark.parametrize("shadow", [False, True])
def test_failure_of_a_check_that_reads_every_text_anyway_reaches_the_rule_that_doubts(shadow):
    doubtful = replace(HARM, escalate=replace(BAND, to="guard.S1"))
    watch = Rule("watch", "guard.S9", Action.LOG, on_error=Action.LOG, shadow=shadow)
    decision, _ = run(of(doubtful, watch), "harm 0.4 fail")
    assert decision.action is Action.BLOCK
    decision, _ = run(of(doubtful, watch), "harm 0.1 fail")
    assert decision.action in (Action.LOG, Action.ALLOW)


def test_texts_are_asked_about_side_by_side():
    other = Big(together=threading.Barrier(3))
    decision, seen = run(of(HARM), *(f"harm 0.4 guard 0.{n}" for n in (1, 2, 3)), other=other)
    assert len(seen) == 3
    assert decision.errors == ()


def test_coverage_has_as_unjudged_only_the_text_that_nobody_could_judge():
    guard = Guard(of(replace(HARM, on_error=Action.LOG)), checks={"small": Small(), "big": Big()})
    parts = [Part(Kind.TEXT, "user", ("m", i), text) for i, text in enumerate(("harm 0.4 fail", "harm 0.4 guard 0.1"))]
    exchange = Exchange("openai.chat", "m", parts)
    guard.judge_request(exchange)
    assert [(one.status, one.why) for one in exchange.coverage] == [
        (Judged.UNJUDGED, "big: down for today"),
        (Judged.JUDGED, ""),
    ]


def test_record_does_not_mask_a_text_in_which_the_other_check_found_nothing():
    rule = Rule("mail", "harm", Action.BLOCK, escalate=Escalate("pii", (0.15, 0.85)))
    guard = Guard(of(rule), checks={"small": Small(), "pii": Big("pii", frozenset({"pii"}))}, store=None)
    exchange = Exchange("openai.chat", "m", [Part(Kind.TEXT, "user", ("m", 0), "harm 0.4 and peace")])
    guard.judge_request(exchange)
    assert exchange.decisions[0].findings[-1].category == "pii"
    assert record_of(exchange, text="masked")["request"][0]["text"] == "harm 0.4 and peace"


def test_text_that_cannot_be_judged_fails_by_itself_and_the_others_are_settled():
    rule = replace(HARM, on_error=Action.LOG)
    decision, _ = run(of(rule), "harm 0.4 fail", "harm 0.4 guard 0.1")
    assert (decision.action, decision.errors) == (Action.LOG, ("big: down for today",))
    assert [f.spans[0].part for f in decision.findings if f.error] == [0]
    decision, _ = run(of(rule), "harm 0.4 fail", "harm 0.4 guard 0.9")
    assert (decision.action, decision.rules) == (Action.BLOCK, ("harm",))


def test_other_check_that_takes_longer_than_the_rule_allows_counts_as_failed():
    other = Big(together=threading.Barrier(2))
    try:
        decision, seen = run(of(replace(HARM, seconds=0.2)), "harm 0.4 guard 0.1", other=other)
        assert (decision.action, decision.rules, len(seen)) == (Action.BLOCK, (), 1)
        assert "took longer than its 0.2 s" in decision.errors[0]
    finally:
        other.together.abort()


def test_rule_in_shadow_takes_no_time_from_one_that_asks_about_the_same_text():
    other = Big(together=threading.Barrier(2))
    trial = replace(HARM, id="trial", shadow=True, seconds=0.1)
    try:
        decision, seen = run(of(replace(HARM, seconds=0.2), trial), "harm 0.4 guard 0.1", other=other)
        assert len(seen) == 1
        assert "took longer than its 0.2 s" in decision.errors[0]
    finally:
        other.together.abort()


def test_no_more_texts_are_asked_about_in_a_minute_than_the_rule_allows():
    now = [0.0]
    rule = replace(HARM, on_error=OWN, escalate=replace(BAND, per_minute=2))
    may_ask = Escalations(lambda: now[0]).take
    texts = ["harm 0.4 guard 0.9", "harm 0.5 guard 0.1", "harm 0.7 guard 0.1"]
    decision, seen = run(of(rule), *texts, may_ask=may_ask)
    assert seen == texts[:2]
    assert decision.unanswered == {"harm": Action.BLOCK}
    assert "escalate.per_minute" in decision.errors[0]
    assert run(of(rule), "harm 0.4 guard 0.9", may_ask=may_ask)[0].action is Action.ALLOW  # 0.4 is below 0.6
    now[0] += 30
    assert run(of(rule), "harm 0.4 guard 0.9", may_ask=may_ask)[0].rules == ("harm",)


def test_rule_with_budget_left_asks_for_the_one_without():
    rule, other = (replace(HARM, id=name, escalate=replace(BAND, per_minute=n)) for name, n in (("a", 1), ("b", 2)))
    decision, seen = run(of(rule, other), *["harm 0.4 guard 0.1"] * 4)
    assert len(seen) == 3
    assert decision.unanswered == {"a": Action.BLOCK, "b": Action.BLOCK}


def test_budget_of_a_rule_is_one_for_all_that_overlays_make_of_the_policy():
    policy = loads_policy(
        POLICY.replace("between: [0.15, 0.85]", "between: [0.15, 0.85], per_minute: 1")
        + "overlays: [{id: o, scope: {tenant: [t]}, override: {harm: {why: other}}}]\n"
    )
    pipelines = Pipelines(policy, {"small": Small(), "big": Big()})
    [first] = pipelines.of({}).find(Stage.INPUT, said("harm 0.4 guard 0.1"))[1:]
    [second] = pipelines.of({"tenant": "t"}).find(Stage.INPUT, said("harm 0.4 guard 0.1"))[1:]
    assert (first.error, first.score) == (None, 0.1)
    assert "escalate.per_minute" in (second.error or "")


def test_exception_spares_before_anybody_is_asked():
    spared = RuleException("ours", ("harm",), FAR, "ours", fingerprint=sha256(b"harm 0.4 guard 0.9").hexdigest())
    decision, seen = run(of(HARM, exceptions=(spared,)), "harm 0.4 guard 0.9")
    assert (decision.action, decision.excepted, seen) == (Action.ALLOW, {"harm": ("ours",)}, [])


def test_checks_of_a_policy_name_the_one_that_is_asked_only_in_doubt():
    assert {one.name for one in Pipeline(of(HARM), {"small": Small(), "big": Big()}).checks} == {"small", "big"}


def test_reply_is_asked_about_window_by_window_and_stopped_where_the_other_check_agrees():
    other = Big()
    calm = "All is calm here and will stay so for a while. " * 3
    policy = of(replace(HARM, stages=(Stage.OUTPUT,)), stream=StreamSettings(window=40, context=64, reach=24))
    guard = Guard(policy, checks={"small": Small(), "big": other})
    exchange = Exchange("openai.chat", "m", [Part(Kind.TEXT, "user", ("m", 0), "Hello")])
    guard.judge_request(exchange)
    reply = guard.open_reply(exchange)
    reply.feed(("r", 0), calm + "harm 0.4 guard 0.1 " + calm)
    assert "harm 0.4" in reply.release(("r", 0))
    assert other.seen
    assert all("harm 0.4" in one for one in other.seen)
    reply.feed(("r", 0), "harm 0.5 guard 0.9 " + calm)
    assert "harm 0.5" not in reply.release(("r", 0), last=True)
    assert reply.stopped.rules == ("harm",)
    reply.finish()
    assert exchange.decisions[-1].escalated == {"harm": "guard"}


# --- how it is written

POLICY = """\
version: 1
name: cascade
checks:
  - { kind: keywords, category: words, words: [war] }
rules:
  - id: harm
    category: harm
    action: block
    threshold: 0.6
    escalate: { to: guard, between: [0.15, 0.85] }
    on_error: { degrade: harm }
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[0.15, 0.85]", "[0.85, 0.15]", r"p.yaml:10:\d+: .*lower score first, got \[0.85, 0.15\]"),
        ("[0.15, 0.85]", "[0.5, 0.5]", r"p.yaml:10:\d+: .*lower score first"),
        ("[0.15, 0.85]", "[0.15]", r"p.yaml:10:\d+: 'between' must have at least 2 items, got 1"),
        ("[0.15, 0.85]", "[0.1, 0.2, 0.3]", r"p.yaml:10:\d+: 'between' must have at most 2 items, got 3"),
        ("[0.15, 0.85]", "[0.15, 1.4]", r"p.yaml:10:\d+: .*between.* must be at most 1, got 1.4"),
        ("to: guard", "tow: guard", r"p.yaml:10:\d+: unknown key 'tow'; did you mean 'to'"),
        ("to: guard", "to: harm.S9", r"p.yaml:10:5: rule 'harm' escalates to 'harm.S9', which the check behind 'harm'"),
        ("threshold: 0.6", "target: { min_recall: 0.9 }", r"p.yaml:10:5: rule 'harm' has a 'target' and an 'escalate'"),
        (
            "on_error",
            "shadow: false\noverlays: [{id: o, scope: {tenant: [t]}, override: {harm: {escalate: {to: harm, between:"
            " [0, 1]}}}}]\n#",
            r"p.yaml:12:\d+: rule 'harm' escalates to 'harm'",
        ),
    ],
)
def test_what_is_written_wrong_is_told_with_its_place(tmp_path, old, new, told):
    path = tmp_path / "p.yaml"
    path.write_text(POLICY.replace(old, new))
    with pytest.raises(PolicyError, match=told):
        load_policy(path)


def test_category_that_no_check_answers_for_is_told_with_its_place():
    with pytest.raises(LookupError, match=r"<memory>:10:5: rule 'harm' looks at category 'guard', which no check"):
        Pipeline(loads_policy(POLICY), {"small": Small()})


def test_policy_is_itself_once_more_when_it_is_written_out():
    policy = loads_policy(POLICY.replace("0.85]", "0.85], per_minute: 60"))
    assert policy.rules[0].escalate == Escalate("guard", (0.15, 0.85), 0.5, 60)
    again = loads_policy(yaml.safe_dump(canonical(policy)))
    assert (again, again.revision) == (policy, policy.revision)


OFF = "override: {{harm: {{escalate: {}}}}}\n"


def test_override_and_overlay_may_take_it_out_again(tmp_path):
    (tmp_path / "base.yaml").write_text(POLICY)
    path = tmp_path / "p.yaml"
    path.write_text(f"version: 1\nname: own\nextends: ./base.yaml\n{OFF.format('null')}")
    (rule,) = load_policy(path).rules
    assert (rule.escalate, rule.threshold, str(rule.written_at("escalate"))) == (None, 0.6, f"{path}:4:19")
    assert decided(rule, small(0.59), big(1.0)).action is Action.ALLOW
    assert decided(rule, small(0.6), big(0.0)).rules == ("harm",)
    policy = loads_policy(f"{POLICY}overlays:\n  - id: o\n    scope: {{tenant: [t]}}\n    {OFF.format('null')}")
    assert (policy.rules[0].escalate is None, effective(policy, ["o"]).rules[0].escalate) == (False, None)
    again = loads_policy(yaml.safe_dump(canonical(policy)))
    assert (again, again.revision) == (policy, policy.revision)
    assert policy.revision != loads_policy(POLICY).revision


@pytest.mark.parametrize(("value", "told"), [("false", "'escalate' must be a mapping"), ("true", "'escalate'")])
def test_what_takes_nothing_out_is_told_with_its_place(tmp_path, value, told):
    (tmp_path / "base.yaml").write_text(POLICY)
    path = tmp_path / "p.yaml"
    path.write_text(f"version: 1\nname: own\nextends: ./base.yaml\n{OFF.format(value)}")
    with pytest.raises(PolicyError, match=f"{path}:4:19: {told}"):
        load_policy(path)
    with pytest.raises(PolicyError, match=f"<memory>:15:23: {told}"):
        loads_policy(f"{POLICY}overlays:\n  - id: o\n    scope: {{tenant: [t]}}\n    {OFF.format(value)}")


def test_overlay_may_escalate_and_the_difference_is_told():
    plain = POLICY.replace("    escalate: { to: guard, between: [0.15, 0.85] }\n", "")
    more = "overlays: [{id: o, scope: {tenant: [t]}, override: {harm: {escalate: {to: words, between: [0.2, 0.4]}}}}]\n"
    policy = loads_policy(plain + more)
    assert policy.rules[0].escalate is None
    assert effective(policy, ["o"]).rules[0].escalate == Escalate("words", (0.2, 0.4))
    [difference] = compare(loads_policy(plain), loads_policy(POLICY))
    assert [(one.key, one.old, str(one.new_at)) for one in difference.edits] == [("escalate", None, "<memory>:10:5")]


def warned(old="", new="", findable=None):
    policy = loads_policy(POLICY.replace(old, new))
    found = {"guard": [Findable("guard", 0.9), Findable("guard.S9")]} if findable is None else findable
    return [f"{one.origin}: {one.what}" for one in lint(policy, [], FAR, findable=found)]


def test_lint_has_nothing_to_say_of_a_sound_cascade():
    assert not [line for line in warned() if "has no case" not in line and "'words'" not in line]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "threshold: 0.6",
            "threshold: 0.9",
            "<memory>:9:5: rule 'harm' falls back on its threshold, 0.9, where 'guard'",
        ),
        (
            "degrade: harm }",
            "degrade: words }",
            "<memory>:9:5: rule 'harm' has a threshold that decides nothing beside",
        ),
        ("[0.15,", "[0,", "<memory>:10:5: rule 'harm' asks for 'guard' wherever anything at all is found of 'harm'"),
        (
            "    on_error",
            "  - { id: note, category: guard.S9, action: log }\n    #",
            "<memory>:10:5: rule 'harm' saves nothing: 'note' (<memory>:11:5) has every text read for 'guard'",
        ),
        ("to: guard", "to: guard.S99", "<memory>:10:5: rule 'harm' looks at 'guard.S99', which nothing is ever found"),
        ("0.85]", "0.85], threshold: 0.95", "<memory>:10:5: rule 'harm' looks at 'guard' from 0.95 on"),
    ],
)
def test_lint_tells_what_is_odd_about_a_cascade(old, new, told):
    found = {"guard": [Findable("guard", 0.9)]}
    assert [line for line in warned(old, new, found) if line.startswith(told)], warned(old, new, found)


def test_lint_does_not_take_a_rule_that_may_ask_for_one_that_always_fires():
    policy = loads_policy(POLICY + "  - { id: sure, category: harm, action: log, threshold: 0.9 }\n")
    assert not [one for one in lint(policy, [], FAR) if "never decides" in one.what or "in vain" in one.what]


# --- why it came out so, and what another band would have made of it


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([small(0.43), big(0.91)], "0.43 lay within the band; guard said 0.91 ≥ 0.5"),
        ([small(0.43), big(0.2)], "0.43 lay within the band; guard said 0.2 < 0.5"),
        ([small(0.91)], "0.91 lay beyond the band"),
        ([small(0.1)], ""),
        ([small(0.7), down(0)], "0.7 lay within the band; guard could not be asked: down; held to 0.6 instead"),
        ([small(0.43)], "0.43 lay within the band; of guard nothing is on record"),
        ([small(0.9, 0), small(0.4, 1), big(0.2, 1)], "0.9 lay beyond the band"),
        ([small(0.4, 0), big(0.9, 0), small(0.8, 1), big(0.2, 1)], "0.4 lay within the band; guard said 0.9 ≥ 0.5"),
    ],
)
def test_explanation_says_whose_score_decided(found, why):
    recorded = decided(replace(HARM, on_error=OWN), *found)
    [verdict] = explain(of(replace(HARM, on_error=OWN)), [recorded]).judgements[0].verdicts
    assert verdict.decided_by == why


def test_explanation_finds_the_threshold_of_the_other_check_that_would_have_changed_it():
    def change(old, new):
        return (Change("harm", "escalate", replace(BAND, threshold=old), replace(BAND, threshold=new)),)

    why = explain(of(HARM), [decided(HARM, small(0.4), big(0.7))])
    assert (why.milder.changes, why.milder.action) == (change(0.5, 0.7001), Action.ALLOW)
    why = explain(of(HARM), [decided(HARM, small(0.4), big(0.3))])
    assert (why.stronger.changes, why.stronger.action) == (change(0.5, 0.3), Action.BLOCK)


def say(db, policy, *texts, reply="Fine.", text="full"):
    policy = replace(policy, audit=replace(policy.audit, text=text))
    store = Store.open(db)
    guard = Guard(policy, checks={"small": Small(), "big": Big()}, store=store)
    for one in texts:
        parts = [
            Part(Kind.TEXT, "user", ("m", i), text) for i, text in enumerate([one] if isinstance(one, str) else one)
        ]
        exchange = Exchange("openai.chat", "m", parts)
        if guard.judge_request(exchange).action is not Action.BLOCK:
            answer = guard.open_reply(exchange)
            answer.feed(("r", 0), reply)
            answer.release(("r", 0), last=True)
            answer.finish()
        guard.record(exchange)
    store.close()


def replayed(db, old, new):
    other = Big()
    found = replay(db, old, replace(new, revision="new"), {"small": Small(), "big": other})
    return {(one.old, one.new): one.count for one in found.changes}, found.undecided, found.rejudged, other.seen


TEXTS = ("calm", "harm 0.1 guard 0.9", "harm 0.4 guard 0.9", "harm 0.4 guard 0.6", "harm 0.5 guard 0.1", "harm 0.9")


def test_narrower_band_or_another_threshold_is_decided_from_what_is_on_record(tmp_path):
    db, old = tmp_path / "log.db", of(HARM)
    say(db, old, *TEXTS, text="none")
    for escalate, changes in (
        (replace(BAND, threshold=0.7), {(Action.BLOCK, Action.ALLOW): 1}),
        (replace(BAND, threshold=0.05), {(Action.ALLOW, Action.BLOCK): 1}),
        (replace(BAND, between=(0.45, 0.85)), {(Action.BLOCK, Action.ALLOW): 2}),
        (replace(BAND, between=(0.15, 0.4)), {(Action.ALLOW, Action.BLOCK): 1}),
    ):
        found = replayed(db, old, of(replace(HARM, escalate=escalate)))
        # Of a request that was stopped, nobody knows the reply.
        assert found == (changes, changes.get((Action.BLOCK, Action.ALLOW), 0), 0, [])


def test_wider_band_is_decided_by_judging_again_what_was_not_asked_about(tmp_path):
    db, old, new = tmp_path / "log.db", of(HARM), of(replace(HARM, escalate=replace(BAND, between=(0.05, 0.85))))
    say(db, old, *TEXTS)
    changes, undecided, rejudged, seen = replayed(db, old, new)
    assert (changes, undecided, rejudged) == ({(Action.ALLOW, Action.BLOCK): 1}, 0, 1)
    assert seen == ["harm 0.1 guard 0.9"]


def test_wider_band_is_undecided_where_the_text_is_not_kept(tmp_path):
    db, old, new = tmp_path / "log.db", of(HARM), of(replace(HARM, escalate=replace(BAND, between=(0.05, 0.85))))
    say(db, old, *TEXTS, text="none")
    assert replayed(db, old, new) == ({}, 1, 0, [])
    [why] = replay(db, old, replace(new, revision="new"), {"small": Small(), "big": Big()}).reasons
    assert why == "nobody looked for 'guard' then, in the same way; its text is not kept"


def test_requests_of_which_the_same_was_said_of_other_texts_are_told_apart(tmp_path):
    db, old = tmp_path / "log.db", of(replace(HARM, stages=(Stage.INPUT,)))
    new = of(replace(old.rules[0], escalate=replace(BAND, between=(0.5, 0.85))))
    say(db, old, ["harm 0.4 guard 0.9", "harm 0.6 guard 0.1"], ["harm 0.4 guard 0.1", "harm 0.6 guard 0.9"])
    assert replayed(db, old, new) == ({(Action.BLOCK, Action.ALLOW): 1}, 0, 0, [])


def test_rule_that_comes_to_escalate_asks_again_only_about_what_it_is_not_sure_of(tmp_path):
    db, old = tmp_path / "log.db", of(replace(HARM, escalate=None))
    say(db, old, *TEXTS, ["calm", "harm 0.2 guard 0.7"])
    changes, undecided, rejudged, seen = replayed(db, old, of(HARM))
    assert changes == {(Action.ALLOW, Action.BLOCK): 3}
    assert (undecided, rejudged) == (0, 4)
    assert sorted(seen) == ["harm 0.2 guard 0.7", "harm 0.4 guard 0.6", "harm 0.4 guard 0.9", "harm 0.5 guard 0.1"]


def test_what_a_third_policy_asked_in_doubt_is_not_taken_for_what_it_always_asked(tmp_path):
    db = tmp_path / "log.db"
    rule = replace(HARM, stages=(Stage.INPUT,))
    say(db, replace(of(rule), revision="third"), *TEXTS, text="none")
    for low, undecided in ((0.15, 0), (0.05, 1)):
        old = of(replace(rule, escalate=replace(BAND, between=(low, 0.85))))
        assert replayed(db, old, of()) == ({(Action.BLOCK, Action.ALLOW): 3}, undecided, 0, [])


bands = st.sampled_from([(0.05, 0.3), (0.15, 0.85), (0.25, 0.65), (0.35, 0.95)])
rules = st.builds(
    Rule,
    id=st.just("harm"),
    category=st.just("harm"),
    action=st.sampled_from([Action.BLOCK, Action.LOG, Action.REWRITE]),
    stages=st.just((Stage.INPUT,)),
    escalate=st.builds(Escalate, st.just("guard"), bands, st.sampled_from([0.1, 0.5])) | st.none(),
    on_error=st.sampled_from([Action.BLOCK, Action.LOG, OWN]),
)
tenths = st.integers(0, 9).map(lambda tenth: f"0.{tenth}")
one_text = st.builds("harm {} guard {}".format, tenths, tenths) | st.builds("harm {}".format, tenths)
requests = st.lists(st.lists(one_text, min_size=1, max_size=2), min_size=6, max_size=9)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(rules, rules, st.sampled_from(["old", "third"]), requests)
def test_replay_comes_to_what_the_new_policy_would_have_recorded(tmp_path_factory, before, after, by, traffic):
    folder = tmp_path_factory.mktemp("logs")
    decisions = []
    for name, rule, revision in (("old", before, by), ("new", after, "new")):
        store = Store.open(folder / f"{name}.db")
        policy = replace(of(rule), revision=revision)
        policy = replace(policy, audit=replace(policy.audit, text="full"))
        guard = Guard(policy, checks={"small": Small(), "big": Big()}, store=store)
        decisions.append([])
        for texts in traffic:
            parts = [Part(Kind.TEXT, "user", ("m", i), text) for i, text in enumerate(texts)]
            exchange = Exchange("openai.chat", "m", parts)
            decisions[-1].append(guard.judge_request(exchange).action)
            guard.record(exchange)
        store.close()
    old = replace(of(before), revision="old")
    found = replay(folder / "old.db", old, replace(of(after), revision="new"), {"small": Small(), "big": Big()})
    expected = Tally((one, other) for one, other in zip(*decisions, strict=True) if one is not other)
    changes = Tally()
    for one in found.changes:
        if one.old is not one.new:
            changes[one.old, one.new] += one.count
    assert (changes, found.undecided) == (expected, 0)


def test_wider_band_over_a_streamed_reply_asks_about_the_windows_that_nobody_was_asked_about(tmp_path):
    calm = "All is calm here and will stay so for a while. " * 5
    reply = f"harm 0.4 guard 0.1 {calm * 8} harm 0.1 guard 0.9 {calm}"
    old = of(HARM, stream=StreamSettings(window=40, context=64, reach=24))
    new = replace(old, rules=(replace(HARM, escalate=replace(BAND, between=(0.05, 0.85))),))
    say(tmp_path / "none.db", old, "calm", reply=reply, text="none")
    assert replayed(tmp_path / "none.db", old, new)[:2] == ({}, 1)
    say(tmp_path / "full.db", old, "calm", reply=reply)
    assert replayed(tmp_path / "full.db", old, new)[:3] == ({(Action.ALLOW, Action.BLOCK): 1}, 0, 1)


# --- through the proxy, with guards behind real servers


@dataclass
class GuardServer:
    """Answers as a guard does, with the probability that the text names for it; keeps what it was asked."""

    name: str
    seen: list = field(default_factory=list)
    status: int = 200

    def app(self):
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def _(request: Request):
            text = (await request.json())["messages"][-1]["content"]
            self.seen.append(text)
            told = re.search(rf"{self.name} (\d\.\d+)", text)
            unsafe = float(told[1]) if told else 0.001
            word = "unsafe" if unsafe >= 0.5 else "safe"
            tops = [{"token": t, "logprob": math.log(p)} for t, p in (("unsafe", unsafe), ("safe", 1 - unsafe))]
            [own] = [one for one in tops if one["token"] == word]
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "unsafe\nS9" if word == "unsafe" else "safe"},
                "finish_reason": "stop",
                "logprobs": {"content": [{**own, "bytes": None, "top_logprobs": tops}]},
            }
            body = {"id": "1", "object": "chat.completion", "model": "guard", "choices": [choice]}
            return JSONResponse(body, self.status)

        return app


PROXIED = """\
version: 1
name: cascade
checks:
  - {{ kind: llama-guard-3, category: harm, use: {small}/v1, model: guard }}
  - {{ kind: llama-guard-4, category: guard, use: {big}/v1, model: guard }}
rules:
  - id: harm
    category: harm
    stages: [input]
    action: block
    message: No harm here.
    threshold: 0.6
    escalate: {{ to: guard, between: [0.15, 0.85], per_minute: 3 }}
    on_error: {{ degrade: harm }}
"""


def test_through_the_proxy_only_unsure_texts_reach_the_big_guard_and_its_failure_is_on_record(serve, tmp_path):
    little, large = GuardServer("harm"), GuardServer("guard")
    path, db = tmp_path / "policy.yaml", tmp_path / "audit.db"
    path.write_text(PROXIED.format(small=serve(little.app()), big=serve(large.app())))
    service = build(Settings(policy=path, audit_path=db), upstream=FakeUpstream(), checks={})
    url = serve(create_app(service))

    def ask(text):
        messages = [{"role": "user", "content": text}]
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "fake", "messages": messages}, timeout=30)
        [record] = service.store.list(limit=1)
        return answer.status_code == 200, record.body["decisions"][0]

    def scores(decision):
        return {one["category"]: one["score"] for one in decision["findings"] if one["error"] is None}

    for text, passes in (("harm 0.05 guard 0.9", True), ("harm 0.95 guard 0.05", False)):
        assert ask(text)[0] is passes
    assert (len(little.seen), large.seen) == (2, [])

    passed, decision = ask("harm 0.43 guard 0.91")
    assert (passed, decision["rules"], decision["escalated"]) == (False, ["harm"], {"harm": "guard"})
    assert (scores(decision)["harm"], scores(decision)["guard"]) == (0.43, 0.91)
    passed, decision = ask("harm 0.7 guard 0.12")
    assert (passed, decision["rules"], scores(decision)["guard"]) == (True, [], 0.12)
    assert len(large.seen) == 2

    large.status = 404
    passed, decision = ask("harm 0.71 guard 0.1")
    assert (passed, decision["rules"], decision["unanswered"]) == (False, [], {"harm": "block"})
    assert "answered 404" in decision["errors"][0]
    large.status = 200
    passed, decision = ask("harm 0.42 guard 0.9")  # below 0.6, and three were asked about in this minute
    assert (passed, decision["unanswered"]) == (True, {"harm": "allow"})
    assert "escalate.per_minute" in decision["errors"][0]
    assert len(large.seen) == 3

    explained = CliRunner().invoke(app, ["policy", "explain", "3", "--db", str(db), "--policy", str(path)])
    assert "0.43 lay within the band; guard said 0.91 ≥ 0.5" in explained.output
    told = CliRunner().invoke(app, ["policy", "explain", "3", "--db", str(db), "--policy", str(path), "--json"])
    [rule] = json.loads(told.output)["decisions"][0]["rules"]
    assert rule["decided_by"] == "0.43 lay within the band; guard said 0.91 ≥ 0.5"
    assert json.loads(told.output)["milder"]["changes"][0]["key"] == "escalate"
    shown = CliRunner().invoke(app, ["policy", "show", str(path), "--effective"])
    assert "to guard, between 0.15, 0.85, threshold 0.5, per_minute 3" in " ".join(shown.output.split())
    assert (
        "escalates to guard between 0.15 and 0.85, from 0.5"
        in CliRunner().invoke(app, ["policy", "show", str(path)]).output
    )
    kept = CliRunner().invoke(app, ["audit", "show", "3", "--db", str(db)])
    assert "harm to guard" in kept.output


def test_cases_are_not_counted_against_the_budget(tmp_path):
    policy = of(replace(HARM, escalate=replace(BAND, per_minute=1)), limits=Limits())
    judge = judge_of(policy, {"small": Small(), "big": Big()})
    case = Case(stage=Stage.INPUT, text="harm 0.4 guard 0.9", expect=Expected(Action.BLOCK))
    assert [judge(case)[0].rules for _ in range(3)] == [("harm",)] * 3
