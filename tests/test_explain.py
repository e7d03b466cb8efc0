"""Why a decision came out as it did: the verdicts agree with `decide`, and the changes proposed do what they say."""

import math
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.policies.decide import alone, decide, strongest
from ringfence.policies.explain import Change, Flip, explain
from ringfence.policies.overlay import effective
from ringfence.policies.types import (
    Action,
    Condition,
    Decision,
    Escalate,
    Finding,
    Overlay,
    Override,
    Policy,
    Rule,
    RuleException,
    Scope,
    Span,
    Stage,
)

CATEGORIES = ["harm", "harm.S4", "pii", "pii.email"]
scores = st.floats(0, 1)
findings = st.builds(
    Finding,
    check=st.just("fake"),
    category=st.sampled_from([*CATEGORIES, "guard", "guard.S4"]),
    score=scores | st.just(math.nan),
    spans=st.sampled_from([(), (Span(0, 0, 3),)]),
    error=st.none() | st.just("boom"),
    rewritable=st.booleans(),
)
rules = st.builds(
    Rule,
    id=st.uuids().map(str),
    category=st.sampled_from(CATEGORIES),
    action=st.sampled_from(Action),
    stages=st.sampled_from([(Stage.INPUT,), (Stage.OUTPUT,), (Stage.INPUT, Stage.OUTPUT)]),
    threshold=scores,
    on_error=st.sampled_from([Action.ALLOW, Action.LOG, Action.BLOCK]),
    shadow=st.booleans(),
    escalate=st.none() | st.builds(Escalate, st.just("guard"), st.sampled_from([(0.1, 0.9), (0.4, 0.6)]), scores),
)
policies = st.builds(
    Policy,
    name=st.just("p"),
    rules=st.lists(rules, max_size=5, unique_by=lambda r: r.id).map(tuple),
    revision=st.just("r"),
)
exchanges = st.lists(st.tuples(st.sampled_from(Stage), st.lists(findings, max_size=4)), min_size=1, max_size=3)


def outcome(policy, exchange):
    return strongest(decide(policy, stage, found).action for stage, found in exchange)


def explained(policy, exchange):
    return explain(policy, [decide(policy, stage, found) for stage, found in exchange])


def changed(policy, changes):
    new = {rule.id: rule for rule in policy.rules}
    for change in changes:
        assert getattr(new[change.rule], change.key) == change.old
        new[change.rule] = replace(new[change.rule], **{change.key: change.new})
    return replace(policy, rules=tuple(new.values()))


def escalated_by(rule, judgement):
    return alone(rule, judgement.recorded.stage, judgement.recorded.findings).escalated


@given(policies, exchanges)
def test_verdicts_add_up_to_the_decision(policy, exchange):
    for judgement in explained(policy, exchange).judgements:
        live = [one for one in judgement.verdicts if not one.rule.shadow]
        assert {one.rule.id for one in live if one.asks} == {*judgement.decided.rules, *judgement.decided.logged}
        assert {one.rule.id: one.unanswered for one in live if one.unanswered} == judgement.decided.unanswered
        assert strongest(filter(None, [Action.ALLOW, *(one.asks for one in live), *(one.unanswered for one in live)]))
        for one in judgement.verdicts:
            if one.rule.escalate is None:
                assert (one.short_by is not None) == (one.finding is not None and one.asks is None)
            assert bool(one.doubts) == (one.rule.id in escalated_by(one.rule, judgement))
            assert one.short_by is None or one.short_by > 0


@given(policies, exchanges)
def test_milder_change_gives_the_outcome_it_names_and_no_part_of_it_can_be_left_out(policy, exchange):
    explanation = explained(policy, exchange)
    before = outcome(policy, exchange)
    assert (explanation.milder is None) == (before is Action.ALLOW)
    if explanation.milder:
        changes = explanation.milder.changes
        after = outcome(changed(policy, changes), exchange)
        assert after is explanation.milder.action
        assert after.strength < before.strength
        for change in changes:
            rest = [other for other in changes if other is not change]
            assert outcome(changed(policy, rest), exchange) is before


