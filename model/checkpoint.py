"""Reads a checkpoint folder as Hugging Face writes it: config.json and safetensors, in one file or in shards.

Tensors are mapped into memory and read when they are asked for: opening a checkpoint of any size reads its names only.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ringfence.model.config import Config, UnknownArchitecture, read_config

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

TEXT = "language_model."
"""What stands before the names of a checkpoint that sees as well: its text part."""

REPEATED = re.compile(r"rotary_emb\.inv_freq$|^lm_head\.weight$")
"""What older checkpoints keep beside their configuration, and tied ones beside the embedding."""

PACKED = {"U8": 2, "I32": 8}
"""Weights in a number, where numbers are kept that are none: four bits each, as in MXFP4 and GPTQ."""


class CheckpointDamaged(RuntimeError):
    """A checkpoint's files cannot be read, or are not what its configuration says."""


class Tensors:
    """The tensors of an open checkpoint, by name.

    Attributes:
        seeing: names of what is no part of the text network: of the part that sees.
    """

    def __init__(self, files: Mapping[str, Any]) -> None:
        own = {name.removeprefix(TEXT): (file, name) for name, file in files.items()}
        sees = any(name.startswith(TEXT) for name in files)
        self.seeing = tuple(name for name in files if sees and not name.startswith(TEXT))
        self._where = {short: place for short, place in own.items() if not sees or place[1].startswith(TEXT)}
        self._read = set[str]()
        self._files = files

    @property
    def weights(self) -> int:
        """How many weights there are, of the part that sees as well, by what the files say of their tensors."""
        told = (file.get_slice(name) for name, file in self._files.items())
        return sum(prod(one.get_shape()) * PACKED.get(one.get_dtype(), 1) for one in told)

    @property
    def unread(self) -> Sequence[str]:
        """Names of the text network's tensors that nobody asked for, less those that say nothing of their own."""
        return [name for name in self._where if name not in self._read and not REPEATED.search(name)]

    def __call__(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
        """
        file, full = self._where[name]
        self._read.add(name)
        tensor: Tensor = file.get_tensor(full)
        return tensor


def read_shape(folder: Path) -> Config:
    """Read a checkpoint's configuration.

    Raises:
        UnknownArchitecture: it is of a kind that this engine does not compute.
        CheckpointDamaged: it is missing, or is not what its kind should be.
    """
    try:
        return read_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except UnknownArchitecture:
        raise
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointDamaged(f"{folder / 'config.json'} cannot be used: {error}") from error


def describe_seeing(names: Sequence[str]) -> str:
    """Say what of a checkpoint that sees is left out; nothing of one that does not."""
    parts = ", ".join(f"{part}: {count}" for part, count in Counter(name.split(".")[0] for name in names).items())
    return f"the part that sees is not computed ({len(names)} tensors; {parts})" if names else ""


@contextmanager
def opened(folder: Path) -> Iterator[Tensors]:
    """Open every file of a checkpoint; tensors that were read stay when it is closed.

    Raises:
        CheckpointDamaged: a file is missing or cut short.
    """
    with ExitStack() as stack:
        try:
            names = _files(folder)
            open_files = {
                file: stack.enter_context(safe_open(folder / file, framework="pt"))
                for file in dict.fromkeys(names.values())
            }
            yield Tensors({name: open_files[file] for name, file in names.items()})
        except (OSError, SafetensorError) as error:
            raise CheckpointDamaged(f"{folder} cannot be read: {error}") from error


def _files(folder: Path) -> Mapping[str, str]:
    """Return in which file each tensor is."""
    if (index := folder / INDEX).is_file():
        try:
            told = json.loads(index.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointDamaged(f"{index} cannot be read: {error}") from error
        match told:
            case {"weight_map": dict(named)} if all(isinstance(file, str) for file in named.values()):
                return named
        raise CheckpointDamaged(f"{index} does not say in which file each tensor is")
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)
