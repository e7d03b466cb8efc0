"""The shape of a network, as a checkpoint's config.json tells it. Knows no tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

MOST_LAYERS = 1000
"""Several times as many as any network has, and few enough to go through one by one."""


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


def mixtures(count: int, interleave: int) -> range:
    """Return which of so many layers are mixtures where one in `interleave` is: the last of each so many."""
    return range(interleave - 1, count, interleave)


def read_config(data: Any) -> Config:
    """Read what Hugging Face's config.json says: of Llama 4 (its text part) and of dense Llama-like checkpoints.

    Raises:
        UnknownArchitecture: it is of another kind.
        ValueError: it is not as the kind it names should be; the message begins with the entry.
    """
    kind = _object(data, "it").get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise UnknownArchitecture(f"this engine computes {', '.join(READERS)}; the checkpoint is of type {kind!r}")
    return READERS[kind](data)


def _llama4(data: Mapping[str, Any]) -> Config:
    count = _layers(data)
    every, step = _whole(data, "no_rope_layer_interval", 4), _whole(data, "interleave_moe_layer_step", 1)
    ropes = _of_each(data, "no_rope_layers", (0, 1), count) or [int((index + 1) % every != 0) for index in range(count)]
    told = ["chunked_attention" if rope else "full_attention" for rope in ropes]
    kinds = _of_each(data, "layer_types", ("chunked_attention", "full_attention"), count) or told
    # null is no chunks, which is not the same as to say nothing
    chunk = _whole(data, "attention_chunk_size", 8192) if data.get("attention_chunk_size", 0) is not None else None
    experts, sparse = _whole(data, "num_local_experts", 16), data.get("moe_layers")
    sparse = mixtures(count, step) if sparse is None else sparse
    if not isinstance(sparse, list | tuple | range) or not set(map(str, sparse)) <= set(map(str, range(count))):
        raise ValueError(f"moe_layers must be some of the layers 0 to {count - 1}, got {short(sparse)}")
    layers = tuple(
        Layer(
            rope=bool(ropes[index]),
            chunk=chunk if kinds[index] == "chunked_attention" else None,
            experts=experts if index in sparse else 0,
            width=_whole(data, "intermediate_size" if index in sparse else "intermediate_size_mlp"),
        )
        for index in range(count)
    )
    tuning = Tuning(_whole(data, "floor_scale", 8192), _real(data, "attn_scale", 0.1))
    return Config(
        **_common(data, theta=500_000.0),
        layers=layers,
        top_k=_whole(data, "num_experts_per_tok", 1, most=experts),
        qk_norm=bool(data.get("use_qk_norm", True)),
        tuning=tuning if data.get("attn_temperature_tuning", True) else None,
    )


def _llama(data: Mapping[str, Any]) -> Config:
    if data.get("mlp_bias"):
        raise UnknownArchitecture("this engine computes no Llama whose feed-forward has a bias")
    layer = Layer(rope=True, chunk=None, experts=0, width=_whole(data, "intermediate_size"))
    return Config(**_common(data, theta=10_000.0), layers=(layer,) * _layers(data), halves=True)


READERS = {
    "llama4": lambda data: _llama4(_object(data.get("text_config"), "text_config")),
    "llama4_text": _llama4,
    "llama": _llama,
}


def _common(data: Mapping[str, Any], theta: float) -> dict[str, Any]:
    if (act := data.get("hidden_act", "silu")) != "silu":
        raise UnknownArchitecture(f"this engine computes feed-forwards with silu; the checkpoint's have {act!r}")
    heads, width = _whole(data, "num_attention_heads"), _whole(data, "hidden_size")
    kv_heads = _whole(data, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and {kv_heads}")
    head = _whole(data, "head_dim", width // heads, least=2)
    if head % 2:
        raise ValueError(f"head_dim must be even, because positions turn pairs; got {head}")
    return {
        "vocabulary": _whole(data, "vocab_size"),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head": head,
        "context": _whole(data, "max_position_embeddings", 131_072),
        "eps": _real(data, "rms_norm_eps", 1e-5),
        "rope": _rope(data, theta),
        "bias": bool(data.get("attention_bias", False)),
        "tied": bool(data.get("tie_word_embeddings", False)),
    }


def _rope(data: Mapping[str, Any], theta: float) -> Rope:
    """Read rotary positions, from where newer checkpoints have them (`rope_parameters`) and older ones had."""
    told = _object(data.get("rope_parameters") or data.get("rope_scaling") or {}, "rope_parameters")
    base = _real(told, "rope_theta", _real(data, "rope_theta", theta, least=1), least=1)
    kind = told.get("rope_type", told.get("type", "default"))
    if kind == "default":
        return Rope(base)
    if kind != "llama3":
        raise UnknownArchitecture(f"this engine computes rotary positions 'default' and 'llama3', not {kind!r}")
    low, high = _real(told, "low_freq_factor"), _real(told, "high_freq_factor")
    if low > high:
        raise ValueError(f"high_freq_factor must be at least low_freq_factor, got {high:g} and {low:g}")
    return Rope(base, _real(told, "factor", least=1), low, high, _whole(told, "original_max_position_embeddings"))


# Entries: a number that is missing or null is the default, where there is one.


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a JSON object, got {short(value)}")
    return value


def _layers(data: Mapping[str, Any]) -> int:
    return _whole(data, "num_hidden_layers", most=MOST_LAYERS)


def _whole(
    data: Mapping[str, Any], key: str, default: int | None = None, least: int = 1, most: int = (1 << 31) - 1
) -> int:
    value = default if data.get(key) is None else data[key]
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
        raise ValueError(f"{key} must be a whole number between {least} and {most}, got {short(value)}")
    return number


def _real(data: Mapping[str, Any], key: str, default: float | None = None, least: float = 0) -> float:
    value = default if data.get(key) is None else data[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ValueError(f"{key} must be a number of at least {least:g}, got {short(value)}")
    return float(value)


def _of_each(data: Mapping[str, Any], key: str, allowed: Sequence[Any], count: int) -> Sequence[Any]:
    """Read what is told of each layer; none where the entry is empty, as transformers takes it."""
    told = data.get(key) or ()
    if not isinstance(told, list | tuple) or (told and len(told) != count) or not all(one in allowed for one in told):
        what = " or ".join(map(str, allowed))
        raise ValueError(f"{key} must be one of {what} for each of {count} layers, got {short(told)}")
    return told
