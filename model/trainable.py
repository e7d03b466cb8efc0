"""The grown network as training sees it: the dense parent stays as it is, the delta beside it learns.

Many sequences at once, from their beginnings, without a cache. Of the parent nothing is copied for the experts: a token
passes all of its parent's neurons, those of the routed half by what the router says, and the low-rank products of
all experts are computed at once and all but the chosen one's set to zero, which is as exact as to choose, and at
these ranks faster. `reference` says what the result computes. Knows no conversations and no steps.

Source: Fedus et al. 2021 (the loss that keeps experts in use), Hu et al. 2022 (low-rank additions).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot, silu

from ringfence.model.assemble import Take
from ringfence.model.config import Config
from ringfence.model.delta import DOWN, GATE_UP, ROUTER, SHARED
from ringfence.model.llama4 import normalise
from ringfence.model.reference import frequencies

LABELS_AT_ONCE = 256
"""Tokens whose logits are in memory together."""

Listen = Callable[[int, Tensor], None]
"""Told of each mixture, by its layer's number, what it is given (B, T, width)."""


def deaf(layer: int, given: Tensor) -> None:
    """Listen to nothing."""


@dataclass(frozen=True, slots=True)
class Neurons:
    """Some of a feed-forward's.

    Attributes:
        pair: gate and up, in one product (2 · neurons, width).
        down: (width, neurons).
    """

    pair: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer of the parent has, none of which is trained; weights are (out, in).

    Attributes:
        shared: of a mixture the half that all tokens share; of a dense layer all.
        routed: the other half, gate and up doubled, for an undecided router halves what it is given.
    """

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    feed_forward_norm: Tensor
    shared: Neurons
    routed: Neurons | None


@dataclass(frozen=True, slots=True)
class Parent:
    """A dense Llama, in some of whose layers the neurons are dealt into two halves, as a delta says.

    Attributes:
        head: from the last hidden states to logits (vocabulary, width).
    """

    config: Config
    words: Tensor
    layers: Sequence[Layer]
    norm: Tensor
    head: Tensor

    @property
    def mixtures(self) -> list[int]:
        """The layers that are mixtures."""
        return [index for index, layer in enumerate(self.layers) if layer.routed]

    @classmethod
    def read(
        cls, config: Config, take: Take, shared: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> "Parent":
        """Read the parent's tensors.

        Args:
            shared: which neurons of the mixtures all tokens share; names and values are a `Delta`'s.
        """

        def read(name: str) -> Tensor:
            return take(name).to(device, dtype)

        words = read("model.embed_tokens.weight")
        layers = [
            _read_layer(config, partial(_below, read, index), shared.get(f"model.layers.{index}.{SHARED}"))
            for index in range(len(config.layers))
        ]
        return cls(config, words, layers, read("model.norm.weight"), words if config.tied else read("lm_head.weight"))


@dataclass(frozen=True, slots=True)
class Heard:
    """What the network makes of some sequences.

    Attributes:
        hidden: after the last norm (B, T, width).
        chosen: expert of each token in each mixture (mixtures, B, T).
        imbalance: 1 where the experts of a mixture are used alike, more where they are not; the mean of all.
    """

    hidden: Tensor
    chosen: Tensor
    imbalance: Tensor


@dataclass(frozen=True, slots=True)
class Scene:
    """What all layers need to know of the sequences.

    Attributes:
        turns: cosine and sine of each position's rotations (T, 1, head), float32.
        masked: minus infinity where a token must not look (T, T).
    """

    turns: tuple[Tensor, Tensor]
    masked: Tensor


def hear(parent: Parent, delta: Mapping[str, Tensor], ids: Tensor, counted: Tensor, listen: Listen = deaf) -> Heard:
    """Compute the grown network's last hidden states.

    Args:
        delta: named as a `Delta`'s tensors. What is to be trained requires a gradient.
        ids: (B, T), padded on the right.
        counted: which of them the experts should share among them (B, T).
    """
    config, dtype = parent.config, parent.words.dtype
    angles = torch.arange(ids.shape[1])[:, None] * frequencies(config.rope, config.head)
    angles = torch.cat([angles, angles], 1).to(ids.device)[:, None]
    masked = torch.full((ids.shape[1],) * 2, -math.inf, dtype=dtype, device=ids.device).triu(1)
    scene = Scene((angles.cos(), angles.sin()), masked)
    x = parent.words[ids].float()
    chosen: list[Tensor] = []
    imbalances: list[Tensor] = []
    for index, layer in enumerate(parent.layers):
        given = (normalise(x, config.eps) * layer.attention_norm).to(dtype)
        x = x + _attend(config, layer, given, scene)
        given = (normalise(x, config.eps) * layer.feed_forward_norm).to(dtype)
        said = _dense(layer.shared, given)
        if layer.routed:
            listen(index, given)
            more, choice, imbalance = _route(layer.routed, Routed.of(delta, index), given, counted)
            said = said + more
            chosen.append(choice)
            imbalances.append(imbalance)
        x = x + said
    hidden = (normalise(x, config.eps) * parent.norm).to(dtype)
    return Heard(hidden, torch.stack(chosen), torch.stack(imbalances).mean())


def surprise(parent: Parent, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each label, summed, in nats.

    Args:
        hidden: of the tokens before the labels (M, width).
        labels: (M,).
    """
    summed: Tensor = _Surprise.apply(hidden, parent.head, labels)  # type: ignore[no-untyped-call]
    return summed


