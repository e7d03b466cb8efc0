"""Opens a checkpoint for work: chooses the network that computes it, and the form that its weights are kept in."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ringfence.model.assemble import Forms, assemble
from ringfence.model.cache import PAGE, Cache
from ringfence.model.chat import read_tokenizer
from ringfence.model.checkpoint import CheckpointDamaged, describe_seeing, opened, read_shape
from ringfence.model.config import Config, UnknownArchitecture
from ringfence.model.delta import Delta, DeltaDiffers
from ringfence.model.draft import Draft, DraftDiffers
from ringfence.model.engine import Engine
from ringfence.model.graph import Both, drawable
from ringfence.model.grouped import Grouped
from ringfence.model.linear import Form, Int4, Int8, Plain
from ringfence.model.llama4 import Network
from ringfence.model.memory import LONGEST, count_weights, fits, fitting
from ringfence.model.service import Service
from ringfence.model.weights import DELTA, WeightsDamaged, WeightsMissing, revision

if TYPE_CHECKING:
    from ringfence.model.stock import StockService

log = logging.getLogger(__name__)

Bits = Literal[4, 8, 16, 32]
"""In which weights are kept: rounded in groups, rounded by row, bfloat16, float32."""

FORMS: Mapping[Bits, tuple[Form, torch.dtype]] = {
    4: (Int4.of, torch.bfloat16),
    8: (Int8.of, torch.bfloat16),
    16: (Plain.of, torch.bfloat16),
    32: (Plain.of, torch.float32),
}

KEPT: Mapping[Bits, int] = {4: 13, 8: 8, 16: 16, 32: 32}
"""Bits that a weight takes in each: what is kept in four, with scale and offset of each group, is kept in eight too."""

TOGETHER = 16
"""Bits that a weight takes more for the graph of many lanes: until it is drawn, and once more as it is run."""

FOUR = Forms(Grouped.exact, Grouped.of, Grouped.fine)
"""Of what a graph computes a token at a time. On replies held out this costs a thousandth of the loss; the head in four
bits a fortieth, and the layers without what their groups are off by another twentieth."""

CACHE = 512 << 20
"""Bytes for keys and values at most, unless a single context needs more; untouched parts take no memory."""


def load(path: Path, bits: Bits = 4, threads: int | None = None, draft: Path | None = None) -> "Service | StockService":
    """Read a checkpoint folder (config.json, *.safetensors) from disk; never from a network.

    Args:
        path: as `weights.locate` returns it.
        threads: cores to compute on, for the whole process; all but one where left out.
        draft: another such folder, of a smaller network that guesses what this one says.

    Raises:
        WeightsMissing: there is no such folder.
        WeightsDamaged: the files cannot be read.
        DraftDiffers: the one network cannot draft for the other.
        NotEnoughMemory: before weights are read.
    """
    torch.set_num_threads(threads or max(1, cores() - 1))
    with _readable(path):
        ends = end_tokens(path)
        try:
            config = read_shape(path)
        except UnknownArchitecture as error:
            if draft:
                raise DraftDiffers(f"{path} takes no draft, which only ringfence's own engine does: {error}") from error
            from ringfence.model.stock import StockService  # transformers takes seconds to import

            return StockService.load(path, FORMS[bits][1], ends)
    # First: the memory that it takes is then known.
    drafting = read_draft(draft, path, bits) if draft else None
    with _readable(path):
        beside = drafting[1].size if drafting else 0
        network, cache = read(path, config, bits, torch.get_num_threads(), beside)
    return Service(Engine(network, cache, ends, draft=Draft(*drafting) if drafting else None))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of what goes wrong with a checkpoint what to do."""
    if not (path / "config.json").is_file():
        raise WeightsMissing(f"no checkpoint at {path}; run `ringfence engine pull`")
    try:
        yield
    except (OSError, ValueError, CheckpointDamaged) as error:
        raise WeightsDamaged(
            f"{path} cannot be read ({error}); if it was pulled, delete it and run `ringfence engine pull`"
        ) from error


def read_draft(draft: Path, path: Path, bits: Bits) -> tuple[Network, Cache]:
    """Read a checkpoint that is to draft for another, as `read` does.

    Raises:
        DraftDiffers: its tokens are others, or our own network does not compute it.
    """
    with _readable(draft):
        theirs, own = ({id: token for token, id in read_tokenizer(one).get_vocab().items()} for one in (draft, path))
        if differing := sorted(id for id, _ in theirs.items() ^ own.items()):
            at = differing[0]
            raise DraftDiffers(f"{draft} has other tokens than {path}: {at} is {theirs.get(at)!r}, not {own.get(at)!r}")
        try:
            config = read_shape(draft)
        except UnknownArchitecture as error:
            raise DraftDiffers(f"{draft} cannot draft, which only ringfence's own engine does: {error}") from error
        return read(draft, config, bits, torch.get_num_threads())


