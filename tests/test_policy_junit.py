import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from junitparser import Error, Failure, JUnitXml
from typer.testing import CliRunner

from ringfence.guard.checks.exfiltration import ExfiltrationCheck
from ringfence.guard.checks.hidden import HiddenCheck
from ringfence.guard.checks.pii import PiiCheck
from ringfence.policies.cases import (
    Case,
    Expected,
    Outcome,
    Result,
    Shown,
    Suite,
    Tally,
    cases_beside,
    coverage_of,
    run_cases,
)
from ringfence.policies.load import loads_policy
from ringfence.policies.types import Action, Decision, Stage
from ringfence.proxy.cli import policy as cli

HEAD = "version: 1\nname: tiny\n"
RULES = """\
rules:
  - {id: harm, category: harm, action: block}
  - {id: mail, category: pii.email, action: rewrite}
  - {id: quiet, category: attack, action: log}
  - {id: seen, category: unjudged, action: block}
"""
CASES = """\
- text: war
  expect: {action: block, rules: [harm]}
- text: "war \\e[2J & <more>"
  expect: {action: log}
- text: peace
  expect: {action: allow}
- text: bob@example.com
  expect: {action: rewrite, rules: [mail]}
- text: hello
  expect: {action: allow}
"""


@pytest.fixture(autouse=True)
def installed(monkeypatch, sure_of_war):
    checks = {check.name: check for check in (sure_of_war, PiiCheck(), HiddenCheck())}
    monkeypatch.setattr(cli, "load_checks", lambda: checks)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(HEAD + "packs: [hidden]\n" + RULES)
    cases_beside(path).write_text(CASES)
    return path


def run(*arguments):
    return CliRunner().invoke(cli.app, ["test", *map(str, arguments)])


def test_junit_has_a_suite_for_each_case_file_and_says_where_a_case_that_did_not_pass_stands(policy, tmp_path):
    result = run(policy, "--junit", tmp_path / "out.xml")
    assert result.exit_code == 1
    hidden, ours = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert hidden.name.endswith("packs/hidden.cases.yaml")
    assert (hidden.failures, hidden.errors) == (0, 0)
    assert ours.name == str(cases_beside(policy))
    assert (ours.tests, ours.failures, ours.errors) == (5, 1, 1)
    first, second, third, *_ = ours
    assert (first.name, first.classname, first.result) == ("1: war", ours.name, [])
    (failure,), (error,) = second.result, third.result
    assert isinstance(failure, Failure)
    assert failure.text == f"{ours.name}:3:3: expected log, got block by harm, hidden"
    assert isinstance(error, Error)
    assert error.text == f"{ours.name}:5:3: classifier: failed with RuntimeError"
    assert ours.time == pytest.approx(sum(case.time for case in ours), abs=0.001)


def test_junit_is_xml_even_where_a_text_holds_what_xml_cannot(policy, tmp_path):
    run(policy, "--junit", tmp_path / "out.xml")
    names = [case.get("name") for case in ET.parse(tmp_path / "out.xml").iter("testcase")]
    assert r"3: war \u001b[2J & <more>" in names


def test_junit_leaves_output_and_exit_status_as_they_are(policy, tmp_path):
    alone, beside = run(policy), run(policy, "--junit", tmp_path / "out.xml")
    assert (alone.exit_code, alone.stdout) == (beside.exit_code, beside.stdout)


def test_junit_file_that_cannot_be_written_is_told(policy, tmp_path):
    path = tmp_path / "none" / "out.xml"
    result = run(policy, "--junit", path)
    told = f"--junit {path}: the file cannot be written (No such file or directory); name a file in a folder that is "
    assert (result.exit_code, result.stderr) == (2, told + "there, where you may write\n")


def test_table_and_json_count_the_cases_of_each_category(policy):
    lines = [line.split() for line in run(policy).stdout.splitlines()]
    assert ["category", "must", "be", "caught", "must", "be", "left", "alone"] in lines
    assert ["harm", "1", "pass", "1", "pass,", "1", "fail"] in lines
    assert ["attack", "0", "1", "pass,", "1", "fail"] in lines
    told = json.loads(run(policy, "--json").stdout)
    assert list(told["coverage"]) == ["hidden", "harm", "pii.email", "attack"]
    assert told["coverage"]["pii.email"] == {
        "caught": {"passing": 1, "known": 0, "failing": 0},
        "left_alone": {"passing": 1, "known": 0, "failing": 1},
    }
    assert told["without_cases"] == ["quiet"]
    assert all(row["seconds"] >= 0 for row in told["results"])


def case(action, *rules):
    return Case("x", Expected(Action(action), rules))


