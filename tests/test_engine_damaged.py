"""Checkpoints that are not what they say: refused with what is wrong and where, before anything is answered."""

import json
import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from typer.testing import CliRunner

from ringfence.model import memory
from ringfence.model.checkpoint import opened, read_shape
from ringfence.model.config import Config, UnknownArchitecture, read_config
from ringfence.model.loading import choose, load, read
from ringfence.model.memory import count_weights
from ringfence.model.sampler import Sampling
from ringfence.model.upcycle import start
from ringfence.model.weights import DELTA, NotEnoughMemory, WeightsDamaged, revision
from ringfence.proxy.cli.bench import app as bench
from ringfence.proxy.cli.engine import app as engine

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SIGHT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vision_output_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
}
TEXT = {
    **SIZES,
    "model_type": "llama4_text",
    "intermediate_size_mlp": 128,
    "head_dim": 16,
    "num_local_experts": 4,
    "moe_layers": [1, 3],
    "no_rope_layers": [1, 1, 1, 0],
    "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Llama, a Mixtral, and a Llama 4 that sees."""
    path = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path / "llama")
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).save_pretrained(path / "mixtral")
    sees = Llama4Config(text_config=TEXT, vision_config=SIGHT)
    Llama4ForConditionalGeneration(sees).save_pretrained(path / "sees")
    for folder in path.iterdir():
        Tokenizer(models.BPE(vocab={chr(97 + id): id for id in range(26)}, merges=[])).save(
            str(folder / "tokenizer.json")
        )
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return path


@pytest.fixture
def copy(made, tmp_path):
    """Copy a checkpoint, with some entries of its configuration changed."""

    def changed(kind, **changes):
        shutil.copytree(made / kind, tmp_path / kind)
        file = tmp_path / kind / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return tmp_path / kind

    return changed


def test_small_configuration_is_good_as_it_is():
    assert len(read_config(TEXT).layers) == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number between 1 and"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, got 4 and 3"),
        ({"head_dim": 1}, "head_dim must be a whole number between 2 and .*, got 1"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok must be a whole number between 1 and 4, got 5"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers must be one of 0 or 1 for each of 4 layers, got \[1, 0\]"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval must be"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step must be"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types must be one of chunked_attention or full_attention"),
        ({"moe_layers": [4]}, r"moe_layers must be some of the layers 0 to 3, got \[4\]"),
        ({"floor_scale": 0}, "floor_scale must be"),
        ({"attention_chunk_size": -3}, "attention_chunk_size must be .*, got -3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number between 1 and 1000, got 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be .* got True"),
        ({"hidden_size": "16"}, "hidden_size must be .* got '16'"),
        ({"vocab_size": None}, "vocab_size must be .* got None"),
        ({"intermediate_size_mlp": None}, "intermediate_size_mlp must be"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number of at least 0, got nan"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be a number of at least 1, got 0"),
        ({"rope_parameters": []}, None),
        ({"rope_parameters": [1]}, "rope_parameters must be a JSON object"),
        ({"rope_parameters": TEXT["rope_parameters"] | {"low_freq_factor": 2}}, "high_freq_factor must be at least"),
        ({"model_type": "llama4"}, "text_config must be a JSON object, got None"),
    ],
)
def test_configuration_that_is_no_network_is_refused_by_the_entry(changes, says):
    if says is None:  # the default
        assert isinstance(read_config(TEXT | changes), Config)
        return
    with pytest.raises(ValueError, match=says) as refused:
        read_config(TEXT | changes)
    assert not isinstance(refused.value, UnknownArchitecture)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*TEXT, "attention_chunk_size", "floor_scale", "attn_scale"]), ANYTHING), ANYTHING
)
def test_whatever_stands_in_a_configuration_it_is_read_or_refused(changes, whole):
    for data in (TEXT | changes, {**TEXT, "model_type": "llama"} | changes, whole):
        with suppress(ValueError):
            assert read_config(data).layers


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]", '{"model_type": []}', "\xff"])
def test_broken_json_is_told_with_its_file(copy, file, content):
    path = copy("llama")
    (path / file).write_text(content, encoding="latin-1")
    if file == "generation_config.json" and content.startswith(("[", '{"')):
        load(path, threads=1).close()  # it says nothing of how replies end
        return
    with pytest.raises(WeightsDamaged, match=file.replace(".", r"\.") if content != '{"model_type": []}' else "cannot"):
        load(path, threads=1)


def test_what_sees_is_left_out_and_said_once(made, caplog):
    with caplog.at_level(logging.WARNING, "ringfence"):
        service = load(made / "sees", threads=1)
    assert len(list(service.generate([1, 2], Sampling(max_tokens=3)))) > 0
    service.close()
    assert caplog.messages == [
        f"{made / 'sees'}: the part that sees is not computed (26 tensors; multi_modal_projector: 1, vision_model: 25)"
    ]


