"""The embedded engine under another name: folders and pulled checkpoints behind a real `ringfence serve`."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Llama4ForCausalLM, Llama4TextConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from ringfence.model.draft import DraftDiffers
from ringfence.model.loading import load
from ringfence.model.sampler import Sampling
from ringfence.model.weights import PullFailed, WeightsDamaged, identity
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.cli.bench_engine import time_to_ready
from ringfence.proxy.cli.engine import app
from ringfence.proxy.upstreams import UnknownUpstream, open_upstream

RINGFENCE = str(Path(sys.executable).with_name("ringfence"))
WORDS = ["<unk>", *(one + two for one in "bdfgklmnprst" for two in "aeiou")]
SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints: one that our own network computes, with one that drafts for it, and one that transformers does."""
    folder = tmp_path_factory.mktemp("deployment")
    torch.manual_seed(3)
    llama4 = SMALL | {"intermediate_size_mlp": 64, "head_dim": 8}
    Llama4ForCausalLM(Llama4TextConfig(**llama4)).save_pretrained(folder / "scout")
    MixtralForCausalLM(MixtralConfig(**SMALL)).save_pretrained(folder / "mixtral")
    Llama4ForCausalLM(Llama4TextConfig(**llama4 | {"num_hidden_layers": 1})).save_pretrained(folder / "cub")
    for name in ("scout", "mixtral", "cub"):
        save_words(folder / name, WORDS)
    (folder / "policy.yaml").write_text("version: 1\nname: plain\nupstream: {use: 'embedded:./scout,draft=./cub'}\n")
    return folder


def save_words(path: Path, words: list[str]) -> None:
    """Save a tokenizer of some words, and of one that was added to them and that no network here has."""
    plain = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.add_tokens(["zu"])
    speaker = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    speaker.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    speaker.save_pretrained(path)


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[str]:
    """Run `ringfence serve` in a folder; yield its URL."""
    command = [RINGFENCE, "serve", "--port", "0", "--policy", "policy.yaml", "--no-watch", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"(http://[\d.:]+)/audit", line):
                    break
            else:
                pytest.fail(f"the server did not start:\n{said}")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the server
            yield found[1]
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(
    scope="module", params=[("scout", []), ("mixtral", ["--upstream", "embedded:./mixtral"])], ids=lambda p: p[0]
)
def served(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, str]]:
    name, arguments = request.param
    with serving(folder, *arguments) as url:
        yield name, url


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, max_retries=0)


def test_folder_of_any_family_is_served_by_its_own_name(served: tuple[str, str], folder: Path) -> None:
    name, url = served
    assert [model.id for model in client(url).models.list()] == [name]
    asked = {"model": name, "messages": [{"role": "user", "content": "ba de fi"}], "max_tokens": 5, "temperature": 0}
    first, again = (client(url).chat.completions.create(**asked) for _ in range(2))
    said = first.choices[0].message.content
    assert said
    assert set(said.split()) <= set(WORDS)
    assert (said, first.model, first.usage.completion_tokens) == (again.choices[0].message.content, name, 5)
    streamed = client(url).chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == said
    with pytest.raises(openai.NotFoundError, match=f"this engine runs '{name}'"):
        client(url).chat.completions.create(**asked | {"model": "smollm2-135m-instruct"})
    headers = client(url).chat.completions.with_raw_response.create(**asked).headers
    record = httpx.get(f"{url}/audit/{headers['x-ringfence-exchange']}.json").text
    assert identity(folder / name) in record


def only(word: str) -> dict[str, int]:
    """Return the bias that makes a network say one word again and again."""
    return {str(WORDS.index(word)): 100}


