"""GGUF files laid out as llama.cpp's converter does, read as the checkpoints that they were made from."""

import math
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

from ringfence.model.assemble import assemble
from ringfence.model.cache import Cache, Held
from ringfence.model.checkpoint import CheckpointDamaged
from ringfence.model.config import UnknownArchitecture, read_config
from ringfence.model.gguf import TENSORS4, read

NAMES = {name.replace("mlp.", "feed_forward."): kind for kind, name in TENSORS4.items()}
IDS = [5, 1, 52, 7, 7, 30, 2, 9, 9, 41]

SMALL = {
    "vocab_size": 53,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 2.0**-17,
    "pad_token_id": None,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHARP = STRETCHED | {"factor": 16.0, "high_freq_factor": 1.0}
DENSE = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "stretched as Llama 3.1": {"rope_parameters": STRETCHED},
}
SPARSE = {
    "as Scout": {"num_local_experts": 3, "rope_parameters": SHARP},
    "as Maverick": {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False},
    "two experts a token": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
KINDS = [("llama", kind) for kind in DENSE] + [("llama4", kind) for kind in SPARSE]


def made(family, kind):
    torch.manual_seed(0)
    if family == "llama":
        network = LlamaForCausalLM(LlamaConfig(**SMALL | DENSE[kind]))
    else:
        network = Llama4ForCausalLM(Llama4TextConfig(**SMALL | {"intermediate_size_mlp": 160} | SPARSE[kind]))
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.2) if weight.dim() > 1 else weight.normal_(1, 0.2)
    return network.eval()


def divisors(config):
    """By how much the converter says each frequency is divided."""
    rope, found = config.rope_parameters, []
    for index in range(0, config.head_dim, 2):
        turns = rope["original_max_position_embeddings"] / (
            2 * math.pi * rope["rope_theta"] ** (index / config.head_dim)
        )
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        if turns > high or turns < low:
            found.append(1.0 if turns > high else factor)
        else:
            share = (turns - low) / (high - low)
            found.append(1 / ((1 - share) / factor + share))
    return np.array(found, np.float32)