@given(policies, exchanges)
def test_stronger_change_is_one_and_gives_the_outcome_it_names(policy, exchange):
    explanation = explained(policy, exchange)
    before = outcome(policy, exchange)
    if before is Action.BLOCK:
        assert explanation.stronger is None
    if explanation.stronger:
        (change,) = explanation.stronger.changes
        after = outcome(changed(policy, [change]), exchange)
        assert after is explanation.stronger.action
        assert after.strength > before.strength


FAR = date(2999, 1, 1)
MED = Scope(model=("med-*",))
overrides = st.builds(
    Override,
    action=st.none() | st.sampled_from(Action),
    threshold=st.none() | scores,
    on_error=st.none() | st.sampled_from([Action.ALLOW, Action.LOG, Action.BLOCK]),
    shadow=st.none() | st.booleans(),
)


@st.composite
def layered(draw):
    """A policy with overlays and exceptions, the overlays that apply to an exchange, and what was found in that."""
    own = draw(st.lists(rules, min_size=1, max_size=3))
    rules_of = [[replace(rule, id=f"rule-{i}") for i, rule in enumerate(own)]]
    layers, known = [], [rule.id for rule in rules_of[0]]
    for number in range(draw(st.integers(1, 2))):
        added = tuple(replace(draw(rules), id=f"layer-{number}-{i}") for i in range(draw(st.integers(0, 2))))
        removed = tuple(draw(st.lists(st.sampled_from(known), max_size=1))) if known else ()
        others = [name for name in known if name not in removed]
        override = draw(st.dictionaries(st.sampled_from(others), overrides, max_size=2)) if others else {}
        layers.append(Overlay(f"layer-{number}", MED, removed, override, added))
        known = [*others, *(rule.id for rule in added)]
    every = [rule.id for rule in rules_of[0]] + [rule.id for one in layers for rule in one.rules]
    spared = st.lists(st.sampled_from(every), min_size=1, max_size=2).map(tuple)
    exceptions = tuple(RuleException(f"e{i}", draw(spared), FAR, "ours", pattern="x") for i in range(2))
    policy = Policy("p", tuple(rules_of[0]), exceptions=exceptions, overlays=tuple(layers), revision="r")
    applied = draw(st.lists(st.sampled_from([one.id for one in layers]), unique=True))
    excepted = st.lists(st.sampled_from(["e0", "e1"]), unique=True).map(tuple)
    marked = st.builds(lambda one, ids: replace(one, excepted=() if one.error else ids), findings, excepted)
    exchange = draw(st.lists(st.tuples(st.sampled_from(Stage), st.lists(marked, max_size=4)), min_size=1, max_size=3))
    return policy, applied, exchange


def edited(policy, flip):
    """Make the changes of a flip where a person would: in the overlay that it names, or in the policy's own rules."""
    policy = replace(policy, exceptions=tuple(one for one in policy.exceptions if one.id not in flip.ended))
    for change in flip.changes:
        new = {change.key: change.new}
        layers = []
        for one in policy.overlays:
            if one.id == change.overlay and change.rule in {rule.id for rule in one.rules}:
                rules = tuple(replace(rule, **new) if rule.id == change.rule else rule for rule in one.rules)
                one = replace(one, rules=rules)
            elif one.id == change.overlay:
                override = {**one.override, change.rule: replace(one.override[change.rule], **new)}
                one = replace(one, override=override)
            layers.append(one)
        own = [replace(r, **new) if r.id == change.rule and not change.overlay else r for r in policy.rules]
        policy = replace(policy, overlays=tuple(layers), rules=tuple(own))
    return policy


@given(layered())
def test_under_overlays_and_exceptions_what_is_decided_is_on_record_and_a_change_made_where_it_says_flips_it(given_):
    policy, applied, exchange = given_
    recorded = [decide(effective(policy, applied), stage, found) for stage, found in exchange]
    why = explain(policy, recorded)
    assert [one.decided for one in why.judgements] == recorded
    for judgement in why.judgements:
        live = {one.rule.id for one in judgement.verdicts if one.asks and not one.rule.shadow}
        assert live == {*judgement.recorded.rules, *judgement.recorded.logged}
    before = outcome(effective(policy, applied), exchange)
    assert (why.milder is None) == (before is Action.ALLOW)
    for flip, sign in ((why.milder, -1), (why.stronger, 1)):
        if flip:
            after = outcome(effective(edited(policy, flip), applied), exchange)
            assert after is flip.action
            assert (after.strength - before.strength) * sign > 0