def test_info_says_what_is_left_out_and_how_long_the_context_is(made):
    shown = CliRunner().invoke(engine, ["info", str(made / "sees")])
    assert shown.exit_code == 0
    said = " ".join(shown.stdout.split())
    for fact in ("context 128 tokens", "ringfence's own engine", "left out the part that sees is not computed (26"):
        assert fact in said
    assert "left out" not in CliRunner().invoke(engine, ["info", str(made / "llama")]).stdout
    mixtral = " ".join(CliRunner().invoke(engine, ["info", str(made / "mixtral")]).stdout.split())
    assert "128 tokens" in mixtral
    assert "transformers, slower" in mixtral
    assert "mixtral" in mixtral.partition("slower")[2]


def test_tensors_that_the_configuration_does_not_know_are_damage_unless_they_repeat_it(copy):
    path = copy("llama", tie_word_embeddings=True)  # as if lm_head.weight were the embedding: it stays unread
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, path / "model.safetensors")
    load(path, threads=1).close()
    save_file(tensors | {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}, path / "model.safetensors")
    with pytest.raises(WeightsDamaged, match=r"knows nothing of 1 of its tensors, such as model\.layers\.1\..*bias"):
        load(path, threads=1)


def test_network_of_fewer_layers_than_there_are_is_damage(copy):
    with pytest.raises(WeightsDamaged, match=r"knows nothing of 18 of its tensors, such as model\.layers\.2"):
        load(copy("llama", num_hidden_layers=2), threads=1)


def test_missing_tensor_is_told_by_its_name(copy):
    with pytest.raises(WeightsDamaged, match=r"there is no tensor 'model\.layers\.4\.input_layernorm\.weight'"):
        load(copy("llama", num_hidden_layers=5), threads=1)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("mixtral", {"num_hidden_layers": 6}, r"18 tensors .* of type 'mixtral' .* missing .* model\.layers\.4"),
        ("mixtral", {"intermediate_size": 32}, "of another shape, such as model.layers.0.mlp.experts"),
        ("llama", {"model_type": "bert"}, "of type 'bert' has are missing"),
        ("mixtral", {"num_attention_heads": 0}, "ZeroDivisionError"),
        ("mixtral", {"num_hidden_layers": 10**9}, "1000000000 layers"),
        ("llama", {"model_type": "nothing that is"}, "transformers: ValueError"),
    ],
)
def test_transformers_makes_nothing_up(copy, kind, changes, says):
    with pytest.raises(WeightsDamaged, match=says):
        load(copy(kind, **changes), threads=1)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_what_does_not_fit_with_its_keys_and_values_is_refused(made, kind, monkeypatch):
    weights = 2 * count_weights(made / kind)
    monkeypatch.setattr(memory, "available", lambda: weights + 100)
    with pytest.raises(NotEnoughMemory, match="keys and values of 128 tokens"):
        load(made / kind, bits=16, threads=1)


def held_by(something):
    """Bytes of every tensor that something is made of."""
    match something:
        case torch.Tensor():
            return something.nbytes
        case list() | tuple():
            return sum(map(held_by, something))
    names = getattr(something, "__dict__", None) or getattr(something, "__slots__", ())
    return sum(held_by(getattr(something, name)) for name in names)


def test_mixture_in_four_bits_takes_no_more_than_what_it_is_weighed_at(tmp_path, monkeypatch):
    """Stored in float32; each weight is kept in four bits and in eight, and the words as they are."""
    torch.manual_seed(0)
    Llama4ForCausalLM(Llama4TextConfig(**TEXT | {"intermediate_size": 128, "vocab_size": 512})).save_pretrained(
        tmp_path
    )
    keys_and_values = 2 * 4 * 2 * 16 * 2 * 128
    weights = count_weights(tmp_path) * 13 // 8 + 512 * 64 * 2
    monkeypatch.setattr(memory, "available", lambda: weights + keys_and_values - 1)
    with pytest.raises(NotEnoughMemory, match="keys and values of 128 tokens"):
        read(tmp_path, read_shape(tmp_path), 4, 1)
    monkeypatch.setattr(memory, "available", lambda: weights + keys_and_values)
    network, _ = read(tmp_path, read_shape(tmp_path), 4, 1)
    assert count_weights(tmp_path) * 12 // 8 < held_by([network.blocks, network.head, network.words]) <= weights