def read(path: Path, config: Config, bits: Bits, threads: int, beside: int = 0) -> tuple[Network, Cache]:
    """Read a checkpoint in one form of its weights, and make room for keys and values.

    In four bits a dense Llama is computed by a graph as well, which wants keys and values in float32; what that leaves
    to the decoder is many tokens at once, for which eight bits are faster. What has no graph has both in the decoder.

    Args:
        beside: bytes that are free, and that something else will take.

    Raises:
        CheckpointDamaged: the files cannot be read, or are not what the configuration says.
        DeltaDiffers: the experts in the folder are to other weights.
        NotEnoughMemory: before weights are read.
    """
    (form, dtype), delta = FORMS[bits], experts_of(path)
    drawn = bits == 4 and drawable(config, delta)
    kept = torch.float32 if drawn else dtype
    tokens, together = room(path, config, bits, drawn, kept, beside)
    cache = Cache(config, tokens, kept)
    try:
        with opened(path) as take:
            if left_out := describe_seeing(take.seeing):
                log.warning("%s: %s", path, left_out)
            decoder = assemble(config, take, Int8.of if drawn else form, dtype, delta=delta)
            if take.unread:
                raise CheckpointDamaged(
                    f"its config.json knows nothing of {len(take.unread)} of its tensors, such as {take.unread[0]}"
                )
            if not drawn:
                return decoder, cache
            few = assemble(config, take, FOUR, dtype, delta)
    except KeyError as error:
        raise CheckpointDamaged(f"there is no tensor {error}") from error
    except ValueError as error:
        raise CheckpointDamaged(str(error)) from error
    return Both(decoder, few, cache.tokens, threads, together), cache


def experts_of(path: Path) -> Delta | None:
    """Read what makes a dense checkpoint a mixture of experts, where its folder has that.

    Raises:
        DeltaDiffers: it is to other weights.
        CheckpointDamaged: it cannot be read.
    """
    if not (path / DELTA).is_file():
        return None
    delta = Delta.load(path / DELTA)
    if delta.parent != (found := revision(path)):
        raise DeltaDiffers(f"{DELTA} is to weights of sha256 {delta.parent}, not {found}")
    return delta


def room(path: Path, config: Config, bits: Bits, drawn: bool, dtype: torch.dtype, beside: int) -> tuple[int, bool]:
    """Return for how many tokens to keep keys and values: one context at least, where memory is enough for that.

    And whether it is enough for the graph of many lanes as well, with a whole context.
    """
    per_token = 2 * len(config.layers) * config.kv_heads * config.head * dtype.itemsize
    context = min(config.context, LONGEST)
    if context < config.context:
        log.warning("%s: of its context of %d tokens %d are used at most", path.name, config.context, context)
    count = count_weights(path)
    weights = count * KEPT[bits] // 8 + beside
    if bits < 16 or config.tied:  # the words stay as they are, beside the head; each network that is drawn has its own
        weights += config.vocabulary * config.width * dtype.itemsize
    many = count * TOGETHER // 8 if drawn else 0
    together = drawn and fits(weights + many + context * per_token)
    most = max(context, CACHE // per_token // PAGE * PAGE)
    what = f"{path.name} at {bits} bits" + (" beside its draft" if beside else "")
    return fitting(what, weights + (many if together else 0), per_token, context, most), together


def cores() -> int:
    """Return how many cores this process may use.

    The engine leaves one of them alone: torch's threads meet some two hundred times a token and spin while they wait,
    so with as many threads as cores one busy neighbour, such as the guard judging the last window, costs nine tenths of
    the speed.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_tokens(path: Path) -> frozenset[int]:
    """Read which tokens end a reply: from generation_config.json where it says so, else from config.json."""
    for name in ("generation_config.json", "config.json"):
        if (file := path / name).is_file():
            try:
                told = json.loads(file.read_text(encoding="utf-8"))
            except (RecursionError, ValueError) as error:
                raise CheckpointDamaged(f"{file} cannot be used: {error}") from error
            match told:
                case {"eos_token_id": int(one)}:
                    return frozenset({one})
                case {"eos_token_id": [*several]} if all(isinstance(id, int) for id in several):
                    return frozenset(several)
    return frozenset()
