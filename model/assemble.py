"""Puts a network together from a checkpoint's tensors, by Hugging Face's names, one layer after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ringfence.model.config import Config, Layer
from ringfence.model.delta import DOWN, GATE_UP, ROUTER, SHARED, Delta
from ringfence.model.linear import Form, Linear, Plain
from ringfence.model.llama4 import Attention, Block, Decoder, Experts, FeedForward, Grown


@dataclass(frozen=True, slots=True)
class Forms:
    """What products are kept in.

    Attributes:
        layers: those of the layers.
        experts: those of low rank that make experts.
        head: the head, which loses most by few bits.
    """

    layers: Form
    experts: Form
    head: Form


Take = Callable[[str], Tensor]
"""Reads a tensor by its name. Raises KeyError where the checkpoint has none of it."""


def assemble(
    config: Config,
    take: Take,
    form: Form | Forms = Plain.of,
    dtype: torch.dtype = torch.float32,
    delta: Delta | None = None,
) -> Decoder:
    """Read every tensor once, and keep those of products in a form of their own.

    Args:
        form: of all products, or of each kind.
        delta: what makes a dense network a mixture of experts.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one has another shape than the configuration says.
        CheckpointDamaged: the delta is to a network of another shape.
    """

    def read(name: str, *shape: int) -> Tensor:
        tensor = take(name)
        if tensor.shape != shape:
            raise ValueError(f"{name} is of shape {tuple(tensor.shape)}, not {shape}")
        return tensor.to(dtype)

    def below(prefix: str) -> Callable[..., Tensor]:
        return lambda name, *shape: read(f"{prefix}{name}", *shape)

    words = read("model.embed_tokens.weight", config.vocabulary, config.width)
    forms = form if isinstance(form, Forms) else Forms(form, form, form)
    blocks = [_block(config, index, below(f"model.layers.{index}."), forms) for index in range(len(config.layers))]
    if delta:
        for index in filter(delta.grows, range(len(blocks))):
            blocks[index] = _grown(blocks[index], index, config, delta, forms.experts, dtype)
    head = words if config.tied else read("lm_head.weight", config.vocabulary, config.width)
    return Decoder(config, words, blocks, read("model.norm.weight", config.width), forms.head(head, None))


def _block(config: Config, index: int, read: Callable[..., Tensor], forms: Forms) -> Block:
    layer = config.layers[index]
    return Block(
        config.eps,
        read("input_layernorm.weight", config.width),
        _attention(config, index, read, forms),
        read("post_attention_layernorm.weight", config.width),
        _experts(config, layer, read, forms) if layer.experts else _dense(config, layer, read, forms),
    )


def _attention(config: Config, index: int, read: Callable[..., Tensor], forms: Forms) -> Attention:
    rows = {"q": config.heads * config.head, "k": config.kv_heads * config.head, "v": config.kv_heads * config.head}

    def part(name: str, kind: str, *shape: int) -> Tensor:
        tensor = read(f"self_attn.{name}_proj.{kind}", rows[name], *shape)
        return neighbours(tensor, config.head) if config.halves and name != "v" else tensor

    qkv = torch.cat([part(name, "weight", config.width) for name in rows])
    bias = torch.cat([part(name, "bias") for name in rows]) if config.bias else None
    out = read("self_attn.o_proj.weight", config.width, rows["q"])
    out_bias = read("self_attn.o_proj.bias", config.width) if config.bias else None
    return Attention(config, config.layers[index], index, forms.layers(qkv, bias), forms.layers(out, out_bias))


def neighbours(rows: Tensor, head: int) -> Tensor:
    """Put each head's first and second half (heads · head, …) next to each other: what is turned together."""
    return rows.view(-1, 2, head // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _dense(config: Config, layer: Layer, read: Callable[..., Tensor], forms: Forms) -> FeedForward:
    return _gated("mlp." if config.halves else "feed_forward.", config, layer, read, forms)


def _gated(prefix: str, config: Config, layer: Layer, read: Callable[..., Tensor], forms: Forms) -> FeedForward:
    pair = [read(f"{prefix}{name}_proj.weight", layer.width, config.width) for name in ("gate", "up")]
    down = read(f"{prefix}down_proj.weight", config.width, layer.width)
    return FeedForward(forms.layers(torch.cat(pair), None), forms.layers(down, None))


def _experts(config: Config, layer: Layer, read: Callable[..., Tensor], forms: Forms) -> Experts:
    gate_up = read("feed_forward.experts.gate_up_proj", layer.experts, config.width, 2 * layer.width)
    down = read("feed_forward.experts.down_proj", layer.experts, layer.width, config.width)
    # The checkpoint has them (in, out); each is kept the way all other products are.
    pairs = zip(gate_up.transpose(1, 2), down.transpose(1, 2), strict=True)
    return Experts(
        config.top_k,
        read("feed_forward.router.weight", layer.experts, config.width),
        _gated("feed_forward.shared_expert.", config, layer, read, forms),
        [FeedForward(forms.layers(up.contiguous(), None), forms.layers(back.contiguous(), None)) for up, back in pairs],
    )


def _grown(block: Block, index: int, config: Config, delta: Delta, form: Form, dtype: torch.dtype) -> Block:
    """Let the experts of a delta grow from a block's dense feed-forward."""
    experts, rank, neurons = delta.experts, delta.rank, config.layers[index].width

    def added(name: str, *shape: int) -> Tensor:
        return delta.get(f"model.layers.{index}.{name}", *shape)

    def product(rows: Tensor) -> Linear:
        return form(rows.to(dtype).contiguous(), None)

    routed = ~added(SHARED, neurons)
    half = int(routed.sum())
    # Neurons keep the parent's order, with nothing added to those that are shared.
    out, into_down = torch.zeros(experts, rank, 2, neurons), torch.zeros(experts, neurons, rank)
    out[..., routed] = added(f"{GATE_UP}.b", experts, rank, 2 * half).float().view(experts, rank, 2, half)
    into_down[:, routed] = added(f"{DOWN}.a", experts, half, rank).float()
    assert isinstance(block.feed_forward, FeedForward)  # of a dense network all are
    grown = Grown(
        parent=block.feed_forward,
        router=added(ROUTER, experts, config.width).float(),
        routed=routed.repeat(2).to(dtype),
        into=product(added(f"{GATE_UP}.a", experts, config.width, rank).transpose(1, 2).flatten(0, 1)),
        out=product(out.view(experts * rank, -1).T / 2),
        into_down=product(into_down.transpose(1, 2).flatten(0, 1)),
        out_down=product(added(f"{DOWN}.b", experts, rank, config.width).flatten(0, 1).T),
        mine=torch.eye(experts, dtype=dtype).repeat_interleave(rank, 1),
    )
    return replace(block, feed_forward=grown)
