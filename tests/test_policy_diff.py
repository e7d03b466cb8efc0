"""What a new policy would have done to exchanges on record: decided in groups as one by one, and never by guessing."""

import json
import sqlite3
import sys
from collections import Counter as Tally
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ringfence.guard.audit.record import Receipt, decisions_of, record_of
from ringfence.guard.audit.store import Store
from ringfence.guard.bench.traffic import exchanges
from ringfence.guard.check import CannotAnswer, Finding, Passage
from ringfence.guard.checks.hidden import HiddenCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part, Subject
from ringfence.guard.guard import Guard
from ringfence.guard.replay.proportions import paired_interval
from ringfence.guard.replay.replay import replay
from ringfence.guard.replay.unknown import UNFINISHED
from ringfence.policies.compare import compare
from ringfence.policies.decide import decide, strongest
from ringfence.policies.load import load_policy, loads_policy
from ringfence.policies.own import Keywords
from ringfence.policies.types import (
    Action,
    Condition,
    Counter,
    Degrade,
    Escalate,
    Exemption,
    Overlay,
    Override,
    Policy,
    Rule,
    RuleException,
    Scope,
    Span,
    Stage,
)
from ringfence.proxy.cli import diff as cli
from ringfence.proxy.cli import main
from ringfence.proxy.cli.policy import app

MAIL = "Write to ann@mail.example today."


class WarCheck:
    """Stands in for the classifier: harm is what mentions war, the more often the surer."""

    name = "classifier"
    categories = frozenset({"harm", "attack", "toxicity", "refusal"})

    def __init__(self, revision="now", weight=0.3):
        self.revision = revision
        self.weight = weight

    def find(self, passage):
        score = min(1.0, self.weight * passage.text.count("war"))
        return [Finding("classifier", "harm", score, (Span(0, 0, len(passage.text)),))]


CHECKS = {check.name: check for check in (WarCheck(), PiiCheck(), HiddenCheck())}
ELDER = {**CHECKS, "classifier": WarCheck("elder", 0.45)}
"""The same with other weights."""

HARM = Rule("harm", "harm", Action.BLOCK, threshold=0.8)
PII = Rule("pii", "pii", Action.REWRITE)


def policy(*rules, revision="old", text="masked", **more):
    made = Policy("p", rules, revision=revision, **more)
    return replace(made, audit=replace(made.audit, text=text))


@pytest.fixture
def db(tmp_path):
    return tmp_path / "log.db"


def say(db, by, *texts, reply="Fine.", key="k", role=None, day=20, checks=CHECKS):
    """Send each text through a guard, as the proxy would, and keep the records."""
    store = Store.open(db)
    guard = Guard(by, checks=checks, store=store)
    for text in texts:
        parts = [Part(Kind.TEXT, "user", ("messages", 0, "content"), text)]
        if role:
            parts.insert(0, Part(Kind.TEXT, *role))
        at = datetime(2026, 11, day, 12, tzinfo=UTC)
        exchange = Exchange("openai.chat", "m", parts, subject=Subject("t", key), received_at=at)
        if guard.judge_request(exchange).action is not Action.BLOCK:
            answer = guard.open_reply(exchange)
            answer.feed(("choices", 0), reply)
            answer.release(("choices", 0), last=True)
            answer.finish()
        guard.record(exchange)
    store.close()


def counted(found):
    return {(one.stage, one.old, one.new): one.count for one in found.changes}


# --- groups against one by one

CATEGORIES = ["harm", "harm.S4", "pii", "pii.email"]
scores = st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.7, 0.8, 1.0]) | st.floats(0, 1)
leaves = st.builds(Condition, category=st.sampled_from(CATEGORIES), threshold=st.none() | scores)
conditions = leaves | st.builds(lambda one: Condition(not_=one), leaves)
rules = st.builds(
    Rule,
    id=st.sampled_from("abcdef"),
    category=st.sampled_from(CATEGORIES),
    action=st.sampled_from(Action),
    stages=st.sampled_from([(Stage.INPUT,), (Stage.OUTPUT,), (Stage.INPUT, Stage.OUTPUT)]),
    threshold=scores,
    roles=st.sampled_from([(), ("user",), ("assistant", "system")]),
    when=st.none() | conditions,
    replacement=st.sampled_from(["[{category}]", "x"]),
    escalate=st.none() | st.builds(Escalate, st.sampled_from(["pii", "harm.S4"]), st.just((0.3, 0.8)), scores),
    on_error=st.sampled_from([Action.ALLOW, Action.LOG, Action.BLOCK, Degrade("pii"), Degrade("harm")]),
    shadow=st.booleans(),
)
rule_sets = st.lists(rules, max_size=5, unique_by=lambda rule: rule.id).map(tuple)
seen = st.tuples(
    st.sampled_from(CATEGORIES),
    scores | st.just(float("nan")),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
LOOKING = (
    Rule("all-harm", "harm", Action.LOG, threshold=1, shadow=True),
    Rule("all-pii", "pii", Action.LOG, threshold=1, shadow=True),
)


def made(items, stage):
    for place, (category, score, part, spanned, rewritable, luck) in enumerate(items):
        check = {"harm": "classifier"}.get(category.partition(".")[0], "pii")
        if luck == 0:
            yield Finding(check, category, 0.0, error="broke")
        else:
            part = part if stage is Stage.INPUT else 0
            role = ("system", "user")[part] if stage is Stage.INPUT else "assistant"
            spans = (Span(part, 10 * place, 10 * place + 3),) if spanned else ()
            yield Finding(check, category, score, spans, rewritable=rewritable, role=role)


def recorded(db, by, traffic):
    store = Store.open(db)
    for asked, answered in traffic:
        request = [Part(Kind.TEXT, role, ("m", i), "x" * 90) for i, role in enumerate(("system", "user"))]
        exchange = Exchange("openai.chat", "m", request)
        exchange.decisions.append(decide(by, Stage.INPUT, made(asked, Stage.INPUT)))
        if exchange.decisions[0].action is not Action.BLOCK:
            exchange.reply.append(Part(Kind.TEXT, "assistant", ("r", 0), "y" * 80))
            exchange.decisions.append(decide(by, Stage.OUTPUT, made(answered, Stage.OUTPUT)))
        exchange.coverage += [Coverage(part.where, Judged.JUDGED) for part in (*request, *exchange.reply)]
        exchange.revisions["classifier"] = CHECKS["classifier"].revision
        store.append(record_of(exchange, text="masked"))
    bodies = [kept.body for kept in store.list(limit=1000)]
    store.close()
    return bodies


def one_by_one(by, body):
    """The slow twin: what a policy makes of one record, with everything in it."""
    exempt = {one.role for one in by.exempt}
    roles = [part["role"] for part in body["request"]]
    for old in decisions_of(body):
        left = [
            f for f in old.findings if old.stage is Stage.OUTPUT or not f.spans or roles[f.spans[0].part] not in exempt
        ]
        decision = decide(by, old.stage, left)
        yield decision
        if old.stage is Stage.INPUT and decision.action is Action.BLOCK:
            return


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rule_sets,
    rule_sets,
    st.booleans(),
    st.lists(st.tuples(st.lists(seen, max_size=3), st.lists(seen, max_size=3)), min_size=1, max_size=6),
)
def test_deciding_in_groups_is_deciding_one_by_one(tmp_path_factory, before, after, exempting, traffic):
    db = tmp_path_factory.mktemp("log") / "log.db"
    old = policy(*before, *LOOKING)
    new = policy(*after, *LOOKING, revision="new", exempt=(Exemption("system", "ours"),) if exempting else ())
    bodies = recorded(db, old, traffic)
    found = replay(db, old, new, CHECKS)
    changes, blocks, rewrites, changed = Tally(), [0, 0], [0, 0], 0
    for body in bodies:
        pair = [list(one_by_one(by, body)) for by in (old, new)]
        for side, decisions in enumerate(pair):
            action = strongest(one.action for one in decisions)
            blocks[side] += action is Action.BLOCK
            rewrites[side] += action is Action.REWRITE
        different = [
            (a.stage, a.action, b.action)
            for a, b in zip(*pair, strict=False)
            if a.action is not b.action
            or (
                a.action is Action.REWRITE
                and {(r.span, r.replacement) for r in a.rewrites} != {(r.span, r.replacement) for r in b.rewrites}
            )
        ]
        changes.update(different)
        changed += bool(different)
    assert counted(found) == dict(changes)
    assert found.changed == changed
    assert [found.blocked.old, found.blocked.new] == blocks
    assert [found.rewritten.old, found.rewritten.new] == rewrites
    assert found.reproduced == found.decided_then == found.exchanges == len(bodies)
    assert all(one.causes for one in found.changes)
    assert found.blocked.gained - found.blocked.lost == found.blocked.new - found.blocked.old