def test_logprobs_are_the_networks_own_of_what_it_said(served: tuple[str, str], folder: Path) -> None:
    name, url = served
    asked = {"model": name, "messages": [{"role": "user", "content": "ba de"}], "max_tokens": 4, "logprobs": True}
    said = client(url).chat.completions.create(**asked, temperature=0, logit_bias=only("ki"))
    told = said.choices[0].logprobs.content
    assert "".join(one.token for one in told) == said.choices[0].message.content == "ki ki ki ki"
    assert [bytes(one.bytes).decode() for one in told] == [one.token for one in told]
    assert all(one.top_logprobs == [] for one in told)
    sampling = Sampling(temperature=0, max_tokens=4, logit_bias={WORDS.index("ki"): 100}, logprobs=0)
    service = load(folder / name, threads=1)
    replies = service.generate([WORDS.index("ba"), WORDS.index("de")], sampling)
    own = [one.logprob for advance in replies for one in advance.chosen]
    service.close()
    assert [one.logprob for one in told] == pytest.approx(own, abs=1e-2)
    assert max(own) < -1  # it would have said something else
    hot = client(url).chat.completions.create(**asked, temperature=2, logit_bias=only("ki"))
    assert [one.logprob for one in hot.choices[0].logprobs.content] == pytest.approx(own, abs=1e-2)


def test_logprobs_of_a_stream_are_those_of_the_whole_reply(served: tuple[str, str]) -> None:
    name, url = served
    asked = {"model": name, "messages": [{"role": "user", "content": "ba de"}], "max_tokens": 6, "n": 2}
    asked |= {"logit_bias": only("ki"), "logprobs": True}
    whole = client(url).chat.completions.create(**asked)
    told: dict[int, list[object]] = {0: [], 1: []}
    for chunk in client(url).chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            told[choice.index] += (choice.logprobs and choice.logprobs.content) or []
    for choice in whole.choices:
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
        assert [one.token for one in told[choice.index]] == [one.token for one in choice.logprobs.content]
    with client(url).chat.completions.stream(**asked | {"n": 1}) as stream:
        stream.until_done()
    assert len(stream.current_completion_snapshot.choices[0].logprobs.content) == len(told[0]) == 6


def test_logprobs_are_of_nothing_that_a_stop_string_cut_off_and_of_nothing_unasked(served: tuple[str, str]) -> None:
    name, url = served
    asked = {"model": name, "messages": [{"role": "user", "content": "ba"}], "max_tokens": 5, "logit_bias": only("ki")}
    cut = client(url).chat.completions.create(**asked, stop="ki ki", logprobs=True).choices[0]
    assert (cut.message.content, cut.logprobs.content) == ("", [])
    for unasked in ({}, {"logprobs": False}):
        assert client(url).chat.completions.create(**asked, **unasked).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", "words that the model did not say"),
        ({"top_logprobs": 2}, "top_logprobs", "words that the model did not say"),
        ({"logprobs": 3}, "logprobs", "must be true or false"),
    ],
)
def test_words_that_were_not_said_are_refused_and_not_left_out_silently(
    served: tuple[str, str], asked: dict[str, object], param: str, says: str
) -> None:
    name, url = served
    messages = [{"role": "user", "content": "ba"}]
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        client(url).chat.completions.create(model=name, messages=messages, extra_body=asked)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"messages": [{"role": "user", "content": "ba zu"}]}, f"token id {len(WORDS)} is outside the vocabulary"),
        ({"response_format": {"type": "json_object"}}, "the checkpoint has no end token"),
        ({"stop": ["ba"] * 17}, "stop takes up to 16 strings of up to 200 characters"),
        ({"stop": "b" * 201}, "stop takes up to 16 strings of up to 200 characters"),
        ({"stop": ""}, "stop must be a string or a list of strings, none of them empty"),
        ({"stop": 0}, "stop must be a string or a list of strings, none of them empty"),
        ({"logit_bias": {"1": 10**400}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {"1_0": 5}}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": []}, "logit_bias must map token ids to numbers"),
    ],
)
def test_what_the_engine_cannot_do_is_a_bad_request(
    served: tuple[str, str], asked: dict[str, object], says: str
) -> None:
    name, url = served
    with pytest.raises(openai.BadRequestError, match=says):
        client(url).chat.completions.create(**{"model": name, "messages": [{"role": "user", "content": "ba"}]} | asked)


