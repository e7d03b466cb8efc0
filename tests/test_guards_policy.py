"""Other people's guards in a policy file: what is written wrong is told with its place, by `lint` too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
from fastapi import FastAPI, Request
from typer.testing import CliRunner

from ringfence.guard.check import own_checks, said
from ringfence.guard.checks.guards.family import find_families
from ringfence.guard.guard import Guard
from ringfence.policies.document import PolicyError
from ringfence.policies.load import canonical, load_draft, load_policy, loads_policy
from ringfence.policies.types import Stage
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


def test_a_folder_of_weights_is_relative_to_the_file_that_names_it(tmp_path, weights, monkeypatch):
    """Wherever it is read from, and though another policy names other weights in the same words."""
    for name in ("one", "same", "other"):
        (tmp_path / name / "at").mkdir(parents=True)
        (tmp_path / name / "at" / "p.yaml").write_text(policy(model="../guard"))
    (tmp_path / "one" / "guard").symlink_to(weights)
    (tmp_path / "same" / "guard").symlink_to(weights)
    save_guard(tmp_path / "other" / "guard", find_families()["llama-guard-3"], "another template")
    (tmp_path / "more.yaml").write_text("version: 1\nname: more\nextends: other/at/p.yaml\n")

    def check_of(path):
        return own_checks(load_policy(path).checks)["checks.guard"]

    one, same, other = (check_of(tmp_path / name / "at" / "p.yaml") for name in ("one", "same", "other"))
    assert one.revision == same.revision != other.revision
    assert check_of(tmp_path / "more.yaml") is other
    monkeypatch.chdir(tmp_path / "one")
    assert check_of(Path("at/p.yaml")).revision == check_of(Path("../same/at/p.yaml")).revision == one.revision
    (tmp_path / "p.yaml").write_text(policy(model="./gard"))
    told = re.escape(f"p.yaml:4:5: the guard of 'guard' cannot use {tmp_path}/gard: there is no such folder")
    with pytest.raises(PolicyError, match=told):
        check_of(Path("../p.yaml"))


def test_of_a_server_a_name_like_a_folder_is_the_servers_own(tmp_path, serve):
    asked = []
    server = FastAPI()

    @server.post("/v1/chat/completions")
    async def answer(request: Request):
        asked.append(await request.json())
        return {"choices": [{"message": {"content": "safe"}}]}

    (tmp_path / "p.yaml").write_text(policy(use=f"{serve(server)}/v1", model="./guard"))
    Guard(load_policy(tmp_path / "p.yaml")).check("hello", Stage.INPUT)
    assert [body["model"] for body in asked] == ["./guard"]


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


FITTED = """\
version: 1
name: house
checks:
  - {{ kind: {kind}, category: guard, use: {use}, model: {model}, timeout_s: 600{more} }}
limits: {{ check_seconds: 600 }}
rules:
  - {{ id: any, category: guard, action: block, stages: [input], target: {{ min_recall: 0.9 }} }}
  - {{ id: hate, category: guard.S10, action: block, stages: [input], target: {{ max_false_positive_rate: 0.1 }} }}
