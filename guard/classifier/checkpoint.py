"""Work that can be taken up again: written whole or not at all, and marked, so that no other work takes it up."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ringfence.guard.classifier.network import Network
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.tokens import Window


def mark_of(plan: Plan, views: Sequence[Sequence[Window]], tensors: Sequence[Tensor] = ()) -> str:
    """Name what a training learns from and how, so that no other takes up its work."""
    digest = hashlib.sha256(repr(plan).encode())
    for window in chain.from_iterable(views):
        digest.update(np.array(window.ids, np.int32).tobytes())
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save(
    path: Path,
    mark: str,
    network: Network,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    done: int,
) -> None:
    """Write a checkpoint beside the last one, then put it in its place."""
    state = {
        "mark": mark,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "done": done,
    }
    put(path, lambda partial: torch.save(state, partial))


def restore(
    path: Path, mark: str, network: Network, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> int:
    """Read a checkpoint back; return how many steps it had done.

    Raises:
        ValueError: it bears another mark.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("mark") != mark:
        raise ValueError(f"{path} is of another training (pool, recipe, seed or plan); delete it, or do not resume")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["average"].items():
        average[name].copy_(value)
    return int(state["done"])


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    write(partial)
    partial.replace(path)
