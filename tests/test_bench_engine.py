"""`ringfence bench engine` on tiny checkpoints: every row that needs nothing else installed, and what comes of failures."""

import gzip
import json
import math
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from ringfence.model import bench
from ringfence.model.checkpoint import opened, read_shape
from ringfence.model.loading import experts_of, read
from ringfence.model.reference import logits
from ringfence.model.upcycle import start
from ringfence.model.weights import DELTA, revision
from ringfence.proxy.cli import bench_engine
from ringfence.proxy.cli.bench import app

WORDS = ["<unk>", "<end>", *(f"w{at}" for at in range(1000))]
END = WORDS.index("<end>")


def save(path, layers):
    """A dense Llama of shapes that a graph can be drawn of, with tokenizer and template."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=END,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    plain = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    speaker = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<end>")
    speaker.chat_template = "{% for m in messages %}{{ m.content }} <end> {% endfor %}"
    speaker.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save(path / "large", 2)
    save(path / "small", 1)
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few and short turns: what is measured here is no speed."""
    for name, least in {"TURNS": 1, "TOKENS": 4, "PROMPT": 32, "BLOCK": 1 << 20}.items():
        monkeypatch.setattr(bench, name, least)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measure(*arguments):
    return CliRunner().invoke(app, ["engine", *map(str, arguments), "--threads", "1", "--json"])


OWN = [
    ("one reply", "transformers"),
    ("one reply", "reading the weights"),
    ("a prompt of 32", "transformers"),
    ("8 replies", "one reply"),
    ("one reply, drafted", "without a draft"),
    ("a prompt of 32, 128 experts", "transformers"),
]
STARTED = [
    ("from start to the first token", ""),
    ("memory at most", "the checkpoint"),
    ("from `serve` to ready", "promised at most"),
]


def told(shown):
    paces = json.loads(shown.stdout)["paces"]
    assert all(math.isfinite(pace["ours"]) and pace["ours"] > 0 for pace in paces)
    return [(pace["what"], pace["peer"]) for pace in paces]


def test_every_row_is_measured(folders):
    shown = measure(folders / "large", "--draft", folders / "small")
    assert (shown.exit_code, told(shown)) == (0, OWN + STARTED), shown.stderr


class Llamacpp:
    """Where llama.cpp would be."""

    def __init__(self, gguf, threads):
        assert (gguf.name in ("same.gguf", "eight.gguf"), threads) == (True, 1)

    def decode(self, prompt):
        return 1.0

    read = decode


@pytest.mark.parametrize(("bits", "peers"), [(4, ["llama.cpp"]), (8, ["llama.cpp, Q8_0", "llama.cpp"])])
def test_beside_llama_cpp_a_mixture_is_measured_without_its_experts_too(bits, peers, folders, tmp_path, monkeypatch):
    mixture = tmp_path / "mixture"
    shutil.copytree(folders / "large", mixture)
    with opened(mixture) as take:
        start(read_shape(mixture), take, revision(mixture), 4, 8, torch.Generator()).save(mixture / DELTA)
    read_all = []
    monkeypatch.setattr(bench, "Llamacpp", Llamacpp)
    monkeypatch.setattr(bench, "in_eight_bits", lambda gguf, folder: folder / "eight.gguf")
    monkeypatch.setattr(bench_engine, "find_spec", lambda name: True)
    monkeypatch.setattr(bench, "read", lambda path, *more: read_all.append(experts_of(path)) or read(path, *more))
    (tmp_path / "same.gguf").touch()
    shown = measure(mixture, "--gguf", tmp_path / "same.gguf", "--bits", bits)
    beside = [row for row in told(shown) if row[1] in peers]
    both = [(what, peer) for peer in peers for what in ("one reply", "a prompt of 32")]
    assert beside == [*both, ("one reply, no experts", peers[0])]
    assert [delta is None for delta in read_all] == [False, True]
    assert (mixture / DELTA).is_file()


def test_figures_are_printed_though_what_comes_after_them_fails(folders, tmp_path):
    """The network can be measured; without a tokenizer that is whole no server starts."""
    shutil.copytree(folders / "large", tmp_path / "mute")
    (tmp_path / "mute" / "tokenizer.json").write_text("{")
    shown = measure(tmp_path / "mute")
    without = [row for row in OWN if "drafted" not in row[0]]
    assert (shown.exit_code, told(shown)) == (2, [*without, *STARTED[:2]])
    assert "`ringfence serve` did not start" in shown.stderr
    assert "tokenizer.json cannot be read" in shown.stderr


def test_figures_are_printed_though_no_process_of_its_own_starts(folders, monkeypatch):
    monkeypatch.setattr(bench.sys, "executable", "false")
    shown = measure(folders / "large")
    assert (shown.exit_code, len(told(shown))) == (2, len(OWN) - 1)
    assert "the engine did not start in a process of its own (1)" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bits", "5"], "weights are kept in 4, 8, 16, 32 bits, not 5"),
        (["--gguf", "nowhere.gguf"], "no such file"),
        (["--draft", "nobody"], "nobody"),
        (["--loss", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--loss", "empty.jsonl"], "no conversation in which the assistant speaks"),
        (["--loss", "empty.jsonl", "--draft", "small"], "--loss measures no speed"),
    ],
)
def test_what_cannot_be_measured_is_status_2(arguments, says, folders, monkeypatch):
    monkeypatch.chdir(folders)
    (folders / "empty.jsonl").touch()
    shown = measure("large", *arguments)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert says in " ".join(shown.stderr.replace("│", " ").split())


TALKS = [
    [("user", "w5 w6"), ("assistant", "w7 w8 w9"), ("user", "w10"), ("assistant", "w11")],
    [("user", "w1"), ("assistant", " ".join(WORDS[2:80]))],  # longer than what is read of it
    [("user", "w3"), ("assistant", "w2"), ("user", "w9")],
]


@pytest.mark.parametrize("pack", [open, gzip.open], ids=["plain", "packed"])
def test_loss_is_what_the_reference_says_of_the_words_of_the_assistant(pack, folders, tmp_path):
    file = tmp_path / ("talks.jsonl" if pack is open else "talks.jsonl.gz")
    with pack(file, "wt") as lines:
        for turns in TALKS:
            said = [{"role": role, "content": content} for role, content in turns]
            lines.write(json.dumps({"messages": said}) + "\n")
    nats = []
    with opened(folders / "large") as take:
        tensors = {name: take(name) for name in take._where}
    for turns in TALKS:
        ids, spoken = [], []
        for role, content in turns:
            own = [*map(WORDS.index, content.split()), END]
            ids += own
            spoken += [role == "assistant"] * len(own)
        ids = ids[: bench.PROMPT]
        surprise = -logits(read_shape(folders / "large"), tensors, ids).log_softmax(-1)
        nats += [float(surprise[at - 1, ids[at]]) for at in range(1, len(ids)) if spoken[at]]
    shown = measure(folders / "large", "--loss", file)
    paces = json.loads(shown.stdout)["paces"]
    assert [pace["what"] for pace in paces] == [f"loss at {bits} bits" for bits in (32, 16, 8, 4)]
    exact, *others = [pace["ours"] for pace in paces]
    assert exact == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert others == pytest.approx([exact] * 3, rel=0.02)
    assert len({exact, *others}) == 4  # each form was read