# --- what is known, and what is not


def test_new_threshold_is_decided_by_what_was_found_below_the_old_one(db):
    old = policy(HARM)
    say(db, old, "war and war", "war war war", "peace")
    found = replay(db, old, policy(replace(HARM, threshold=0.5), revision="new"), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}
    assert found.changes[0].causes == {("harm", "harm"): 1}
    assert [one.text for one in found.changes[0].examples] == ["war and war"]
    assert (found.blocked.old, found.blocked.new, found.undecided) == (1, 2, 0)


def test_check_that_ran_and_found_nothing_is_known_to_have_found_nothing(db):
    old = policy(HARM, PII)
    say(db, old, "peace", "quiet")
    found = replay(db, old, policy(HARM, replace(PII, action=Action.BLOCK), revision="new"), CHECKS)
    assert (found.changed, found.undecided, found.rejudged) == (0, 0, 0)


def test_check_that_did_not_run_judges_the_kept_text(db):
    old = policy(HARM, text="full")
    say(db, old, MAIL, "peace", reply="Ask bob@mail.example, as I did.")
    found = replay(db, old, policy(HARM, PII, revision="new"), CHECKS)
    assert counted(found) == {
        (Stage.INPUT, Action.ALLOW, Action.REWRITE): 1,
        (Stage.OUTPUT, Action.ALLOW, Action.REWRITE): 2,
    }
    assert (found.rejudged, found.undecided, found.rewritten.new) == (2, 0, 2)


@pytest.mark.parametrize(("keep", "why"), [("masked", "kept masked"), ("none", "not kept")])
def test_text_that_is_not_there_as_it_came_leaves_the_exchange_undecided(db, keep, why):
    old = policy(PII, text=keep)
    say(db, old, MAIL)
    found = replay(db, old, policy(PII, HARM, revision="new"), CHECKS)
    assert (found.changed, found.undecided, found.rejudged) == (0, 1, 0)
    [(reason, count)] = found.reasons.items()
    assert "nobody looked for 'harm' then" in reason
    assert reason.endswith(why)
    assert count == 1
    # It may be blocked by the new policy, and cannot have been by the old one.
    assert (found.blocked.least, found.blocked.most) == (found.blocked.low, paired_interval(1, 0, 1)[1])


def test_masked_text_in_which_nothing_was_hidden_is_judged_again(db):
    old = policy(PII)
    say(db, old, "war war war")
    found = replay(db, old, policy(PII, HARM, revision="new"), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}
    assert (found.rejudged, found.undecided) == (1, 0)


def test_rule_of_both_policies_that_nobody_can_answer_leaves_nothing_open_between_them(db):
    say(db, policy(PII, revision="third"), MAIL)
    old, new = policy(PII, HARM), policy(PII, HARM, revision="new")
    found = replay(db, old, new, CHECKS)
    assert (found.changed, found.undecided) == (0, 0)


def test_check_of_a_third_policy_ran_for_all_its_exchanges_if_it_found_something_in_one(db):
    third = policy(PII, revision="third")
    say(db, third, "peace", MAIL)
    say(db, policy(HARM, revision="fourth", text="none"), "quiet")
    found = replay(db, policy(revision="old"), policy(PII, revision="new"), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.REWRITE): 1}
    # The fourth did not look for it, and kept no text. Of replies there is no sign that the third did: one is judged
    # again, of the other the question is kept masked.
    assert (found.undecided, found.rejudged) == (2, 1)


def test_judging_kept_text_again_comes_to_what_the_new_policy_would_have_recorded(db, tmp_path):
    old = policy(replace(HARM, threshold=1.0, action=Action.LOG), text="full")
    new = policy(HARM, PII, Rule("hidden", "hidden", Action.BLOCK), revision="new", text="full")
    long = "All is calm here and will stay so for some time. " * 9
    replies = [
        long,
        long + MAIL + long,
        long + "war war war " + long,
        long + "a\U000e0041\U000e0042\U000e0043b " + long,
    ]
    for reply in replies:
        say(db, old, "peace", MAIL, reply=reply)
        say(tmp_path / "new.db", new, "peace", MAIL, reply=reply)
    found = replay(db, old, new, CHECKS, examples=0)
    store = Store.open(tmp_path / "new.db", read_only=True)
    assert (found.blocked.new, found.rewritten.new) == (store.count("block"), store.count("rewrite"))
    assert (store.count(), found.blocked.new, found.rewritten.new) == (8, 4, 3)
    assert (found.rejudged, found.undecided) == (6, 0)  # two are blocked by what was found then
    store.close()


def test_counter_that_counts_otherwise_leaves_its_rules_open(db):
    old = policy(HARM, text="full")
    say(db, old, "peace")
    counter = Counter("often", ("harm",), 3, "10m", "5m")
    held = Rule("held", "count.often", Action.BLOCK, stages=(Stage.INPUT,))
    found = replay(db, old, policy(HARM, held, revision="new", counters=(counter,)), CHECKS)
    assert found.undecided == 1
    assert [why for why in found.reasons if "count.often" in why]


def test_lifted_block_counts_as_lifted_and_its_reply_as_not_known(db):
    old = policy(HARM)
    say(db, old, "war war war", "peace")
    found = replay(db, old, policy(replace(HARM, threshold=0.95), revision="new"), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.BLOCK, Action.ALLOW): 1}
    assert (found.blocked.lost, found.undecided) == (1, 1)
    assert list(found.reasons) == ["it was stopped then: there is no reply on record, or not all of it"]
    assert found.blocked.most > found.blocked.high  # the reply may have been blocked
    unread = policy(replace(HARM, threshold=0.95, stages=(Stage.INPUT,)), revision="new")
    assert replay(db, old, unread, CHECKS).undecided == 0  # nobody would have read it


