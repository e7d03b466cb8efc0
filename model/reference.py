"""The specification: what the network computes, in the plainest words. Slow, without a cache, in float32.

Every token is computed anew from the beginning of the text, and the experts one by one. What is fast is held to it.
Source: Llama 4's model card and Hugging Face's `modeling_llama4`; names of weights are Hugging Face's.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from ringfence.model.config import Config, Layer, Rope

Weights = Mapping[str, Tensor]


def logits(config: Config, weights: Weights, ids: Sequence[int]) -> Tensor:
    """Return what the network says of the token after each token (T, vocabulary), in float32."""
    weights = {name: weight.float() for name, weight in weights.items()}
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[torch.tensor(ids)]  # (T, width)
    for index, layer in enumerate(config.layers):
        of_layer = _below(weights, f"model.layers.{index}.")
        x = x + _attention(config, layer, of_layer, _norm(x, config.eps) * of_layer["input_layernorm.weight"])
        x = x + _feed_forward(
            config, layer, of_layer, _norm(x, config.eps) * of_layer["post_attention_layernorm.weight"]
        )
    head = embedding if config.tied else weights["lm_head.weight"]
    return (_norm(x, config.eps) * weights["model.norm.weight"]) @ head.T


def _attention(config: Config, layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    """Mix what the tokens before say, each head by itself (T, width)."""
    length = len(x)
    q, k, v = (
        _linear(_below(weights, f"self_attn.{name}_proj."), x).view(length, -1, config.head).transpose(0, 1)
        for name in ("q", "k", "v")
    )  # (heads, T, head), of k and v (kv_heads, T, head)
    if layer.rope:
        angles = torch.arange(length)[:, None] * frequencies(config.rope, config.head)  # (T, head / 2)
        q, k = _turned(q, angles, config.halves), _turned(k, angles, config.halves)
        if config.qk_norm:
            q, k = _norm(q, config.eps), _norm(k, config.eps)
    elif config.tuning:
        steps = ((torch.arange(length) + 1) / config.tuning.floor).floor()
        q = q * (1 + config.tuning.scale * torch.log1p(steps))[:, None]
    group = config.heads // config.kv_heads
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = q @ k.transpose(1, 2) / math.sqrt(config.head)  # (heads, T, T)
    at = torch.arange(length)
    seen = at[:, None] >= at
    if layer.chunk:
        seen &= at[:, None] // layer.chunk == at // layer.chunk
    mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
    return _linear(_below(weights, "self_attn.o_proj."), mixed.transpose(0, 1).reshape(length, -1))


def _feed_forward(config: Config, layer: Layer, weights: Weights, x: Tensor) -> Tensor:
    """Compute on each token by itself (T, width)."""
    if not layer.experts:
        return _gated(_below(weights, "mlp." if "mlp.up_proj.weight" in weights else "feed_forward."), x)
    weights = _below(weights, "feed_forward.")
    says = x @ weights["router.weight"].T  # (T, experts)
    out = _gated(_below(weights, "shared_expert."), x)
    for token, row in enumerate(says):
        for expert in row.topk(config.top_k).indices:
            # What the router says scales what the expert is given, not what it gives.
            given = x[token] * row[expert].sigmoid()
            gate, up = (given @ weights["experts.gate_up_proj"][expert]).chunk(2)
            out[token] += (silu(gate) * up) @ weights["experts.down_proj"][expert]
    return out


def _gated(weights: Weights, x: Tensor) -> Tensor:
    gate, up, down = (weights[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def _linear(weights: Weights, x: Tensor) -> Tensor:
    return x @ weights["weight"].T + weights.get("bias", torch.zeros(()))


def _norm(x: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def _turned(x: Tensor, angles: Tensor, halves: bool) -> Tensor:
    """Turn pairs of features (…, T, head) by their angles: neighbours, or the first half against the second."""
    pairs = x.view(*x.shape[:-1], 2, -1).transpose(-1, -2) if halves else x.view(*x.shape[:-1], -1, 2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(()), angles))
    return (turned.transpose(-1, -2) if halves else turned).flatten(-2)


def frequencies(rope: Rope, head: int) -> Tensor:
    """Return by how many radians each pair of features turns from one position to the next (head / 2,).

    Source: Llama 3.1's stretching: long wavelengths in full, short ones not at all, those between in proportion.
    """
    plain = rope.theta ** (-torch.arange(0, head, 2).float() / head)
    turns = rope.original * plain / (2 * math.pi)
    share = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)  # of the frequency as it was
    return plain * (share + (1 - share) / rope.factor)


def _below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