def test_a_rule_that_only_an_overlay_has_is_told_with_the_overlay():
    hard = Overlay("hard", MED, rules=(Rule("no-mail", "pii.email", Action.BLOCK),))
    policy = Policy("p", (replace(MAIL, action=Action.LOG),), overlays=(hard,), revision="r")
    recorded = [decide(effective(policy, ["hard"]), Stage.INPUT, [found("pii.email", 0.95)])]
    why = explain(policy, recorded)
    assert why.policy.applied == ("hard",)
    assert [(one.rule.id, one.asks) for one in why.judgements[0].verdicts] == [
        ("mail", Action.LOG),
        ("no-mail", Action.BLOCK),
    ]
    assert why.milder == Flip((Change("no-mail", "threshold", 0.5, 0.9501, "hard"),), Action.LOG)


def test_another_policy_is_asked_with_those_of_its_own_overlays_that_are_about_the_exchange():
    easy = Overlay("easy", MED, override={"harm": Override(threshold=0.99)})
    recorded = [replace(decide(Policy("q", (HARM,), revision="q"), Stage.INPUT, [found("harm", 0.6)]), overlays=("o",))]
    policy = Policy("p", (HARM,), overlays=(easy,), revision="r")
    for model, applied, decided in (("med-7b", ("easy",), Action.ALLOW), ("small", (), Action.BLOCK)):
        why = explain(policy, recorded, {"model": model})
        assert (why.policy.applied, why.decided) == (applied, decided)


def found(category, score, **others):
    return Finding("fake", category, score, (Span(0, 0, 3),), **others)


HARM = Rule("harm", "harm", Action.BLOCK, threshold=0.5)
MILD = Rule("harm-mild", "harm", Action.LOG, threshold=0.3)
TRIAL = Rule("trial", "harm", Action.BLOCK, threshold=0.2, shadow=True)
MAIL = Rule("mail", "pii", Action.REWRITE)


def of(its_rules, *its_findings):
    return explained(Policy("p", its_rules, revision="r"), [(Stage.INPUT, its_findings)])


def test_milder_is_the_least_threshold_that_the_deciding_rule_would_need():
    why = of((HARM, MILD), found("harm", 0.9312), found("harm.S4", 0.7))
    assert why.milder.changes == (Change("harm", "threshold", 0.5, 0.9313),)
    assert (why.milder.action, why.stronger) == (Action.LOG, None)


def test_milder_is_the_action_where_no_threshold_is_high_enough():
    why = of((HARM,), found("harm", 1.0))
    assert why.milder.changes == (Change("harm", "action", Action.BLOCK, Action.LOG),)


def test_milder_than_a_failed_check_is_what_on_error_asks_for():
    why = of((HARM, MAIL), Finding("fake", "harm", 0.0, error="too slow"))
    assert why.milder.changes == (Change("harm", "on_error", Action.BLOCK, Action.LOG),)
    assert [(v.unanswered, v.errors) for v in why.judgements[0].verdicts] == [
        (Action.BLOCK, ("fake: too slow",)),
        (None, ()),
    ]


def test_one_finding_that_cannot_be_rewritten_leaves_the_others_to_rewrite():
    why = of((MAIL,), found("pii.email", 0.9), found("pii.phone", 0.6, rewritable=False))
    assert why.decided is Action.BLOCK
    assert why.milder.changes == (Change("mail", "threshold", 0.5, 0.6001),)
    assert why.milder.action is Action.REWRITE


def test_stronger_takes_the_threshold_that_has_the_shortest_way_to_go():
    why = of((HARM, replace(MAIL, threshold=0.45)), found("harm", 0.28), found("pii.email", 0.3))
    assert why.stronger.changes == (Change("mail", "threshold", 0.45, 0.3),)
    assert [round(v.short_by, 4) for v in why.judgements[0].verdicts] == [0.22, 0.15]