def test_reply_that_was_stopped_is_not_known_to_be_rewritten_by_its_beginning(db, tmp_path):
    reply = f"war war war. {FILLER * 30}{MAIL}"
    old = policy(HARM, text="full")
    new = policy(replace(HARM, action=Action.REWRITE, when=Condition(not_=Condition(category="pii"))), revision="new")
    say(db, old, "peace", reply=reply)
    say(tmp_path / "new.db", new, "peace", reply=reply)
    with closing(Store.open(tmp_path / "new.db", read_only=True)) as store:
        assert [kept.body["action"] for kept in store.list()] == ["log"]
    found = replay(db, old, new, CHECKS)
    assert (found.undecided, list(found.reasons)) == (1, [UNFINISHED])


def test_text_that_was_exempt_then_is_judged_now(db):
    exempt = policy(HARM, exempt=(Exemption("system", "ours"),), text="full")
    say(db, exempt, "peace", role=("system", ("messages", 9), "war war war"))
    found = replay(db, exempt, policy(HARM, revision="new"), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}
    assert (found.rejudged, found.undecided) == (1, 0)


def test_text_that_is_exempt_now_counts_no_more(db):
    old = policy(HARM)
    say(db, old, "peace", role=("system", ("messages", 9), "war war war"))
    new = policy(HARM, revision="new", exempt=(Exemption("system", "ours"),))
    assert counted(replay(db, old, new, CHECKS)) == {(Stage.INPUT, Action.BLOCK, Action.ALLOW): 1}


def test_overlay_counts_for_those_that_it_is_about(db):
    old = policy(HARM)
    say(db, old, "war and war", key="strict")
    say(db, old, "war and war", "peace", key="other")
    overlay = Overlay("s", Scope(key=("strict",)), override={"harm": Override(threshold=0.5)})
    found = replay(db, old, policy(HARM, revision="new", overlays=(overlay,)), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}
    assert found.exchanges == 3


def test_what_a_third_policy_looked_for_in_some_exchanges_by_an_overlay_it_did_not_look_for_in_others(db):
    harm, pii = (replace(rule, stages=(Stage.INPUT,)) for rule in (HARM, PII))
    overlay = Overlay("s", Scope(key=("strict",)), rules=(pii,))
    third = policy(harm, revision="third", text="none", overlays=(overlay,))
    say(db, third, f"war {MAIL}", key="strict")
    say(db, third, f"war {MAIL}", "war", key="other")
    found = replay(db, policy(harm), policy(harm, pii, revision="new"), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.REWRITE): 1}
    assert (found.exchanges, found.undecided) == (3, 2)


def test_what_other_weights_said_then_is_not_what_those_in_use_say(db):
    old = policy(HARM, PII, text="none")
    say(db, old, "war", f"peace {MAIL}", checks=ELDER)
    say(db, old, "war and war")
    new = policy(replace(HARM, threshold=0.4), PII, revision="new", text="none")
    found = replay(db, old, new, CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}
    assert found.undecided == 2
    assert "another version of the check" in next(iter(found.reasons))
    assert counted(replay(db, old, new, ELDER)) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}


def test_rules_that_other_weights_do_not_matter_to_are_decided(db):
    old = policy(HARM, PII, text="none")
    say(db, old, f"peace {MAIL}", checks=ELDER)
    new = policy(HARM, replace(PII, replacement="x"), revision="new", text="none")
    found = replay(db, old, new, CHECKS)
    assert (found.undecided, counted(found)) == (0, {(Stage.INPUT, Action.REWRITE, Action.REWRITE): 1})


def test_text_that_other_weights_judged_is_judged_again_by_those_in_use(db):
    old = policy(HARM, text="full")
    say(db, old, "war", "peace", checks=ELDER)
    new = policy(replace(HARM, threshold=0.4), revision="new", text="full")
    found = replay(db, old, new, CHECKS)
    assert (found.rejudged, found.undecided, counted(found)) == (2, 0, {})
    assert counted(replay(db, old, new, ELDER)) == {(Stage.INPUT, Action.ALLOW, Action.BLOCK): 1}


def test_second_opinion_of_other_weights_is_none(db):
    rule = Rule("pii", "pii", Action.LOG, escalate=Escalate("harm", (0.1, 1.0), 0.4))
    old = policy(rule, text="none")
    say(db, old, f"war {MAIL}", checks=ELDER)
    new = policy(replace(rule, escalate=Escalate("harm", (0.1, 1.0), 0.5)), revision="new", text="none")
    found = replay(db, old, new, ELDER)
    assert (found.undecided, found.changed) == (0, 1)
    assert replay(db, old, new, CHECKS).undecided == 1


def test_exception_of_a_scope_spares_only_until_its_day(db):
    old = policy(HARM)
    say(db, old, "war war war", day=20)
    say(db, old, "war war war", day=22)
    spared = RuleException("e", ("harm",), date(2026, 11, 21), "known", scope=Scope(key=("k",)))
    found = replay(db, old, policy(HARM, revision="new", exceptions=(spared,)), CHECKS)
    assert counted(found) == {(Stage.INPUT, Action.BLOCK, Action.ALLOW): 1}


@pytest.mark.parametrize(("keep", "undecided"), [("full", 0), ("none", 1)])
def test_exception_of_a_pattern_is_settled_by_the_text_where_that_is_kept(db, keep, undecided):
    old = policy(PII, text=keep)
    say(db, old, MAIL)
    spared = RuleException("e", ("pii",), date(2027, 1, 1), "known", pattern=r"bob@.*")
    found = replay(db, old, policy(PII, revision="new", exceptions=(spared,)), CHECKS)
    assert found.undecided == undecided
    assert (found.changed, found.rewritten.new, found.rewritten.lost) == (0, 1, 0)  # nobody knows of a change
    assert all("exception 'e' goes by the text" in why for why in found.reasons)


def test_exception_of_a_pattern_that_may_hold_is_no_change_and_one_that_cannot_help_is_one(db):
    old = policy(replace(PII, action=Action.LOG))
    say(db, old, MAIL)
    spared = RuleException("e", ("pii",), date(2027, 1, 1), "known", pattern=r"bob@.*")
    rewriting = policy(PII, revision="new", exceptions=(spared,))
    found = replay(db, old, rewriting, CHECKS)
    assert (found.changed, found.changes, found.undecided) == (0, (), 1)
    assert set(cli.counts_of(found).values()) == {0, 1}
    assert cli.counts_of(found)["undecided"] == 1
    assert found.rewritten.most > found.rewritten.high  # it may be rewritten
    blocking = replace(rewriting, rules=(*rewriting.rules, Rule("mail", "pii.email", Action.BLOCK)))
    found = replay(db, old, blocking, CHECKS)
    assert (found.changed, found.blocked.new, found.undecided) == (1, 1, 0)


def test_exchange_of_which_nothing_was_judged_is_left_out_and_counted(db):
    old = policy(HARM)
    say(db, old, "peace")
    store = Store.open(db)
    store.append(record_of(Exchange("openai.chat", "m", [], error="BadRequest: no"), text="masked"))
    store.close()
    found = replay(db, old, replace(old, revision="new"), CHECKS)
    assert (found.exchanges, found.unjudged) == (1, 1)


def test_traffic_of_the_shipped_policy_is_reproduced_by_it(db):
    shipped = load_policy()
    store = Store.open(db)
    for exchange in exchanges(shipped, 200, revision=CHECKS["classifier"].revision):
        store.append(record_of(exchange, text="masked"))
    store.close()
    found = replay(db, shipped, shipped, {**CHECKS, **others()})
    assert (found.reproduced, found.changed, found.undecided) == (200, 0, 0)
    assert found.blocked.old > 0


