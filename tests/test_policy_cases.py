from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from ringfence.guard.check import load_checks, own_checks
from ringfence.guard.checks.leakage import LeakageCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.classifier.rows import read_rows
from ringfence.guard.guard import Guard
from ringfence.guard.known import findable
from ringfence.guard.pipeline import categories_of
from ringfence.policies.cases import (
    Outcome,
    Suite,
    Tally,
    cases_beside,
    coverage_of,
    read_cases,
    run_cases,
    suites_of,
    without_cases,
)
from ringfence.policies.decide import decide
from ringfence.policies.lint import lint
from ringfence.policies.load import PACKS, PolicyError, load_policy, loads_policy
from ringfence.policies.types import Action, Finding, Span, Stage
from ringfence.policies.words import root
from ringfence.proxy.cli.policy import judge_of

HEAD = "version: 1\nname: tiny\n"


TEXTS = PACKS.parents[1] / "guard" / "bench" / "texts"
NAMES = sorted({p.name.partition(".")[0] for p in PACKS.glob("*.yaml")})
MODEL = {"harm", "attack", "toxicity", "refusal"}


def suite_of(pack):
    (suite,) = suites_of(loads_policy(HEAD + f"packs: [{pack}]\n"))
    return suite


def without_the_model(suite):
    """The rules of a pack that need no guard model, and the cases that these settle."""
    rules = tuple(r for r in suite.policy.rules if MODEL.isdisjoint(map(root, categories_of(r))))
    return replace(suite.policy, rules=rules), [
        case for case in suite.cases if set(case.expect.rules) <= {rule.id for rule in rules}
    ]


@pytest.fixture(scope="module")
def checks():
    return {name: check for name, check in load_checks().items() if MODEL.isdisjoint(check.categories)}


@pytest.mark.parametrize("pack", [name for name in NAMES if name not in {"mlcommons", "moderation"}])
def test_every_case_that_patterns_settle_passes(pack, checks):
    policy, cases = without_the_model(suite_of(pack))
    results = list(run_cases(cases, judge_of(policy, {**checks, **own_checks(policy.checks)})))
    assert [(str(r.case.origin), r.difference) for r in results if r.outcome is not Outcome.PASS] == []
    assert {case.expect.action for case in cases} > {"allow"}


@pytest.mark.parametrize("pack", NAMES)
def test_every_pack_has_twenty_cases_of_each_side_and_one_for_every_rule(pack):
    suite = suite_of(pack)
    left_alone = sum(case.expect.action is Action.ALLOW for case in suite.cases)
    assert min(left_alone, len(suite.cases) - left_alone) >= 20
    assert without_cases(suite.policy, [suite]) == []
    known = {rule.id: rule for rule in suite.policy.rules}
    for case in suite.cases:
        assert all(case.stage in known[name].stages for name in case.expect.rules), case.origin


@pytest.mark.parametrize("pack", NAMES)
def test_every_rule_of_a_pack_says_why_and_what_needs_the_model_is_no_more_than_beta(pack):
    for rule in suite_of(pack).policy.rules:
        assert rule.why, rule.id
        assert rule.maturity != "stable" or MODEL.isdisjoint(map(root, categories_of(rule))), rule.id


@pytest.mark.parametrize("pack", NAMES)
def test_no_pack_has_a_warning(pack):
    suite = suite_of(pack)
    found = findable(suite.policy, load_checks().values())
    assert list(map(str, lint(suite.policy, [suite], TODAY, findable=found))) == []


def test_what_a_child_reads_comes_in_five_languages():
    messages = [rule.message for rule in suite_of("children").policy.rules if rule.message]
    assert messages
    assert all(set(message) == {"en", "de", "fr", "es", "nl"} for message in messages)


@pytest.mark.parametrize("category", ["harm.S11", "attack", "unjudged.media"])
def test_child_reads_the_words_for_children_also_where_strict_stops_the_same(category):
    policy = loads_policy(HEAD + "packs: [strict, children]\n")
    decision = decide(policy, Stage.INPUT, [Finding("fake", category, 0.9, (Span(0, 0, 1),))], "nl")
    assert {name.partition("-")[0] for name in decision.rules} == {"child", "strict"}
    assert decision.message == next(rule for rule in policy.rules if rule.id == decision.rules[0]).message["nl"]


OPERATORS = {"system", "developer"}


@pytest.mark.parametrize("pack", NAMES)
def test_no_rule_over_attacks_stops_what_operators_say(pack):
    over = [rule for rule in suite_of(pack).policy.rules if root(rule.category) == "attack"]
    for rule in over:
        assert rule.roles, rule.id
        assert rule.action is Action.LOG or OPERATORS.isdisjoint(rule.roles), rule.id
    assert not over or any(set(rule.roles) == OPERATORS for rule in over)
    heard = {voice for rule in over if rule.action is Action.BLOCK for voice in rule.roles}
    assert not over or heard >= {"user", "assistant", "tool", "function"}


