from datetime import date
from pathlib import Path

import pytest

from ringfence.guard.actions import rewrite
from ringfence.guard.check import Passage
from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.guard.checks.hidden import HiddenCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.policies.cases import Outcome, cases_beside, read_cases, run_cases, suites_of, without_cases
from ringfence.policies.decide import decide
from ringfence.policies.lint import lint
from ringfence.policies.load import PACKS, PolicyError, load_policy, loads_policy
from ringfence.policies.types import Finding, Span, Stage

HEAD = "version: 1\nname: tiny\n"


def judge_by(policy, find):
    def judge(stage, text, prompt):
        decision = decide(policy, stage, find(Passage(stage, "user", text, prompt)))
        return decision, rewrite(text, decision.rewrites)

    return judge


@pytest.mark.parametrize(
    ("pack", "check"),
    [
        ("pii", PiiCheck()),
        ("secrets", SecretsCheck()),
        ("hidden", HiddenCheck()),
        ("exfiltration", ExfiltrationCheck()),
    ],
)
def test_every_case_of_the_pattern_packs_passes(pack, check):
    (suite,) = suites_of(loads_policy(HEAD + f"packs: [{pack}]\n"))
    results = list(run_cases(suite.cases, judge_by(suite.policy, check.find)))
    assert [(str(r.case.origin), r.difference) for r in results if r.outcome is not Outcome.PASS] == []
    caught = sum(bool(case.expect.rules or case.expect.text) for case in suite.cases)
    assert min(caught, len(suite.cases) - caught) >= 8


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


def find(passage):
    whole = (Span(0, 0, len(passage.text)),)
    error = "down" if passage.text == "broken" else None
    return [Finding("fake", "harm", float(passage.text == "bad"), whole, error=error)]


def test_cases_pass_fail_or_err_and_say_how_they_differ(tmp_path):
    policy = loads_policy(HEAD + "rules: [{id: harm, category: harm, action: block}]\n")
    path = tmp_path / "c.yaml"
    path.write_text(CASES)
    results = list(run_cases(read_cases(path), judge_by(policy, find)))
    assert [(r.outcome, r.difference) for r in results] == [
        ("pass", ""),
        ("fail", "did not fire: harm"),
        ("fail", "expected rewrite, got block by harm; expected the text '[HARM]', got 'bad'"),
        ("error", "fake: down"),
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


def test_lint_warns_of_rules_that_never_decide_or_have_no_case():
    policy = loads_policy(
        HEAD + "rules:\n"
        "  - {id: all, category: pii, action: block, threshold: 0.4}\n"
        "  - {id: mail, category: pii.email, action: rewrite}\n"
        "  - {id: early, category: pii.email, action: rewrite, threshold: 0.3}\n"
        "  - {id: shadow, category: pii.email, action: log, shadow: true}\n"
    )
    warnings = [str(w) for w in lint(policy, [], TODAY)]
    assert warnings[0] == (
        "<memory>:5:5: rule 'mail' never decides: 'all' (<memory>:4:5) asks for block from 0.4 on, "
        "where this one asks for rewrite from 0.5"
    )
    assert len(warnings) == 5
    assert all("has no case" in warning for warning in warnings[1:])
    assert "everything passes" in str(next(lint(loads_policy(HEAD), [], TODAY)))


def test_packs_stand_beside_their_cases():
    packs = [p for p in PACKS.glob("*.yaml") if not p.name.endswith(".cases.yaml")]
    assert packs
    assert all(cases_beside(pack).is_file() for pack in packs)
    assert all(Path(str(p).replace(".cases", "")).is_file() for p in PACKS.glob("*.cases.yaml"))
