"""`ringfence check`: whose exchange a text may be said to be of, and what one reads of a check that fails."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ringfence.guard import guard
from ringfence.guard.check import Check, Finding, Span
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.words import Origin
from ringfence.proxy.cli.root import app

UNANSWERED = """\
version: 1
name: asked
rules:
  - { id: gossip, category: gossip, action: block, on_error: log }
checks:
  - { kind: judge, category: gossip, policy: No gossip., use: "http://127.0.0.1:9/v1", model: x }
"""
LAYERED = """\
version: 1
name: layered
rules:
  - { id: mail, category: number, action: log }
overlays:
  - { id: clinics, scope: { tenant: [clinic-*] }, override: { mail: { action: block } } }
  - { id: nurses, scope: { key: [nurse-*] }, override: { mail: { action: rewrite } } }
  - { id: chats, scope: { route: [openai.chat], model: [small] }, remove: [mail] }
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command on a policy, with checks in place of those installed."""

    def run(policy: str, checks: dict[str, Check], *arguments: str) -> Result:
        monkeypatch.setattr(guard, "load_checks", lambda: checks)
        path = tmp_path / "policy.yaml"
        path.write_text(policy)
        return CliRunner().invoke(app, ["check", "call 12345", "--policy", str(path), *arguments])

    return run


def test_a_judge_that_cannot_be_asked_is_told_in_a_line_with_its_place_and_what_to_do(check, tmp_path):
    done = check(UNANSWERED, {})
    assert done.exit_code == 0, done.output
    assert done.stderr == (
        "ringfence check: the check 'gossip' could not answer: judge ('gossip'): the upstream could not be reached, or "
        "broke off (ConnectError); check that http://127.0.0.1:9/v1 is up and serves 'x'; mend what "
        f"{tmp_path}/policy.yaml:6:5 asks for\n"
    )
    assert "log by failed:gossip" in done.stdout
    assert json.loads(check(UNANSWERED, {}, "--json").stdout)["rules"] == ["failed:gossip"]


def test_any_check_that_raises_is_told_in_a_line(check, broken_check, caplog):
    policy = "version: 1\nname: b\nrules: [{ id: b, category: broken, action: block }]\n"
    done = check(policy, {"broken": broken_check})
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "ringfence check: the check 'broken' could not answer: RuntimeError: no such luck; mend what"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("its file is gone"),
            "RuntimeError: its file is gone (while the check 'word-number' was made ready); mend what that check needs, "
            "or take out the rules over it",
        ),
        (PolicyError([Problem(Origin("p.yaml", 4, 5), "no weights; get them")]), "p.yaml:4:5: no weights; get them"),
    ],
)
def test_a_check_that_cannot_be_made_ready_is_named_and_nothing_is_judged(check, word_check, error, told):
    class Cold(word_check):
        def warm(self):
            raise error

    policy = "version: 1\nname: c\nrules: [{ id: c, category: number, action: block }]\n"
    done = check(policy, {"cold": Cold("number", "x")})
    assert (done.exit_code, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line == f"ringfence check: {told}"


@pytest.mark.parametrize(
    ("whose", "action", "overlays"),
    [
        ((), "log", None),
        (("--tenant", "clinic-north"), "block", ["clinics"]),
        (("--key", "nurse-app"), "rewrite", ["nurses"]),
        (("--tenant", "clinic-north", "--key", "nurse-app"), "rewrite", ["clinics", "nurses"]),
        (("--route", "openai.chat"), "log", None),
        (("--route", "openai.chat", "--model", "small"), "allow", ["chats"]),
    ],
)
def test_a_text_is_judged_under_the_overlays_of_whose_it_is_said_to_be(check, checks, whose, action, overlays):
    told = json.loads(check(LAYERED, checks, "--json", *whose).stdout)
    assert (told["action"], told.get("overlays")) == (action, overlays)
    assert not overlays or f"overlays: {', '.join(overlays)}\n" in check(LAYERED, checks, *whose).stdout


def test_a_score_just_below_its_threshold_reads_as_one(check):
    class Unsure:
        name, categories = "toxic", frozenset({"toxic"})

        def find(self, passage):
            return [Finding("toxic", "toxic", 0.4999, (Span(0, 0, 4),))]

    policy = "version: 1\nname: t\nrules: [{ id: t, category: toxic, action: block, threshold: 0.5 }]\n"
    done = check(policy, {"toxic": Unsure()})
    assert done.stdout.startswith("allow")
    assert " 0.4999 " in done.stdout


def test_a_route_that_there_is_not_is_refused(check, checks):
    done = check(LAYERED, checks, "--route", "openai.chatt")
    assert done.exit_code == 2
    assert done.stderr.startswith("ringfence check: --route openai.chatt is none of openai.chat, ")


@pytest.mark.parametrize("command", ["policy show", "check hello"])
def test_output_that_nobody_reads_is_no_answer(command: str) -> None:
    """Status 1 would say that something was blocked, or a gate not met."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [Path(sys.executable).with_name("ringfence"), *command.split()], stdout=writing, stderr=subprocess.PIPE
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_what_is_about_a_models_text_is_not_ignored_beside_a_users(check, option):
    done = check(UNANSWERED, {}, option, "something")
    assert (done.exit_code, done.stdout, "add --stage output" in done.stderr) == (2, "", True)
