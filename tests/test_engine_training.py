"""What the embedded engine's experts learn, from which tokens, and that it comes out the same however often it stops."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from ringfence.model.chat import Chat
from ringfence.model.checkpoint import CheckpointDamaged, opened, read_shape
from ringfence.model.config import read_config
from ringfence.model.conversations import (
    HELD,
    OWN_TIMES,
    SOURCES,
    Conversation,
    ConversationsUnusable,
    Corpus,
    compare,
    encode,
)
from ringfence.model.delta import ROUTER, SHARED, Delta
from ringfence.model.reference import logits
from ringfence.model.routing import directions, preferred
from ringfence.model.train import (
    DeviceMissing,
    Diverged,
    Order,
    OtherTraining,
    Plan,
    Stopped,
    arrange,
    begin,
    make,
    with_routers,
)
from ringfence.model.trainable import Parent, hear, surprise
from ringfence.model.upcycle import grow, start
from ringfence.model.weights import GROWN
from ringfence.proxy.cli.train import app

CONTROLS = ("<|im_start|>", "<|im_end|>")
END = 257
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": END,
    "bos_token_id": 256,
    "tie_word_embeddings": True,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
QUICK = Plan(
    tokens=20_000, experts=3, rank=2, rate=3e-2, length=128, part_tokens=256, parts=2, reading=512, checkpoint_every=4
)
FRUIT = ("apple", "pear", "plum", "quince", "lemon", "grape", "melon", "fig", "cherry", "peach")


def dense(**changes):
    torch.manual_seed(3)
    network = LlamaForCausalLM(LlamaConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.2) if weight.dim() > 1 else weight.normal_(1, 0.2)
    return network


def speech(*said, kind="talk"):
    roles = ["user", "assistant"] * len(said)
    return {"messages": [{"role": role, "content": one} for role, one in zip(roles, said, strict=False)], "kind": kind}


def write_pool(folder, rows):
    """Every source of the pool has the same conversations, each with a word of its own."""
    (folder / "chat").mkdir(parents=True)
    for source in SOURCES:
        with gzip.open(folder / "chat" / f"{source.name}.jsonl.gz", "wt") as file:
            for number in range(rows):
                question = f"{source.name} {number}: do you like {FRUIT[number % 10]}?"
                file.write(json.dumps(speech(question, f"Yes, {FRUIT[number % 10]} is good.")) + "\n")
    return folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    dense().save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chat(parent):
    return Chat.load(parent)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("pool"), 30)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "deep").mkdir()
    lines = [speech(f"Teach me to steal a {fruit}.", "I would rather not.", kind="refusal") for fruit in FRUIT]
    (folder / "deep" / "ours.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def order(parent, pool, own, tmp_path):
    return Order(parent, pool, tmp_path / "out" / "delta.safetensors", tmp_path / "work", own, QUICK, "cpu")


# Conversations


def test_only_what_the_assistant_said_and_where_it_stops_is_learnt(chat):
    turns = (("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hello!"), ("user", "Bye."), ("assistant", "Bye!"))
    example = encode(Conversation("x", turns), chat, {END}, 512)
    spoken = [id for id, said in zip(example.ids, example.spoken, strict=True) if said]
    assert spoken == [*chat.encode("Hello!"), END, *chat.encode("Bye!"), END]
    assert list(example.ids) == chat.render(turns)[: len(example.ids)]
    assert example.ids[-1] == END


def test_spelled_control_token_ends_no_reply_that_is_learnt(chat):
    turns = (("user", "Say <|im_end|>."), ("assistant", "<|im_end|> it is."))
    example = encode(Conversation("x", turns), chat, {END}, 512)
    assert sum(id == END for id, said in zip(example.ids, example.spoken, strict=True) if said) == 1
    assert (
        chat.decode([id for id, said in zip(example.ids, example.spoken, strict=True) if said]) == "<|im_end|> it is."
    )


def test_what_is_too_long_is_cut_off_and_left_out_where_nothing_is_left_to_learn(chat, tmp_path, pool):
    lines = [speech("Why?", "Because. " * 50), speech("Why? " * 50, "Because.")]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    corpus = Corpus.load(pool, tmp_path, chat, {END}, 100)
    assert [len(one.ids) for one in (*corpus.train, *corpus.held) if one.source == "own/talk"] == [100]


def test_template_that_does_not_show_where_replies_end_is_refused(chat):
    turns = (("user", "Hi?"), ("assistant", "Hello!"))
    with pytest.raises(ConversationsUnusable, match="where a reply begins and ends"):
        encode(Conversation("x", turns), chat, {3}, 512)
    with pytest.raises(ConversationsUnusable, match="a conversation of x"):
        encode(Conversation("x", (("us er", "Hi?"), ("assistant", "Hello!"))), chat, {END}, 512)


def test_tenth_of_every_source_is_held_out_and_always_the_same(chat, parent, tmp_path, own):
    pool = write_pool(tmp_path / "pool", 200)
    first, second = (Corpus.load(pool, own, chat, {END}, 200) for _ in range(2))
    assert first == second
    for source in SOURCES:
        held, learnt = (sum(one.source == source.name for one in side) for side in (first.held, first.train))
        assert held + learnt == min(200, source.most)
        assert 0.4 / HELD < held / (held + learnt) < 2 / HELD
    assert {one.times for one in first.train if one.source == "own/refusal"} == {OWN_TIMES}


def test_what_opens_alike_is_held_out_together():
    asked = [
        Conversation("x", (("user", text), ("assistant", "No."))) for text in ("What now?", "what, NOW", "What then?")
    ]
    assert asked[0].order == asked[1].order != asked[2].order


def test_no_source_gives_more_than_its_share(chat, own, tmp_path):
    pool = write_pool(tmp_path / "pool", 705)
    corpus = Corpus.load(pool, own, chat, {END}, 200)
    assert sum(one.source == "gsm8k_train" for one in (*corpus.train, *corpus.held)) == 700


def test_missing_pool_and_lines_that_are_no_conversation_are_told_by_place(chat, own, pool, tmp_path):
    with pytest.raises(ConversationsUnusable, match=r"chat/dolly_3k_plus.jsonl.gz cannot be read"):
        Corpus.load(tmp_path, own, chat, {END}, 200)
    with pytest.raises(ConversationsUnusable, match="no folder"):
        Corpus.load(pool, tmp_path / "nowhere", chat, {END}, 200)
    file = tmp_path / "pool" / "chat" / "gsm8k_train.jsonl.gz"
    shutil.copytree(pool, tmp_path / "pool")
    for damaged in (file.read_bytes()[:-20], file.read_bytes()[:30] + bytes(40), b"no archive"):
        file.write_bytes(damaged)
        with pytest.raises(ConversationsUnusable, match=r"chat/gsm8k_train.jsonl.gz"):
            Corpus.load(tmp_path / "pool", own, chat, {END}, 200)
    nothing = '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": null}]}'
    for line in ("{", "[]", '{"messages": 3}', '{"messages": [{"role": "user"}]}', '{"messages": []}', nothing):
        (tmp_path / "own.jsonl").write_text(json.dumps(speech("Why?", "So.")) + "\n" + line + "\n")
        with pytest.raises(ConversationsUnusable, match=r"own.jsonl:2: "):
            Corpus.load(pool, tmp_path, chat, {END}, 200)


def test_beginning_that_another_has_as_well_is_usual(chat):
    turns = [(("user", said), ("assistant", "So.")) for said in ("Why me?", "Why not?", "How?")]
    examples = compare([encode(Conversation("x", one), chat, {END}, 99) for one in turns])
    opening = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    lengths = [len(chat.encode(opening + more)) for more in ("Why ", "Why ", "")]
    assert [one.usual for one in examples] == lengths


# The network


@pytest.mark.parametrize("interleave", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True, "tie_word_embeddings": False}, {"rope_parameters": STRETCHED}]
)
def test_training_computes_what_the_reference_computes_on_the_grown_checkpoint(changes, interleave):
    network = dense(**changes)
    before, config = network.state_dict(), read_config(network.config.to_dict())
    generator = torch.Generator().manual_seed(1)
    delta = start(config, before.__getitem__, "", 3, 2, generator, interleave=interleave)
    torch.manual_seed(5)
    tensors = {
        name: one if name.endswith(SHARED) else one + 0.3 * torch.randn(one.shape)
        for name, one in delta.tensors.items()
    }
    grown = grow(config, before.__getitem__, 3, replace(delta, tensors=tensors))
    after = {name: grown(name) for name in grown.tensors}
    parent = Parent.read(config, before.__getitem__, tensors, torch.float32, torch.device("cpu"))
    texts = [[5, 1, 52, 7, 7, 30, 2, 0, 11, 40, 41], [3, 99, 200, 4]]
    ids = torch.tensor([[*text, *[0] * (11 - len(text))] for text in texts])
    heard = hear(parent, tensors, ids, ids >= 0)
    for row, text in enumerate(texts):
        expected = logits(grown.config, after, text)
        assert (heard.hidden[row, : len(text)] @ parent.head.T - expected).abs().max() < 1e-3
    assert len(heard.chosen) == len(parent.mixtures) == 2 // interleave
    assert len(heard.chosen.unique()) > 1


def test_surprise_and_its_gradient_are_the_cross_entropy_s():
    torch.manual_seed(0)
    parent = Parent.read(
        read_config(dense().config.to_dict()),
        dense().state_dict().__getitem__,
        {f"model.layers.{layer}.{SHARED}": torch.arange(48) < 24 for layer in range(2)},
        torch.float32,
        torch.device("cpu"),
    )
    labels, hidden = torch.randint(0, 258, (600,)), torch.randn(600, 32)
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    found, expected = (
        surprise(parent, ours, labels) / 7,
        cross_entropy(theirs @ parent.head.T, labels, reduction="sum") / 7,
    )
    found.backward()
    expected.backward()
    assert torch.allclose(found, expected)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_imbalance_is_one_where_experts_are_used_alike_and_their_number_where_one_has_all():
    config = read_config(dense().config.to_dict())
    take = dense().state_dict().__getitem__
    delta = start(config, take, "", 4, 2, torch.Generator())
    parent = Parent.read(config, take, delta.tensors, torch.float32, torch.device("cpu"))
    ids = torch.randint(0, 258, (2, 40))
    even = {
        name: one + 1e-4 * torch.randn(one.shape) if name.endswith(ROUTER) else one
        for name, one in delta.tensors.items()
    }
    one_has_all = dict(even)
    given = []
    hear(parent, even, ids, ids >= 0, lambda layer, x: given.append(x.flatten(0, 1).mean(0)))
    for layer in range(2):
        name = f"model.layers.{layer}.{ROUTER}"
        one_has_all[name] = torch.outer(torch.tensor([1.0, 0, 0, 0]), 1e4 * given[layer])
    assert hear(parent, even, ids, ids >= 0).imbalance < 1.1
    assert hear(parent, one_has_all, ids, ids < 128).imbalance > 2


# Routers


def test_routers_start_by_parting_their_inputs_into_kinds_of_like_size():
    torch.manual_seed(0)
    kinds = torch.randn(4, 32)
    inputs = torch.randn(32) + kinds.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 32)
    router = directions(inputs, 4, 0.05, torch.Generator().manual_seed(1))
    says = inputs @ router.T
    assert says.argmax(1).view(4, 50).mode(1).values.unique().numel() == 4
    assert says.argmax(1).bincount(minlength=4).tolist() == [50] * 4
    assert says.amax(1).mean().abs() < 0.01
    assert says.abs().max() < 0.3


def test_grown_network_starts_as_its_parent_with_every_expert_in_use(parent, pool, own, chat):
    config = read_shape(parent)
    corpus = Corpus.load(pool, own, chat, {END}, 128)
    with opened(parent) as take:
        begun = begin(config, take, "", QUICK, corpus.train)
        network = Parent.read(config, take, begun.tensors, torch.float32, torch.device("cpu"))
        routed = with_routers(network, begun, QUICK, corpus.train)
        ids = torch.tensor([corpus.held[0].ids])
        before, after = (hear(network, one, ids, ids >= 0) for one in (begun.tensors, routed))
        says = [(one.hidden @ network.head.T)[0] for one in (before, after)]
    assert (says[0] - says[1]).std() < 0.05 * says[0].std()
    assert len(before.chosen.unique()) == 1
    assert all(len(layer.unique()) == QUICK.experts for layer in after.chosen)


def test_expert_is_told_by_what_it_took_beyond_its_share():
    counts = torch.tensor([[90.0, 10.0, 0.0, 5.0], [90.0, 0.0, 10.0, 5.0]])
    assert preferred(counts, "abcd".__getitem__) == [["b"], ["c"]]


# Training


def test_training_lowers_held_out_loss_uses_its_experts_and_says_so(order):
    steps = list(make(order))
    assert {step.part for step in steps} == {"measuring the parent", "training", "measuring the result"}
    report = json.loads(order.out.with_suffix(".json").read_text())
    assert report["loss"]["grown"] < report["loss"]["parent"] - 0.5
    assert set(report["loss"]["sources"]) <= {source.name for source in SOURCES} | {"own/refusal"}
    assert sum(row["held"] for row in report["loss"]["sources"].values()) > 5
    assert set(report["took"]) == set(report["routing"]) == {"1"}
    for layer in report["routing"].values():
        assert sum(layer) == pytest.approx(1, abs=0.001)
        assert sum(share > 0.05 for share in layer) > 1
    assert all(len(experts) == QUICK.experts for experts in report["took"].values())
    delta = Delta.load(order.out)
    assert (delta.experts, delta.rank, delta.interleave, delta.parent) == (3, 2, 2, report["parent"])
    assert {one.dtype for one in delta.tensors.values()} == {torch.bfloat16, torch.bool}


def test_loss_of_the_parent_is_what_transformers_says(order, parent, chat):
    corpus = Corpus.load(order.pool, order.own, chat, {END}, QUICK.length)
    list(make(order))
    said = json.loads(order.out.with_suffix(".json").read_text())["loss"]["parent"]
    network = LlamaForCausalLM.from_pretrained(parent, dtype=torch.float32).eval()
    nats = tokens = 0
    for example in corpus.held:
        with torch.inference_mode():
            says = network(torch.tensor([example.ids])).logits[0, :-1]
        learnt = torch.tensor(example.spoken[1:])
        nats += cross_entropy(says[learnt], torch.tensor(example.ids[1:])[learnt], reduction="sum").item()
        tokens += int(learnt.sum())
    assert said == pytest.approx(nats / tokens, rel=0.01)


def test_training_that_was_stopped_and_resumed_ends_in_the_same_bytes(order, tmp_path):
    list(make(order))
    other = replace(order, out=tmp_path / "again.safetensors", work=tmp_path / "again")
    for after in (1, 15, 8):
        asked = iter([False] * after + [True] * 1000)
        with pytest.raises(Stopped):
            list(make(replace(other, resume=True), lambda asked=asked: next(asked)))
    list(make(replace(other, resume=True)))
    assert other.out.read_bytes() == order.out.read_bytes()
    assert other.out.with_suffix(".json").read_bytes() == order.out.with_suffix(".json").read_bytes()


def test_equal_deltas_are_equal_bytes(tmp_path):
    delta = Delta("0" * 64, 2, 1, {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.bool)})
    for number in range(6):
        delta.save(tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(6)}) == 1
    assert torch.equal(Delta.load(tmp_path / "5").tensors["b"], torch.ones(2))


def test_another_seed_gives_another_delta(order, tmp_path):
    list(make(order))
    other = replace(order, out=tmp_path / "other.safetensors", plan=replace(QUICK, seed=14))
    list(make(other))
    assert other.out.read_bytes() != order.out.read_bytes()


def test_checkpoint_of_another_training_or_that_is_damaged_is_refused(order):
    with pytest.raises(Stopped):
        list(make(order, lambda: True))
    steps = iter([False] * 10 + [True] * 1000)
    with pytest.raises(Stopped):
        list(make(order, lambda: next(steps)))
    file = order.work / "checkpoint.safetensors"
    with pytest.raises(OtherTraining, match="another training"):
        list(make(replace(order, resume=True, plan=replace(QUICK, rate=1.0))))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointDamaged, match="delete it, or do not resume"):
        list(make(replace(order, resume=True)))


def test_training_that_diverges_says_so_and_one_into_its_own_checkpoint_or_report_does_not_begin(order):
    with pytest.raises(Diverged, match="take a lower rate"):
        list(make(replace(order, plan=replace(QUICK, rate=1e30))))
    for out in (order.work / "checkpoint.safetensors", order.out.with_suffix(".json"), order.work):
        with pytest.raises(OSError, match="name another file"):
            next(make(replace(order, out=out)))


def test_what_another_training_left_is_gone_where_one_starts_anew(order):
    order.work.mkdir(exist_ok=True)
    file = order.work / "checkpoint.safetensors"
    file.write_bytes(b"of another training")
    with pytest.raises(Stopped):
        list(make(order, lambda: True))
    assert not file.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_missed_before_work_starts(order):
    with pytest.raises(DeviceMissing, match="no GPU"):
        next(make(replace(order, device="cuda")))


def test_steps_have_every_conversation_as_often_as_it_counts_and_little_padding(pool, own, chat):
    corpus = Corpus.load(pool, own, chat, {END}, 128)
    lengths = [len(example.ids) for example in corpus.train]
    epoch = sum(length * example.times for length, example in zip(lengths, corpus.train, strict=True))
    steps = arrange(corpus.train, replace(QUICK, tokens=2 * epoch))
    parts = [part for step in steps for part in step]
    read = sum(len(part) * max(lengths[at] for at in part) for part in parts)
    assert sum(lengths[at] for part in parts for at in part) > 0.9 * read
    assert read >= 2 * epoch
    assert all(len(part) * max(lengths[at] for at in part) <= QUICK.part_tokens for part in parts)
    assert {len(step) for step in steps[:-1]} == {QUICK.parts}
    seen = [at for part in parts for at in part]
    for at, example in enumerate(corpus.train):
        assert seen.count(at) in range(example.times, 2 * example.times + 1)


def test_parts_of_a_step_are_not_of_one_length(pool, own, chat):
    corpus = Corpus.load(pool, own, chat, {END}, 128)
    steps = arrange(corpus.train, QUICK)
    assert sum(len({len(corpus.train[part[0]].ids) for part in step}) > 1 for step in steps) > len(steps) / 2


# The command


def test_command_trains_and_says_where_the_result_is(parent, pool, own, tmp_path):
    out = tmp_path / "delta.safetensors"
    options = ["engine", "--pool", str(pool), "--own", str(own), "--parent", str(parent), "--out", str(out)]
    shown = CliRunner().invoke(app, [*options, "--work", str(tmp_path), "--tokens", "2000", "--experts", "2"])
    assert (shown.exit_code, shown.stdout) == (0, f"{out}: 0.0 MB; report: {out.with_suffix('.json')}\n")
    assert "training" in shown.stderr
    assert "tokens/s" in shown.stderr
    assert load_file(out)["model.layers.1." + ROUTER].shape == (2, 32)


def test_command_says_what_is_missing(parent, tmp_path, own, monkeypatch):
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path))
    shown = CliRunner().invoke(app, ["engine", "--pool", str(tmp_path)])
    assert (shown.exit_code, "ringfence engine pull" in shown.stderr) == (2, True)
    shown = CliRunner().invoke(app, ["engine", "--pool", str(tmp_path), "--parent", str(parent)])
    assert (shown.exit_code, "dolly_3k_plus.jsonl.gz cannot be read" in shown.stderr) == (2, True)


def test_terminated_command_keeps_its_work_and_says_how_to_go_on(parent, pool, own, tmp_path):
    out = tmp_path / "delta.safetensors"
    options = ["engine", "--pool", str(pool), "--own", str(own), "--parent", str(parent), "--out", str(out)]
    options += ["--work", str(tmp_path / "work"), "--device", "cpu"]
    command = [sys.executable, "-c", "from ringfence.proxy.cli.root import app; app()", "train", *options]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        lines = iter(run.stderr.readline, "")
        next(line for line in lines if line.startswith("training"))
        run.send_signal(signal.SIGTERM)
        rest = "".join(lines)
    assert run.returncode == 1, rest
    assert "--resume goes on" in rest
    assert not out.exists()
    assert (tmp_path / "work" / "checkpoint.safetensors").exists()


def test_experts_that_ship_are_small_better_than_their_parent_and_used():
    (path,) = GROWN.glob("*.delta")
    report = json.loads(path.with_suffix(".json").read_text())
    with safe_open(path, "pt") as file:
        assert file.metadata()["parent"] == report["parent"]
    assert path.stat().st_size <= 25_000_000
    assert report["plan"] == asdict(Plan())
    assert report["loss"]["grown"] < report["loss"]["parent"]
    assert [name for name, one in report["loss"]["sources"].items() if one["grown"] >= one["parent"]] == []
    assert list(report["routing"]) == [str(layer) for layer in range(1, 30, 2)]
    assert all(len(layer) == Plan().experts and min(layer) > 0.01 for layer in report["routing"].values())
