"""The shape of a network, as a checkpoint's config.json tells it. Knows no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class UnknownArchitecture(ValueError):
    """A checkpoint is of an architecture that this engine does not compute; the message names it."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al. 2021), stretched as Llama 3.1 does where `factor` is above 1.

    Attributes:
        theta: base of the wavelengths.
        factor: by how much the longest wavelengths are stretched.
        low, high: turns within `original` below which a wavelength is stretched in full, above which not at all.
        original: context length before stretching.
    """

    theta: float = 500_000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclass(frozen=True, slots=True)
class Tuning:
    """How attention without positions sharpens as the context grows: `1 + scale · log(1 + ⌊(position + 1) / floor⌋)`.

    Source: Nakanishi 2025 (arXiv 2501.19399), as Llama 4 has it.
    """

    floor: int = 8192
    scale: float = 0.1


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        rope: whether its attention knows positions.
        chunk: tokens of the aligned chunks that attention stays within; None where it sees everything before.
        experts: how many there are to choose from, beside one that all tokens share; 0 for a dense feed-forward.
        width: of the dense feed-forward, or of each expert.
    """

    rope: bool
    chunk: int | None
    experts: int
    width: int


@dataclass(frozen=True, slots=True)
class Config:
    """A decoder of the Llama family, dense or a mixture of experts.

    Attributes:
        vocabulary: token ids.
        width: of the hidden states.
        heads, kv_heads, head: query heads, key/value heads, and the width of each.
        context: tokens that the checkpoint was made for.
        eps: of the norms.
        layers: bottom first.
        top_k: experts that a token is given to.
        qk_norm: whether queries and keys of layers with positions are normalised.
        tuning: of the attention of layers without positions.
        bias: whether the attention's projections have one.
        tied: whether the head is the embedding.
        halves: whether the checkpoint rotates each head's first half against its second, as Llama 3 is stored, and not
            neighbours.
    """

    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    head: int
    context: int
    eps: float
    rope: Rope
    layers: tuple[Layer, ...]
    top_k: int = 1
    qk_norm: bool = False
    tuning: Tuning | None = None
    bias: bool = False
    tied: bool = False
    halves: bool = False


def read_config(data: Mapping[str, Any]) -> Config:
    """Read what Hugging Face's config.json says: of Llama 4 (its text part) and of dense Llama-like checkpoints.

    Raises:
        UnknownArchitecture: it is of another kind.
        KeyError, TypeError, ValueError: it is not as the kind it names should be.
    """
    kind = data.get("model_type")
    if kind not in READERS:
        raise UnknownArchitecture(f"this engine computes {', '.join(READERS)}; the checkpoint is of type {kind!r}")
    return READERS[kind](data)


def _llama4(data: Mapping[str, Any]) -> Config:
    count, chunk = int(data["num_hidden_layers"]), data.get("attention_chunk_size", 8192)
    every = int(data.get("no_rope_layer_interval", 4))
    ropes: Sequence[int] = data.get("no_rope_layers") or [int((index + 1) % every != 0) for index in range(count)]
    step = int(data.get("interleave_moe_layer_step", 1))
    sparse = data.get("moe_layers")
    sparse = set(range(step - 1, count, step) if sparse is None else sparse)
    kinds = data.get("layer_types") or ["chunked_attention" if rope else "full_attention" for rope in ropes]
    experts = int(data.get("num_local_experts", 16))
    layers = tuple(
        Layer(
            rope=bool(ropes[index]),
            chunk=int(chunk) if chunk and kinds[index] == "chunked_attention" else None,
            experts=experts if index in sparse else 0,
            width=int(data["intermediate_size"] if index in sparse else data["intermediate_size_mlp"]),
        )
        for index in range(count)
    )
    tuned = data.get("attn_temperature_tuning", True)
    tuning = Tuning(int(data.get("floor_scale", 8192)), float(data.get("attn_scale", 0.1))) if tuned else None
    return Config(
        **_common(data, theta=500_000.0),
        layers=layers,
        top_k=int(data.get("num_experts_per_tok", 1)),
        qk_norm=bool(data.get("use_qk_norm", True)),
        tuning=tuning,
    )


def _llama(data: Mapping[str, Any]) -> Config:
    if data.get("mlp_bias"):
        raise UnknownArchitecture("this engine computes no Llama whose feed-forward has a bias")
    layer = Layer(rope=True, chunk=None, experts=0, width=int(data["intermediate_size"]))
    return Config(**_common(data, theta=10_000.0), layers=(layer,) * int(data["num_hidden_layers"]), halves=True)


READERS = {
    "llama4": lambda data: _llama4(data["text_config"]),
    "llama4_text": _llama4,
    "llama": _llama,
}


def _common(data: Mapping[str, Any], theta: float) -> dict[str, Any]:
    if (act := data.get("hidden_act", "silu")) != "silu":
        raise UnknownArchitecture(f"this engine computes feed-forwards with silu; the checkpoint's have {act!r}")
    heads, width = int(data["num_attention_heads"]), int(data["hidden_size"])
    return {
        "vocabulary": int(data["vocab_size"]),
        "width": width,
        "heads": heads,
        "kv_heads": int(data.get("num_key_value_heads") or heads),
        "head": int(data.get("head_dim") or width // heads),
        "context": int(data.get("max_position_embeddings", 131_072)),
        "eps": float(data.get("rms_norm_eps", 1e-5)),
        "rope": _rope(data, theta),
        "bias": bool(data.get("attention_bias", False)),
        "tied": bool(data.get("tie_word_embeddings", False)),
    }


def _rope(data: Mapping[str, Any], theta: float) -> Rope:
    """Read rotary positions, from where newer checkpoints have them (`rope_parameters`) and older ones had."""
    told = data.get("rope_parameters") or data.get("rope_scaling") or {}
    base = float(told.get("rope_theta") or data.get("rope_theta") or theta)
    kind = told.get("rope_type", told.get("type", "default"))
    if kind == "default":
        return Rope(base)
    if kind != "llama3":
        raise UnknownArchitecture(f"this engine computes rotary positions 'default' and 'llama3', not {kind!r}")
    return Rope(
        theta=base,
        factor=float(told["factor"]),
        low=float(told["low_freq_factor"]),
        high=float(told["high_freq_factor"]),
        original=int(told["original_max_position_embeddings"]),
    )