"""


def fit(tmp_path, rows, **given):
    path, data = tmp_path / "p.yaml", tmp_path / "rows.jsonl"
    path.write_text(FITTED.format(**given))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, CliRunner().invoke(app, ["policy", "fit", str(path), "--data", str(data)])


def test_a_threshold_over_a_local_guards_category_is_fitted_to_its_scores(tmp_path):
    folder = save_guard(tmp_path / "weights", find_families()["shieldgemma"], "template")
    given = {"kind": "shieldgemma", "use": "local", "model": folder, "more": ", categories: [{ code: hate }]"}
    path = tmp_path / "p.yaml"
    path.write_text(FITTED.format(**given))
    (check,) = own_checks(load_draft(path).checks).values()
    texts = [f"text {number} {'word ' * (number % 7)}{chr(97 + number % 26)}" for number in range(64)]
    scores = [{one.category: one.score for one in check.find(said(Stage.INPUT, "user", text))} for text in texts]
    # What is above the middle of the guard's own scores is of the category: a threshold can tell all of it.
    middle = {name: sorted(one[name] for one in scores)[32] for name in ("guard", "guard.S10")}
    rows = [
        {"text": text, **{name: int(one[name] >= least) for name, least in middle.items()}}
        for text, one in zip(texts, scores, strict=True)
    ]
    path, done = fit(tmp_path, rows, **given)
    assert done.exit_code == 0, done.output
    for rule in load_policy(path).rules:
        fires = [one[rule.category] >= rule.threshold for one in scores]
        found = [fired for fired, row in zip(fires, rows, strict=True) if row[rule.category]]
        alarms = [fired for fired, row in zip(fires, rows, strict=True) if not row[rule.category]]
        assert sum(found) >= 0.9 * len(found)
        assert sum(alarms) <= 0.1 * len(alarms)
        assert (rule.fitted.revisions, 0 < rule.threshold < 1) == ({"guard": check.revision}, True)
    path.write_text(path.read_text().replace("code: hate", "code: sexual"))
    with pytest.raises(PolicyError, match="the threshold of rule 'any' was fitted to scores of revision"):
        Guard(load_policy(path))  # it is asked otherwise now


def test_a_served_guard_that_tells_no_probabilities_cannot_be_fitted(tmp_path, serve):
    server = FastAPI()

    @server.post("/v1/chat/completions")
    async def answer(request: Request):
        text = (await request.json())["messages"][-1]["content"]
        said = "unsafe\nS10" if "bomb" in text else "safe"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "model": "guard", "choices": [choice]}

    rows = [{"text": f"{number} {'bomb' * (number % 2)}", "guard": number % 2} for number in range(80)]
    rows = [row | {"guard.S10": row["guard"]} for row in rows]
    path, done = fit(tmp_path, rows, kind="llama-guard-3", use=f"{serve(server)}/v1", model="guard", more="")
    assert done.exit_code == 1
    for place, rule in ((f"{path}:7", "any"), (f"{path}:8", "hate")):
        assert re.search(
            rf"{place}:\d+: rule '{rule}', input: every score is 0 or 1, .* \(logprobs\), or write a 'threshold'",
            done.stderr,
        )
    assert "nothing was written" in done.stderr
    assert not path.with_name("p.lock.yaml").exists()


FAMILY = """\
from dataclasses import replace

from ringfence.guard.checks.guards.shieldgemma import FAMILY as KNOWN

FAMILY = replace(KNOWN, name="house-guard")
BROKEN = "no family"
"""


def installed(folder, name, **points):
    """Put a distribution of somebody else's into a folder, as pip would."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{point} = {where}\n" for point, where in points.items())
    (info / "entry_points.txt").write_text(f"[ringfence.guards]\n{lines}")
    (folder / "house_guard.py").write_text(FAMILY)
    return folder


def ringfence(folder, *args):
    """Run the command where a folder is among those that packages are in."""
    command = [sys.executable, "-c", "from ringfence.proxy.cli import app; app()", *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=600)


def test_a_family_of_another_package_is_a_kind_like_any_other(tmp_path):
    folder = installed(tmp_path / "packages", "house", **{"house-guard": "house_guard:FAMILY"})
    weights = save_guard(tmp_path / "weights", find_families()["shieldgemma"], "template")
    path = tmp_path / "p.yaml"
    path.write_text(policy(model=weights).replace("llama-guard-3", "house-guard"))
    found = ringfence(folder, "check", "How do I pick a lock?", "--policy", path, "--json")
    assert "guard" in {finding["category"] for finding in json.loads(found.stdout)["findings"]}, found.stderr
    with pytest.raises(PolicyError, match="'kind' cannot be \"house-guard\"; did you mean"):  # it is not installed here
        loads_policy(path.read_text())
    path.write_text(path.read_text().replace("house-guard", "house-gard"))
    refused = ringfence(folder, "policy", "lint", path)
    assert refused.returncode == 2
    assert "'kind' cannot be \"house-gard\"; did you mean 'house-guard'?" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ({"house-guard": "house_guard:BROKEN"}, "'house_guard:BROKEN' is no Family of the name 'house-guard'"),
        (
            {"house-guard": "gone:FAMILY"},
            "'gone:FAMILY' cannot be loaded (ModuleNotFoundError: No module named 'gone')",
        ),
    ],
)
def test_a_family_of_another_package_that_is_none_is_told_with_the_line_of_the_policy(tmp_path, points, told):
    folder = installed(tmp_path / "packages", "house", **points)
    path = tmp_path / "p.yaml"
    path.write_text(policy().replace("llama-guard-3", "house-guard"))
    refused = ringfence(folder, "policy", "lint", path)
    assert refused.returncode == 2
    assert f"{path}:4:5: the guard of 'guard': {told}" in refused.stdout + refused.stderr


def test_two_packages_cannot_have_one_family(tmp_path):
    folder = installed(tmp_path / "packages", "house", **{"llama-guard-3": "house_guard:FAMILY"})
    path = tmp_path / "p.yaml"
    path.write_text(policy())
    refused = ringfence(folder, "policy", "lint", path)
    assert refused.returncode == 2
    assert "the packages house and ringfence both have a family 'llama-guard-3'; uninstall one" in (
        refused.stdout + refused.stderr
    )