@pytest.mark.parametrize("name", ["operators", "operators_later"])
def test_shipped_policy_blocks_no_ordinary_system_message_and_sees_every_bad_one(name):
    rows = [row for _, row in read_rows(TEXTS / f"{name}.jsonl")]
    guard = Guard()
    acted = {row["id"]: (row["prompt_label"], guard.check(row["text"], role=row["role"]).action) for row in rows}
    assert [one for one, (bad, action) in acted.items() if not bad and action is Action.BLOCK] == []
    assert [one for one, (bad, action) in acted.items() if bad and action is Action.ALLOW] == []


def test_tool_result_of_the_older_name_is_a_tool_result():
    for rule in (rule for pack in NAMES for rule in suite_of(pack).policy.rules):
        assert ("tool" in rule.roles) == ("function" in rule.roles), rule.id


def test_hazard_in_a_system_message_keeps_no_harm_of_a_child_from_being_stopped():
    policy = loads_policy(HEAD + "packs: [children]\n")
    spans = (Span(0, 0, 1),)
    of_operator = [
        Finding("fake", "harm", 0.6, spans, role="system"),
        Finding("fake", "harm.S4", 0.5, spans, role="system"),
    ]
    of_child = Finding("fake", "harm", 0.6, spans, role="user")
    assert decide(policy, Stage.INPUT, of_operator).action is Action.ALLOW
    assert decide(policy, Stage.INPUT, [*of_operator, of_child]).action is Action.BLOCK


def test_who_has_strangers_for_operators_can_have_attacks_of_every_role_stopped():
    roles = "roles: [user, assistant, tool, function, tool_call, system, developer]"
    policy = loads_policy(HEAD + f"packs: [injection]\noverride: {{attack: {{{roles}}}}}\n")
    finding = Finding("fake", "attack", 0.99, (Span(0, 0, 1),), role="system")
    assert decide(policy, Stage.INPUT, [finding]).rules == ("attack",)


def test_enterprise_default_is_what_the_shipped_policy_has():
    enterprise, shipped = load_policy(PACKS.parent / "enterprise-default.yaml"), load_policy()
    assert enterprise.rules == shipped.rules
    assert enterprise.message == shipped.message


def test_case_may_say_whose_text_it_is_and_what_the_operator_told_the_model(tmp_path):
    policy = loads_policy(
        HEAD + "rules:\n"
        "  - {id: handed, category: pii, roles: [tool_call], action: block}\n"
        "  - {id: leak, category: leak, stages: [output], action: block}\n"
    )
    path = tmp_path / "c.yaml"
    path.write_text(
        "- {text: a@example.com, role: tool_call, expect: {action: block, rules: [handed]}}\n"
        "- {text: a@example.com, expect: {action: allow}}\n"
        "- {text: heron-4471, stage: output, system: 'canary: heron-4471', expect: {action: block, rules: [leak]}}\n"
        "- {text: heron-4471, stage: output, expect: {action: allow}}\n"
    )
    cases = read_cases(path)
    judge = judge_of(policy, {"pii": PiiCheck(), "leakage": LeakageCheck()})
    assert [result.difference for result in run_cases(cases, judge)] == ["", "", "", ""]
    assert [case.voice for case in cases] == ["tool_call", "user", "assistant", "assistant"]


def test_case_may_say_whose_exchange_it_is_so_that_overlays_and_exceptions_show(tmp_path):
    policy = loads_policy(
        HEAD + "rules: [{id: mail, category: pii, action: log}]\n"
        "overlays:\n"
        "  - id: strict\n"
        "    scope: {model: [clinic-*]}\n"
        "    override: {mail: {action: block}}\n"
        "    rules: [{id: clinic, category: harm, action: block}]\n"
        "exceptions: [{id: desk, rules: [mail], until: 2999-01-01, why: tests, scope: {tenant: [desk]}}]\n"
    )
    path = tmp_path / "c.yaml"
    path.write_text(
        "- {text: a@example.com, expect: {action: log, rules: [mail]}}\n"
        "- {text: a@example.com, for: {model: clinic-1}, expect: {action: block, rules: [mail]}}\n"
        "- {text: a@example.com, for: {tenant: desk}, expect: {action: allow}}\n"
        "- {text: bad, expect: {action: allow}}\n"
        "- {text: bad, for: {model: clinic-1}, expect: {action: block, rules: [clinic]}}\n"
    )
    cases = read_cases(path)
    results = list(run_cases(cases, judge_of(policy, {"pii": PiiCheck(), "fake": Fake()})))
    assert [result.difference for result in results] == [""] * 5
    suite = Suite(policy, cases)
    assert without_cases(policy, [suite]) == []
    assert [rule.id for rule in without_cases(policy, [Suite(policy, cases[:4])])] == ["clinic"]
    assert coverage_of(policy, [(suite, results)])["harm"].caught == Tally(passing=1)


