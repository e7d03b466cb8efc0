"""What training added to a published network: of low rank and in eight bits, so that it can travel without it.

Source: Hu et al. 2022 for the form; here it is taken from a network that was trained whole, by singular values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ringfence.guard.classifier.export import quantize

ADDED = "added.safetensors"
"""The file that it is kept in."""

RANK = 64
"""Directions that are kept of what each product learnt."""

LEFT, RIGHT, SCALE = ".left", ".right", ".scale"

Arrays = Mapping[str, NDArray[Any]]


def reduce(trained: Mapping[str, Tensor], published: Mapping[str, Tensor], rank: int = RANK) -> dict[str, NDArray[Any]]:
    """Return what was added: of a layer's product its strongest directions, of all else that changed the whole."""
    added: dict[str, NDArray[Any]] = {}
    for name, value in trained.items():
        if torch.equal(value, published[name]):
            continue
        if not (name.startswith("layers.") and value.ndim == 2):
            added[name] = value.float().numpy()
            continue
        left, strength, right = torch.linalg.svd((value - published[name]).float(), full_matrices=False)
        root = strength[:rank].sqrt()
        for side, factor in ((LEFT, left[:, :rank] * root), (RIGHT, right[:rank].T * root)):
            # contiguous: safetensors writes an array as it lies in memory
            added[name + side], added[name + side + SCALE] = quantize(factor.contiguous().numpy())
    return added


def restore(published: Mapping[str, Tensor], added: Arrays) -> dict[str, Tensor]:
    """Return the weights again: the same on every machine, as sums of whole numbers are exact in float64.

    Raises:
        KeyError, ValueError: what was added is of another network.
    """
    weights = dict(published)
    for name, value in added.items():
        if name.endswith(LEFT):
            name = name.removesuffix(LEFT)
            left, right = (added[name + side].astype(np.float64) for side in (LEFT, RIGHT))
            scales = added[name + LEFT + SCALE][:, None] * added[name + RIGHT + SCALE]
            weights[name] = published[name] + torch.from_numpy((left @ right.T).astype(np.float32) * scales)
        elif not name.endswith((RIGHT, SCALE)):
            weights[name] = torch.from_numpy(value).view_as(published[name])
    return weights
