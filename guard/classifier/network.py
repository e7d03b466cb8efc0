"""The guard model as a trainable network: a BERT encoder, the mean of its states, one line of heads. Token ids in.

Devlin et al. 2018 for the encoder, Reimers & Gurevych 2019 for the mean; both as all-MiniLM-L6-v2 has them, whose
parameter names are kept so that its file loads as it is.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ringfence.guard.classifier.heads import HEADS


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network; the defaults are all-MiniLM-L6-v2's."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 384
    layers: int = 6
    attention_heads: int = 12
    inner: int = 1536


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
        """Map states to states: x (B, T, W), mask (B, 1, 1, T) true where a token stands."""
        batch, length, width = x.shape
        split = (batch, length, self.attention_heads, width // self.attention_heads)
        query, key, value = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, T, D)
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
        self.norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.heads = nn.Linear(shape.width, len(HEADS))

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, len(HEADS)) for ids, kinds (0 prompt, 1 response) and mask, each (B, T)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.places(places) + self.kinds(kinds))  # (B, T, W)
        seen = mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        weight = mask.to(x.dtype)[:, :, None]
        mean = (x * weight).sum(1) / weight.sum(1)  # (B, W)
        logits: Tensor = self.heads(mean)
        return logits


def load_base(path: Path) -> Network:
    """Build a network on the published encoder, with fresh heads.

    Args:
        path: `model.safetensors` of all-MiniLM-L6-v2.
    """
    network = Network()
    published = load_file(path)
    own = {name: published[theirs] for name, theirs in base_names(network.shape.layers).items()}
    network.load_state_dict(own, strict=False)
    nn.init.normal_(network.heads.weight, std=0.02)
    nn.init.zeros_(network.heads.bias)
    return network


def base_names(layers: int) -> dict[str, str]:
    """Map our parameter names to those of a published BERT file."""
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "places.weight": "embeddings.position_embeddings.weight",
        "kinds.weight": "embeddings.token_type_embeddings.weight",
    }
    modules = {"norm": "embeddings.LayerNorm"}
    for index in range(layers):
        theirs = f"encoder.layer.{index}"
        modules |= {
            f"layers.{index}.query": f"{theirs}.attention.self.query",
            f"layers.{index}.key": f"{theirs}.attention.self.key",
            f"layers.{index}.value": f"{theirs}.attention.self.value",
            f"layers.{index}.mix": f"{theirs}.attention.output.dense",
            f"layers.{index}.mix_norm": f"{theirs}.attention.output.LayerNorm",
            f"layers.{index}.up": f"{theirs}.intermediate.dense",
            f"layers.{index}.down": f"{theirs}.output.dense",
            f"layers.{index}.down_norm": f"{theirs}.output.LayerNorm",
        }
    return names | {
        f"{own}.{part}": f"{theirs}.{part}" for own, theirs in modules.items() for part in ("weight", "bias")
    }