RULES_OF_TWO = """\
rules:
  - {id: any, category: pii, action: log}
  - {id: mail, category: pii.email, action: log}
  - {id: harm, category: harm, action: block}
"""


def covered(policy, *results, about=None):
    return coverage_of(policy, [(Suite(about or policy, tuple(one.case for one in results)), results)])


def test_cases_that_pass_are_known_to_fail_and_fail_are_counted_apart():
    policy = loads_policy(HEAD + RULES_OF_TWO)
    outcomes = [Outcome.PASS, Outcome.PASS, Outcome.KNOWN, Outcome.FAIL, Outcome.ERROR]
    shown = covered(policy, *(Result(case(*of), one) for one in outcomes for of in [("block", "harm"), ("allow",)]))
    assert shown["harm"] == Shown(Tally(2, 1, 2), Tally(2, 1, 2))
    assert shown["pii.email"] == Shown(Tally(), Tally(2, 1, 2))


def test_case_about_a_category_counts_for_the_rules_over_those_above_it():
    policy = loads_policy(HEAD + RULES_OF_TWO)
    of_mail, of_any = Result(case("log", "mail"), Outcome.PASS), Result(case("log", "any"), Outcome.KNOWN)
    shown = covered(policy, of_mail, of_any, Result(case("log", "mail", "any"), Outcome.PASS))
    assert shown["pii"].caught == Tally(passing=2, known=1)
    assert shown["pii.email"].caught == Tally(passing=2)


def test_case_that_names_no_rule_counts_where_one_decided_or_where_its_file_is_about_one_root_only():
    policy = loads_policy(HEAD + RULES_OF_TWO)
    passed, failed = Result(case("log"), Outcome.PASS, rules=("mail",)), Result(case("log"), Outcome.FAIL)
    shown = covered(policy, passed, failed)
    assert [shown[name].caught for name in ("pii", "pii.email", "harm")] == [Tally(1), Tally(1), Tally()]
    of_root = covered(policy, passed, failed, about=replace(policy, rules=policy.rules[:2]))
    assert of_root["pii.email"].caught == Tally(passing=1, failing=1)


def test_every_case_of_exfiltration_that_must_be_caught_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_checks", lambda: {"exfiltration": ExfiltrationCheck()})
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + "packs: [exfiltration]\n")
    told = json.loads(run(path, "--json").stdout)
    must = sum(row["expected"] != "allow" for row in told["results"])
    assert must >= 28
    assert sum(one["caught"]["passing"] for one in told["coverage"].values()) >= must


def test_a_case_that_is_known_to_fail_is_shown_and_makes_no_run_fail(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + "rules: [{id: mail, category: pii.email, action: block}]\n")
    cases = "- {text: hello, known: not yet, expect: {action: block, rules: [mail]}}\n"
    path.with_suffix(".cases.yaml").write_text(cases)
    result = run(path, "--junit", tmp_path / "out.xml")
    assert result.exit_code == 0
    assert "KNOWN" in result.stdout
    assert "expected block, got allow by no rule" in result.stdout
    assert ["pii.email", "0,", "1", "known", "to", "fail", "0"] in [line.split() for line in result.stdout.splitlines()]
    assert "<skipped" in (tmp_path / "out.xml").read_text()
    path.with_suffix(".cases.yaml").write_text(cases.replace("hello", "a@example.com"))
    assert "it passes by now: take 'known' out" in run(path).stdout


def test_cases_of_a_pack_may_be_left_out_and_those_of_a_removed_rule_are(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(HEAD + "packs: [hidden]\nremove: [hidden]\nrules: [{id: mail, category: pii, action: block}]\n")
    path.with_suffix(".cases.yaml").write_text("- {text: a@b.org, expect: {action: block, rules: [mail]}}\n")
    assert run(path, "--own").stdout.endswith("1 case: 1 pass, 0 fail, 0 error\n")
    assert run(path).stdout.endswith("1 case: 1 pass, 0 fail, 0 error\n")
    path.with_suffix(".cases.yaml").write_text("- {text: a@b.org, expect: {action: block, rules: [mial]}}\n")
    assert "p.cases.yaml:1:3: no rule 'mial' in the policy; did you mean 'mail'?" in run(path).stderr


def test_result_says_how_long_judging_took():
    ticks = iter([10.0, 10.5])
    judge = lambda case: (Decision(Stage.INPUT, Action.ALLOW), case.text)  # noqa: E731
    (result,) = run_cases([case("allow")], judge, lambda: next(ticks))
    assert result == Result(case("allow"), Outcome.PASS, seconds=0.5)
