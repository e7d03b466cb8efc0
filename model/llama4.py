"""The network, top to bottom: Llama 4's decoder, which also computes the dense Llamas before it.

A step computes the new tokens of several sequences at once. All products with weights are over all of them together;
only attention looks at one sequence at a time, and reads what came before from the cache. Of the experts only those
are computed that a token was given to. `reference` says the same in plainer words, and slower.

Source: Llama 4's model card (Meta 2025); Su et al. 2021 for rotary positions; Ainslie et al. 2023 for grouped queries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu

from ringfence.model.cache import Cache, Held
from ringfence.model.config import Config, Layer
from ringfence.model.linear import Linear
from ringfence.model.reference import frequencies

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""Attention that also returns the logarithm of what it divided by, so that parts of it can be put together."""


New = tuple[Held, Sequence[int]]
"""A sequence, and the tokens that follow those it holds."""

Said = tuple[Tensor, Tensor]
"""Of one sequence the last hidden states of its new tokens (N, width), and the logits (M, vocabulary), float32."""


class Network(Protocol):
    """What computes sequences: a `Decoder`, or that and a graph beside it."""

    @property
    def config(self) -> Config:
        """Return its shape."""

    def compute(self, new: Sequence[New], cache: Cache, asked: Sequence[int]) -> Sequence[Said]:
        """Compute as `Decoder.compute` does."""


# A step: which tokens of which sequences


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one sequence that attend to the same tokens before them, and each to those among them up to itself.

    Attributes:
        rows: which of the step's tokens they are.
        before: where in the cache the tokens lie that all of them attend to.
        alone: whether there is one, which lies at the end of `before` itself.
    """

    rows: slice
    before: tuple[slice, ...]
    alone: bool


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens of some sequences, one sequence after the other.

    Attributes:
        ids, positions, slots: of each token (N,): what it is, how many came before it, where it goes in the cache.
        pieces: by the chunk that a layer's attention stays within, what attends to what.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    pieces: Mapping[int | None, Sequence[Piece]]

    @classmethod
    def of(cls, config: Config, new: Sequence[New]) -> "Step":
        """Put new tokens behind what each sequence has; there must be room for them."""
        ids = torch.tensor([id for _, own in new for id in own])
        positions = torch.cat([torch.arange(held.length, held.length + len(own)) for held, own in new])
        slots = [
            torch.arange(part.start, part.stop)
            for held, own in new
            for part in held.slots(held.length, held.length + len(own))
        ]
        chunks = dict.fromkeys(layer.chunk for layer in config.layers)
        return cls(ids, positions, torch.cat(slots), {chunk: tuple(_pieces(new, chunk)) for chunk in chunks})


def _pieces(new: Sequence[New], chunk: int | None) -> Iterator[Piece]:
    row = 0
    for held, own in new:
        first, end = held.length, held.length + len(own)
        while first < end:
            since = first // chunk * chunk if chunk else 0
            last = min(end, since + chunk) if chunk else end
            alone = last - first == 1
            before = tuple(held.slots(since, last if alone else first))
            yield Piece(slice(row, row + last - first), before, alone)
            row, first = row + last - first, last


# The network


@dataclass(frozen=True, slots=True)
class Attention:
    """Mixes what earlier tokens say; heads share keys and values in groups.

    Attributes:
        qkv: queries, keys and values of all heads in one product.
    """

    config: Config
    layer: Layer
    index: int
    qkv: Linear
    out: Linear

    def __call__(self, x: Tensor, step: Step, turns: Tensor, cache: Cache) -> Tensor:
        """Return what each token hears (N, width).

        Args:
            turns: complex rotations of each token (N, 1, head / 2).
        """
        heads, kv = self.config.heads, self.config.kv_heads
        qkv = self.qkv(x).view(len(x), heads + 2 * kv, -1)
        qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
        if self.layer.rope:
            turned = rotate(qk, turns)
            qk = (normalise(turned, self.config.eps) if self.config.qk_norm else turned).to(x.dtype)
        q, k, v = qk[:, :heads], qk[:, heads:].transpose(0, 1), v.transpose(0, 1)
        if self.config.tuning and not self.layer.rope:
            steps = ((step.positions + 1) / self.config.tuning.floor).floor()
            q = (q * (1 + self.config.tuning.scale * steps.log1p())[:, None, None]).to(x.dtype)
        cache.write(self.index, step.slots, k, v)
        keys, values = cache.keys[self.index], cache.values[self.index]
        mixed = [attend(q[p.rows], k[:, p.rows], v[:, p.rows], keys, values, p) for p in step.pieces[self.layer.chunk]]
        return self.out((torch.cat(mixed) if len(mixed) > 1 else mixed[0]).flatten(1))


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, piece: Piece) -> Tensor:
    """Attend to stretches of the cache one by one, and to the new tokens themselves; put the results together.

    Args:
        q: (n, heads, head); k, v: of the new tokens (kv heads, n, head).
        keys, values: the layer's cache (kv heads, slots, head), which may be of another dtype.

    Returns:
        (n, heads, head), in the queries' dtype.
    """
    n, heads, head = q.shape
    kv = len(k)
    # To what is not masked, all queries of a group attend alike: they are so many rows of one product.
    rows = q.view(n, kv, heads // kv, head).permute(1, 2, 0, 3).reshape(1, kv, -1, head)
    kept = rows.to(keys.dtype)
    parts = [flash(kept, keys[None, :, one], values[None, :, one]) for one in piece.before]
    if not piece.alone:
        own = rows.view(1, heads, n, head)
        k, v = (one.repeat_interleave(heads // kv, 0)[None] for one in (k, v))
        mixed, norm = flash(own, k, v, is_causal=True)
        parts.append((mixed.reshape(rows.shape), norm.reshape(1, kv, -1)))
    mixed = parts[0][0] if len(parts) == 1 else _together(parts)
    return mixed.to(q.dtype).reshape(kv, heads // kv, n, head).permute(2, 0, 1, 3).reshape(n, heads, head)


def _together(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Weigh attention over several stretches by what each was divided by."""
    norms = torch.stack([norm for _, norm in parts])
    shares = norms.softmax(0)[..., None]
    return sum((mixed * share for (mixed, _), share in zip(parts, shares, strict=True)), torch.zeros(()))


