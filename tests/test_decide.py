from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.policies.decide import decide, reasons
from ringfence.policies.types import Action, Finding, Policy, Rule, Span, Stage
from ringfence.policies.words import covers

CATEGORIES = ["harm", "harm.S4", "pii", "pii.email", "attack"]

scores = st.floats(0, 1)
actions = st.sampled_from(Action)
spans = st.builds(
    lambda part, start, length: Span(part, start, start + length),
    part=st.integers(0, 2),
    start=st.integers(0, 30),
    length=st.integers(1, 10),
)
findings = st.builds(
    Finding,
    check=st.just("fake"),
    category=st.sampled_from(CATEGORIES),
    score=scores,
    spans=st.lists(spans, max_size=3).map(tuple),
    error=st.none() | st.just("boom"),
)
rules = st.builds(
    Rule,
    id=st.uuids().map(str),
    category=st.sampled_from(CATEGORIES),
    action=actions,
    stages=st.sampled_from([(Stage.INPUT,), (Stage.OUTPUT,), (Stage.INPUT, Stage.OUTPUT)]),
    threshold=scores,
    on_error=st.sampled_from([Action.ALLOW, Action.LOG, Action.BLOCK]),
    shadow=st.booleans(),
)
policies = st.builds(Policy, name=st.just("p"), rules=st.lists(rules, max_size=5, unique_by=lambda r: r.id).map(tuple))


def policy(*its_rules, **others):
    return Policy("p", tuple(its_rules), **others)


def found(category, score=1.0, start=0, end=5, part=0, **others):
    return Finding("fake", category, score, (Span(part, start, end),), **others)


MAIL = Rule("mail", "pii.email", Action.REWRITE)
HARM = Rule("harm", "harm", Action.BLOCK, threshold=0.8)


@given(policies, st.lists(findings, min_size=1, max_size=5), st.data())
def test_higher_score_never_gives_a_weaker_action(its_policy, its_findings, data):
    at = data.draw(st.integers(0, len(its_findings) - 1))
    raised = list(its_findings)
    raised[at] = replace(raised[at], score=data.draw(st.floats(raised[at].score, 1)))
    before = decide(its_policy, Stage.INPUT, its_findings)
    assert decide(its_policy, Stage.INPUT, raised).action.strength >= before.action.strength


@given(policies, st.lists(findings, max_size=5), st.randoms())
def test_order_of_rules_and_findings_changes_neither_action_nor_rewrites(its_policy, its_findings, random):
    shuffled = replace(its_policy, rules=tuple(random.sample(its_policy.rules, len(its_policy.rules))))
    mixed = random.sample(its_findings, len(its_findings))
    one, other = decide(its_policy, Stage.INPUT, its_findings), decide(shuffled, Stage.INPUT, mixed)
    assert (one.action, one.rewrites, one.shadow) == (other.action, other.rewrites, other.shadow)
    assert set(one.rules) == set(other.rules)


@given(policies, st.lists(findings, max_size=6))
def test_rewrites_are_disjoint_ordered_and_cover_every_span_that_a_rule_wants_rewritten(its_policy, its_findings):
    decision = decide(its_policy, Stage.INPUT, its_findings)
    for one, other in zip(decision.rewrites, decision.rewrites[1:], strict=False):
        assert (one.span.part, one.span.end) <= (other.span.part, other.span.start) or one.span.part < other.span.part
    if decision.action is Action.REWRITE:
        by_id = {rule.id: rule for rule in its_policy.rules}
        for finding in its_findings:
            for rule in (by_id[rule_id] for rule_id in decision.rules):
                if not finding.error and covers(rule.category, finding.category) and finding.score >= rule.threshold:
                    for span in finding.spans:
                        assert any(
                            r.span.part == span.part and r.span.start <= span.start and span.end <= r.span.end
                            for r in decision.rewrites
                        )


@given(policies, st.lists(findings, max_size=5))
def test_shadow_rules_change_nothing(its_policy, its_findings):
    live = replace(its_policy, rules=tuple(rule for rule in its_policy.rules if not rule.shadow))
    assert replace(decide(its_policy, Stage.INPUT, its_findings), shadow={}) == decide(live, Stage.INPUT, its_findings)


def test_nothing_found_is_allowed():
    decision = decide(policy(HARM, MAIL, revision="r1"), Stage.INPUT, [])
    assert (decision.action, decision.rules, decision.message, decision.revision) == (Action.ALLOW, (), "", "r1")


def test_rule_fires_at_its_threshold_and_not_below():
    assert decide(policy(HARM), Stage.INPUT, [found("harm", 0.8)]).action is Action.BLOCK
    assert decide(policy(HARM), Stage.INPUT, [found("harm", 0.7999)]).action is Action.ALLOW


def test_score_that_is_not_a_number_fires():
    assert decide(policy(HARM), Stage.INPUT, [found("harm", float("nan"))]).action is Action.BLOCK


def test_rule_meets_what_lies_below_its_category_and_nothing_beside_it():
    pii = Rule("pii", "pii", Action.LOG)
    assert decide(policy(pii), Stage.INPUT, [found("pii.email")]).rules == ("pii",)
    assert decide(policy(pii), Stage.INPUT, [found("piiish")]).rules == ()
    assert decide(policy(MAIL), Stage.INPUT, [found("pii")]).rules == ()


