"""The specification says what Hugging Face's Llama 4 and Llama compute."""

from itertools import product

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

from ringfence.model.config import Config, UnknownArchitecture, read_config
from ringfence.model.reference import logits

STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "intermediate_size_mlp": 28,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
LLAMA4 = {
    "scout": {"num_local_experts": 4, "attention_chunk_size": 6, "floor_scale": 4, "attn_scale": 0.5},
    "maverick": {
        "num_local_experts": 8,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
        "attention_chunk_size": 7,
        "rope_parameters": STRETCHED,
    },
    "two experts a token": {"num_local_experts": 5, "num_experts_per_tok": 2, "no_rope_layer_interval": 2},
    "told layer by layer": {
        "num_local_experts": 3,
        "moe_layers": [0, 3],
        "no_rope_layers": [0, 1, 1, 0],
        "attn_temperature_tuning": False,
        "layer_types": ["full_attention"] * 4,
        "tie_word_embeddings": True,
    },
    "with biases": {"num_local_experts": 2, "attention_bias": True, "num_key_value_heads": 4, "floor_scale": 3},
}
LLAMA = {
    "llama": {"num_key_value_heads": 2},
    "tied and stretched": {"rope_parameters": STRETCHED, "tie_word_embeddings": True, "attention_bias": True},
}


def peer(family, changes, seed=0):
    """A small network of Hugging Face's with random weights, and what it is to us."""
    torch.manual_seed(seed)
    config, network = {
        "llama4": (Llama4TextConfig, Llama4ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    made = network(config(**SMALL | changes)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0, 0.3) if weight.dim() > 1 else weight.normal_(1, 0.2)
    return made, read_config(made.config.to_dict())


KINDS = [*product(["llama4"], LLAMA4), *product(["llama"], LLAMA)]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_reference_says_what_transformers_says(family, kind):
    made, config = peer(family, (LLAMA4 | LLAMA)[kind])
    ids = torch.randint(SMALL["vocab_size"], (23,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        theirs = made(torch.tensor([ids])).logits[0]
    assert (logits(config, made.state_dict(), ids) - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1


def test_scout_and_maverick_are_what_their_cards_say():
    scout = read_config({**Llama4TextConfig().to_dict(), "model_type": "llama4_text"})
    assert (len(scout.layers), scout.width, scout.heads, scout.kv_heads, scout.head) == (48, 5120, 40, 8, 128)
    assert all(layer.experts == 16 and layer.width == 8192 for layer in scout.layers)
    assert [index for index, layer in enumerate(scout.layers, 1) if not layer.rope] == [*range(4, 49, 4)]
    assert {layer.chunk for layer in scout.layers if layer.rope} == {8192}
    assert {layer.chunk for layer in scout.layers if not layer.rope} == {None}
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 16.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 1.0, "original_max_position_embeddings": 8192}
    long = {**Llama4TextConfig().to_dict(), "max_position_embeddings": 10_485_760, "rope_parameters": rope}
    assert read_config(long).context == 10_485_760
    assert (read_config(long).rope.factor, read_config(long).rope.original) == (16.0, 8192)
    several = Llama4TextConfig(num_local_experts=128, interleave_moe_layer_step=2, use_qk_norm=False).to_dict()
    maverick = read_config({"model_type": "llama4", "text_config": several, "vision_config": {}})
    assert [layer.experts for layer in maverick.layers[:4]] == [0, 128, 0, 128]
    assert [layer.width for layer in maverick.layers[:2]] == [16384, 8192]
    assert (scout.qk_norm, maverick.qk_norm) == (True, False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mixtral"}, "llama4, llama4_text, llama; the checkpoint is of type 'mixtral'"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "have 'gelu'"),
        ({"model_type": "llama", "mlp_bias": True}, "a bias"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, "not 'yarn'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes, says):
    with pytest.raises(UnknownArchitecture, match=says):
        read_config(SMALL | changes)


def test_older_configurations_mean_the_same():
    old = {"model_type": "llama", "rope_theta": 10_000.0, "rope_scaling": STRETCHED}
    new = {"model_type": "llama", "rope_parameters": STRETCHED}
    assert isinstance(read_config(SMALL | old), Config)
    assert read_config(SMALL | old) == read_config(SMALL | new)