def write(network, file, kind=Kind.F32, family="llama", changes=(), extra=()):
    """Write a network as llama.cpp's converter does; `changes` are made to what it says, `extra` to its tensors."""
    config, sparse = network.config, family == "llama4"
    said = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size_mlp if sparse else config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if sparse:
        said |= {
            "expert_count": config.num_local_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.intermediate_size,
            "interleave_moe_layer_step": config.interleave_moe_layer_step,
        }
    writer = gguf.GGUFWriter(file, family)
    for key, value in (said | dict(changes)).items():
        match value:
            case None:
                pass
            case bool():
                writer.add_bool(f"{family}.{key}", value)
            case int():
                writer.add_uint32(f"{family}.{key}", value)
            case float():
                writer.add_float32(f"{family}.{key}", value)
            case str():
                writer.add_string(f"{family}.{key}", value)
            case list():
                writer.add_array(f"{family}.{key}", value)
    writer.add_eos_token_id(2)
    tensors = dict(laid_out(network, family))
    if config.rope_parameters["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = divisors(config)
    for name, data in (tensors | dict(extra)).items():
        if data is not None:
            matrix = data.ndim > 1 and "gate_inp" not in name and kind != Kind.F32
            writer.add_tensor(name, gguf.quantize(data, kind) if matrix else data, raw_dtype=kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def laid_out(network, family):
    """Yield tensors as GGUF has them."""
    config = network.config
    for name, tensor in network.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        *_, layer, short = ["", "", *name.removeprefix("model.layers.").split(".", 1)]
        block, short = (f"blk.{layer}.", short) if name.startswith("model.layers.") else ("", name)
        short = short.removesuffix(".weight").replace("mlp.", "feed_forward.")
        if family == "llama" and short in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in short else config.num_key_value_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        if short.endswith("gate_up_proj"):
            gate, up = tensor.transpose(1, 2).chunk(2, 1)
            yield f"{block}ffn_gate_exps.weight", gate.contiguous().numpy()
            yield f"{block}ffn_up_exps.weight", up.contiguous().numpy()
        elif short.endswith("experts.down_proj"):
            yield f"{block}ffn_down_exps.weight", tensor.transpose(1, 2).contiguous().numpy()
        else:
            yield f"{block}{NAMES[short]}.weight", tensor.contiguous().numpy()


@torch.inference_mode()
def said(file):
    network, cache, held = assemble(file.config, file), Cache(file.config, 64, torch.float32), Held()
    cache.make_room(held, len(IDS))
    return network.logits(network([(held, IDS)], cache))


@torch.inference_mode()
def meant(network):
    return network(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_file_says_what_the_network_says_that_it_was_made_from(family, kind, tmp_path):
    network = made(family, kind)
    file = read(write(network, tmp_path / "x.gguf", family=family))
    expected = meant(network)
    assert (said(file) - expected).abs().max() < 1e-4 * expected.std()
    assert file.config == read_config(network.config.to_dict())
    for name, tensor in network.state_dict().items():
        if not (file.config.tied and name == "lm_head.weight"):
            assert torch.equal(file(name), tensor)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
@pytest.mark.parametrize("family", ["llama", "llama4"])
def test_quantised_tensors_are_what_they_are_rounded_to(family, kind, tmp_path):
    network = made(family, "plain" if family == "llama" else "as Scout")
    rounded = {
        name: gguf.dequantize(gguf.quantize(data, kind), kind)
        for name, data in laid_out(network, family)
        if data.ndim > 1 and "gate_inp" not in name
    }
    file = read(write(network, tmp_path / "x.gguf", kind, family))
    expected = read(write(network, tmp_path / "y.gguf", family=family, extra=rounded))
    assert file.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(file(name), expected(name)) for name in file.tensors)
    assert torch.equal(said(file), said(expected))


def test_special_tokens_are_told(tmp_path):
    file = read(write(made("llama", "plain"), tmp_path / "x.gguf"))
    assert file.settings["eos_token_id"] == file.field("tokenizer.ggml.eos_token_id") == 2
    assert "bos_token_id" not in file.settings
    with pytest.raises(KeyError):
        file.field("tokenizer.ggml.bos_token_id")


def test_what_a_file_leaves_out_is_as_llama_cpp_takes_it(tmp_path):
    network = made("llama", "plain")
    keys = ("vocab_size", "rope.freq_base", "rope.dimension_count", "attention.value_length")
    file = read(write(network, tmp_path / "x.gguf", changes=dict.fromkeys(keys)))
    assert file.config == read_config(network.config.to_dict())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"rope.scaling.factor": 4.0}, r"rope.scaling.factor is 4\.0"),
        ({"expert_count": 8}, "expert_count is 8"),
        ({"attention.sliding_window": 4096}, "attention.sliding_window is 4096"),
        ({"attention.causal": False}, "attention.causal is False"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"attention.head_count_kv": [2, 2, 1, 2]}, "head_count_kv is another from layer to layer"),
        ({"rope.dimension_count": 16}, "heads are 32 wide, and rope.dimension_count is 16"),
        ({"attention.value_length": 16}, "heads are 32 wide, and attention.value_length is 16"),
    ],
)
def test_setting_that_is_not_computed_is_refused_by_name(changes, says, tmp_path):
    file = write(made("llama", "plain"), tmp_path / "x.gguf", changes=changes)
    with pytest.raises(UnknownArchitecture, match=f"{file}: .*{says}"):
        read(file)