def others():
    from ringfence.guard.checks.exfiltration import ExfiltrationCheck
    from ringfence.guard.checks.leakage import LeakageCheck
    from ringfence.guard.checks.secrets import SecretsCheck

    return {check.name: check for check in (ExfiltrationCheck(), LeakageCheck(), SecretsCheck())}


# --- a log of anything against each of its records in a log by itself


class Records(list):
    """Where a guard puts its records, in place of a log."""

    def append(self, body):
        super().append(body)
        return Receipt(len(self), "0" * 64)


TEXTS = [
    "peace",
    "war and war",
    "war war war",
    MAIL,
    f"war war war {MAIL}",
    "a\U000e0041\U000e0042\U000e0043b",
    "A red car.",
    f"war war war. {'All is calm. ' * 80}{MAIL}",
]
RED = Keywords("keywords", "red", ("red",))
ROLES = ["user", "assistant", "system", "tool"]
KINDS = [Kind.TEXT] * 3 + [Kind.TOOL_CALL, Kind.TOOL_DEFINITION, Kind.MEDIA]
wanted = st.builds(
    Rule,
    id=st.sampled_from("abcdef"),
    category=st.sampled_from([*CATEGORIES, "hidden", "unjudged"]),
    action=st.sampled_from(Action),
    stages=st.sampled_from([(Stage.INPUT,), (Stage.OUTPUT,), (Stage.INPUT, Stage.OUTPUT)]),
    threshold=scores,
    roles=st.sampled_from([(), ("user",), ("tool", "tool_call")]),
    when=st.none() | conditions,
    shadow=st.booleans(),
)
overlays = st.builds(
    lambda gone, threshold: Overlay(
        "s", Scope(key=("strict",)), remove=("a",) if gone else (), override={"b": Override(threshold=threshold)}
    ),
    st.booleans(),
    scores,
)
more_overlays = st.builds(
    lambda stand_in: Overlay("t", Scope(key=("strict", "other")), override={"b": Override(on_error=stand_in)}),
    st.sampled_from([Action.LOG, Degrade("pii"), Degrade("hidden")]),
)
exceptions = st.builds(
    RuleException,
    id=st.just("e"),
    rules=st.just(("a", "b")),
    until=st.sampled_from([date(2026, 11, 21), date(2027, 1, 1)]),
    why=st.just("known"),
    pattern=st.sampled_from([None, "ann@.*"]),
    scope=st.just(Scope(key=("strict",))) | st.just(Scope(key=("other",))),
)


@st.composite
def policies(draw, revision, kept=()):
    """A policy that has some rules of another one, and others."""
    more = draw(st.lists(wanted, max_size=3, unique_by=lambda rule: rule.id))
    chosen = {rule.id: rule for rule in (*draw(st.permutations(kept))[: draw(st.integers(0, 4))], *more)}
    if red := draw(st.booleans()):
        chosen["red"] = Rule("red", "red", Action.BLOCK)
    return policy(
        *chosen.values(),
        revision=revision,
        text=draw(st.sampled_from(["full", "full", "masked", "none"])),
        checks=(RED,) if red else (),
        exempt=draw(st.sampled_from([(), (), (Exemption("system", "ours"),), (Exemption("tool", "ours"),)])),
        overlays=draw(st.just(()) | st.tuples(overlays) | st.tuples(overlays, more_overlays)),
        exceptions=draw(st.just(()) | st.tuples(exceptions)),
    )


@st.composite
def traffics(draw):
    """A few exchanges over few texts, so that many have the same findings and other parts."""
    texts = st.sampled_from(draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=2)))
    turns = st.tuples(st.sampled_from(ROLES), st.sampled_from(KINDS), texts)
    one = st.tuples(
        st.sampled_from(["old", "old", "new", "third"]),
        st.sampled_from(["now", "now", "elder"]),
        st.lists(turns, max_size=4),
        st.lists(texts, max_size=2),
        st.sampled_from(["strict", "other"]),
        st.sampled_from([20, 22]),
        st.sampled_from([False, False, False, True]),
    )
    return draw(st.lists(one, min_size=1, max_size=6))


OLD = policies("old")
BOTH = OLD.flatmap(lambda old: st.tuples(st.just(old), policies("new", [one for one in old.rules if one.id != "red"])))


def exchanged(guard, parts, replies, key, day, broken):
    """Send one exchange through a guard, as the proxy would; one that is broken ends before anything is judged."""
    request = [
        Part(kind, role, ("m", i), "" if kind is Kind.MEDIA else text) for i, (role, kind, text) in enumerate(parts)
    ]
    at = datetime(2026, 11, day, 12, tzinfo=UTC)
    exchange = Exchange("openai.chat", "m", request, subject=Subject("t", key), received_at=at)
    if broken:
        exchange.error = "BadRequest: no"
    elif guard.judge_request(exchange).action is not Action.BLOCK:
        answer = guard.open_reply(exchange)
        for path, text in enumerate(replies):
            if answer.stopped is None:
                answer.feed(("choices", path), text)
                answer.release(("choices", path), last=True)
        answer.finish()
    guard.record(exchange)


def logged_at(path, bodies):
    store = Store.open(path)
    for body in bodies:
        store.append(body)
    store.close()
    return path


def totals(found):
    """All of a replay that adds up over logs."""
    numbers = ("exchanges", "unjudged", "rejudged", "changed", "undecided", "reproduced", "decided_then")
    total = Tally({name: getattr(found, name) for name in numbers})
    for name in ("blocked", "rewritten"):
        for part in ("old", "new", "gained", "lost"):
            total[name, part] = getattr(getattr(found, name), part)
    for one in found.changes:
        kind = (one.stage, one.old, one.new)
        total[kind] = one.count
        total.update({(*kind, cause): count for cause, count in one.causes.items()})
    total.update(found.reasons)
    return total


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(BOTH, traffics())
def test_log_of_anything_comes_to_what_each_of_its_records_comes_to(tmp_path_factory, both, traffic):
    logs, (old, new) = tmp_path_factory.mktemp("logs"), both
    third = policy(HARM, PII, Rule("hidden", "hidden", Action.LOG), revision="third", text="full")
    everything = f"war war {MAIL} a\U000e0041\U000e0042\U000e0043b"
    records = Records()
    # Who looked for what under a third policy is known from the whole log: each begins with one exchange that tells.
    exchanged(
        Guard(third, checks=CHECKS, store=records), [("user", Kind.TEXT, everything)], [everything], "k", 20, False
    )
    versions = {"now": CHECKS, "elder": ELDER}
    guards = {
        (by.revision, version): Guard(by, checks=checks, store=records)
        for by in (old, new, third)
        for version, checks in versions.items()
    }
    for by, version, *sent in traffic:
        exchanged(guards[by, version], *sent)
    first, *others = records

    def replayed(name, bodies):
        return totals(replay(logged_at(logs / name, bodies), old, new, CHECKS))

    found, alone = replayed("all.db", records), replayed("first.db", [first])
    expected = Tally(alone)
    for number, body in enumerate(others):
        expected.update(replayed(f"{number}.db", [first, body]))
        expected.subtract(alone)
    assert {name: count for name, count in found.items() if count} == {
        n: count for n, count in expected.items() if count
    }


