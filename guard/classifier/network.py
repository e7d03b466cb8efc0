"""The guard model as a trainable network: a BERT encoder, the mean of its states, one line of heads. Token ids in.

Devlin et al. 2018 for the encoder, Reimers & Gurevych 2019 for the mean. With relative places it is MPNet (Song et al.
2020), which teaches the guard and does not ship.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ringfence.guard.classifier.heads import HEADS


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; the defaults are all-MiniLM-L6-v2's.

    Attributes:
        first: the place that the first token has.
        buckets: of distances between tokens, each with a bias of its own for each attention head; 0 for none.
    """

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    layers: int = 6
    attention_heads: int = 12
    inner: int = 1536
    first: int = 0
    buckets: int = 0


MPNET_SHAPE = Shape(positions=514, width=768, layers=12, inner=3072, first=2, buckets=32)
"""all-mpnet-base-v2."""

FARTHEST = 128
"""Tokens apart from which on distances share the last bucket."""


class Layer(nn.Module):
    """One transformer layer, normalised after each half."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_heads = shape.attention_heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.mix = nn.Linear(shape.width, shape.width)
        self.mix_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.up = nn.Linear(shape.width, shape.inner)
        self.down = nn.Linear(shape.inner, shape.width)
        self.down_norm = nn.LayerNorm(shape.width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map states to states: x (B, T, W); `mask`, broadcast to (B, H, T, T), is added to the attention scores.

        Attention is spelled out: PyTorch's fused kernel takes half of a training step on a CPU, most of it backwards.
        """
        batch, length, width = x.shape
        split = (batch, length, self.attention_heads, width // self.attention_heads)
        query, key, value = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = (query * split[-1] ** -0.5) @ key.transpose(-1, -2) + mask  # (B, H, T, T)
        mixed = scores.softmax(-1) @ value  # (B, H, T, D)
        x = self.mix_norm(x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width)))
        out: Tensor = self.down_norm(x + self.down(functional.gelu(self.up(x))))
        return out


class Network(nn.Module):
    """Encoder and heads.

    No dropout: on a CPU its random numbers cost a third of a step, and weight averaging regularises as well.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.positions, shape.width)
        self.kinds = nn.Embedding(2, shape.width)
        self.distances = nn.Embedding(shape.buckets, shape.attention_heads) if shape.buckets else None
        self.norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.heads = nn.Linear(shape.width, len(HEADS))

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, len(HEADS)) for ids, kinds (0 prompt, 1 response) and mask, each (B, T)."""
        logits: Tensor = self.heads(self.features(ids, kinds, mask))
        return logits

    def features(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        """Return what the heads read (B, W)."""
        places = torch.arange(ids.shape[1], device=ids.device) + self.shape.first
        x = self.norm(self.words(ids) + self.places(places) + self.kinds(kinds))  # (B, T, W)
        seen = (mask.to(x.dtype)[:, None, None, :] - 1) * 1e4  # 0 where a token stands, far below it where none does
        if self.distances is not None:
            seen = seen + nearness(self.distances, places)
        for layer in self.layers:
            x = layer(x, seen)
        weight = mask.to(x.dtype)[:, :, None]
        mean: Tensor = (x * weight).sum(1) / weight.sum(1)
        return mean


def nearness(distances: nn.Embedding, places: Tensor) -> Tensor:
    """Return what it adds to the attention scores (1, H, T, T) of places (T,) how far apart they are."""
    added: Tensor = distances(buckets(places, distances.num_embeddings)).permute(2, 0, 1)[None]
    return added


def buckets(places: Tensor, count: int) -> Tensor:
    """Sort the distance of every place (T,) to every other into buckets (T, T): the farther, the coarser.

    Half of the buckets are for what stands before, half for what stands after (Raffel et al. 2020).
    """
    distance = places[:, None] - places[None, :]
    half, exact = count // 2, count // 4
    far = distance.abs().clamp(min=1).float() / exact
    coarse = exact + (far.log() / math.log(FARTHEST / exact) * (half - exact)).long()
    size = torch.where(distance.abs() < exact, distance.abs(), coarse.clamp(max=half - 1))
    return size + (distance < 0).long() * half


def load_base(path: Path, shape: Shape | None = None) -> Network:
    """Build a network on a published encoder, with fresh heads.

    Args:
        path: `model.safetensors` of all-MiniLM-L6-v2, or, for `MPNET_SHAPE`, of all-mpnet-base-v2.
    """
    network = Network(shape)
    published = load_file(path)
    own = {name: published[theirs] for name, theirs in base_names(network.shape).items()}
    if network.distances is not None:
        own["words.weight"] = in_our_order(own["words.weight"])
        own["kinds.weight"] = torch.zeros_like(network.kinds.weight)
    network.load_state_dict(own, strict=False)
    nn.init.normal_(network.heads.weight, std=0.02)
    nn.init.zeros_(network.heads.bias)
    return network


def in_our_order(words: Tensor) -> Tensor:
    """Bring MPNet's word vectors into the order of BERT's vocabulary, which it moved by four, for marks of its own.

    [CLS], [SEP] and [UNK] get the vectors of `<s>`, `</s>` and `<unk>`.
    """
    ours = words[4:-1].clone()
    ours[101], ours[102], ours[100] = words[0], words[2], words[3]
    return ours


def base_names(shape: Shape) -> dict[str, str]:
    """Map our parameter names to those of a published file."""
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "places.weight": "embeddings.position_embeddings.weight",
    }
    modules = {"norm": "embeddings.LayerNorm"}
    parts = {
        "up": "intermediate.dense",
        "down": "output.dense",
        "down_norm": "output.LayerNorm",
    }
    if shape.buckets:
        names["distances.weight"] = "encoder.relative_attention_bias.weight"
        attention = {"query": "attn.q", "key": "attn.k", "value": "attn.v", "mix": "attn.o", "mix_norm": "LayerNorm"}
    else:
        names["kinds.weight"] = "embeddings.token_type_embeddings.weight"
        attention = {"query": "self.query", "key": "self.key", "value": "self.value"}
        attention |= {"mix": "output.dense", "mix_norm": "output.LayerNorm"}
    parts |= {own: f"attention.{theirs}" for own, theirs in attention.items()}
    for index in range(shape.layers):
        modules |= {f"layers.{index}.{own}": f"encoder.layer.{index}.{theirs}" for own, theirs in parts.items()}
    return names | {
        f"{own}.{part}": f"{theirs}.{part}" for own, theirs in modules.items() for part in ("weight", "bias")
    }
