import json

import pytest
from typer.testing import CliRunner

from ringfence.guard.check import Finding
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.policies.load import canonical, load_policy, loads_policy
from ringfence.policies.types import Span
from ringfence.proxy.cli import policy as cli

HEAD = "version: 1\nname: tiny\n"


class SureOfWar:
    """Stands in for the classifier: harm is what mentions war; asked about peace, it breaks."""

    name = "classifier"
    categories = frozenset({"harm", "attack", "toxicity"})

    def find(self, passage):
        if passage.text == "peace":
            raise RuntimeError("cannot imagine")
        return [Finding("classifier", "harm", float("war" in passage.text), (Span(0, 0, len(passage.text)),))]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    checks = {check.name: check for check in (SureOfWar(), PiiCheck(), SecretsCheck())}
    monkeypatch.setattr(cli, "load_checks", lambda: checks)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def policy(tmp_path):
    def write(text, cases=None):
        path = tmp_path / "policy.yaml"
        path.write_text(HEAD + text)
        if cases is not None:
            path.with_suffix(".cases.yaml").write_text(cases)
        return path

    return write


def test_lint_of_the_shipped_policy_is_clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("lint")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"policy.yaml: {len(load_policy().rules)} rules, 0 warnings\n")


def test_lint_tells_errors_with_their_place_and_exits_2(policy):
    path = policy("rules:\n  - {id: a, category: pii, action: blok}\n")
    result = run("lint", path)
    assert result.exit_code == 2
    assert result.stderr == f"{path}:4:28: 'action' cannot be \"blok\"; did you mean 'block'?\n"


def test_lint_refuses_a_category_that_no_check_answers_for(policy):
    path = policy("rules: [{id: a, category: horoscope, action: block}]\n")
    result = run("lint", path)
    assert result.exit_code == 2
    assert f"{path}:3:9: rule 'a' looks at category 'horoscope'" in result.stderr


def test_lint_warns_and_exits_0(policy):
    path = policy("rules: [{id: a, category: pii, action: block}]\n")
    result = run("lint", path)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}:3:9: warning: rule 'a' has no case")
    assert result.stdout.endswith("1 rule, 1 warning\n")


def test_show_names_every_rule_and_where_it_stands():
    result = run("show")
    assert result.exit_code == 0
    for rule in load_policy().rules:
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{rule.id} ")]
        assert f":{rule.origin.line}" in line


def test_show_as_json_is_the_canonical_form_with_origins_and_revision():
    shown = json.loads(run("show", "--json").stdout)
    assert shown.pop("revision") == load_policy().revision
    assert all(rule.pop("origin") for rule in shown["rules"])
    assert shown == canonical(load_policy())


CASES = """\
- text: war
  expect: {action: block, rules: [harm]}
- text: bob@example.com
  expect: {action: rewrite, text: "[PII_EMAIL]"}
- text: hello
  expect: {action: allow}
"""
RULES = """\
rules:
  - {id: harm, category: harm, action: block}
  - {id: mail, category: pii.email, action: rewrite}
"""


def test_test_judges_the_cases_of_pack_and_policy_through_the_pipeline(policy):
    result = run("test", policy(RULES, CASES))
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("3 cases: 3 pass, 0 fail, 0 error\n")


def test_test_exits_1_and_says_what_differs(policy):
    path = policy(RULES, CASES + "- {text: war, expect: {action: log}}\n- {text: peace, expect: {action: allow}}\n")
    result = run("test", path)
    assert result.exit_code == 1
    assert f"{path.with_suffix('.cases.yaml')}:7:3: expected log, got block by harm\n" in result.stdout
    assert "classifier: failed with RuntimeError" in result.stdout
    assert "5 cases: 3 pass, 1 fail, 1 error" in result.stdout


def test_test_as_json_lists_results_and_rules_without_a_case(policy):
    result = run("test", policy("packs: [pii]\n" + RULES), "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["without_cases"] == ["harm", "mail"]
    assert {row["outcome"] for row in told["results"]} == {"pass"}


def test_test_of_a_broken_case_file_exits_2(policy):
    result = run("test", policy(RULES, "- {text: a}\n"))
    assert result.exit_code == 2
    assert "1:3: 'expect' is missing here" in result.stderr


def test_schema_is_of_a_policy_file_and_knows_no_origin():
    schema = json.loads(run("schema").stdout)
    assert schema["required"] == ["version", "name"]
    assert "threshold" in schema["$defs"]["Rule"]["properties"]
    assert "origin" not in schema["$defs"]["Rule"]["properties"]


def test_policy_in_the_working_directory_is_the_default(policy, monkeypatch):
    path = policy("message: ours\n")
    monkeypatch.chdir(path.parent)
    assert json.loads(run("show", "--json").stdout)["message"] == "ours"
    assert loads_policy(path.read_text()).message == "ours"