def test_llama4_that_has_no_experts_or_chooses_them_otherwise_is_refused(tmp_path):
    network = made("llama4", "as Scout")
    file = write(network, tmp_path / "x.gguf", family="llama4", changes={"expert_count": 0})
    with pytest.raises(UnknownArchitecture, match="without experts"):
        read(file)
    file = write(network, tmp_path / "x.gguf", family="llama4", changes={"expert_gating_func": 1})
    with pytest.raises(UnknownArchitecture, match="expert_gating_func is 1"):
        read(file)
    assert read(write(network, tmp_path / "y.gguf", family="llama4", changes={"expert_gating_func": 2}))
    for window in (0, 8192):
        file = write(network, tmp_path / "x.gguf", family="llama4", changes={"attention.sliding_window": window})
        with pytest.raises(UnknownArchitecture, match="sliding_window"):
            read(file)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"blk.0.attn_q.bias": np.zeros(128, np.float32)}, r"blk\.0\.attn_q\.bias"),
        ({"blk.1.attn_q_norm.weight": np.ones(32, np.float32)}, r"blk\.1\.attn_q_norm\.weight"),
        ({"v.patch_embd.weight": np.ones((4, 4), np.float32)}, r"v\.patch_embd\.weight"),
        ({"rope_freqs.weight": np.linspace(1, 9, 16, dtype=np.float32)}, r"rope_freqs\.weight is not"),
        ({"rope_freqs.weight": np.ones(3, np.float32)}, r"rope_freqs\.weight is not"),
        ({"output.weight": np.ones((53, 64), np.float64)}, "type F64"),
    ],
)
def test_tensor_that_is_not_computed_is_refused_by_name(extra, says, tmp_path):
    file = write(made("llama", "plain"), tmp_path / "x.gguf", extra=extra)
    with pytest.raises(UnknownArchitecture, match=says):
        read(file)


def test_other_architecture_is_refused_by_name(tmp_path):
    file = write(made("llama", "plain"), tmp_path / "x.gguf", family="qwen2")
    with pytest.raises(UnknownArchitecture, match="files of llama and llama4, not of 'qwen2'"):
        read(file)


def test_one_part_of_several_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnknownArchitecture, match="one part of 3"):
        read(tmp_path / "x.gguf")


def test_tensor_that_is_not_there_or_of_another_shape_is_told_when_the_network_is_put_together(tmp_path):
    network = made("llama", "plain")
    file = read(write(network, tmp_path / "x.gguf", extra={"blk.2.ffn_up.weight": None}))
    with pytest.raises(KeyError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        assemble(file.config, file)
    file = read(write(network, tmp_path / "y.gguf", extra={"blk.2.ffn_up.weight": np.ones((5, 64), np.float32)}))
    with pytest.raises(ValueError, match=r"is of shape \(5, 64\), not \(96, 64\)"):
        assemble(file.config, file)


def test_setting_that_is_not_there_is_told(tmp_path):
    file = write(made("llama", "plain"), tmp_path / "x.gguf", changes={"block_count": None})
    with pytest.raises(CheckpointDamaged, match=f"{file} cannot be read: .*block_count"):
        read(file)
    with pytest.raises(CheckpointDamaged, match="nowhere"):
        read(tmp_path / "nowhere.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(made("llama", "plain"), tmp_path_factory.mktemp("whole") / "x.gguf").read_bytes()


@settings(max_examples=60)
@given(st.data())
def test_file_that_was_cut_short_is_told(whole, tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "cut.gguf"
    file.write_bytes(whole[: data.draw(st.integers(0, 2000) | st.integers(0, len(whole) - 40))])
    with pytest.raises(CheckpointDamaged, match=r"cut\.gguf cannot be read"):
        read(file)


@settings(max_examples=150)
@given(st.data())
def test_file_with_a_spoilt_head_is_read_or_told_and_never_hangs(whole, tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "spoilt.gguf"
    spoilt = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, 3600), min_size=1, max_size=4)):
        spoilt[at] = data.draw(st.sampled_from((0, 1, 127, 255)))
    file.write_bytes(spoilt)
    with suppress(CheckpointDamaged, UnknownArchitecture):
        read(file)
