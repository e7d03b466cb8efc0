"""What a policy can say beyond single rules: building on others, overlays, exceptions, counters, conditions."""

import re
from dataclasses import fields, replace
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
import re2
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ringfence.guard.check import Passage, UnknownCheck
from ringfence.guard.exceptions import Exceptions
from ringfence.guard.exchange import Exchange, Kind, Part, Subject
from ringfence.guard.guard import Guard
from ringfence.guard.history import History
from ringfence.guard.pipeline import Pipeline
from ringfence.guard.stream import StreamGuard
from ringfence.policies.cases import suites_of
from ringfence.policies.compare import compare
from ringfence.policies.decide import decide
from ringfence.policies.document import PolicyError
from ringfence.policies.load import canonical, load_policy, loads_policy
from ringfence.policies.overlay import about, effective, written_in
from ringfence.policies.schema import schema_of
from ringfence.policies.types import (
    DEFAULT_MESSAGE,
    MAY_BE_ABSENT,
    Action,
    Condition,
    Counter,
    Degrade,
    Finding,
    Overlay,
    Override,
    Policy,
    Rule,
    RuleException,
    Scope,
    Span,
    Stage,
    StreamSettings,
)
from ringfence.policies.words import Origin, covers

EVERYBODY = Scope(tenant=("*",))
BASE = """\
version: 1
name: base
packs: [pii]
override: { pii: { threshold: 0.6 } }
message: { en: Stopped., de: Angehalten. }
stream: { window: 40 }
rules:
  - { id: knives, category: hidden, action: log }
"""
SHOP = """\
version: 1
name: shop
extends: base.yaml
remove: [knives]
override: { pii: { action: block } }
stream: { context: 400 }
overlays:
  - id: clinic
    scope: { tenant: ["clinic-*"], model: [small] }
    override: { pii: { shadow: true } }
    rules: [{ id: no-ip, category: pii.ip, action: block }]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "shop.yaml").write_text(SHOP)
    return tmp_path


def lines_of(error) -> list[str]:
    return [f"{Path(one.origin.file).name}:{one.origin.line}: {one.what}" for one in error.value.problems]


def found(category: str, score: float = 1.0, **others) -> Finding:
    return Finding("fake", category, score, (Span(0, 0, 3),), **others)


def acted(policy: Policy, *findings: Finding, stage: Stage = Stage.INPUT) -> Action:
    return decide(policy, stage, findings).action


class TestExtends:
    def test_what_is_not_written_comes_from_the_policy_below(self, folder):
        policy = load_policy(folder / "shop.yaml")
        assert [rule.id for rule in policy.rules] == ["pii"]
        assert (policy.rules[0].action, policy.rules[0].threshold) == (Action.BLOCK, 0.6)
        assert (policy.stream.window, policy.stream.context, policy.stream.reach) == (40, 400, 64)
        assert policy.message == {"en": "Stopped.", "de": "Angehalten."}

    def test_every_value_knows_the_file_and_line_that_it_comes_from(self, folder):
        policy = load_policy(folder / "shop.yaml")
        [rule] = policy.rules
        places = {key: (Path(origin.file).name, origin.line) for key, origin in rule.origins.items()}
        assert places.items() >= {"threshold": ("base.yaml", 4), "action": ("shop.yaml", 5)}.items()
        written = Path(rule.origin.file).read_text().splitlines()
        theirs = {key: line for key, (file, line) in places.items() if file == "pii.yaml"}
        assert theirs.keys() >= {"id", "category"}
        assert all(written[line - 1].lstrip(" -").startswith(f"{key}:") for key, line in theirs.items())
        assert "stages" not in places, "it is left at its default"
        settings = {key: (Path(origin.file).name, origin.line) for key, origin in policy.origins.items()}
        assert settings["stream.window"] == ("base.yaml", 6)
        assert settings["stream.context"] == ("shop.yaml", 6)
        assert "stream.reach" not in settings

    def test_every_file_that_was_read_is_known(self, folder):
        assert [path.name for path in load_policy(folder / "shop.yaml").files] == ["base.yaml", "pii.yaml", "shop.yaml"]

    def test_a_circle_is_told_at_the_line_that_closes_it(self, folder):
        (folder / "base.yaml").write_text("version: 1\nname: base\nextends: shop.yaml\n")
        with pytest.raises(PolicyError) as caught:
            load_policy(folder / "shop.yaml")
        assert lines_of(caught)[0] == (
            "base.yaml:3: policies extend each other in a circle: shop.yaml → base.yaml → shop.yaml"
        )

    def test_a_chain_that_no_policy_needs_is_told_at_the_line_that_goes_too_far(self, tmp_path):
        for i in range(600):
            (tmp_path / f"c{i}.yaml").write_text(f"version: 1\nname: c{i}\nextends: c{i + 1}.yaml\n")
        with pytest.raises(PolicyError) as caught:
            load_policy(tmp_path / "c0.yaml")
        [line] = lines_of(caught)
        assert line.startswith("c19.yaml:3: this would be policy 21 of those that extend each other, from ")
        (tmp_path / "c19.yaml").write_text("version: 1\nname: last\npacks: [pii]\n")
        assert len(load_policy(tmp_path / "c0.yaml").layers) == 20

    def test_what_any_policy_of_the_chain_removed_is_known_and_may_come_back(self, folder):
        (folder / "top.yaml").write_text("version: 1\nname: top\nextends: shop.yaml\nremove:\n  - pii\n")
        (folder / "back.yaml").write_text("version: 1\nname: back\nextends: top.yaml\npacks: [pii]\n")
        [clinic] = load_policy(folder / "top.yaml").overlays
        assert ([*clinic.override], [rule.id for rule in clinic.rules]) == ([], ["no-ip"])
        policy = load_policy(folder / "back.yaml")
        told = [(one.rule, one.by, Path(one.origin.file).name, one.origin.line) for one in policy.removed]
        assert told == [("knives", "policy shop", "shop.yaml", 4), ("pii", "policy top", "top.yaml", 5)]
        assert [rule.id for rule in policy.rules] == ["pii"]

    def test_a_rule_that_is_counted_or_spared_below_can_be_removed_and_the_others_are_counted_on(self, folder):
        counting = "{id: k, rules: [pii, knives], at_least: 2, within: 1h, hold: 1h}"
        sparing = "{id: ours, rules: [knives], pattern: x, until: 2027-03-01, why: Ours.}"
        (folder / "base.yaml").write_text(f"{BASE}counters: [{counting}]\nexceptions: [{sparing}]\n")
        (folder / "top.yaml").write_text("version: 1\nname: top\nextends: shop.yaml\n")
        for name in ("shop", "top"):
            policy = load_policy(folder / f"{name}.yaml")
            assert ([one.rules for one in policy.counters], policy.exceptions) == ([("pii",)], ())
            assert loads_policy(yaml.safe_dump(canonical(policy))) == policy

    def test_who_removes_the_last_rule_that_a_counter_counts_removes_the_rules_over_it_as_well(self, folder):
        counting = "{id: k, rules: [knives], at_least: 2, within: 1h, hold: 1h}"
        (folder / "base.yaml").write_text(
            f"{BASE}  - {{ id: pause, category: count.k, stages: [input], action: block }}\ncounters: [{counting}]\n"
        )
        with pytest.raises(PolicyError) as caught:
            load_policy(folder / "shop.yaml")
        told = "rule 'pause' looks at counter 'k', and all that this counts was removed; remove the rule as well"
        assert lines_of(caught) == [f"base.yaml:9: {told}"]
        (folder / "shop.yaml").write_text(SHOP.replace("[knives]", "[knives, pause]"))
        assert load_policy(folder / "shop.yaml").counters == ()

    def test_a_counter_of_its_own_counts_no_rule_that_the_policy_removes(self, folder):
        counting = "{id: k, rules: [pii, knives], at_least: 2, within: 1h, hold: 1h}"
        (folder / "shop.yaml").write_text(f"{SHOP}counters: [{counting}]\n")
        with pytest.raises(PolicyError, match="'k' names rule 'knives', which there is not"):
            load_policy(folder / "shop.yaml")

    def test_a_missing_file_and_an_unknown_rule_are_told_where_they_are_named(self, folder):
        (folder / "a.yaml").write_text("version: 1\nname: a\nextends: nowhere.yaml\n")
        (folder / "b.yaml").write_text("version: 1\nname: b\nextends: base.yaml\nremove:\n  - knifes\n")
        for name, line in (("a", "a.yaml:3: there is no policy file"), ("b", "b.yaml:5: 'remove' names 'knifes'")):
            with pytest.raises(PolicyError) as caught:
                load_policy(folder / f"{name}.yaml")
            assert lines_of(caught)[0].startswith(line)
        assert "did you mean 'knives'?" in str(caught.value)

    def test_cases_of_the_policy_below_are_about_everything_together(self, folder):
        (folder / "base.cases.yaml").write_text("- {text: x, expect: {action: allow}}\n")
        policy = load_policy(folder / "shop.yaml")
        suites = {Path(suite.cases[0].origin.file).name: suite for suite in suites_of(policy, folder / "shop.yaml")}
        assert suites.keys() == {"pii.cases.yaml", "base.cases.yaml"}
        assert suites["base.cases.yaml"].policy is policy

    def test_canonical_form_needs_no_other_file(self, folder):
        policy = load_policy(folder / "shop.yaml")
        again = loads_policy(yaml.safe_dump(canonical(policy)))
        assert again == policy
        assert again.revision == policy.revision


class TestOverlays:
    def test_an_overlay_changes_the_policy_for_those_it_is_about_only(self, folder):
        policy = load_policy(folder / "shop.yaml")
        theirs = effective(policy, about(policy, {"tenant": "clinic-7", "model": "small"}))
        assert [(rule.id, rule.shadow) for rule in theirs.rules] == [("pii", True), ("no-ip", False)]
        assert theirs.applied == ("clinic",)
        assert theirs.revision == policy.revision
        for others in ({"tenant": "clinic-7", "model": "large"}, {"tenant": "shop", "model": "small"}, {}):
            assert effective(policy, about(policy, others)) is policy

    def test_what_an_overlay_alone_needs_is_warm_and_what_nobody_answers_for_is_told_at_once(self, checks):
        warmed = []

        class Slow:
            name, categories = "slow", frozenset({"slow"})

            def warm(self):
                warmed.append(self.name)

            def find(self, passage):
                return ()

        scope = Scope(tenant=("a",))
        over = Overlay("x", scope, rules=(Rule("slow", "slow", Action.BLOCK),))
        policy = Policy("p", (Rule("number", "number", Action.LOG),), overlays=(over,))
        Guard(policy, checks={**checks, "slow": Slow()}).warm()
        assert warmed == ["slow"]
        degrading = Overlay("y", scope, override={"number": Override(on_error=Degrade("nobodys"))})
        with pytest.raises(UnknownCheck, match="nobodys"):
            Guard(replace(policy, overlays=(degrading,)), checks=checks)

    def test_the_last_overlay_that_speaks_has_the_word_and_a_rule_is_removed_once(self):
        overlays = (
            Overlay("one", EVERYBODY, message="One.", remove=("a", "a")),
            Overlay("two", EVERYBODY, message="Two.", remove=("a",), override={"b": Override(action=Action.BLOCK)}),
            Overlay("three", EVERYBODY),
        )
        rules = tuple(Rule(name, "harm", Action.LOG) for name in "abc")
        theirs = effective(Policy("p", rules, overlays=overlays), ("one", "two", "three"))
        assert theirs.message == "Two."
        assert [(one.rule, one.by) for one in theirs.removed] == [("a", "overlay one")]
        assert [(rule.id, rule.action) for rule in theirs.rules] == [("b", Action.BLOCK), ("c", Action.LOG)]

    def test_time_to_load_and_apply_grows_with_what_is_written_and_no_faster(self, seconds):
        def written(many: int) -> str:
            kinds = {
                "rules": "{{id: r{0}, category: pii.ip, action: log}}",
                "overlays": "{{id: o{0}, scope: {{tenant: ['*']}}, override: {{r{0}: {{shadow: true}}}}, remove: [r{1}]}}",
                "exceptions": "{{id: e{0}, rules: [r{0}], pattern: x, until: 2099-01-01, why: y}}",
            }
            lines = [
                f"{kind}:\n"
                + "".join(f"  - {line.format(i, i + many)}\n" for i in range(many * (1 + (kind == "rules"))))
                for kind, line in kinds.items()
            ]
            return "version: 1\nname: many\n" + "".join(lines)

        def applied(text: str) -> None:
            policy = loads_policy(text)
            assert len(effective(policy, about(policy, {"tenant": "t"})).removed) == len(policy.overlays)

        few, many = written(100), written(1_000)
        assert seconds(lambda: applied(many)) < 25 * seconds(lambda: applied(few))

    def test_a_guard_judges_each_exchange_by_its_own_overlays_and_records_them(self, checks):
        policy = Policy(
            "p",
            (Rule("number", "number", Action.LOG),),
            overlays=(Overlay("strict", Scope(tenant=("a*",)), override={"number": Override(action=Action.BLOCK)}),),
        )
        guard = Guard(policy, checks=checks)
        decided = {}
        for tenant in ("acme", "other"):
            parts = [Part(Kind.TEXT, "user", ("messages", 0, "content"), "12345")]
            exchange = Exchange("openai.chat", "m", parts, subject=Subject(tenant))
            decided[tenant] = guard.judge_request(exchange)
        assert (decided["acme"].action, decided["acme"].overlays) == (Action.BLOCK, ("strict",))
        assert (decided["other"].action, decided["other"].overlays) == (Action.LOG, ())

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            (
                "overlays: [{id: x, scope: {model: [m]}, override: {pij: {shadow: true}}}]",
                "overlay 'x' names rule 'pij'",
            ),
            (
                "overlays: [{id: x, scope: {model: [m]}, override: {pii: {target: {min_recall: 0.9}}}}]",
                "overlay 'x' has a 'target' for rule 'pii': only the policy's own are fitted",
            ),
            (
                "overlays: [{id: x, scope: {model: [m]}, rules: [{id: r, category: harm, action: log,"
                " target: {min_recall: 0.9}}]}]",
                "overlay 'x' has a 'target' for rule 'r': only the policy's own are fitted",
            ),
            ("overlays: [{id: x, scope: {tenants: [a]}}]", "unknown key 'tenants'; did you mean 'tenant'?"),
            ("exceptions: [{id: x, rules: [pij], until: 2030-01-01, why: y, pattern: z}]", "'x' names rule 'pij'"),
            ("exceptions: [{id: x, rules: [pii], until: soon, why: y, pattern: z}]", "'until'"),
            ("exceptions: [{id: x, rules: [pii], until: 2030-01-01, why: y}]", "give at least one of"),
            ("exceptions: [{id: x, rules: [pii], why: y, pattern: z}]", "'until' is missing here"),
            ("counters: [{id: x, rules: [pij], at_least: 2, within: 1m, hold: 1m}]", "'x' names rule 'pij'"),
            (
                "counters: [{id: x, rules: [pii], at_least: 2, within: 1 week, hold: 1m}]",
                "'within' must be a number and s, m, h or d, as 90s",
            ),
            ("rules: [{id: y, category: count.x, action: block}]", "rule 'y' looks at counter 'x'"),
            (
                "rules: [{id: y, category: a, action: block, when: {not: {category: count.x}}}]",
                "rule 'y' looks at counter 'x'",
            ),
            ("rules: [{id: y, category: a, action: block, on_error: {degrade: count.x}}]", "looks at counter 'x'"),
            (
                "overlays: [{id: x, scope: {model: [m]}, override: {pii: {when: {category: count.x}}}}]",
                "at counter 'x'",
            ),
            (
                "overlays: [{id: x, scope: {model: [m]}, rules: [{id: r, category: a, action: log,"
                " when: {any: [{category: a}, {category: count.x}]}}]}]",
                "rule 'r' looks at counter 'x', which there is not",
            ),
            (
                "rules: [{id: y, category: a, action: block, when: {}}]",
                "give one of 'category', 'any', 'all' and 'not'",
            ),
            ("rules: [{id: y, category: a, action: block, when: {nott: {category: a}}}]", "did you mean 'not'?"),
            ("rules: [{id: y, category: a, action: block, when: {any: [{category: b}], threshold: 0.1}}]", "goes with"),
            ("rules: [{id: y, category: a, action: block, on_error: {degrade: 7}}]", "degrade"),
            ("rules: [{id: y, category: a, action: block, roles: [usr]}]", "did you mean 'user'?"),
            ("exempt: [{role: sytem, why: x}]", "did you mean 'system'?"),
            ("overlays: [{id: x, scope: {route: [openai.chatt]}}]", "did you mean 'openai.chat'?"),
            ("overlays: [{id: x, scope: {}}]", "give at least one of 'tenant', 'key', 'model' and 'route'"),
            ("overlays: [{id: x, scope: {tenant: []}}]", "'tenant' must not be empty"),
            ("overlays: [{id: x, scope: {model: [m], tenant: []}}]", "'tenant' must not be empty"),
            ("overlays: [{id: x, scope: {tenant: null}}]", "'tenant' must be a list"),
            (
                "exceptions: [{id: x, rules: [pii], until: 2030-01-01, why: y, scope: {}}]",
                "give at least one of 'tenant', 'key', 'model' and 'route'",
            ),
            (
                "exceptions: [{id: x, rules: [pii], until: 2030-01-01, why: y, pattern: z, scope: {key: []}}]",
                "'key' must not be empty",
            ),
            ("checks: [{kind: keyword, category: x, words: [a]}]", "did you mean 'keywords'?"),
            (
                "checks: [{kind: keywords, category: x.y, words: [a]}]",
                "'category' must be one word of letters, digits, - and _",
            ),
        ],
    )
    def test_what_is_wrong_is_told_at_its_line(self, wrong, line):
        with pytest.raises(PolicyError) as caught:
            loads_policy(f"version: 1\nname: tiny\npacks: [pii]\n{wrong}\n")
        assert line in str(caught.value)
        assert all(one.origin.line == 4 for one in caught.value.problems)


WAITING = """\
version: 1
name: waiting
rules: [{ id: r, category: a, action: block, when: { category: b }, seconds: 2, message: Wait. }]
"""
TAKEN = "override: { r: { when: null, seconds: null, message: null } }"


class TestNull:
    """In a change, null takes out what a rule may do without."""

    def test_an_override_takes_a_condition_a_time_and_a_message_out(self, tmp_path):
        (tmp_path / "base.yaml").write_text(WAITING)
        path = tmp_path / "p.yaml"
        path.write_text(f"version: 1\nname: p\nextends: base.yaml\n{TAKEN}\n")
        (rule,) = load_policy(path).rules
        assert (rule.when, rule.seconds, rule.message) == (None, None, None)
        assert str(rule.written_at("when")) == f"{path}:4:18"
        assert acted(load_policy(tmp_path / "base.yaml"), found("a")) is Action.ALLOW
        assert decide(load_policy(path), Stage.INPUT, [found("a")]).message == DEFAULT_MESSAGE

    def test_an_overlay_does_and_the_policy_is_itself_once_more_when_it_is_written_out(self):
        policy = loads_policy(f"{WAITING}overlays: [{{ id: o, scope: {{ tenant: [t] }}, {TAKEN} }}]\n")
        (rule,), (theirs,) = policy.rules, effective(policy, ["o"]).rules
        assert (rule.seconds, rule.message, rule.when) == (2, "Wait.", Condition(category="b"))
        assert (theirs.seconds, theirs.message, theirs.when) == (None, None, None)
        assert written_in(effective(policy, ["o"]), "r", "when") == "o"
        again = loads_policy(yaml.safe_dump(canonical(policy)))
        assert (again, again.revision) == (policy, policy.revision)
        kept = loads_policy(f"{WAITING}overlays: [{{ id: o, scope: {{ tenant: [t] }}, override: {{ r: {{}} }} }}]\n")
        assert kept.revision != policy.revision
        [difference] = compare(kept, policy)
        keys = ["override.r.when", "override.r.message", "override.r.seconds"]
        assert [(one.key, one.old, one.new) for one in difference.edits] == [(key, None, "null") for key in keys]

    def test_what_a_rule_always_has_cannot_be_taken_out_and_the_schema_knows(self):
        schema = Draft202012Validator(schema_of("policy"))
        for key in (f.name for f in fields(Override) if f.name != "without"):
            text = f"{WAITING}overlays: [{{ id: o, scope: {{ tenant: [t] }}, override: {{ r: {{ {key}: null }} }} }}]\n"
            assert schema.is_valid(yaml.safe_load(text)) == (key in MAY_BE_ABSENT)
            if key in MAY_BE_ABSENT:
                assert getattr(effective(loads_policy(text), ["o"]).rules[0], key) is None
            else:
                with pytest.raises(PolicyError, match=rf"<memory>:4:\d+: '{key}' cannot be null here: leave it out"):
                    loads_policy(text)


class TestConditions:
    def rule(self, when: Condition, **others) -> Policy:
        return Policy("p", (Rule("r", "a", Action.BLOCK, when=when, **others),))

    def test_all_any_and_not_are_what_they_say(self):
        b, c = Condition(category="b"), Condition(category="c", threshold=0.2)
        both, either = self.rule(Condition(all=(b, c))), self.rule(Condition(any=(b, c)))
        neither = self.rule(Condition(not_=Condition(any=(b, c))))
        cases = {(): (0, 0, 1), ("b",): (0, 1, 0), ("c",): (0, 1, 0), ("b", "c"): (1, 1, 0)}
        for present, expected in cases.items():
            findings = [found("a"), *(found(category, 0.5) for category in present)]
            fires = tuple(acted(policy, *findings) is Action.BLOCK for policy in (both, either, neither))
            assert fires == tuple(map(bool, expected)), present

    def test_a_condition_alone_fires_nothing(self):
        assert acted(self.rule(Condition(category="b")), found("b")) is Action.ALLOW

    @pytest.mark.parametrize("on_error", [Action.ALLOW, Action.BLOCK])
    def test_a_failed_check_behind_a_condition_leaves_the_rule_to_its_on_error(self, on_error):
        policy = self.rule(Condition(category="b"), on_error=on_error)
        decision = decide(policy, Stage.INPUT, [found("a"), Finding("fake", "b", 0, error="boom")])
        assert (decision.action, decision.rules, decision.unanswered) == (on_error, (), {"r": on_error})

    def test_a_failed_check_matters_only_where_it_could_change_the_outcome(self):
        failed = Finding("fake", "b", 0, error="boom")
        either = self.rule(Condition(any=(Condition(category="b"), Condition(category="c"))))
        assert decide(either, Stage.INPUT, [found("a"), found("c"), failed]).rules == ("r",)
        assert acted(either, failed) is Action.ALLOW, "nothing of its own category was found"
        own = self.rule(Condition(category="c"))
        assert acted(own, Finding("fake", "a", 0, error="boom")) is Action.ALLOW, "the condition does not hold"

    @given(st.permutations([found("a", 0.9), found("b", 0.4), found("c", 0.7), Finding("fake", "d", 0, error="x")]))
    def test_order_of_findings_changes_nothing(self, findings):
        when = Condition(all=(Condition(category="c"), Condition(not_=Condition(category="d"))))
        decision = decide(self.rule(when, on_error=Action.LOG), Stage.INPUT, findings)
        assert (decision.action, decision.unanswered) == (Action.LOG, {"r": Action.LOG})


def test_a_rule_with_roles_looks_at_their_texts_only():
    policy = Policy("p", (Rule("r", "a", Action.BLOCK, roles=("tool", "tool_call")),))
    assert acted(policy, found("a", role="user")) is Action.ALLOW
    assert acted(policy, found("a", role="tool_call")) is Action.BLOCK
    assert acted(policy, found("a")) is Action.BLOCK, "whose text it is is not known: fail closed"
    assert acted(policy, found("a", role="usr")) is Action.BLOCK, "no rule can name it: a made-up role is no way out"


def test_what_a_model_hands_to_a_tool_is_tool_calls(checks):
    policy = Policy("p", (Rule("r", "number", Action.BLOCK, roles=("tool_call",)),))
    guard = Guard(policy, checks=checks)
    reply = guard.open_reply(Exchange("openai.chat", "m", []))
    reply.release_whole(Part(Kind.TOOL_CALL, "assistant", ("choices", 0), "12345"), {})
    assert reply.stopped
    reply = guard.open_reply(Exchange("openai.chat", "m", []))
    reply.feed(("choices", 0), "12345")
    assert reply.release(("choices", 0), last=True) == "12345"


class TestDegrade:
    policy = Policy("p", (Rule("r", "a", Action.BLOCK, on_error=Degrade("b")),))
    failed = Finding("fake", "a", 0, error="boom")

    def test_what_stands_in_decides_where_the_check_failed(self):
        assert acted(self.policy, self.failed, found("b")) is Action.BLOCK
        clean = decide(self.policy, Stage.INPUT, [self.failed])
        assert (clean.action, clean.unanswered) == (Action.ALLOW, {"r": Action.ALLOW})
        assert acted(self.policy, found("b")) is Action.ALLOW, "the check itself answered"

    def test_where_both_failed_it_blocks(self):
        assert acted(self.policy, self.failed, Finding("fake", "b", 0, error="boom")) is Action.BLOCK

    def test_what_stands_in_is_run(self, checks, broken_check):
        policy = Policy("p", (Rule("r", "broken", Action.BLOCK, on_error=Degrade("number")),))
        pipeline = Pipeline(policy, {**checks, "broken": broken_check})
        for text, action in (("12345", Action.BLOCK), ("none", Action.ALLOW)):
            assert pipeline.judge(Stage.INPUT, [Passage(Stage.INPUT, "user", text)]).action is action


class TestExceptions:
    today = date(2026, 6, 1)

    def marks(self, exception: RuleException, text: str = "call 12345", who=None) -> bool:
        passage = Passage(Stage.INPUT, "user", text)
        findings = [Finding("fake", "number", 1.0, (Span(0, 5, 10),))]
        policy = Policy("p", (Rule("number", "number", Action.LOG),), exceptions=(exception,))
        [one] = Exceptions(policy).mark(findings, [passage], who or {}, self.today)
        return one.excepted == (exception.id,)

    def exception(self, **what) -> RuleException:
        return RuleException("x", ("number",), until=what.pop("until", self.today), why="ours", **what)

    def test_a_pattern_must_match_the_whole_stretch(self):
        assert self.marks(self.exception(pattern=r"\d+"))
        assert not self.marks(self.exception(pattern=r"\d{3}"))

    def test_a_fingerprint_is_of_the_whole_text(self):
        same = sha256(b"call 12345").hexdigest()
        assert self.marks(self.exception(fingerprint=same))
        assert not self.marks(self.exception(fingerprint=same), text="call 12345!")

    def test_a_scope_is_of_whose_exchange_it_is_and_all_that_is_given_must_meet(self):
        theirs = self.exception(scope=Scope(key=("k1",)))
        assert self.marks(theirs, who={"key": "k1"})
        assert not self.marks(theirs, who={"key": "k2"})
        assert not self.marks(self.exception(scope=Scope(key=("k1",)), pattern="no"), who={"key": "k1"})

    def test_any_key_is_not_no_key(self):
        any_key = self.exception(scope=Scope(key=("*",)))
        assert self.marks(any_key, who={"key": "k1"})
        assert not self.marks(any_key, who={"key": ""})
        assert not self.marks(any_key)

    def test_the_last_day_counts_and_the_next_does_not(self):
        assert self.marks(self.exception(pattern=r"\d+", until=self.today))
        assert not self.marks(self.exception(pattern=r"\d+", until=self.today - timedelta(days=1)))

    def test_a_pattern_that_takes_forever_elsewhere_takes_no_time(self):
        assert not self.marks(self.exception(pattern="(a+)+b"), text="call " + "a" * 50_000)

    def test_an_impossible_pattern_is_told_with_its_place(self):
        with pytest.raises(PolicyError, match=r"<memory>:1:1: the pattern of exception 'x' is not one that RE2 reads"):
            Exceptions(Policy("p", (), exceptions=(self.exception(pattern=r"(?=a)"),)))

    def test_every_impossible_pattern_is_told_and_not_the_first_alone(self):
        ones = [replace(self.exception(pattern=one), id=f"x{n}") for n, one in enumerate(["(?=a)", "a", "(", r"(a)\1"])]
        with pytest.raises(PolicyError) as caught:
            Exceptions(Policy("p", (), exceptions=tuple(ones)))
        assert [one.what.split("'")[1] for one in caught.value.problems] == ["x0", "x2", "x3"]

    def test_patterns_may_take_so_much_room_together_with_those_of_the_checks(self):
        large = replace(self.exception(pattern=r"\pL{40}"), origin=Origin("shop.yaml", 9, 5))
        policy = Policy("p", (), exceptions=(large,))
        Exceptions(policy, taken=200 << 20)
        with pytest.raises(PolicyError) as caught:
            Exceptions(policy, taken=(256 << 20) - 1_000)
        assert str(caught.value).startswith(
            "shop.yaml:9:5: with these, the words and patterns of the policy take 260 MiB;"
        )
        assert "together they may take 256" in str(caught.value)

    @given(
        st.lists(
            st.fixed_dictionaries(
                {"rules": st.sampled_from([("mail",), ("number",), ("number", "mail")])},
                optional={
                    "pattern": st.sampled_from([r"\d+", ".", "a|ab", "^é$", r"(?i)B\b", "", "(?s:.*)"]).filter(bool),
                    "fingerprint": st.sampled_from(["ab", "é1"]).map(lambda text: sha256(text.encode()).hexdigest()),
                    "scope": st.sampled_from([Scope(key=("k",)), Scope(key=("other",))]),
                    "until": st.sampled_from([today, today - timedelta(days=1)]),
                },
            ).filter(lambda one: one.keys() & {"pattern", "fingerprint", "scope"}),
            max_size=5,
        ),
        st.lists(
            st.tuples(st.sampled_from(["number", "number.x", "mail"]), st.lists(st.tuples(*[st.integers(0, 3)] * 3))),
            max_size=4,
        ),
    )
    def test_however_they_are_looked_up_the_same_ones_apply(self, written, wanted):
        texts, categories = ("ab", "é1", "B\ud800"), {"number": "number", "mail": "mail"}
        exceptions = tuple(
            RuleException(f"x{n}", **{"until": self.today, "why": "ours"} | one) for n, one in enumerate(written)
        )
        rules = tuple(Rule(name, category, Action.LOG) for name, category in categories.items())
        findings = [
            Finding(
                "fake", category, 1.0, tuple(Span(part % 3, min(one, two), max(one, two)) for part, one, two in spans)
            )
            for category, spans in wanted
        ]

        def applies(one: RuleException, finding: Finding) -> bool:
            pieces = [texts[span.part][span.start : span.end] for span in finding.spans]
            prints = {sha256(texts[span.part].encode(errors="replace")).hexdigest() for span in finding.spans}
            return (
                one.until >= self.today
                and (one.scope is None or "k" in one.scope.key)
                and (
                    one.pattern is None
                    or all(re2.fullmatch(one.pattern, piece.replace("\ud800", "?")) for piece in pieces)
                )
                and (one.fingerprint is None or one.fingerprint in prints)
                and (bool(pieces) or not (one.pattern or one.fingerprint))
                and any(covers(categories[name], finding.category) for name in one.rules)
            )

        passages = [Passage(Stage.INPUT, "user", text, part=part) for part, text in enumerate(texts)]
        marked = Exceptions(Policy("p", rules, exceptions=exceptions)).mark(
            findings, passages, {"key": "k"}, self.today
        )
        for one, finding in zip(marked, findings, strict=True):
            assert one.excepted == tuple(e.id for e in exceptions if applies(e, finding))

    def test_many_exceptions_cost_little_beside_few(self, seconds):
        def marking(many: int):
            policy = Policy(
                "p",
                (Rule("number", "number", Action.LOG),),
                exceptions=tuple(replace(self.exception(pattern=f"user{n}@x"), id=f"x{n}") for n in range(many)),
            )
            text = " ".join(f"user{n}@x" for n in range(300))
            places = [match.span() for match in re.finditer(r"\S+", text)]
            findings = [Finding("fake", "number", 1.0, (Span(0, *place),)) for place in places]
            ready = Exceptions(policy)
            return lambda: ready.mark(findings, [Passage(Stage.INPUT, "user", text)], {}, self.today)

        assert [one.excepted for one in marking(300)()][-1] == ("x299",)
        assert seconds(marking(10_000)) < 15 * seconds(marking(100))

    def test_an_exception_stops_its_own_rules_and_the_decision_says_so(self):
        rules = (Rule("number", "number", Action.REWRITE), Rule("other", "number", Action.LOG))
        policy = Policy("p", rules, exceptions=(self.exception(pattern=".*"),))
        excepted = found("number", excepted=("x",))
        decision = decide(policy, Stage.INPUT, [excepted])
        assert (decision.action, decision.rules, decision.excepted) == (Action.LOG, ("other",), {"number": ("x",)})
        assert decision.rewrites == ()
        both = decide(policy, Stage.INPUT, [excepted, Finding("fake", "number", 1.0, (Span(0, 9, 12),))])
        assert [rewrite.span.start for rewrite in both.rewrites] == [9]

    def test_every_exception_that_kept_a_rule_from_firing_is_named_also_over_the_windows_of_a_reply(self):
        exceptions = tuple(replace(self.exception(pattern=".*"), id=name) for name in "xyz")
        policy = Policy("p", (Rule("number", "number", Action.LOG),), exceptions=exceptions)
        first, second = found("number", excepted=("z", "y")), found("number", excepted=("x",))
        assert decide(policy, Stage.INPUT, [first, second]).excepted == {"number": ("x", "y", "z")}
        stream = StreamGuard(StreamSettings(window=16, reach=0, context=0))
        stream.feed("a word and a word and a word")
        stream.close()
        for finding in (first, second):
            window = stream.window()
            at_its_end = replace(finding, spans=(Span(0, len(window.text) - 2, len(window.text)),))
            stream.settle(window, decide(policy, Stage.OUTPUT, [at_its_end]))
        assert stream.decision.excepted == {"number": ("x", "y", "z")}


class TestCounters:
    counter = Counter("many", ("number",), at_least=3, within="10m", hold="5m")

    def full(self, history: History, subject: Subject, counter: Counter | None = None) -> bool:
        return bool(history.findings([counter or self.counter], subject))

    def test_enough_hits_in_time_fill_it_and_it_holds_for_so_long(self):
        now = [0.0]
        history, subject = History(clock=lambda: now[0]), Subject()
        for at in (0, 599):
            now[0] = at
            history.note([self.counter], subject, {"number", "else"})
            assert not self.full(history, subject)
        now[0] = 600.0  # the first hit is ten minutes old and counts no more
        history.note([self.counter], subject, {"number"})
        assert not self.full(history, subject)
        now[0] = 700.0
        history.note([self.counter], subject, {"number"})
        assert self.full(history, subject)
        now[0] = 999.0
        assert self.full(history, subject)
        now[0] = 1_000.0
        assert not self.full(history, subject)

    def test_other_rules_do_not_count_and_others_hits_are_theirs(self):
        history = History(clock=lambda: 0.0)
        for _ in range(3):
            history.note([self.counter], Subject(key="a"), {"number"})
            history.note([self.counter], Subject(key="b"), {"else"})
        assert self.full(history, Subject(key="a"))
        assert not self.full(history, Subject(key="b"))
        assert not self.full(history, Subject(tenant="t", key="a"))

    def test_users_are_counted_apart_where_that_is_asked_for(self):
        per_user = Counter("many", ("number",), at_least=1, within="1m", hold="1m", per="user")
        history = History(clock=lambda: 0.0)
        history.note([per_user], Subject(user="ann"), {"number"})
        assert self.full(history, Subject(user="ann"), per_user)
        assert not self.full(history, Subject(user="bob"), per_user)
        history.note([per_user], Subject(), {"number"})
        assert not self.full(history, Subject(), per_user), "whoever names no user is not everybody who names none"

    def test_after_enough_exchanges_the_next_is_blocked_whatever_it_says(self, checks):
        rules = (
            Rule("number", "number", Action.LOG),
            Rule("pause", "count.many", Action.BLOCK, stages=(Stage.INPUT,), message="Wait."),
        )
        guard = Guard(Policy("p", rules, counters=(self.counter,)), checks=checks)
        told = []
        for text in ("12345", "12345", "12345", "hello"):
            exchange = Exchange("openai.chat", "m", [Part(Kind.TEXT, "user", ("messages", 0, "content"), text)])
            told.append(guard.judge_request(exchange).message)
            guard.record(exchange)
        assert told == ["", "", "", "Wait."]


def test_a_caller_is_told_in_the_language_that_was_spoken(checks):
    message = {"en": "No.", "de": "Nein."}
    pipeline = Pipeline(Policy("p", (Rule("r", "number", Action.BLOCK, message=message),)), checks)
    for text, told in (
        ("Bitte sag mir, wem diese Nummer gehört und wo er wohnt: 12345", "Nein."),
        ("Please tell me whose number this is and where that person lives: 12345", "No."),
        ("Dites-moi à qui appartient ce numéro et où habite cette personne : 12345", "No."),
    ):
        assert pipeline.judge(Stage.INPUT, [Passage(Stage.INPUT, "user", text)]).message == told
        assert pipeline.judge(Stage.OUTPUT, [Passage(Stage.OUTPUT, "assistant", "12345", text)]).message == told


def test_the_shortest_time_of_its_rules_is_a_checks_time(checks):
    rules = (
        Rule("a", "number", Action.LOG, seconds=0.0001),
        Rule("b", "knife", Action.LOG),
    )

    class Slow:
        name = "slow"
        categories = frozenset({"number"})

        def find(self, passage):
            while passage.until > __import__("time").monotonic():
                pass
            raise TimeoutError("stopped when nobody waited any more")

    pipeline = Pipeline(Policy("p", rules), {"slow": Slow(), "k": checks["word-knife"]})
    decision = pipeline.judge(Stage.INPUT, [Passage(Stage.INPUT, "user", "knife")])
    assert decision.action is Action.BLOCK
    assert decision.unanswered == {"a": Action.BLOCK}
    assert decision.logged == ("b",)
