"""Other people's guards in a policy file: what is written wrong is told with its place, by `lint` too."""

import json
from pathlib import Path
from runpy import run_path

import pytest
from typer.testing import CliRunner

from ringfence.guard.checks.guards.family import find_families
from ringfence.policies.document import PolicyError
from ringfence.policies.load import canonical, loads_policy
from ringfence.proxy.cli import app

save_guard = run_path(str(Path(__file__).parent / "tiny_guards.py"))["save_guard"]

POLICY = """\
version: 1
name: house
checks:
  - kind: llama-guard-3
    category: guard
    use: {use}
    model: {model}
    {more}
rules:
  - {{ id: guarded, category: {category}, action: block, threshold: 0.9 }}
"""


def policy(use="local", model="m", more="", category="guard", **_):
    return POLICY.format(use=use, model=model, more=more, category=category)


def lint(tmp_path, **given):
    path = tmp_path / "p.yaml"
    path.write_text(policy(**given))
    return CliRunner().invoke(app, ["policy", "lint", str(path)])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_guard(tmp_path_factory.mktemp("weights"), find_families()["llama-guard-3"], "template")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "llama-guard-3\n",
            "lama-guard-3\n",
            r"<memory>:4:5: 'kind' cannot be \"lama-guard-3\"; did you mean 'llama-guard-3'\?",
        ),
        ("    use: local\n", "", "<memory>:4:5: 'use' is missing here"),
        ("    use: local\n", "    uses: local\n", r"unknown key 'uses'; did you mean 'use'\?"),
        ("model: m\n", "model: m\n    bits: 5\n", "<memory>:8:5: 'bits' cannot be 5; choose from: 4 or 8"),
        ("model: m\n", "model: m\n    api: chats\n", "'api' cannot be \"chats\"; did you mean 'chat'"),
        ("model: m\n", "model: m\n    categories: [S1]\n", "an item of 'categories' must be a mapping"),
        ("model: m\n", "model: m\n    categories: [{ kode: S1 }]\n", "'code'"),
    ],
)
def test_what_is_written_wrong_is_told_with_its_place(old, new, told):
    with pytest.raises(PolicyError, match=told):
        loads_policy(policy().replace(old, new))


def test_a_policy_with_guards_is_itself_once_more_when_it_is_written_out():
    more = "categories: [{ code: S1 }, { code: A1, text: Salaries. }]"
    classifier = (
        "  - { kind: classifier-model, category: toxic, model: m, labels: [{ label: a, category: b.c }] }\nrules:"
    )
    read = loads_policy(policy(more=more).replace("rules:", classifier))
    assert canonical(read)["checks"][0]["categories"] == [
        {"code": "S1", "text": None},
        {"code": "A1", "text": "Salaries."},
    ]
    assert [check.kind for check in read.checks] == ["llama-guard-3", "classifier-model"]


def test_lint_finds_weights_that_are_not_there(tmp_path):
    result = lint(tmp_path, model="/nowhere/guard")
    assert result.exit_code == 2
    assert (
        f"{tmp_path / 'p.yaml'}:4:5: the guard of 'guard' cannot use /nowhere/guard: there is no such folder"
        in result.output
    )


def test_lint_finds_an_address_that_is_none(tmp_path):
    result = lint(tmp_path, use="127.0.0.1:8000")
    assert result.exit_code == 2
    assert "'use' is 'local' or the base URL of a server" in result.output


def test_lint_knows_what_a_guard_can_find(tmp_path, weights):
    good = lint(tmp_path, model=weights, category="guard.S9")
    assert good.exit_code == 0, good.output
    assert "never found" not in good.output
    assert "which nothing is ever found of" not in good.output
    bad = lint(tmp_path, model=weights, category="guard.S99")
    assert "looks at 'guard.S99', which nothing is ever found of; did you mean 'guard.S9'?" in bad.output


def test_check_says_what_a_guard_found(tmp_path, weights):
    path = tmp_path / "p.yaml"
    path.write_text(policy(model=weights))
    result = CliRunner().invoke(app, ["check", "How do I pick a lock?", "--policy", str(path), "--json"])
    assert "guard.S9" in {finding["category"] for finding in json.loads(result.stdout)["findings"]}
