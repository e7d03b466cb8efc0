"""How much memory is free, and how long a context fits beside a checkpoint's weights. Reads no weights."""

import logging
from collections.abc import Iterator
from pathlib import Path

from ringfence.model.checkpoint import opened
from ringfence.model.weights import DELTA, NotEnoughMemory

log = logging.getLogger(__name__)

LEAST = 2048
"""Tokens of context without which a checkpoint is not worth its memory, unless it was made for fewer."""

LONGEST = 1 << 17
"""Tokens of context that our own engine uses, of however long a one a checkpoint was made for."""


def count_weights(path: Path) -> int:
    """Return how many weights a checkpoint has, however they are stored, and about how many its experts are kept in.

    Of a delta half is zeros once it is laid beside the parent's neurons: as many weights as its file has bytes.

    Raises:
        CheckpointDamaged: its files cannot be read.
    """
    grown = path / DELTA
    with opened(path) as tensors:
        return tensors.weights + (grown.stat().st_size if grown.is_file() else 0)


def fits(size: int) -> bool:
    """Say whether so many bytes are free; where the system does not say, they are."""
    free = available()
    return free is None or size <= free


def fitting(what: str, weights: int, per_token: int, context: int, most: int) -> int:
    """Return for how many tokens keys and values fit beside the weights, and say so where a context does not.

    Args:
        what: is loaded, for the message.
        weights, per_token: bytes.
        context: tokens that the checkpoint was made for.
        most: tokens that are of use, a context or more.

    Raises:
        NotEnoughMemory: they are too few.
    """
    free, least = available(), min(LEAST, context)
    if free is None:
        return most
    if (wanted := weights + least * per_token) > free:
        raise NotEnoughMemory(
            f"{what} takes about {wanted / 1e9:.1f} GB in memory with the keys and values of {least} tokens, "
            f"{free / 1e9:.1f} GB are free"
        )
    tokens = min(most, (free - weights) // per_token)
    if tokens < context:
        log.warning(
            "%s: of its context of %d tokens %d fit into the %.1f GB that are free", what, context, tokens, free / 1e9
        )
    return tokens


def available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many bytes this process may still take without swapping; None where the system does not say.

    Of the whole machine, and of each control group that the process is in: of a container, that is its limit.
    """
    return min((*_of_machine(proc), *_of_groups(proc, groups)), default=None)


def _of_machine(proc: Path) -> Iterator[int]:
    told = _table(proc / "meminfo")
    if "MemAvailable:" in told:
        yield told["MemAvailable:"] * 1024


def _of_groups(proc: Path, groups: Path) -> Iterator[int]:
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, usage, cached = groups, "memory.max", "memory.current", ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            root, limit, usage = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = ("total_inactive_file", "total_active_file")
        else:
            continue
        group = root / path.strip("/")
        # A group is held to what those above it may take; seen from inside a container, its own lies at the root.
        for place in (group, *(above for above in group.parents if above.is_relative_to(root))):
            most, taken, told = _text(place / limit), _text(place / usage), _table(place / "memory.stat")
            if most.isdigit() and taken.isdigit():
                # What is only kept of files is given up for whoever needs memory, as in MemAvailable.
                yield max(0, int(most) - int(taken) + sum(told.get(name, 0) for name in cached))


def _table(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    rows = (line.split() for line in _text(file).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(file: Path) -> str:
    """Read a file of the system; nothing where there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