def test_rule_of_another_stage_does_not_look():
    output_only = replace(HARM, stages=(Stage.OUTPUT,))
    assert decide(policy(output_only), Stage.INPUT, [found("harm")]).action is Action.ALLOW
    assert decide(policy(output_only), Stage.INPUT, [found("harm", error="down")]).action is Action.ALLOW


def test_strongest_action_wins_and_weaker_rules_are_logged():
    noted = Rule("noted", "harm", Action.LOG, threshold=0.1)
    decision = decide(policy(noted, MAIL, HARM), Stage.INPUT, [found("harm", 0.9), found("pii.email")])
    assert (decision.action, decision.rules, decision.logged) == (Action.BLOCK, ("harm",), ("mail", "noted"))


def test_blocked_text_carries_its_rewrites_so_that_the_record_can_be_masked():
    decision = decide(policy(MAIL, HARM), Stage.INPUT, [found("harm"), found("pii.email", start=3, end=9)])
    assert decision.action is Action.BLOCK
    assert [r.span for r in decision.rewrites] == [Span(0, 3, 9)]
    pii = Rule("pii", "pii", Action.REWRITE)
    half = decide(
        policy(pii), Stage.INPUT, [found("pii.email", start=3, end=9), Finding("p", "pii.x", 0, error="down")]
    )
    assert (half.action, [r.span for r in half.rewrites]) == (Action.BLOCK, [Span(0, 3, 9)])


@pytest.mark.parametrize("category", ["pii", "pii.email"])
def test_failed_check_asks_for_on_error_of_every_rule_over_or_below_its_category(category):
    failed = Finding("pii", category, 0, error="ValueError: no")
    fine = replace(MAIL, id="log", on_error=Action.LOG)
    decision = decide(policy(MAIL, fine, HARM), Stage.INPUT, [failed, failed])
    assert (decision.action, decision.rules, decision.logged) == (Action.BLOCK, (), ())
    assert decision.unanswered == {"mail": Action.BLOCK, "log": Action.LOG}
    assert reasons(decision) == ("failed:pii",)
    assert decision.errors == ("pii: ValueError: no",)
    assert decide(policy(fine), Stage.INPUT, [failed]).action is Action.LOG


def test_block_by_a_failed_check_has_the_policys_message_and_one_by_a_rule_its_own():
    helpful = Rule("self-harm", "harm.S11", Action.BLOCK, message="Please talk to someone.")
    failed = [Finding("classifier", "harm", 0, error="down"), Finding("classifier", "harm.S11", 0, error="down")]
    decision = decide(policy(HARM, helpful, message="default"), Stage.INPUT, failed)
    assert (decision.action, decision.message, reasons(decision)) == (Action.BLOCK, "default", ("failed:classifier",))
    both = decide(
        policy(helpful, MAIL, message="default"),
        Stage.INPUT,
        [found("harm.S11"), Finding("pii", "pii", 0, error="down")],
    )
    assert (both.message, both.rules, reasons(both)) == (
        "Please talk to someone.",
        ("self-harm",),
        ("self-harm", "failed:pii"),
    )


def test_failed_check_that_asks_for_less_is_no_reason():
    mild = replace(MAIL, on_error=Action.LOG)
    decision = decide(policy(HARM, mild), Stage.INPUT, [found("harm"), Finding("pii", "pii", 0, error="down")])
    assert (reasons(decision), decision.unanswered) == (("harm",), {"mail": Action.LOG})


def test_rewrite_without_a_span_blocks_because_nothing_could_be_rewritten():
    assert decide(policy(MAIL), Stage.INPUT, [Finding("fake", "pii.email", 1.0)]).action is Action.BLOCK


def test_message_is_the_first_deciding_rules_own_or_the_policys():
    quiet = replace(HARM, id="quiet")
    loud, louder = replace(HARM, id="loud", message="no."), replace(HARM, id="louder", message="NO!")
    assert decide(policy(quiet, loud, louder, message="default"), Stage.INPUT, [found("harm")]).message == "no."
    assert decide(policy(quiet, message="default"), Stage.INPUT, [found("harm")]).message == "default"
    assert decide(policy(MAIL, message="default"), Stage.INPUT, [found("pii.email")]).message == ""


def test_replacement_names_the_category_that_was_found():
    pii = Rule("pii", "pii", Action.REWRITE, replacement="<{category}/{category}>")
    decision = decide(policy(pii), Stage.INPUT, [found("pii.email")])
    assert decision.rewrites[0].replacement == "<PII_EMAIL/PII_EMAIL>"


def test_overlapping_spans_become_one_named_after_the_first_to_start_then_the_longest():
    pii = Rule("pii", "pii", Action.REWRITE)
    its_findings = [
        found("pii.c", start=8, end=12),
        found("pii.b", start=2, end=9),
        found("pii.a", start=2, end=5),
        found("pii.d", start=12, end=14),
        found("pii.e", start=0, end=20, part=1),
    ]
    decision = decide(policy(pii), Stage.INPUT, its_findings)
    assert [(r.span, r.replacement) for r in decision.rewrites] == [
        (Span(0, 2, 12), "[PII_B]"),
        (Span(0, 12, 14), "[PII_D]"),
        (Span(1, 0, 20), "[PII_E]"),
    ]