class _Surprise(torch.autograd.Function):
    """Cross-entropy against a head that is not trained.

    The gradient is computed along with the loss, some labels at a time: the logits of a few hundred tokens are larger
    than all else that a step computes, and need not be kept.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradients: list[Tensor] = []
        for rows, wanted in zip(*(torch.split(one, LABELS_AT_ONCE) for one in (hidden, labels)), strict=True):
            says = linear(rows, head).float().log_softmax(-1)
            total -= says.gather(1, wanted[:, None]).sum()
            if context.needs_input_grad[0]:
                says.exp_().scatter_add_(1, wanted[:, None], -torch.ones_like(wanted[:, None], dtype=says.dtype))
                gradients.append(says.to(head.dtype) @ head)
        context.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(context.saved_tensors) * outer[0].to(context.saved_tensors[0].dtype), None, None


@dataclass(frozen=True, slots=True)
class Routed:
    """One layer's part of a delta; low-rank products of all experts side by side.

    Attributes:
        router: (experts, width), float32.
        into, out: of gate and up (width, experts · rank), (experts · rank, neurons).
        into_down, out_down: of the product back.
    """

    router: Tensor
    into: Tensor
    out: Tensor
    into_down: Tensor
    out_down: Tensor
    experts: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", len(self.router))

    @classmethod
    def of(cls, delta: Mapping[str, Tensor], index: int) -> "Routed":
        """Lay one layer's tensors side by side."""
        below = f"model.layers.{index}."
        a, b, a_down, b_down = (delta[f"{below}{name}.{part}"] for name in (GATE_UP, DOWN) for part in "ab")
        return cls(
            delta[below + ROUTER],
            a.transpose(0, 1).flatten(1),
            b.flatten(0, 1),
            a_down.transpose(0, 1).flatten(1),
            b_down.flatten(0, 1),
        )


def _dense(neurons: Neurons, x: Tensor) -> Tensor:
    gate, up = linear(x, neurons.pair).chunk(2, -1)
    return linear(silu(gate) * up, neurons.down)


def _route(neurons: Neurons, routed: Routed, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what experts add to each token (B, T, width), its expert (B, T), and how unevenly experts are used."""
    says = x.float() @ routed.router.T  # (B, T, experts)
    chosen = says.argmax(-1)
    share = says.gather(-1, chosen[..., None]).sigmoid().to(x.dtype)
    own = one_hot(chosen, routed.experts).to(x.dtype)
    mine = own.repeat_interleave(routed.into.shape[1] // routed.experts, -1)  # (B, T, experts · rank)
    gate, up = (share * (linear(x, neurons.pair) + (x @ routed.into * mine) @ routed.out)).chunk(2, -1)
    inner = silu(gate) * up
    said = linear(inner, neurons.down) + (inner @ routed.into_down * mine) @ routed.out_down
    weights = counted[..., None] / counted.sum().clamp(min=1)
    used, wanted = (own * weights).sum((0, 1)), (says.softmax(-1) * weights).sum((0, 1))
    return said, chosen, routed.experts * (used * wanted).sum()


def _attend(config: Config, layer: Layer, x: Tensor, scene: Scene) -> Tensor:
    """Return what each token hears (B, T, width).

    Spelled out on a CPU: PyTorch's own takes three times as long, backwards, on sequences of a hundred tokens.
    """
    batch, length, _ = x.shape
    kv, group = config.kv_heads, config.heads // config.kv_heads
    qkv = linear(x, layer.qkv, layer.qkv_bias).view(batch, length, -1, config.head)
    qk = _turned(qkv[:, :, : config.heads + kv], scene.turns)
    # Queries of a group look at the same keys: they are so many rows of one product.
    q = qk[:, :, : config.heads].view(batch, length, kv, group, config.head).permute(0, 2, 3, 1, 4).flatten(2, 3)
    k, v = qk[:, :, config.heads :].permute(0, 2, 3, 1), qkv[:, :, config.heads + kv :].transpose(1, 2)
    scores = (q * config.head**-0.5) @ k  # (B, kv, group · T, T)
    weights = (scores.view(batch, kv, group, length, length) + scene.masked).softmax(-1)
    mixed = weights.flatten(2, 3) @ v  # (B, kv, group · T, head)
    mixed = mixed.view(batch, kv, group, length, -1).permute(0, 3, 1, 2, 4).reshape(batch, length, -1)
    return linear(mixed, layer.out, layer.out_bias)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each head's first half against its second (B, T, heads, head)."""
    cosine, sine = turns
    left, right = x.float().chunk(2, -1)
    return (torch.cat([left, right], -1) * cosine + torch.cat([-right, left], -1) * sine).to(x.dtype)


def _below(read: Take, index: int, name: str) -> Tensor:
    return read(f"model.layers.{index}.{name}")


def _read_layer(config: Config, read: Take, shared: Tensor | None) -> Layer:
    gate, up, down = (read(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down"))

    def neurons(mask: Tensor, scale: int = 1) -> Neurons:
        return Neurons(scale * torch.cat([gate[mask], up[mask]]), down[:, mask].contiguous())

    mine = torch.ones(len(gate), dtype=torch.bool, device=gate.device) if shared is None else shared.to(gate.device)
    biases = [read(f"self_attn.{name}_proj.bias") for name in "qkvo"] if config.bias else []
    return Layer(
        attention_norm=read("input_layernorm.weight"),
        qkv=torch.cat([read(f"self_attn.{name}_proj.weight") for name in "qkv"]),
        qkv_bias=torch.cat(biases[:3]) if biases else None,
        out=read("self_attn.o_proj.weight"),
        out_bias=biases[3] if biases else None,
        feed_forward_norm=read("post_attention_layernorm.weight"),
        shared=neurons(mine),
        routed=None if shared is None else neurons(~mine, scale=2),
    )