of_roles = st.builds(
    Rule,
    id=st.sampled_from("ab"),
    category=st.sampled_from(["harm", "pii"]),
    action=st.sampled_from([Action.LOG, Action.REWRITE, Action.BLOCK]),
    roles=st.sampled_from([(), ("user",), ("tool", "tool_call")]),
    when=st.none() | conditions,
    escalate=st.none() | st.just(Escalate("pii", (0.3, 0.8))),
)
turns = st.tuples(
    st.sampled_from(ROLES), st.sampled_from([Kind.TEXT, Kind.TEXT, Kind.TOOL_CALL]), st.sampled_from(TEXTS)
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    *[st.lists(of_roles, min_size=1, max_size=2, unique_by=lambda rule: rule.id)] * 2,
    st.lists(turns, min_size=1, max_size=3),
    st.sampled_from(TEXTS),
    st.sampled_from(["full", "masked", "none"]),
)
def test_what_a_replay_has_no_doubt_about_is_what_the_new_policy_does(
    tmp_path_factory, before, after, parts, reply, keep
):
    old, new = policy(*before, text=keep), policy(*after, revision="new")
    then, now = Records(), Records()
    for by, records in ((old, then), (new, now)):
        exchanged(Guard(by, checks=CHECKS, store=records), parts, [reply], "k", 20, False)
    found = replay(logged_at(tmp_path_factory.mktemp("log") / "log.db", then), old, new, CHECKS)
    assert found.reproduced == 1
    if not found.undecided:
        assert [found.blocked.new, found.rewritten.new] == [now[0]["action"] == one for one in ("block", "rewrite")]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    *[st.lists(of_roles, min_size=1, max_size=2, unique_by=lambda rule: rule.id)] * 2,
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3),
    st.sampled_from(["full", "masked", "none"]),
)
def test_texts_that_are_apart_come_to_what_the_new_policy_makes_of_each(tmp_path_factory, before, after, texts, keep):
    old, new = policy(*before, text=keep), policy(*after, text=keep, revision="new")
    then, now = Records(), Records()
    for by, records in ((old, then), (new, now)):
        guard = Guard(by, checks=CHECKS, store=records)
        parts = [Part(Kind.TEXT, "user", ("input", at), text) for at, text in enumerate(texts)]
        exchange = Exchange("openai.moderations", "m", parts, apart=True)
        guard.judge_request(exchange)
        guard.record(exchange)
    each = [Guard(new, checks=CHECKS).check(text).action for text in texts]
    assert now[0]["action"] == strongest(each)
    found = replay(logged_at(tmp_path_factory.mktemp("log") / "log.db", then), old, new, CHECKS)
    assert found.reproduced == 1
    if not found.undecided:
        assert [found.blocked.new, found.rewritten.new] == [now[0]["action"] == one for one in ("block", "rewrite")]


class NoWar:
    """Fails on war."""

    name = "classifier"
    categories = frozenset({"harm"})

    def find(self, passage):
        if "war" in passage.text:
            raise RuntimeError("broke")
        return []


def test_a_failure_that_nobody_stood_in_for_is_known_only_where_what_stands_in_was_looked_for(tmp_path):
    checks = {"classifier": NoWar(), "pii": PiiCheck()}
    logs = replace(HARM, on_error=Action.LOG)
    new = policy(replace(HARM, on_error=Degrade("pii")), revision="new", text="full")
    for keep, blocked, undecided in (("full", 1, 0), ("none", 0, 1)):
        old = policy(logs, text=keep)
        say(tmp_path / keep, old, f"war {MAIL}", checks=checks)
        found = replay(tmp_path / keep, old, new, checks)
        assert (found.blocked.new, found.undecided) == (blocked, undecided)


def test_a_rewrite_beside_another_that_nobody_looked_for_is_not_taken_for_none(tmp_path):
    hidden = Rule("hidden", "hidden", Action.REWRITE)
    for keep, changed, undecided in (("full", 1, 0), ("none", 0, 1)):
        old = policy(PII, text=keep)
        say(tmp_path / keep, old, f"{MAIL} a\U000e0041\U000e0042\U000e0043b")
        found = replay(tmp_path / keep, old, policy(PII, hidden, revision="new"), CHECKS)
        assert (found.changed, found.undecided) == (changed, undecided)


def test_windows_that_are_cut_otherwise_are_not_taken_for_the_same(tmp_path):
    torn = Rule("torn", "harm", Action.BLOCK, stages=(Stage.OUTPUT,), threshold=0.5, when=Condition(category="pii"))
    old, then = policy(torn, *LOOKING, text="none"), policy(*LOOKING, text="none", revision="older")
    say(tmp_path / "log", then, "Hello.", reply=f"war war war. {'All is calm. ' * 80}{MAIL}")
    wide = replace(old, stream=replace(old.stream, context=5_000), revision="new")
    assert [replay(tmp_path / "log", old, one, CHECKS).undecided for one in (replace(old, revision="new"), wide)] == [
        0,
        1,
    ]


def test_an_exception_marks_only_what_its_rules_looked_at_then(tmp_path):
    war = RuleException("known", ("a",), date(2027, 1, 1), "known", pattern="ann@.*")
    rule, logs = Rule("a", "hidden", Action.BLOCK), Rule("b", "pii", Action.LOG)
    old = policy(rule, logs, text="none", exceptions=(war,))
    say(tmp_path / "log", old, MAIL)
    new = policy(replace(rule, category="pii"), logs, exceptions=(war,), revision="new")
    found = replay(tmp_path / "log", old, new, CHECKS)
    assert (found.changed, found.undecided) == (0, 1)


# --- replies of several windows, against really running the new policy


@dataclass
class Balky:
    """Finds `ox`, and cannot read what mentions a wall."""

    name: str = "balky"
    categories: frozenset[str] = frozenset({"balky"})

    def find(self, passage: Passage) -> Sequence[Finding]:
        if "wall" in passage.text:
            raise CannotAnswer("there is a wall")
        at = passage.text.find("ox ")
        return [] if at < 0 else [Finding("balky", "balky", 0.9, (Span(passage.part, at, at + 2),))]


