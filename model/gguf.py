"""Reads a GGUF file, llama.cpp's container, as the checkpoint that it was made from: by Hugging Face's names.

Of dense Llamas and of Llama 4. Tensors are mapped into memory, and dequantised one at a time when they are asked for.
What cannot be computed as the file means it is refused when it is opened. Knows nothing of tokenizers.

Source: GGUF's specification; llama.cpp for the order of its rows, and for what it takes for granted of every Llama 4.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from torch import Tensor

from ringfence.model.checkpoint import CheckpointDamaged
from ringfence.model.config import Config, Rope, UnknownArchitecture, read_config
from ringfence.model.reference import frequencies

TENSORS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names for the tensors of a Llama, and Hugging Face's."""

TENSORS4: Mapping[str, str] = {
    **{kind: name.replace("mlp.", "feed_forward.") for kind, name in TENSORS.items()},
    "ffn_gate_inp": "feed_forward.router",
    "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
    "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
    "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
    "ffn_gate_exps": "feed_forward.experts.gate_up_proj",
    "ffn_up_exps": "feed_forward.experts.gate_up_proj",
    "ffn_down_exps": "feed_forward.experts.down_proj",
}
"""The same of Llama 4."""

READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}
"""What a file says of its network that is used here."""

READ4 = {*READ, "expert_count", "expert_feed_forward_length", "expert_used_count", "interleave_moe_layer_step"}

FIXED: Mapping[str, Container[object]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_gating_func": (ExpertGatingFuncType.SIGMOID,),
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": (0.0, 1.0),
}
"""What else a file may say, if it says it so: any other setting could mean anything, and is refused."""

IDLE = {"rope.scaling.original_context_length", "rope.scaling.finetuned"}
"""What says nothing where positions are not scaled."""

STRETCHES = ((1.0, 4.0, 8192), (1.0, 1.0, 8192))
"""How Llama 3.1 and after, and Llama 4, stretch long wavelengths: low, high, original (see `Rope`). A file has only
what comes of it, a divisor of each frequency."""


@dataclass(frozen=True, slots=True)
class Gguf:
    """An open GGUF file; a `Take`.

    Attributes:
        config: of its network.
        settings: the same as Hugging Face's config.json has it, with the special tokens.
        tensors: by Hugging Face's names, what reads each.
    """

    config: Config
    settings: Mapping[str, Any]
    tensors: Mapping[str, Callable[[], Tensor]]
    _reader: GGUFReader

    def __call__(self, name: str) -> Tensor:
        """Read one tensor, in float32; raises KeyError where there is none of that name."""
        return self.tensors[name]()

    def field(self, key: str) -> Any:
        """Return what the file says of anything, such as its tokenizer; None where it says nothing."""
        found = self._reader.get_field(key)
        return found.contents() if found else None

    def forms(self) -> tuple[str, ...]:
        """Return GGUF's names of what its tensors are kept as, the one with the most bytes first."""
        bytes_of = Counter[str]()
        for tensor in self._reader.tensors:
            bytes_of[tensor.tensor_type.name] += int(tensor.n_bytes)
        return tuple(name for name, _ in bytes_of.most_common())


def read(file: Path) -> Gguf:
    """Open a file: its names and settings are read, its tensors are not.

    Raises:
        UnknownArchitecture: it is of a kind, or has something about it, that this engine does not compute.
        CheckpointDamaged: it is missing, cut short, or contradicts itself.
    """
    try:
        with file.open("rb") as start:
            if start.read(len(MAGIC)) != MAGIC:
                raise CheckpointDamaged(f"{file} cannot be read: it is no GGUF file")
        return _opened(_Reader(file))
    except UnknownArchitecture as error:
        raise UnknownArchitecture(f"{file}: {error}") from error
    except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointDamaged(f"{file} cannot be read: {error!r}") from error


MAGIC = b"GGUF"
"""What every file begins with."""