def test_whose_a_case_is_comes_by_known_names_only(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- {text: a, for: {tennant: x}, expect: {action: allow}}\n")
    with pytest.raises(PolicyError, match=r"c.yaml:1:19: unknown key 'tennant'; did you mean 'tenant'"):
        read_cases(path)


def test_every_rule_that_ships_has_a_case_on_each_side():
    policy = load_policy()
    suites = list(suites_of(policy))
    assert without_cases(policy, suites) == []
    for suite in suites:
        assert {case.expect.action for case in suite.cases} > {"allow"}


def test_shipped_policy_has_no_warning():
    policy = load_policy()
    assert list(map(str, lint(policy, list(suites_of(policy)), TODAY))) == []


TODAY = date(2026, 6, 1)

CASES = """\
- text: bad
  expect: {action: block, rules: [harm]}
- text: good
  expect: {action: allow, rules: [harm]}
- text: bad
  expect: {action: rewrite, text: "[HARM]"}
- text: broken
  expect: {action: block}
"""


class Fake:
    name = "fake"
    categories = frozenset({"harm"})

    def find(self, passage):
        if passage.text == "broken":
            raise RuntimeError("down")
        return [Finding("fake", "harm", float(passage.text == "bad"), (Span(0, 0, len(passage.text)),))]


def test_cases_pass_fail_or_err_and_say_how_they_differ(tmp_path):
    policy = loads_policy(HEAD + "rules: [{id: harm, category: harm, action: block}]\n")
    path = tmp_path / "c.yaml"
    path.write_text(CASES)
    results = list(run_cases(read_cases(path), judge_of(policy, {"fake": Fake()})))
    assert [(r.outcome, r.difference) for r in results] == [
        ("pass", ""),
        ("fail", "did not fire: harm"),
        ("fail", "expected rewrite, got block by harm; expected the text '[HARM]', got 'bad'"),
        ("error", "fake: failed with RuntimeError"),
    ]
    assert [r.case.origin.line for r in results] == [1, 3, 5, 7]


def test_cases_of_a_pack_are_about_its_rules_and_those_of_the_policy_about_all(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(HEAD + "packs: [pii, secrets]\nrules: [{id: own, category: harm, action: log}]\n")
    cases_beside(path).write_text("- {text: hello, stage: output, prompt: hi, expect: {action: allow, rules: [own]}}\n")
    suites = list(suites_of(load_policy(path), path))
    assert [[rule.id for rule in suite.policy.rules] for suite in suites] == [
        ["pii"],
        ["secrets"],
        ["pii", "secrets", "own"],
    ]
    assert suites[2].cases[0].stage is Stage.OUTPUT


def test_cases_of_a_rule_that_was_removed_are_left_out_and_those_of_one_that_never_was_are_refused(tmp_path):
    pack, path, above = (tmp_path / name for name in ("ours.yaml", "policy.yaml", "above.yaml"))
    pack.write_text(HEAD + "rules:\n" + "".join(f"  - {{id: {name}, category: harm, action: log}}\n" for name in "ab"))
    path.write_text(HEAD + "packs: [./ours.yaml]\nremove: [a]\nrules: [{id: own, category: harm, action: log}]\n")
    above.write_text(HEAD + "extends: policy.yaml\nremove: [own]\n")
    case = "- {{text: x, expect: {{action: log, rules: [{}]}}}}\n"

    def shown(file):
        return [case.expect.rules for suite in suites_of(load_policy(file), file) for case in suite.cases]

    cases_beside(pack).write_text(case.format("b") + case.format("a"))
    cases_beside(path).write_text(case.format("own"))
    assert shown(path) == [("b",), ("own",)]
    assert shown(above) == [("b",)]
    cases_beside(pack).write_text(case.format("b") + case.format("a, bb"))
    with pytest.raises(PolicyError, match=r"ours\.cases\.yaml:2:3: no rule 'bb' in the pack; did you mean 'b'\?"):
        shown(path)
    cases_beside(pack).write_text(case.format("own"))
    with pytest.raises(PolicyError, match=r"ours\.cases\.yaml:1:3: no rule 'own' in the pack"):
        shown(path)
    cases_beside(pack).unlink()
    cases_beside(path).write_text(case.format("a"))
    with pytest.raises(PolicyError, match=r"policy\.cases\.yaml:1:3: no rule 'a' in the policy"):
        shown(path)


def test_text_in_pieces_is_put_together(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- {text: [gh, p_, x], expect: {action: rewrite, text: [a, b]}}\n")
    (case,) = read_cases(path)
    assert (case.text, case.expect.text) == ("ghp_x", "ab")


def test_case_file_with_problems_is_told_with_their_places(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- {txt: a, expect: {action: blok}}\n- {text: [a, 3], expect: {action: block}}\n")
    with pytest.raises(PolicyError) as caught:
        read_cases(path)
    assert [line.split("c.yaml:")[1] for line in str(caught.value).splitlines()] == [
        "1:3: 'text' is missing here",
        "1:4: unknown key 'txt'; did you mean 'text'?",
        "1:21: 'action' cannot be \"blok\"; did you mean 'block'?",
        "2:4: 'text' must be text in quotes, got [\"a\", 3]",
    ]


def test_packs_stand_beside_their_cases():
    packs = [p for p in PACKS.glob("*.yaml") if not p.name.endswith(".cases.yaml")]
    assert packs
    assert all(cases_beside(pack).is_file() for pack in packs)
    assert all(Path(str(p).replace(".cases", "")).is_file() for p in PACKS.glob("*.cases.yaml"))
