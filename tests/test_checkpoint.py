"""Checkpoints as transformers writes them, read tensor by tensor into the network."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

from ringfence.model.assemble import assemble
from ringfence.model.cache import Cache, Held
from ringfence.model.checkpoint import CheckpointDamaged, opened, read_shape

SMALL = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 24,
    "intermediate_size_mlp": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": None,
    "max_position_embeddings": 128,
}
IDS = [5, 1, 52, 7, 7, 30, 2]


@pytest.fixture(scope="module")
def llama4(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama4")
    network = Llama4ForCausalLM(Llama4TextConfig(**SMALL, num_local_experts=4, attention_chunk_size=5)).eval()
    network.save_pretrained(folder, max_shard_size="10KB")
    return folder, network


def said(folder):
    config = read_shape(folder)
    with opened(folder) as take:
        network = assemble(config, take)
    cache, held = Cache(config, 128, torch.float32), Held()
    cache.make_room(held, len(IDS))
    with torch.inference_mode():
        return network.logits(network([(held, IDS)], cache))


@torch.inference_mode()
def test_shards_are_read_as_one(llama4):
    folder, network = llama4
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (said(folder) - network(torch.tensor([IDS])).logits[0]).abs().max() < 1e-4


@torch.inference_mode()
def test_dense_llama_in_one_file(tmp_path):
    torch.manual_seed(1)
    network = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)).eval()
    network.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert (said(tmp_path) - network(torch.tensor([IDS])).logits[0]).abs().max() < 1e-4


def test_of_a_checkpoint_that_sees_the_text_part_is_read_and_the_rest_is_named(llama4, tmp_path):
    folder, _ = llama4
    tensors = {
        f"language_model.{name}": t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()
    }
    save_file(tensors | {"vision_model.patch.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    # not to the last bit: how numbers are summed up may depend on where in memory they lie
    assert_close(said(tmp_path), said(folder), rtol=0, atol=1e-6)
    with opened(tmp_path) as take:
        assert take.seeing == ("vision_model.patch.weight",)


def test_tensor_that_is_not_there_is_told_by_its_name(llama4):
    with opened(llama4[0]) as take:
        assert take("model.norm.weight").shape == (16,)
        with pytest.raises(KeyError, match="nowhere"):
            take("nowhere")


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_file_that_was_cut_short_is_told(llama4, tmp_path, keep):
    folder, _ = llama4
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    victim = sorted(tmp_path.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:keep])
    with pytest.raises(CheckpointDamaged, match=str(tmp_path)), opened(tmp_path):
        pass


@pytest.mark.parametrize("spoilt", [None, b"\xff", b"[" * 100_000, b'{"weight_map": {"a": 1}}', b"{"])
def test_missing_shard_or_broken_index_is_told(llama4, tmp_path, spoilt):
    for file in llama4[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if spoilt is None:
        sorted(tmp_path.glob("*.safetensors"))[-1].unlink()
    else:
        (tmp_path / "model.safetensors.index.json").write_bytes(spoilt)
    with pytest.raises(CheckpointDamaged, match=str(tmp_path)), opened(tmp_path):
        pass


def test_missing_or_broken_configuration_is_told(tmp_path):
    with pytest.raises(CheckpointDamaged, match=r"config\.json"):
        read_shape(tmp_path)
    for text in ("{", "[]", '{"model_type": "llama"}', '{"model_type": "llama", "num_attention_heads": null}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointDamaged, match=r"config\.json"):
            read_shape(tmp_path)
