"""What a teacher says of every window: asked once, kept in a file, found again by what the window holds."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from ringfence.guard.classifier.checkpoint import put
from ringfence.guard.classifier.heads import HEADS
from ringfence.guard.classifier.tokens import Window

TAUGHT = "taught.safetensors"
"""The file's name."""

SHIPPED = Path(__file__).parent / "data" / TAUGHT
"""What the shipped weights learnt from beside the labels."""

STEPS = 255
"""Probabilities are kept in a byte."""

WINDOWS, SAID, TEACHER = "windows", "said", "teacher"

Names = NDArray[np.uint64]


def keep(path: Path, windows: Sequence[Window], said: Tensor, teacher: str) -> None:
    """Write what a teacher says of windows, (windows, heads), probabilities, whole or not at all."""
    arrays = {WINDOWS: names(windows), SAID: (said * STEPS).round().to(torch.uint8).numpy()}
    put(path, lambda partial: partial.write_bytes(save(arrays, {TEACHER: teacher})))


def recall(path: Path, views: Iterable[Sequence[Window]]) -> tuple[list[Tensor], str]:
    """Return what was said of each view, (examples, heads), and who said it.

    Raises:
        ValueError: the file is not whole, or of some windows nothing was said.
        OSError: there is no such file.
    """
    known, said, teacher = read(path)
    order = np.argsort(known)
    soft = []
    for windows in views:
        asked = names(windows)
        at = order[np.searchsorted(known, asked, sorter=order).clip(max=len(known) - 1)]
        if missing := int((known[at] != asked).sum()):
            raise ValueError(f"{path}: nothing about {missing:,} of {len(asked):,} texts as training shows them")
        soft.append(torch.from_numpy(said[at]).float() / STEPS)
    return soft, teacher


def read(path: Path) -> tuple[Names, NDArray[np.uint8], str]:
    """Return which windows a file is about, (n,), what was said of them, (n, heads), and who said it.

    Raises:
        ValueError: the file is not whole.
        OSError: there is no such file.
    """
    try:
        with safe_open(path, "numpy") as file:
            known, said, teacher = file.get_tensor(WINDOWS), file.get_tensor(SAID), file.metadata()[TEACHER]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what `train guard` writes of a teacher ({error})") from error
    if not len(known) or said.shape != (len(known), len(HEADS)):
        raise ValueError(
            f"{path}: {said.shape} answers about {len(known)} texts, expected one for each of {len(HEADS)} heads"
        )
    return known, said, teacher


def names(windows: Sequence[Window]) -> Names:
    """Name each window by eight bytes of a hash of its tokens."""
    whole = (np.array((window.ids, window.kinds), np.int32).tobytes() for window in windows)
    return np.array([int.from_bytes(hashlib.blake2b(one, digest_size=8).digest(), "big") for one in whole], np.uint64)