def test_chat_takes_a_draft_and_says_what_it_cannot_read_or_take(folder: Path) -> None:
    chat = ["chat", str(folder / "scout"), "--temperature", "0", "--max-tokens", "12", "--threads", "1"]
    helped = CliRunner().invoke(app, [*chat, "--draft", str(folder / "cub")], input="ba de\n")
    assert (helped.exit_code, len(helped.stdout.split())) == (0, 12)
    lost = CliRunner().invoke(app, chat, input="ba zu\n")
    assert (lost.exit_code, "outside the vocabulary" in lost.stderr) == (2, True)
    for draft, says in (("mixtral", "mixtral cannot draft"), ("nobody", "'nobody' is no engine"), ("", "is no engine")):
        named = str(folder / draft) if draft == "mixtral" else draft
        refused = CliRunner().invoke(app, [*chat, "--draft", named], input="ba\n")
        assert (refused.exit_code, refused.stdout, says in refused.stderr) == (2, "", True)


GUARDED = """version: 1
name: guarded
upstream: {use: 'embedded:./scout'}
checks:
  - {kind: keywords, category: masked, words: [fo]}
  - {kind: keywords, category: stopped, words: [gu]}
rules:
  - {id: masks, category: masked, stages: [output], action: rewrite, replacement: "[a word]"}
  - {id: stops, category: stopped, stages: [output], action: block}
"""


@pytest.mark.parametrize("streamed", [False, True])
def test_logprobs_of_a_reply_that_was_rewritten_or_stopped_are_left_out(folder: Path, streamed: bool) -> None:
    (folder / "guarded.yaml").write_text(GUARDED)
    with serving(folder, "--policy", "guarded.yaml") as url:
        heard = {}
        for word in ("ki", "fo", "gu"):
            asked = {"model": "scout", "messages": [{"role": "user", "content": "ba"}], "max_tokens": 3}
            asked |= {"logprobs": True, "logit_bias": only(word), "temperature": 0}
            if streamed:
                heard[word] = [chunk.choices[0] for chunk in client(url).chat.completions.create(**asked, stream=True)]
            else:
                heard[word] = client(url).chat.completions.create(**asked).choices
    told = {word: any(choice.logprobs for choice in choices) for word, choices in heard.items()}
    assert told == {"ki": True, "fo": False, "gu": False}
    assert heard["gu"][-1].finish_reason == "content_filter"
    assert not any("fo" in choice.model_dump_json(exclude={"finish_reason"}) for choice in heard["fo"])


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        ("embedded:nowhere", PullFailed, "or a folder with config.json"),
        ("embedded:hf:org/name", LookupError, "run `ringfence engine pull hf:org/name`"),
        ("embedded:policy.yaml", PullFailed, "`ringfence engine convert policy.yaml FOLDER`"),
        ("embedded:bad-words", WeightsDamaged, r"bad-words/tokenizer\.json cannot be read"),
        ("embedded:mute", ValueError, "has no chat template"),
        ("embedded:wordy", WeightsDamaged, f"token ids up to {len(WORDS)}, the network a vocabulary of {len(WORDS)}"),
        ("embedded:scout,draft=", PullFailed, "'' is no engine"),
        ("embedded:scout,draft=wordy", DraftDiffers, f"other tokens than .*scout: {len(WORDS)} is 'wordy', not 'zu'"),
        ("embeded:scout", UnknownUpstream, "embedded, fake"),
    ],
)
def test_engine_that_cannot_be_served_is_told(
    use: str, error: type[Exception], says: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path / "cache"))
    Path("policy.yaml").touch()
    for name in ("bad-words", "mute"):
        Path(name).mkdir()
        for file in ("config.json", "tokenizer.json"):
            (Path(name) / file).write_bytes((folder / "scout" / file).read_bytes())
    Path("bad-words/tokenizer.json").write_text("{")
    for name in ("scout", "wordy"):
        shutil.copytree(folder / "scout", name)
    save_words(Path("wordy"), [*WORDS, "wordy"])
    with pytest.raises(error, match=says):
        open_upstream(UpstreamChoice(use))


def test_serve_says_in_one_line_what_is_no_engine(tmp_path: Path) -> None:
    command = [RINGFENCE, "serve", "--port", "0", "--upstream", "embedded:nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n"), "is no engine" in done.stderr) == (2, 1, True)


def test_the_bench_waits_until_a_server_is_ready_and_says_why_one_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert time_to_ready(Path("scout")) > 0.1
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsDamaged, match="did not start"):
        time_to_ready(tmp_path)
