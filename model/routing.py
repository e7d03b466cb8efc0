"""Who is given what: where a router starts, and what its experts have come to take. Knows no training.

A router that is all zero gives every token to the same expert. One that starts along the directions in which a layer's
inputs fall apart gives each expert tokens of a kind from the first step on, and what they do is still the parent's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROUNDS = 20
"""Of k-means, which has settled by then."""

EVENINGS = 200
"""Steps by which experts that are given too much are asked for less."""

TOLD = 12
"""Tokens that are told of each expert."""


def directions(inputs: Tensor, experts: int, spread: float, generator: torch.Generator) -> Tensor:
    """Return a router's weights (experts, width) that part a layer's inputs into so many kinds of like size.

    The rows are the centres of spherical k-means about the mean input. There is no bias, but what all inputs have in
    common serves as one: along their mean, each expert is made as likely as the others, and the logit of the one that
    is chosen is 0 on average, so that the sigmoid of it stays near ½.

    Args:
        inputs: (N, width), at least as many as experts.
        spread: standard deviation of the logits; the smaller, the nearer to the parent the network starts.
    """
    inputs = inputs.float()
    mean = inputs.mean(0)
    common = mean / mean.square().sum().clamp(min=1e-12)
    apart = torch.nn.functional.normalize(inputs - mean, dim=1)
    centres = apart[torch.randperm(len(apart), generator=generator)[:experts]]
    for _ in range(ROUNDS):
        nearest = torch.nn.functional.one_hot((apart @ centres.T).argmax(1), experts).float()
        # An expert whom nothing is near keeps its centre.
        centres = torch.nn.functional.normalize(nearest.T @ apart + 1e-3 * centres, dim=1)
    rows = centres - (centres @ mean)[:, None] * common
    rows = rows * (spread / (inputs @ rows.T).std())
    shares = (inputs @ common)[:, None]  # about 1 each
    lower = torch.zeros(experts)
    for turn in range(EVENINGS):
        given = torch.bincount((inputs @ rows.T - shares * lower).argmax(1), minlength=experts)
        lower += spread * (1 - turn / EVENINGS) * (given / len(inputs) - 1 / experts)
    lower += (inputs @ rows.T - shares * lower).amax(1).mean()
    return rows - lower[:, None] * common


def shares(counts: Tensor) -> list[float]:
    """Return what share of the tokens each expert was given, from counts (experts,)."""
    return [round(float(count), 4) for count in counts / counts.sum().clamp(min=1)]


def preferred(counts: Tensor, spell: Callable[[int], str]) -> Sequence[Sequence[str]]:
    """Return for each expert the tokens that it was given the most beyond its share.

    Ranked by Pearson's residual: how far a count is from what the expert's and the token's own shares would make it, in
    units of its standard deviation.

    Args:
        counts: how often each expert was given each token (experts, vocabulary).
        spell: writes a token.
    """
    counts = counts.double()
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum().clamp(min=1)
    beyond = (counts - expected) / expected.sqrt().clamp(min=1e-9)
    ranked = beyond.topk(min(TOLD, counts.shape[1]), dim=1)
    return [
        [spell(int(token)) for token, by in zip(tokens, values, strict=True) if by > 0]
        for tokens, values in zip(ranked.indices, ranked.values, strict=True)
    ]