@pytest.mark.parametrize("interleave", [1, 2])
def test_experts_beside_their_parent_take_no_more_than_what_they_are_weighed_at(copy, interleave):
    path = copy("llama")
    config = read_shape(path)
    with opened(path) as take:
        delta = start(config, take, revision(path), 8, 8, torch.Generator(), interleave=interleave)
    learnt = {name: one.bfloat16() if one.is_floating_point() else one for name, one in delta.tensors.items()}
    replace(delta, tensors=learnt).save(path / DELTA)
    grown, weighed = read(path, config, 32, 1)[0], count_weights(path)
    (path / DELTA).unlink()
    dense, less = read(path, config, 32, 1)[0], count_weights(path)
    added = held_by(grown.blocks) - held_by(dense.blocks)
    assert 2 * (weighed - less) < added <= 4 * (weighed - less)


@pytest.mark.parametrize(
    ("stored", "weights"),
    [
        (torch.ones(6, 8), 48),
        (torch.ones(6, 8, dtype=torch.bfloat16), 48),
        (torch.ones(6, 8, dtype=torch.float8_e4m3fn), 48),
        (torch.ones(6, 4, dtype=torch.uint8), 48),
        (torch.ones(6, 1, dtype=torch.int32), 48),
    ],
)
def test_weights_are_counted_and_not_how_many_bits_they_are_stored_with(stored, weights, tmp_path):
    save_file({"one": stored}, tmp_path / "model.safetensors")
    assert count_weights(tmp_path) == weights


@pytest.mark.parametrize(("bits", "kept", "more"), [(4, 13, 16), (8, 17, 24)])
def test_graph_of_many_lanes_is_left_out_where_only_one_context_fits(bits, kept, more, made, monkeypatch):
    path = made / "llama"
    free = count_weights(path) * kept // 8 + 64 * 64 * 4 + 128 * 2 * 4 * 2 * 16 * 4
    for beside, together in ((0, False), (count_weights(path) * more // 8, True)):
        monkeypatch.setattr(memory, "available", lambda beside=beside: free + beside)
        network, cache = read(path, read_shape(path), bits, 1)
        assert (network.together, cache.tokens) == (together, 128)


def test_weights_are_kept_in_eight_bits_where_there_is_memory_and_a_graph(made, monkeypatch):
    path = made / "llama"
    config, count = read_shape(path), count_weights(path)
    eight = count * 17 // 8 + 64 * 64 * 4 + 128 * 2 * 4 * 2 * 16 * 4
    for free, bits in ((eight, 8), (eight - 1, 4), (None, 8)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        assert choose(path, config, None) == bits


def test_weights_that_no_graph_computes_are_kept_in_four(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 80})).save_pretrained(tmp_path)
    assert choose(tmp_path, read_shape(tmp_path), None) == 4


def test_context_that_is_not_used_to_its_end_is_said_by_load_and_info(copy, caplog):
    path = copy("llama", max_position_embeddings=1 << 20)
    with caplog.at_level(logging.WARNING, "ringfence"):
        service = load(path, threads=1)
    service.close()
    assert service.context == 1 << 17
    assert caplog.messages == ["llama: of its context of 1048576 tokens 131072 are used at most"]
    shown = CliRunner().invoke(engine, ["info", str(path)])
    assert "1048576 tokens, of which 131072 are used at most" in shown.stdout


@pytest.mark.parametrize(("file", "content"), [("tokenizer.json", '{"a'), ("tokenizer_config.json", "[")])
def test_chat_and_convert_tell_of_a_broken_tokenizer(copy, file, content):
    path = copy("llama")
    (path / file).write_text(content)
    shown = CliRunner().invoke(engine, ["chat", str(path)], input="a\n")
    assert (shown.exit_code, f"{path / file} cannot be read" in shown.stderr) == (2, True)
    if file == "tokenizer.json":
        shown = CliRunner().invoke(engine, ["convert", str(path), str(path / "out"), "--text", str(path / file)])
        assert (shown.exit_code, f"{path / file} cannot be read" in shown.stderr) == (2, True)


@pytest.mark.parametrize("command", ["info", "bench"])
def test_commands_tell_of_a_broken_configuration(command, copy):
    path = copy("llama", num_attention_heads=0)
    if command == "info":
        shown = CliRunner().invoke(engine, ["info", str(path)])
    else:
        shown = CliRunner().invoke(bench, ["engine", str(path)])
    assert shown.exit_code == 2
    assert f"{path / 'config.json'} cannot be used: num_attention_heads must be" in shown.stderr


def test_bench_says_which_networks_it_measures(made: Path):
    shown = CliRunner().invoke(bench, ["engine", str(made / "mixtral")])
    assert (shown.exit_code, "of type 'mixtral'" in shown.stderr) == (2, True)