class _Reader(GGUFReader):
    """Reads no further than the file goes; the package's own would go on with nothing, as long as a length says."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        found = super()._get(offset, dtype, count, override_order)
        if len(found) < count:
            raise ValueError(f"it ends at byte {len(self.data)}, in the middle of something")
        return found


def _opened(reader: GGUFReader) -> Gguf:
    if reader.byte_order != "I":
        raise UnknownArchitecture("its bytes are in the order of another kind of machine")
    kind = reader.fields["general.architecture"].contents()
    if kind not in KINDS:
        raise UnknownArchitecture(f"this engine computes GGUF files of {' and '.join(KINDS)}, not of {kind!r}")
    if (parts := reader.get_field("split.count")) and parts.contents() > 1:
        raise UnknownArchitecture(f"it is one part of {parts.contents()}; join them with llama-gguf-split --merge")
    said = {
        key.removeprefix(f"{kind}."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(f"{kind}.")
    }
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    for one in {tensor.tensor_type for tensor in reader.tensors}:
        _check_type(one)
    used, names, describe = KINDS[kind]
    _check_settings(said, used)
    settings = describe(said) | _common(said, by_name)
    for role in ("bos", "eos", "padding"):
        if found := reader.get_field(f"tokenizer.ggml.{role}_token_id"):
            settings[f"{role.removesuffix('ding')}_token_id"] = found.contents()
    config = read_config(settings)
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads} if config.halves else {}
    return Gguf(config, settings, _tensors(by_name, names, heads), reader)


def _check_type(kind: GGMLQuantizationType) -> None:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise UnknownArchitecture(f"it has tensors of type {kind.name}, which cannot be dequantised here") from None


def _check_settings(said: Mapping[str, Any], used: Container[str]) -> None:
    for key, value in said.items():
        if key in used and isinstance(value, list):
            raise UnknownArchitecture(f"its {key} is another from layer to layer, which this engine does not compute")
        if key not in used and key not in IDLE and value not in FIXED.get(key, ()):
            raise UnknownArchitecture(f"its {key} is {value!r}, which this engine does not compute")


# config.json


def _common(said: Mapping[str, Any], tensors: Mapping[str, ReaderTensor]) -> dict[str, Any]:
    heads, width = said["attention.head_count"], said["embedding_length"]
    head = said.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.get(key, head) != head:
            raise UnknownArchitecture(f"its heads are {head} wide, and {key} is {said[key]}")
    settings = {
        "vocab_size": said.get("vocab_size", len(tensors["token_embd.weight"].data)),
        "hidden_size": width,
        "intermediate_size": said.get("expert_feed_forward_length", said["feed_forward_length"]),
        "num_hidden_layers": said["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": said.get("attention.head_count_kv", heads),
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": said["context_length"],
        "rope_theta": said.get("rope.freq_base", 10_000.0),
        "rms_norm_eps": said["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if "rope_freqs.weight" in tensors:
        divisors = _plain(tensors["rope_freqs.weight"])
        settings["rope_scaling"] = _stretch(divisors, settings["rope_theta"], head)
    return settings


def _stretch(divisors: Tensor, theta: float, head: int) -> dict[str, object]:
    """Say how wavelengths are stretched by so much each (head / 2,)."""
    plain, factor = frequencies(Rope(theta), head), float(divisors.max())
    for low, high, original in STRETCHES:
        stretched = frequencies(Rope(theta, factor, low, high, original), head)
        if divisors.shape == plain.shape and torch.allclose(plain / divisors, stretched, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UnknownArchitecture("its rope_freqs.weight is not how Llama 3 or Llama 4 stretch their positions")


def _llama(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def _llama4(said: Mapping[str, Any]) -> dict[str, Any]:
    if not said["expert_count"]:
        raise UnknownArchitecture("it is of Llama 4's form without experts, which this engine does not compute")
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "intermediate_size_mlp": said["feed_forward_length"],
        "num_local_experts": said["expert_count"],
        "num_experts_per_tok": said["expert_used_count"],
        "interleave_moe_layer_step": said["interleave_moe_layer_step"],
        # A file says nothing of these. As llama.cpp has it, they are Scout's and Maverick's; and it is by the number of
        # experts that it tells Maverick, which alone does not normalise queries and keys.
        "use_qk_norm": said["expert_count"] != 128,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }


KINDS: Mapping[str, tuple[Container[str], Mapping[str, str], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "llama": (READ, TENSORS, _llama),
    "llama4": (READ4, TENSORS4, _llama4),
}
"""Of each architecture: what is used of what a file says of it, names, and what config.json says only of this one."""


# Tensors


def _tensors(
    by_name: Mapping[str, ReaderTensor], names: Mapping[str, str], heads: Mapping[str, int]
) -> dict[str, Callable[[], Tensor]]:
    """Return what reads each tensor; `heads` of those that GGUF has in another order."""
    made: dict[str, Callable[[], Tensor]] = {}
    for full, tensor in by_name.items():
        if full == "rope_freqs.weight":
            continue
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", full)
        if not found or found[2] not in names:
            raise UnknownArchitecture(f"it has a tensor {full}, which this engine does not know")
        layer, kind = found.groups()
        name = f"model.layers.{layer}.{names[kind]}" if layer else names[kind]
        if kind.endswith("_exps"):
            parts = ("ffn_down_exps",) if kind == "ffn_down_exps" else ("ffn_gate_exps", "ffn_up_exps")
            made[name] = partial(_backward, *(by_name[f"blk.{layer}.{part}.weight"] for part in parts))
        elif kind in heads:
            made[f"{name}.weight"] = partial(_by_halves, tensor, heads[kind])
        else:
            made[f"{name}.weight"] = partial(_plain, tensor)
    return made


def _plain(tensor: ReaderTensor) -> Tensor:
    """Read (out, in), or whatever shape it is of."""
    return torch.tensor(dequantize(tensor.data, tensor.tensor_type))


def _by_halves(tensor: ReaderTensor, heads: int) -> Tensor:
    """Read rows of which GGUF has each rotary pair side by side, Hugging Face's Llamas half a head apart."""
    rows = _plain(tensor)
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _backward(*tensors: ReaderTensor) -> Tensor:
    """Read products of experts (experts, out, in), one after the other, as Hugging Face has them (experts, in, out)."""
    return torch.cat([_plain(tensor) for tensor in tensors], 1).transpose(1, 2)