def spared(*names, policy_has="ab"):
    exceptions = tuple(RuleException(name, ("harm",), date(2999, 1, 1), "ours", pattern="x") for name in policy_has)
    policy = Policy("p", (HARM, TRIAL), exceptions=exceptions, revision="r")
    return explained(policy, [(Stage.INPUT, [found("harm", 0.9, excepted=one) for one in names])])


def test_stronger_ends_the_exception_that_alone_kept_a_rule_from_firing_before_all_else():
    why = spared(("b",))
    assert (why.decided, why.stronger) == (Action.ALLOW, Flip((), Action.BLOCK, ("b",)))
    assert why.judgements[0].verdicts[0].excepted == ("b",)


def test_stronger_ends_as_few_exceptions_as_it_takes():
    assert spared(("a", "b")).stronger == Flip((), Action.BLOCK, ("a", "b"))
    assert spared(("a", "b"), ("b",)).stronger == Flip((), Action.BLOCK, ("b",))


def test_exceptions_that_are_in_the_policy_no_more_are_not_to_be_ended():
    assert spared(("c",)).stronger is None


def test_stronger_takes_a_shadow_rule_that_would_have_fired_first():
    why = of((HARM, TRIAL), found("harm", 0.48))
    assert why.stronger.changes == (Change("trial", "shadow", True, False),)
    assert why.judgements[0].verdicts[1].asks is Action.BLOCK


def test_stronger_is_the_action_where_every_rule_that_looked_has_fired():
    why = of((MILD,), found("harm", 0.4))
    assert why.stronger.changes == (Change("harm-mild", "action", Action.LOG, Action.BLOCK),)


def test_nothing_found_leaves_nothing_to_change():
    why = of((HARM, MILD, MAIL))
    assert (why.milder, why.stronger) == (None, None)
    assert all(one.finding is None and one.short_by is None for one in why.judgements[0].verdicts)


def test_rules_about_other_peoples_text_found_nothing_and_are_no_nearer_for_it():
    policy = Policy("p", (Rule("handed", "harm", Action.BLOCK, threshold=0.8, roles=("tool_call",)),), revision="r")
    found = explained(policy, [(Stage.INPUT, [Finding("fake", "harm", 0.7, (Span(0, 0, 3),), role="user")])])
    (verdict,) = found.judgements[0].verdicts
    assert (verdict.finding, verdict.short_by, found.stronger) == (None, None, None)


def test_one_change_serves_all_decisions_of_an_exchange():
    policy = Policy("p", (HARM,), revision="r")
    why = explained(policy, [(Stage.INPUT, [found("harm", 0.6)]), (Stage.OUTPUT, [found("harm", 0.8)])])
    assert why.milder.changes == (Change("harm", "threshold", 0.5, 0.8001),)


def test_another_policy_is_told_apart_and_decides_from_the_recorded_findings():
    recorded = [decide(Policy("p", (HARM,), revision="r"), Stage.INPUT, [found("harm", 0.6)])]
    why = explain(Policy("p", (replace(HARM, threshold=0.7),), revision="s"), recorded)
    assert (why.same_policy, why.recorded, why.decided) == (False, Action.BLOCK, Action.ALLOW)


@pytest.mark.parametrize("score", [0.00004, 0.3, 0.1 + 0.2, 0.99995, 1.0])
def test_proposed_threshold_is_never_on_the_wrong_side_of_the_score(score):
    why = of((replace(HARM, threshold=0.0),), found("harm", score))
    for change in why.milder.changes:
        assert change.key == "action" or score < change.new <= 1


# --- replies of several windows

WITH = Rule("red", "red", Action.BLOCK, stages=(Stage.OUTPUT,), when=Condition(category="pii"))
WITHOUT = replace(WITH, when=Condition(not_=Condition(category="pii")))
BOTH = (Finding("fake", "red", 0.9, (Span(0, 0, 3),)), Finding("fake", "pii.email", 0.9, (Span(0, 900, 920),)))
LATE = Rule("late", "pii", Action.LOG)