FILLER = "All is calm here and will stay so. "
REPLIES = st.lists(
    st.sampled_from(
        [
            "war war war. ",
            "war. ",
            f"{MAIL} ",
            "A red car. ",
            "Call +1 415 555 2671 now. ",
            "An ox and a wall. ",
            "An ox here. ",
            *[FILLER * 30] * 3,
        ]
    ),
    min_size=1,
    max_size=5,
).map("".join)
asked_for = st.builds(
    Condition,
    category=st.sampled_from(["harm", "pii", "pii.email", "pii.phone", "red", "balky"]),
    threshold=st.sampled_from([None, 0.8]),
)
not_found = st.builds(lambda one: Condition(not_=one), asked_for)
either = st.builds(lambda *some: Condition(any=some), asked_for, not_found)
both_of = st.builds(lambda *some: Condition(all=some), asked_for, not_found)
BANDS = st.sampled_from([(0.2, 0.7), (0.3, 0.95)])
conditional = st.builds(
    Rule,
    id=st.sampled_from("abcd"),
    category=st.sampled_from(["harm", "pii.email", "pii.phone", "red", "balky"]),
    action=st.sampled_from([Action.LOG, Action.REWRITE, Action.BLOCK]),
    stages=st.just((Stage.OUTPUT,)),
    on_error=st.sampled_from([Action.BLOCK, Action.BLOCK, Action.LOG, Action.ALLOW, Degrade("pii")]),
    threshold=st.sampled_from([0.3, 0.6, 0.9]),
    when=st.none() | asked_for | not_found | either | both_of,
    escalate=st.none() | st.none() | st.builds(Escalate, st.sampled_from(["pii", "red", "balky"]), BANDS, st.just(0.5)),
    replacement=st.sampled_from(["[{category}]", "x"]),
)
windowed = st.tuples(
    st.lists(conditional, min_size=1, max_size=3, unique_by=lambda rule: rule.id),
    st.sampled_from([(), (), (RuleException("e", ("a", "b"), date(2027, 1, 1), "known", pattern="ann@.*"),)]),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(windowed, windowed, st.booleans(), REPLIES, st.sampled_from(["full", "full", "masked", "none"]))
def test_long_reply_comes_to_what_the_new_policy_really_makes_of_it_or_is_undecided(
    tmp_path_factory, before, after, keeps, reply, text
):
    logs = tmp_path_factory.mktemp("logs")
    shared = before[0][:1] if keeps else []
    more = [rule for rule in after[0] if rule.id not in {one.id for one in shared}]
    looking = (*LOOKING, Rule("looking-balky", "balky", Action.LOG, on_error=Action.ALLOW))
    old = policy(*before[0], *looking, checks=(RED,), text=text, exceptions=before[1])
    new = policy(*shared, *more, *looking, checks=(RED,), text=text, revision="new", exceptions=after[1])
    came, truth = Records(), Records()
    checks = CHECKS | {"balky": Balky()}
    for by, kept in ((old, came), (new, truth)):
        exchanged(Guard(by, checks=checks, store=kept), [("user", Kind.TEXT, "Hello.")], [reply], "k", 20, False)
    found = replay(logged_at(logs / "log.db", came), old, new, checks)
    assert (found.reproduced, found.decided_then) == (1, 1)
    if found.undecided:
        assert text != "full" or list(found.reasons) == [UNFINISHED]
        return
    [now] = truth
    assert [found.blocked.new, found.rewritten.new] == [now["action"] == "block", now["action"] == "rewrite"]
    assert [one.new for one in found.changes] == ([now["action"]] if found.changed else [])
    assert found.changed or came[0]["action"] == now["action"]


@pytest.mark.parametrize("decided", ["by the old policy", "by another"])
@pytest.mark.parametrize(
    ("keep", "changes", "undecided"),
    [("full", {(Stage.INPUT, Action.LOG, Action.BLOCK): 1}, 0), ("none", {}, 2)],
)
def test_text_that_a_check_was_not_shown_is_judged_again_or_leaves_the_exchange_undecided(
    db, decided, keep, changes, undecided
):
    tools = Rule("tools", "pii", Action.LOG, stages=(Stage.INPUT,), roles=("tool",))
    old = policy(tools, text=keep)
    say(db, old, MAIL, "peace", role=("tool", ("messages", 9), "Call bob@mail.example."))
    users = Rule("users", "pii", Action.BLOCK, stages=(Stage.INPUT,), roles=("user",))
    if decided == "by another":
        old = replace(old, revision="older")
    found = replay(db, old, replace(old, rules=(*old.rules, users), revision="new"), CHECKS)
    assert (counted(found), found.undecided) == (changes, undecided)
    assert found.reasons.keys() <= {"nobody looked for 'pii' then, in the same way; its text is not kept"}
    known = replay(db, old, replace(old, rules=(replace(tools, action=Action.REWRITE),), revision="new"), CHECKS)
    assert (counted(known), known.undecided) == ({(Stage.INPUT, Action.LOG, Action.REWRITE): 2}, 0)


def test_only_text_that_the_new_policy_has_a_check_shown_is_judged_again(db, word_check):
    check = word_check("red", "red")
    say(db, policy(HARM, text="full"), "A red car.", role=("tool", ("messages", 9), "A red flag."))
    new = policy(HARM, Rule("red", "red", Action.BLOCK, roles=("tool",)), revision="new")
    found = replay(db, policy(HARM), new, {**CHECKS, "red": check})
    assert (found.rejudged, found.blocked.new, check.seen) == (1, 1, ["A red flag."])


LONG = f"A red car. {FILLER * 40}{MAIL}"
TORN = Rule("red", "red", Action.BLOCK, when=Condition(category="pii"), message={"en": "No.", "de": "Nein."})


@pytest.mark.parametrize(
    ("before", "after", "text", "comes_to"),
    [
        (Condition(category="pii"), Condition(not_=Condition(category="pii")), "full", (0, 1, 0)),
        (Condition(not_=Condition(category="pii")), Condition(category="pii"), "full", (1, 0, 1)),
        (Condition(category="pii"), Condition(not_=Condition(category="pii")), "masked", (0, 0, 1)),
        (Condition(not_=Condition(category="pii")), Condition(category="pii"), "none", (1, 0, 1)),
        (Condition(not_=Condition(category="pii")), Condition(category="harm"), "none", (1, 0, 1)),
        (Condition(category="pii"), Condition(not_=Condition(category="harm")), "none", (0, 1, 0)),
    ],
)
def test_condition_holds_in_a_window_of_a_reply_or_not_and_not_in_all_of_it(db, before, after, text, comes_to):
    old, new = (
        policy(replace(TORN, when=when), *LOOKING, checks=(RED,), text=text, revision=name)
        for name, when in (("old", before), ("new", after))
    )
    say(db, old, "peace", reply=LONG, checks=CHECKS)
    found = replay(db, old, new, CHECKS)
    assert (found.blocked.old, found.blocked.gained, found.undecided) == comes_to
    assert (found.reproduced, found.changed) == (1, found.blocked.gained + found.blocked.lost)


def test_message_by_language_is_no_hindrance_where_an_exception_may_have_spared_something(db):
    known = RuleException("known", ("harm",), date(2027, 1, 1), "known", pattern="ann@.*")
    told = replace(HARM, message={"en": "No.", "de": "Nein."})
    old = policy(told, text="none")
    say(db, old, "war war war")
    more = Rule("hidden", "hidden", Action.BLOCK, message={"en": "No.", "de": "Nein."})
    found = replay(db, old, policy(told, more, exceptions=(known,), revision="new", text="none"), CHECKS)
    assert (found.exchanges, found.changed, found.undecided) == (1, 0, 1)


@pytest.mark.parametrize("change", [{"at_least": 1}, {"hold": "10m"}, {"at_least": 3}])
def test_counter_counts_as_it_stood_where_another_policy_counts_otherwise(db, change):
    counter = Counter("wars", ("harm",), 2, "10m", "5m")
    pause = Rule("pause", "count.wars", Action.BLOCK, stages=(Stage.INPUT,))
    old = policy(HARM, pause, counters=(counter,), text="none")
    guard = Guard(old, checks=CHECKS, store=Store.open(db))
    for text in ("war war war", "war war war", "peace", "peace"):
        exchange = Exchange("test", "m", [Part(Kind.TEXT, "user", ("messages", 0), text)])
        guard.judge_request(exchange)
        guard.record(exchange)
    guard.store.close()
    found = replay(db, old, replace(old, counters=(replace(counter, **change),), revision="new"), CHECKS)
    assert (found.blocked.old, found.blocked.new, found.changed) == (4, 4, 0)


def test_rule_that_is_as_it_was_made_of_the_windows_what_is_on_record(db):
    old = policy(TORN, *LOOKING, checks=(RED,), text="none")
    say(db, old, "peace", reply=LONG)
    say(db, old, "peace", reply=LONG.replace(FILLER, ""))
    found = replay(db, old, policy(TORN, PII, *LOOKING, checks=(RED,), revision="new", text="none"), CHECKS)
    assert (found.blocked.old, found.blocked.new, found.rewritten.new) == (1, 1, 1)
    assert (found.undecided, found.changed, found.rejudged) == (0, 1, 0)


def test_records_with_other_parts_than_the_first_of_their_kind_are_judged_by_their_own(db):
    old = policy(HARM, PII, text="full")
    say(db, old, "peace")
    say(db, old, "peace", role=("system", ("messages", 9), "war and war"))
    new = policy(
        HARM, PII, Rule("hidden", "hidden", Action.BLOCK), revision="new", exempt=(Exemption("system", "ours"),)
    )
    found = replay(db, old, new, CHECKS)
    assert (found.exchanges, found.rejudged, found.undecided, found.changed) == (2, 2, 0, 0)


def test_rewrite_that_both_policies_make_is_no_change_where_one_of_them_looks_for_more(db):
    old = policy(PII, text="full")
    for before in ("", "Well. "):
        say(db, old, before + "peace", reply="Fine.", role=("system", ("messages", 9), before + MAIL))
    harm = replace(HARM, when=Condition(category="pii"))
    found = replay(db, old, policy(PII, harm, revision="new"), CHECKS)
    assert (found.changed, found.rewritten.old, found.rewritten.new) == (0, 2, 2)


# --- what neither of the two policies decided

STOP = Rule("red", "red", Action.BLOCK)
SPARED = RuleException("e", ("red",), date(2027, 1, 1), "known", scope=Scope(key=("k",)))
NO_PII = Condition(not_=Condition(category="pii"))
THIRD = policy(Rule("pii", "pii", Action.ALLOW), revision="third")


def comes_to(folder, old, new, keep, *, parts=(), reply="Fine.", third=THIRD):
    """What both policies really do to an exchange, and what a replay makes of it where a third had decided."""
    third = replace(third, audit=replace(third.audit, text=keep))
    records = [Records() for _ in range(3)]
    for by, kept in zip((third, old, new), records, strict=True):
        exchanged(
            Guard(by, checks=CHECKS, store=kept), [*parts, ("user", Kind.TEXT, "Hello.")], [reply], "k", 20, False
        )
    found = replay(logged_at(folder / "log.db", records[0]), old, new, CHECKS)
    return [kept[0]["action"] == "block" for kept in records[1:]], found


@pytest.mark.parametrize("keep", ["full", "none"])
@pytest.mark.parametrize(
    "eased",
    [
        {"exceptions": (SPARED,)},
        {"exceptions": (replace(SPARED, scope=None, pattern="red"),)},
        {"exempt": (Exemption("system", "ours"),)},
        {"rules": (replace(STOP, when=NO_PII),)},
        {"rules": (), "overlays": (Overlay("o", Scope(key=("other",)), rules=(STOP,)),)},
        {"checks": (replace(RED, words=("blue",)),)},
    ],
)
def test_rule_that_nobody_can_answer_is_taken_for_alike_only_where_all_that_it_goes_by_is(tmp_path, eased, keep):
    new = policy(STOP, checks=(RED,), revision="new")
    old = replace(new, **eased, revision="old")
    really, found = comes_to(tmp_path, old, new, keep, parts=[("system", Kind.TEXT, f"A red car. {MAIL}")])
    assert really == [False, True]
    assert (found.blocked.old, found.blocked.new, found.undecided) == ((0, 1, 0) if keep == "full" else (0, 0, 1))


@pytest.mark.parametrize(
    "more",
    [
        {"exceptions": (replace(SPARED, scope=Scope(key=("other",))),)},
        {"exceptions": (replace(SPARED, until=date(2026, 11, 19)),)},
        {"exempt": (Exemption("tool", "nobody's"),)},
        {"rules": (replace(STOP, why="so"),)},
        {"overlays": (Overlay("o", Scope(key=("other",)), remove=("red",)),)},
    ],
)
def test_rule_that_nobody_can_answer_is_alike_where_what_is_different_is_about_other_exchanges(tmp_path, more):
    old = policy(STOP, checks=(RED,))
    really, found = comes_to(tmp_path, old, replace(old, **more, revision="new"), "none")
    assert really == [False, False]
    assert (found.changed, found.undecided) == (0, 0)


def test_role_that_is_exempt_is_about_those_exchanges_that_have_text_of_it(db):
    old = policy(STOP, checks=(RED,))
    for role in ("system", "tool"):
        say(db, replace(THIRD, audit=replace(THIRD.audit, text="none")), "peace", role=(role, ("messages", 9), "peace"))
    found = replay(db, old, replace(old, exempt=(Exemption("system", "ours"),), revision="new"), CHECKS)
    assert (found.exchanges, found.undecided) == (2, 1)


@pytest.mark.parametrize("keep", ["full", "none"])
def test_condition_of_a_rule_that_nobody_can_answer_is_none_of_another_in_a_long_reply(tmp_path, keep):
    new = policy(replace(STOP, stages=(Stage.OUTPUT,)), checks=(RED,), revision="new")
    old = replace(new, rules=(replace(new.rules[0], when=NO_PII),), revision="old")
    really, found = comes_to(tmp_path, old, new, keep, reply=f"{FILLER * 8}A red car. {MAIL} {FILLER * 8}")
    assert really == [False, True]
    assert (found.blocked.old, found.blocked.new, found.undecided) == ((0, 1, 0) if keep == "full" else (0, 0, 1))


def test_words_that_a_rule_goes_by_in_windows_are_not_those_of_another(tmp_path):
    either = Condition(any=(Condition(category="red"), Condition(category="harm")))
    mail = Rule("mail", "pii", Action.BLOCK, stages=(Stage.OUTPUT,), when=either)
    old = policy(mail, checks=(replace(RED, words=("blue",)),))
    third = policy(*LOOKING, revision="third")
    really, found = comes_to(
        tmp_path,
        old,
        replace(old, checks=(RED,), revision="new"),
        "none",
        reply=f"war war war. {FILLER * 60}A red car. {MAIL}",
        third=third,
    )
    assert really == [False, True]
    assert (found.changed, found.undecided) == (0, 1)


@pytest.mark.parametrize(("words", "undecided"), [(("red",), 0), (("blue",), 1)])
def test_reply_that_is_not_on_record_is_alike_to_rules_of_the_same_words_only(db, words, undecided):
    say(db, policy(HARM, revision="third"), "war war war")
    old = policy(replace(STOP, stages=(Stage.OUTPUT,)), checks=(RED,))
    found = replay(db, old, replace(old, checks=(replace(RED, words=words),), revision="new"), CHECKS)
    assert (found.undecided, list(found.reasons)) == (undecided, [UNFINISHED] * undecided)


# --- how sure


def test_interval_of_a_paired_change_is_as_the_formula_worked_by_hand_has_it():
    # 6 gained, 2 lost of 98: 0.07 and 0.03 of 100; 0.04 ± 1.95996 · √((0.1 − 0.0016) / 100)
    low, high = paired_interval(6, 2, 98)
    assert (round(low, 5), round(high, 5)) == (-0.02148, 0.10148)


def test_interval_of_a_paired_change_covers_the_truth_as_often_as_it_says():
    import numpy as np

    random = np.random.default_rng(1)
    for up, down in ((0.01, 0.002), (0.05, 0.05), (0.2, 0.02)):
        drawn = random.multinomial(400, [up, down, 1 - up - down], size=2000)
        covered = [
            low <= up - down <= high for low, high in (paired_interval(int(g), int(n), 400) for g, n, _ in drawn)
        ]
        assert np.mean(covered) >= 0.94


# --- the command

SHOP = "version: 1\nname: shop\npacks: [pii]\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_checks", lambda: CHECKS)
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(SHOP)
    new.write_text(SHOP + "override:\n  pii: {action: block}\nrules:\n- {id: war, category: harm, action: log}\n")
    return old, new


