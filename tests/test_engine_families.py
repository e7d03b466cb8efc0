"""Small random checkpoints of several families, saved and loaded: greedily, each says what transformers' own `generate`
says, token for token."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ringfence.model.cache import PAGE, Cache
from ringfence.model.checkpoint import read_shape
from ringfence.model.engine import Engine
from ringfence.model.llama4 import Experts
from ringfence.model.loading import load, read
from ringfence.model.sampler import Sampling
from ringfence.model.stock import PREFILL, StockService

VOCABULARY = 300
GREEDY = Sampling(temperature=0, max_tokens=40)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # wide enough that replies wander instead of repeating one token
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def prompt(length):
    return [(7 * index * index + 3 * length) % VOCABULARY for index in range(length)]


def theirs(model, ids):
    said = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=GREEDY.max_tokens
    )
    return said[0, len(ids) :].tolist()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products as small as these take less time than several threads take to meet."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Our own network


LLAMA4 = {
    "scout": {"num_local_experts": 4, "floor_scale": 8, "attn_scale": 0.5},
    "maverick": {"num_local_experts": 8, "interleave_moe_layer_step": 2, "use_qk_norm": False, "floor_scale": 16},
    "two experts a token": {"num_local_experts": 5, "num_experts_per_tok": 2, "no_rope_layer_interval": 2},
}
LENGTHS = (1, 7, 16, 30, PAGE + 9)
"""Within a chunk, at its end and beyond it, and beyond a page."""


@pytest.fixture(scope="module", params=LLAMA4)
def llama4(request, tmp_path_factory):
    """A Llama 4 with experts and chunks of 16 tokens, as transformers has it and as we read what that saved."""
    torch.manual_seed(4)
    more = {"intermediate_size_mlp": 128, "attention_chunk_size": 16} | LLAMA4[request.param]
    model = Llama4ForCausalLM(Llama4TextConfig(**SIZES | more)).eval()
    path = tmp_path_factory.mktemp("llama4")
    model.save_pretrained(path)
    network, _ = read(path, read_shape(path), bits=32, threads=1)
    assert any(isinstance(block.feed_forward, Experts) for block in network.blocks)
    return model, network


def ours(network, prompts):
    """Say replies to prompts, all of which are under way together."""
    engine = Engine(network, Cache(network.config, 64 * PAGE, torch.float32), frozenset())
    said = {engine.add(ids, GREEDY): [] for ids in prompts}
    while engine.busy:
        for advance in engine.step():
            said[advance.id] += [one.token for one in advance.chosen]
    return list(said.values())


def test_mixture_of_experts_says_alone_and_together_what_transformers_says(llama4):
    model, network = llama4
    prompts = [prompt(length) for length in LENGTHS]
    expected = [theirs(model, ids) for ids in prompts]
    assert [ours(network, [ids])[0] for ids in prompts] == expected
    assert ours(network, prompts) == expected
    assert all(len(set(said)) > 6 for said in expected)  # else the two agree on nothing worth saying


# What transformers computes


STOCK = {
    "qwen3-moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1]},
    ),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 2.0}),
    "gpt-oss": (
        GptOssConfig,
        GptOssForCausalLM,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
}


def said_by(path):
    """Say replies to a short prompt and to one that is read in parts, by what was loaded from a folder."""
    service = load(path, bits=32, threads=1)
    assert isinstance(service, StockService)
    prompts = [prompt(5), prompt(PREFILL + 3)]
    said = [[one.token for step in service.generate(ids, GREEDY) for one in step.chosen] for ids in prompts]
    service.close()
    return prompts, said


@pytest.mark.parametrize("family", STOCK)
def test_mixture_of_another_family_says_what_transformers_says(family, tmp_path):
    config, kind, more = STOCK[family]
    torch.manual_seed(5)
    model = kind(config(**SIZES | more)).eval()
    model.save_pretrained(tmp_path)
    prompts, said = said_by(tmp_path)
    assert said == [theirs(model, ids) for ids in prompts]
    assert all(len(set(reply)) > 6 for reply in said)


FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""What each number of four bits means in MXFP4; 32 neighbours share a power of two."""


def test_gpt_oss_in_mxfp4_as_it_is_published_is_written_out(tmp_path):
    config, kind, more = STOCK["gpt-oss"]
    torch.manual_seed(6)
    model = kind(config(**SIZES | more)).eval()
    packed = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                experts, columns, rows = weight.shape
                blocks = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
                scales = torch.randint(123, 127, (experts, rows, columns // 32), dtype=torch.uint8)
                pairs = torch.stack([FP4[(blocks & 15).int()], FP4[(blocks >> 4).int()]], -1).flatten(-2)
                written = pairs * 2.0 ** (scales.float() - 127)[..., None]
                weight.copy_(written.flatten(-2).transpose(1, 2))
                packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: one for name, one in load_file(file).items() if f"{name}_blocks" not in packed}
    save_file(kept | packed, file, metadata={"format": "pt"})
    told = json.loads((tmp_path / "config.json").read_text())
    told["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    (tmp_path / "config.json").write_text(json.dumps(told))
    prompts, said = said_by(tmp_path)
    assert said == [theirs(model, ids) for ids in prompts]