def of_windows(rule, *, fired, length=1_000, revision="r"):
    policy = Policy("p", (rule, LATE), revision="r")
    decided = {"rules": ("red",), "logged": ("late",)} if fired else {"rules": ("late",)}
    recorded = Decision(
        Stage.OUTPUT, Action.BLOCK if fired else Action.LOG, findings=BOTH, revision=revision, **decided
    )
    return explain(policy, [recorded], lengths=[length])


@pytest.mark.parametrize("rule", [WITH, WITHOUT])
@pytest.mark.parametrize("fired", [True, False])
def test_what_a_condition_came_to_in_the_windows_of_a_reply_is_on_record(rule, fired):
    why = of_windows(rule, fired=fired)
    verdict = why.judgements[0].verdicts[0]
    assert (verdict.asks, verdict.unknown, why.unknown) == (Action.BLOCK if fired else None, False, False)
    assert why.decided is why.recorded
    assert verdict.rule.when == rule.when
    if fired:
        assert why.milder == Flip((Change("red", "threshold", 0.5, 0.9001),), Action.LOG)
    else:
        assert why.stronger == Flip((Change("late", "action", Action.LOG, Action.BLOCK),), Action.BLOCK)


@pytest.mark.parametrize("action", [Action.BLOCK, Action.REWRITE])
@pytest.mark.parametrize("then", [{"shadow": True}, {"action": Action.LOG}])
def test_a_rule_that_only_watched_the_windows_would_have_done_what_it_says(action, then):
    watching = replace(WITH, **({"action": action} | then))
    fired = {"shadow": ("red",)} if watching.shadow else {"logged": ("red",)}
    recorded = Decision(Stage.OUTPUT, Action.LOG, rules=("late",), findings=BOTH, revision="r", **fired)
    why = explain(Policy("p", (watching, LATE), revision="r"), [recorded], lengths=[1_000])
    key = "shadow" if watching.shadow else "action"
    new = False if watching.shadow else Action.BLOCK
    outcome = action if watching.shadow else Action.BLOCK
    flips = {one.key: (one.new, why.stronger.action) for one in why.stronger.changes if one.rule == "red"}
    assert flips == {key: (new, outcome)}


def test_an_outcome_that_windows_may_make_stronger_is_told_as_the_least():
    mail = Rule("mail", "pii", Action.REWRITE, when=Condition(category="red"), threshold=0.5, on_error=Action.BLOCK)
    low = Finding("fake", "pii.email", 0.4, (Span(0, 0, 9),))
    both = (low, Finding("fake", "red", 0.9, (Span(0, 30, 33),)))
    asked = Decision(Stage.INPUT, Action.ALLOW, findings=both, revision="r")
    torn = (*both, Finding("fake", "red", 0.0, error="away"))
    answered = Decision(Stage.OUTPUT, Action.ALLOW, findings=torn, revision="r")
    policy = Policy("p", (mail,), revision="r")
    changes = (Change("mail", "threshold", 0.5, 0.4),)
    assert explain(policy, [asked], lengths=[0]).stronger == Flip(changes, Action.REWRITE)
    why = explain(policy, [asked, answered], lengths=[0, 1_000])
    assert why.stronger == Flip(changes, Action.REWRITE, bound="at least")


@pytest.mark.parametrize("rule", [WITH, WITHOUT])
def test_what_another_policys_condition_would_have_come_to_in_windows_nobody_knows(rule):
    why = of_windows(rule, fired=False, revision="other")
    assert why.judgements[0].verdicts[0].unknown
    assert (why.unknown, why.milder, why.stronger) == (True, None, None)
    assert not of_windows(rule, fired=False, revision="other", length=81).unknown  # one window


def test_no_change_is_proposed_of_which_windows_would_have_to_tell():
    near = (replace(BOTH[0], score=0.4), BOTH[1])
    recorded = Decision(Stage.OUTPUT, Action.LOG, rules=("late",), findings=near, revision="r")
    why = explain(Policy("p", (WITH, LATE), revision="r"), [recorded], lengths=[1_000])
    assert why.stronger == Flip((Change("late", "action", Action.LOG, Action.BLOCK),), Action.BLOCK)
    why = explain(Policy("p", (WITH, LATE), revision="r"), [recorded], lengths=[0])
    assert why.stronger == Flip((Change("red", "threshold", 0.5, 0.4),), Action.BLOCK)