def run(*arguments):
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


@pytest.fixture
def logged(db, files):
    say(db, load_policy(files[0]), MAIL, "peace", "quiet", "war war")
    return db


def test_difference_of_two_policies_names_rule_key_values_and_lines(files):
    changed, added = compare(*map(load_policy, files))
    [edit] = changed.edits
    assert (changed.name, edit.key, edit.old, edit.new) == ("pii", "action", "rewrite", "block")
    assert (str(edit.old_at).split("/")[-1], edit.new_at.line) == ("pii.yaml:11:5", 5)
    assert (added.name, added.old, added.new.line) == ("war", None, 7)
    result = run(*files)
    assert result.exit_code == 0
    [row] = [line.split() for line in result.output.splitlines() if line.startswith("~")]
    assert row[:5] == ["~", "pii", "action", "rewrite", "block"]


def test_equal_policies_have_no_difference(files):
    assert compare(*[load_policy(files[0])] * 2) == ()
    assert "no difference" in run(files[0], files[0]).output


def test_removed_parts_and_settings_are_differences():
    old = loads_policy(SHOP + "exempt: [{role: system, why: ours}]\nlimits: {text: 10}\n")
    removed, settings_ = compare(old, loads_policy(SHOP))
    assert (removed.section, removed.name, removed.new) == ("exempt", "system", None)
    assert [(one.key, one.old, one.new, one.old_at.line, one.new_at) for one in settings_.edits] == [
        ("limits.text", 10, 200_000, 5, None)
    ]


