"""Reads a checkpoint folder as Hugging Face writes it: config.json and safetensors, in one file or in shards.

Tensors are mapped into memory and read when they are asked for: opening a checkpoint of any size reads its names only.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ringfence.model.config import Config, UnknownArchitecture, read_config

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

TEXT = "language_model."
"""What stands before the names of a checkpoint that sees as well: its text part."""


class CheckpointDamaged(RuntimeError):
    """A checkpoint's files cannot be read, or are not what its configuration says."""


class Tensors:
    """The tensors of an open checkpoint, by name.

    Attributes:
        unread: names of what is no part of the text network: of the part that sees.
    """

    def __init__(self, files: Mapping[str, Any]) -> None:
        own = {name.removeprefix(TEXT): (file, name) for name, file in files.items()}
        sees = any(name.startswith(TEXT) for name in files)
        self.unread = tuple(name for name in files if sees and not name.startswith(TEXT))
        self._where = {short: place for short, place in own.items() if not sees or place[1].startswith(TEXT)}

    def __call__(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
        """
        file, full = self._where[name]
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
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointDamaged(f"{folder / 'config.json'} cannot be used: {error!r}") from error


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
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise CheckpointDamaged(f"{folder} cannot be read: {error}") from error


def _files(folder: Path) -> Mapping[str, str]:
    """Return in which file each tensor is."""
    if (index := folder / INDEX).is_file():
        named: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return named
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)