@dataclass(frozen=True, slots=True)
class FeedForward:
    """What is computed on each token by itself: a gated pair of products and one back.

    Attributes:
        gate_up: the gate and what goes through it, in one product.
    """

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, width)."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(silu(gate) * up)


@dataclass(frozen=True, slots=True)
class Experts:
    """A feed-forward that all tokens share, and others of which each token is given to the few that the router says.

    Attributes:
        router: weights (experts, width).
    """

    top_k: int
    router: Tensor
    shared: FeedForward
    routed: Sequence[FeedForward]

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, width). Tokens are sorted by expert, so that each expert in use is computed once."""
        says, chosen = (x @ self.router.T).topk(self.top_k)  # (N, top_k)
        # What the router says scales what an expert is given, not what it gives.
        given = (x[:, None] * says.sigmoid()[..., None]).flatten(0, 1)  # (N · top_k, width)
        out = self.shared(x)
        if len(given) == 1:
            return out + self.routed[int(chosen)](given)
        order = chosen.flatten().argsort()
        counts = chosen.flatten().bincount(minlength=len(self.routed)).tolist()
        used = [self.routed[expert] for expert, count in enumerate(counts) if count]
        sizes = [count for count in counts if count]
        # Only products are an expert's own; what lies between is computed for all at once.
        gate, up = _each([one.gate_up for one in used], given[order], sizes).chunk(2, -1)
        said = _each([one.down for one in used], silu(gate) * up, sizes)
        return out.index_add_(0, order // self.top_k, said)


def _each(products: Sequence[Linear], rows: Tensor, sizes: list[int]) -> Tensor:
    """Give each product its rows, which lie one after the other."""
    return torch.cat([product(own) for product, own in zip(products, torch.split(rows, sizes), strict=True)])


@dataclass(frozen=True, slots=True)
class Grown:
    """Experts that grew from a dense feed-forward, and differ from it by products of low rank.

    A token passes all of the parent's neurons: some are the expert that all tokens share, the others where each routed
    expert starts. What an expert is given is scaled by the router, here by scaling what comes of it, and what makes it
    the expert that it is, is added. The products of all experts lie side by side, and all but the chosen one's are
    set to zero: at these ranks that is faster than to choose. `upcycle` says the same in full.

    Attributes:
        parent: all neurons, in the parent's order.
        router: float32 (experts, width).
        routed: 1 for gate and up of each neuron that is not shared, else 0 (2 · neurons,).
        into, out: of gate and up, from width to experts · rank, and on; halved, as what comes of it is doubled below.
        into_down, out_down: of the product back.
        mine: 1 for what is each expert's (experts, experts · rank).
    """

    parent: FeedForward
    router: Tensor
    routed: Tensor
    into: Linear
    out: Linear
    into_down: Linear
    out_down: Linear
    mine: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, width)."""
        says, chosen = (x.float() @ self.router.T).max(-1)
        share, mine = says.sigmoid()[:, None].to(x.dtype), self.mine[chosen]
        # Undecided, the router halves what experts are given, and so their neurons count double.
        pair = (self.parent.gate_up(x) + self.out(self.into(x) * mine)) * (1 + self.routed * (2 * share - 1))
        gate, up = pair.chunk(2, -1)
        inner = silu(gate) * up
        return self.parent.down(inner) + self.out_down(self.into_down(inner) * mine)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: attention, then a feed-forward, each added to what went in, which is kept in float32."""

    eps: float
    attention_norm: Tensor
    attention: Attention
    feed_forward_norm: Tensor
    feed_forward: FeedForward | Experts | Grown

    def __call__(self, x: Tensor, step: Step, turns: Tensor, cache: Cache) -> Tensor:
        """Return (N, width)."""
        dtype = self.attention_norm.dtype
        heard = self.attention((normalise(x, self.eps) * self.attention_norm).to(dtype), step, turns, cache)
        x = x + heard
        return x + self.feed_forward((normalise(x, self.eps) * self.feed_forward_norm).to(dtype))


@dataclass(frozen=True, slots=True)
class Decoder:
    """The whole network.

    Attributes:
        words: embedding (vocabulary, width).
        head: from the last hidden states to logits.
    """

    config: Config
    words: Tensor
    blocks: Sequence[Block]
    norm: Tensor
    head: Linear
    frequencies: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequencies", frequencies(self.config.rope, self.config.head))

    def __call__(self, new: Sequence[New], cache: Cache) -> Tensor:
        """Compute new tokens of some sequences, for which there is room; return their last hidden states (N, width)."""
        step = Step.of(self.config, new)
        angles = step.positions[:, None] * self.frequencies
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        x = embedding(step.ids, self.words).float()
        for block in self.blocks:
            x = block(x, step, turns, cache)
        for held, own in new:
            held.length += len(own)
        return (normalise(x, self.config.eps) * self.norm).to(self.norm.dtype)

    def compute(self, new: Sequence[New], cache: Cache, asked: Sequence[int]) -> Sequence[Said]:
        """Compute new tokens of some sequences, and what the last few of each say.

        Args:
            new: there is room for them.
            asked: of each sequence, how many of its last tokens to take the logits of.
        """
        hidden = torch.split(self(new, cache), [len(ids) for _, ids in new])
        rows = [part[len(part) - count :] for part, count in zip(hidden, asked, strict=True)]
        logits = self.logits(torch.cat(rows)) if any(asked) else torch.empty(0, self.config.vocabulary)
        return list(zip(hidden, torch.split(logits, list(asked)), strict=True))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what hidden states (M, width) say of the token after each (M, vocabulary), in float32."""
        return self.head(hidden).float()


def normalise(x: Tensor, eps: float) -> Tensor:
    """Divide by the root of the mean square of the last dimension (Zhang & Sennrich 2019).

    Spelled out, for PyTorch's own takes longer than the product that comes after it where there are few rows.
    """
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring pairs of features (N, heads, head) by complex rotations (N, 1, head / 2); return float32."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)