def test_replay_prints_changes_examples_and_intervals(files, logged):
    result = run(*files, "--replay", logged)
    assert result.exit_code == 0, result.output
    assert "4 exchanges, 2 of them with another decision" in result.output
    assert "input · rewrite → block  1" in result.output
    assert "pii on pii.email" in result.output
    assert "Write to [PII_EMAIL] today." in result.output
    assert "25.000% (+1 −0)" in result.output


def test_replay_as_json_has_the_same(files, logged):
    report = json.loads(run(*files, "--replay", logged, "--json", "--fail-if", "new_blocks > 90%").output)
    assert report["failed"] == []
    assert report["differences"][0]["changes"][0]["to"] == "block"
    told = report["replay"]
    assert told["metrics"]["new_blocks"] == told["blocked"]["gained"] == 1
    change, logged_only = told["changes"]
    assert (logged_only["old"], logged_only["new"]) == ("allow", "log")
    assert change["causes"] == [{"rule": "pii", "category": "pii.email", "count": 1}]
    assert change["examples"][0]["seq"] == 1


@pytest.mark.parametrize(
    ("gates", "status"),
    [
        (["new_blocks > 24.9%"], 1),
        (["new_blocks > 25%"], 0),
        (["new_blocks >= 1", "undecided > 90%"], 1),
        (["fewer_blocks > 0"], 0),
        (["undecided<1"], 1),
    ],
)
def test_gate_that_is_true_fails_the_command(files, logged, gates, status):
    result = run(*files, "--replay", logged, *(word for gate in gates for word in ("--fail-if", gate)))
    assert result.exit_code == status, result.output
    assert ("failed: " in result.output) is bool(status)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-if", "new_block > 1%"], "did you mean 'new_blocks'?"),
        (["--fail-if", "new_blocks"], "METRIC > VALUE[%]"),
        (["--since", "yesterday"], "write 7d, 24h, 30m, or a date"),
        (["--since", ""], "write 7d, 24h, 30m, or a date"),
        (["--since", "2999-01-01"], "nothing to replay"),
    ],
)
def test_option_that_says_nothing_is_refused(files, logged, arguments, told):
    result = run(*files, "--replay", logged, *arguments)
    assert result.exit_code == 2
    assert told in result.output


def test_gate_and_time_without_a_log_are_refused(files):
    assert run(*files, "--since", "7d").exit_code == run(*files, "--fail-if", "changed > 1").exit_code == 2


def test_crash_is_no_gate_that_failed(files, logged, monkeypatch, capfd):
    def crash(*_, **__):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr("ringfence.guard.replay.replay.replay", crash)
    command = ["policy", "diff", *files, "--replay", logged, "--fail-if", "new_blocks > 0"]
    monkeypatch.setattr(sys, "argv", ["ringfence", *map(str, command)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3
    assert "IndexError" in capfd.readouterr().err


def test_missing_log_and_wrong_policy_are_refused(files, tmp_path):
    assert "no such audit log" in run(*files, "--replay", tmp_path / "none.db").output
    files[1].write_text(SHOP + "ruels: []\n")
    result = run(*files)
    assert result.exit_code == 2
    assert "did you mean 'rules'?" in result.output


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("7d", "2026-11-15T12:00:00.000000Z"),
        ("30m", "2026-11-22T11:30:00.000000Z"),
        ("2026-11-21", "2026-11-21T00:00:00.000000Z"),
        ("2026-11-21T08:00+02:00", "2026-11-21T06:00:00.000000Z"),
    ],
)
def test_since_is_a_time_in_utc(text, start):
    assert cli.since_of(text, datetime(2026, 11, 22, 12, tzinfo=UTC)) == start


def test_since_leaves_out_what_came_before(db):
    old = policy(HARM)
    say(db, old, "peace", "quiet", day=10)
    say(db, old, "war", day=20)
    assert replay(db, old, old, CHECKS, since="2026-11-15").exchanges == 1


def altered(db, statement):
    with sqlite3.connect(db) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE records SET body = replace(body, 'peace', 'quiet') WHERE seq = 2", "record 2 was altered"),
        ("INSERT INTO records (seq, hash, body) SELECT 9, hash, body FROM records WHERE seq = 2", "records 2 and 9"),
        (
            "INSERT INTO records (seq, hash, body) VALUES (9, "
            "'4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945', '[]')",
            "record 9",
        ),
    ],
)
def test_log_with_a_record_that_is_none_is_refused(files, logged, statement, told):
    altered(logged, statement)
    result = run(*files, "--replay", logged)
    assert result.exit_code == 2
    assert told in result.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: body["decisions"][0]["findings"][0]["spans"][0].update(part=7), "a finding in part 7 of 1"),
        (lambda body: body["request"][0].update(kind="hologram"), "'hologram' is not a valid Kind"),
        (lambda body: body.update(at="yesterday"), "yesterday"),
        (lambda body: body["decisions"][0].pop("findings"), "KeyError: 'findings'"),
    ],
)
def test_log_with_a_record_that_cannot_be_is_refused_in_one_line(files, db, change, told):
    old = load_policy(files[0])
    records = Records()
    exchanged(Guard(old, checks=CHECKS, store=records), [("user", Kind.TEXT, MAIL)], ["Fine."], "k", 20, False)
    change(records[0])
    result = run(*files, "--replay", logged_at(db, records), "--fail-if", "new_blocks > 0")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{db}: record 1 is not as this version of ringfence writes them")
    assert told in line
