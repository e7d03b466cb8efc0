"""A dense Llama grown into a mixture of experts says what it said; a delta changes just what it says it changes."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ringfence.model import weights
from ringfence.model.assemble import assemble
from ringfence.model.cache import Cache, Held
from ringfence.model.checkpoint import CheckpointDamaged, opened, read_shape
from ringfence.model.config import UnknownArchitecture, read_config
from ringfence.model.delta import DOWN, GATE_UP, ROUTER, SHARED, Delta, DeltaDiffers
from ringfence.model.reference import logits
from ringfence.model.upcycle import busiest, grow, start, upcycle

SMALL = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "with biases": {"attention_bias": True},
    "stretched, wide heads": {"rope_parameters": STRETCHED, "head_dim": 8},
}
DOWN_SHARED = "feed_forward.shared_expert.down_proj.weight"
IDS = [5, 1, 52, 7, 7, 30, 2, 0, 11, 40, 41]


def dense(changes, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    network = LlamaForCausalLM(LlamaConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.3) if weight.dim() > 1 else weight.normal_(1, 0.2)
    return network.to(dtype)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    dense({}).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def touched(delta, seed):
    """The same delta after some training: nothing in it is zero."""
    torch.manual_seed(seed)
    trained = {
        name: tensor if name.endswith(SHARED) else tensor + 0.2 * torch.randn(tensor.shape)
        for name, tensor in delta.tensors.items()
    }
    return replace(delta, tensors=trained)


@torch.inference_mode()
def said(config, take, ids, delta=None):
    network, cache, held = assemble(config, take, delta=delta), Cache(config, len(ids), torch.float32), Held()
    cache.make_room(held, len(ids))
    return network.logits(network([(held, ids)], cache))


@torch.inference_mode()
def said_in(folder, ids):
    with opened(folder) as take:
        return said(read_shape(folder), take, ids)


@torch.inference_mode()
def told(folder, ids):
    """What transformers says that a checkpoint says."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return type(network).__name__, network(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("interleave", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_grown_network_says_what_its_parent_says_here_and_in_transformers(kind, interleave, tmp_path):
    network = dense(KINDS[kind])
    network.save_pretrained(tmp_path / "parent")
    upcycle(tmp_path / "parent", tmp_path / "grown", experts=4, interleave=interleave)
    with torch.inference_mode():
        before = network(torch.tensor([IDS])).logits[0]
    name, theirs = told(tmp_path / "grown", IDS)
    assert name == "Llama4ForCausalLM"
    assert (theirs - before).abs().max() < 1e-4
    assert (said_in(tmp_path / "grown", IDS) - before).abs().max() < 1e-4
    assert before.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shared_and_doubled_neurons_are_the_parents_bit_by_bit(dtype):
    network = dense({}, seed=4, dtype=dtype)
    before, config = network.state_dict(), read_config(network.config.to_dict())
    grown, gate = grow(config, before.__getitem__, 2), before["model.layers.1.mlp.gate_proj.weight"]
    shared = grown("model.layers.1.feed_forward.shared_expert.gate_proj.weight")
    routed = grown("model.layers.1." + GATE_UP)[0].T[: len(gate) // 2]
    assert shared.dtype == routed.dtype == dtype
    assert {*map(tuple, shared.tolist()), *map(tuple, (routed / 2).tolist())} == {*map(tuple, gate.tolist())}


def begun(config, take, experts, rank, interleave, seed):
    """A delta to weights, after some training."""
    generator = torch.Generator().manual_seed(seed)
    return touched(start(config, take, "", experts, rank, generator, interleave=interleave), seed)


@settings(max_examples=25)
@given(st.sampled_from(list(KINDS)), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_with_a_delta_every_expert_is_its_start_and_the_product_that_was_added(kind, experts, rank, interleave, seed):
    network = dense(KINDS[kind], seed)
    before, config = network.state_dict(), read_config(network.config.to_dict())
    delta = begun(config, before.__getitem__, experts, rank, interleave, seed)
    grown = grow(config, before.__getitem__, experts, delta)
    after = {name: grown(name) for name in grown.tensors}
    base = grow(config, before.__getitem__, experts, interleave=interleave)
    mixed = [index for index, layer in enumerate(grown.config.layers) if layer.experts]
    assert mixed == {1: [0, 1, 2], 2: [1], 3: [2]}[interleave]
    assert after.keys() == base.tensors.keys()
    for index in mixed:
        below = f"model.layers.{index}."
        assert torch.equal(after[below + ROUTER], delta.tensors[below + ROUTER])
        for product in (GATE_UP, DOWN):
            for expert in range(experts):
                a, b = (delta.tensors[f"{below}{product}.{part}"][expert] for part in "ab")
                assert torch.allclose(after[below + product][expert], base(below + product)[expert] + a @ b, atol=1e-5)
    assert (said(grown.config, grown, IDS) - logits(grown.config, after, IDS)).abs().max() < 1e-4


@settings(max_examples=30)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_experts_beside_their_parent_say_what_the_whole_checkpoint_says(kind, experts, rank, interleave, seed):
    before = dense(KINDS[kind], seed)
    config, take = read_config(before.config.to_dict()), before.state_dict().__getitem__
    delta = begun(config, take, experts, rank, interleave, seed)
    grown = grow(config, take, experts, delta)
    whole = said(grown.config, grown, IDS)
    assert torch.allclose(said(config, take, IDS, delta=delta), whole, atol=2e-4, rtol=1e-3)
    assert (said(config, take, IDS) - whole).abs().max() > 0.01


@pytest.mark.parametrize("interleave", [1, 2])
def test_delta_that_was_saved_gives_the_same_checkpoint_to_transformers(parent, tmp_path, interleave):
    config = read_shape(parent)
    with opened(parent) as take:
        of_parent = weights.revision(parent)
        delta = touched(start(config, take, of_parent, 3, 2, torch.Generator(), interleave=interleave), seed=1)
        grown = grow(config, take, 3, delta)
        here = said(grown.config, grown, IDS)
    delta.save(tmp_path / "delta.safetensors")
    upcycle(parent, tmp_path / "grown", 3, Delta.load(tmp_path / "delta.safetensors"))
    assert (told(tmp_path / "grown", IDS)[1] - here).abs().max() < 1e-4
    assert (said_in(parent, IDS) - here).abs().max() > 0.01


def test_delta_that_training_has_not_touched_adds_nothing(parent):
    config = read_shape(parent)
    with opened(parent) as take:
        delta = start(config, take, "", 3, 2, torch.Generator())
        with_it, without = grow(config, take, 3, delta), grow(config, take, 3)
        assert all(torch.equal(with_it(name), without(name)) for name in without.tensors)


def test_layers_between_the_mixtures_are_the_parents():
    before = dense({}, seed=2).state_dict()
    grown = grow(read_config(LlamaConfig(**SMALL).to_dict()), before.__getitem__, 2, interleave=2)
    for layer in (0, 2):
        for name in ("gate", "up", "down"):
            theirs = before[f"model.layers.{layer}.mlp.{name}_proj.weight"]
            assert torch.equal(grown(f"model.layers.{layer}.feed_forward.{name}_proj.weight"), theirs)


def test_delta_of_before_there_were_layers_between_grows_in_each(parent, tmp_path):
    with opened(parent) as take:
        delta = start(read_shape(parent), take, "", 2, 1, torch.Generator())
    said = {"format": "ringfence delta 1", "parent": "", "experts": "2", "rank": "1"}
    save_file(dict(delta.tensors), tmp_path / "delta", metadata=said)
    assert Delta.load(tmp_path / "delta").interleave == 1
    save_file(dict(delta.tensors), tmp_path / "delta", metadata={**said, "interleave": "0"})
    with pytest.raises(CheckpointDamaged, match="one layer in 0"):
        Delta.load(tmp_path / "delta")


def test_neurons_that_are_shared_are_those_that_were_when_the_delta_was_trained(parent):
    config = read_shape(parent)
    with opened(parent) as take:
        delta = start(config, take, "", 2, 1, torch.Generator(), choose=lambda layer, gate, up, down: gate.norm(dim=1))
        chosen = grow(config, take, 2, choose=lambda layer, gate, up, down: gate.norm(dim=1))
        grown, default = grow(config, take, 2, delta), grow(config, take, 2)
        name = "model.layers.0." + DOWN_SHARED
        assert torch.equal(grown(name), chosen(name))
        assert not torch.equal(grown(name), default(name))


def test_every_other_neuron_is_shared_where_nothing_says_which():
    before = dense({}, seed=2).state_dict()
    grown = grow(read_config(LlamaConfig(**SMALL).to_dict()), before.__getitem__, 2)
    for name in ("gate", "up"):
        shared = grown(f"model.layers.2.feed_forward.shared_expert.{name}_proj.weight")
        assert torch.equal(shared, before[f"model.layers.2.mlp.{name}_proj.weight"][::2])


def test_neurons_that_are_busy_on_a_text_are_shared():
    before, config = dense({}, seed=2).state_dict(), read_config(LlamaConfig(**SMALL).to_dict())
    busy = [1, 2, 3, 5, 8, 9, 13, 14, 15, 20, 21, 22]
    quiet = [neuron for neuron in range(24) if neuron not in busy]
    before["model.layers.1.mlp.up_proj.weight"][quiet] *= 0.01  # they are given much, and pass little of it on
    before["model.layers.1.mlp.down_proj.weight"][:, quiet] *= 10
    choose = busiest(config, before.__getitem__, [IDS, IDS[::-1]])
    shared = grow(config, before.__getitem__, 2, choose=choose)("model.layers.1." + DOWN_SHARED)
    assert torch.equal(shared, before["model.layers.1.mlp.down_proj.weight"][:, busy])


def test_no_neuron_is_busy_on_nothing():
    before, config = dense({}).state_dict(), read_config(LlamaConfig(**SMALL).to_dict())
    for texts in ([], [[]]):
        with pytest.raises(ValueError, match="without tokens"):
            busiest(config, before.__getitem__, texts)


def test_folder_has_a_shard_a_layer_and_what_the_chat_needs(parent, tmp_path):
    steps = []
    upcycle(parent, tmp_path / "new" / "grown", 2, progress=steps.append)
    names = {file.name for file in (tmp_path / "new" / "grown").iterdir()}
    shards = {f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} | shards | {
        "model.safetensors.index.json"
    }
    assert len(set(load_file(tmp_path / "new" / "grown" / min(shards)))) == 3
    assert [(step.done, step.total) for step in steps] == [(number, 4) for number in range(5)]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grown"]
    modes = {file.stat().st_mode for file in (tmp_path / "new" / "grown").iterdir() if file.name != "tokenizer.json"}
    assert len(modes) == 1


def test_what_is_there_already_is_left_alone(parent, tmp_path):
    with pytest.raises(FileExistsError, match="is there already"):
        upcycle(parent, tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_upcycling_that_is_broken_off_leaves_nothing(parent, tmp_path):
    def stop(step):
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle(parent, tmp_path / "grown", 2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_delta_to_other_weights_or_another_number_of_experts_is_refused(parent, tmp_path):
    config = read_shape(parent)
    with opened(parent) as take:
        delta = start(config, take, "0" * 64, 2, 1, torch.Generator())
        with pytest.raises(DeltaDiffers, match="to 2 experts a layer, not 4"):
            grow(config, take, 4, delta)
    with pytest.raises(DeltaDiffers, match=f"{'0' * 64}; those at .* have {weights.revision(parent)}"):
        upcycle(parent, tmp_path / "grown", 2, delta)
    assert list(tmp_path.iterdir()) == []


def test_delta_that_lacks_something_is_damaged(parent):
    config = read_shape(parent)
    with opened(parent) as take:
        whole = start(config, take, "", 2, 1, torch.Generator())
        for name, broken in {
            "model.layers.1." + ROUTER: torch.zeros(2, 5),
            f"model.layers.1.{DOWN}.b": None,
            "model.layers.1." + SHARED: torch.ones(24, dtype=torch.bool),
        }.items():
            tensors = {**whole.tensors, name: broken}
            if broken is None:
                del tensors[name]
            grown = grow(config, take, 2, Delta("", 2, 1, tensors))
            with pytest.raises(CheckpointDamaged, match=name):
                [grown(name) for name in grown.tensors]


@pytest.mark.parametrize("keep", [0, 7, 300, None])
def test_file_that_is_no_delta_is_told(parent, tmp_path, keep):
    with opened(parent) as take:
        start(read_shape(parent), take, "", 2, 1, torch.Generator()).save(tmp_path / "delta")
    (tmp_path / "delta").write_bytes((tmp_path / "delta").read_bytes()[:keep])
    if keep is None:
        save_file({"x": torch.ones(1)}, tmp_path / "delta", metadata={"format": "pt"})
    with pytest.raises(CheckpointDamaged, match=str(tmp_path / "delta")):
        Delta.load(tmp_path / "delta")
    with pytest.raises(CheckpointDamaged, match="nowhere"):
        Delta.load(tmp_path / "nowhere")


def test_only_dense_llamas_are_grown(parent, tmp_path):
    upcycle(parent, tmp_path / "grown", 2)
    with pytest.raises(UnknownArchitecture, match="only a dense Llama"):
        upcycle(tmp_path / "grown", tmp_path / "again", 2)
    with opened(tmp_path / "grown") as take, pytest.raises(UnknownArchitecture, match="only a dense Llama"):
        busiest(read_shape(tmp_path / "grown"), take, [IDS])
    with pytest.raises(UnknownArchitecture, match="25 neurons"):
        grow(read_config(LlamaConfig(**SMALL | {"intermediate_size": 25}).to_dict()), {}.__getitem__, 2)
    with pytest.raises(ValueError, match="not 0"):
        grow(read_shape(parent), {}.__getitem__, 0)
    for interleave in (0, 4):
        with pytest.raises(ValueError, match=f"1 to 3 .* not one in {interleave}"):
            grow(read_shape(parent), {}.__getitem__, 2, interleave=interleave)


def test_parent_that_lacks_a_tensor_is_damaged(parent, tmp_path):
    (tmp_path / "parent").mkdir()
    whole = load_file(parent / "model.safetensors")
    (tmp_path / "parent" / "config.json").write_text((parent / "config.json").read_text())
    for name in ("model.layers.2.self_attn.k_proj.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"):
        save_file({key: one for key, one in whole.items() if key != name}, tmp_path / "parent" / "model.safetensors")
        with pytest.raises(CheckpointDamaged, match=name):
            upcycle(tmp_path / "parent", tmp_path / "grown", 2)
    assert [file.name for file in tmp_path.iterdir()] == ["parent"]


def test_default_checkpoint_says_the_same_after_growing(tmp_path):
    path = weights.pull().path
    upcycle(path, tmp_path / "grown", experts=2)
    ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 504, 3575, 282, 4649, 314, 7042, 30]
    before = said_in(path, ids)
    assert (said_in(tmp_path / "grown", ids) - before).abs().max() < 1e-3
    assert (told(tmp_path / "grown", ids)[1] - before).abs().max() < 1e-3
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "grown" / "tokenizer_config.json").read_bytes() == (path / "tokenizer_config.json").read_bytes()
