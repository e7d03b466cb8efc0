"""GGUF files laid out as llama.cpp's converter does, read as the checkpoints that they were made from."""

from contextlib import suppress
from pathlib import Path
from runpy import run_path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ringfence.model.assemble import assemble
from ringfence.model.cache import Cache, Held
from ringfence.model.checkpoint import CheckpointDamaged
from ringfence.model.config import UnknownArchitecture, read_config
from ringfence.model.gguf import read

TINY = run_path(str(Path(__file__).parent / "tiny_gguf.py"))
made, write, laid_out = TINY["made"], TINY["write"], TINY["laid_out"]
IDS = [5, 1, 52, 7, 7, 30, 2, 9, 9, 41]

KINDS = [("llama", kind) for kind in TINY["DENSE"]] + [("llama4", kind) for kind in TINY["SPARSE"]]


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
    assert_close(said(file), said(expected), rtol=0, atol=1e-6)  # where they lie in memory may change the last bit


def test_special_tokens_are_told(tmp_path):
    file = read(write(made("llama", "plain"), tmp_path / "x.gguf"))
    assert file.settings["eos_token_id"] == file.field("tokenizer.ggml.eos_token_id") == 2
    assert "bos_token_id" not in file.settings
    assert file.field("tokenizer.ggml.bos_token_id") is None


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


def test_file_of_another_kind_is_told(tmp_path):
    (tmp_path / "x.gguf").write_text("a note, and no network")
    with pytest.raises(CheckpointDamaged, match=r"x\.gguf cannot be read: it is no GGUF file$"):
        read(tmp_path / "x.gguf")


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
