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

DRAWN: Mapping[Bits, Forms] = {
    8: Forms(Grouped.fine, Grouped.fine, Grouped.fine),
    4: Forms(Grouped.exact, Grouped.of, Grouped.fine),
}
"""Of what a graph computes a token at a time, the best first: eight bits are unpacked so much faster than four that
they take less time, too. Of four, the head alone would cost a fortieth of the loss, and the layers without what their
groups are off by another twentieth."""

KEPT_DRAWN: Mapping[Bits, int] = {8: 8 + 9, 4: 8 + 5}
"""As `KEPT`, where there is a graph beside the network in eight bits that reads prompts."""

TOGETHER: Mapping[Bits, int] = {8: 24, 4: 16}
"""Bits that a weight takes more for the graph of many lanes: until it is drawn, and once more as it is run."""

CACHE = 512 << 20
"""Bytes for keys and values at most, unless a single context needs more; untouched parts take no memory."""


def load(
    path: Path, bits: Bits | None = None, threads: int | None = None, draft: Path | None = None
) -> "Service | StockService":
    """Read a checkpoint folder (config.json, *.safetensors) from disk; never from a network.

    Args:
        path: as `weights.locate` returns it.
        bits: in which weights are kept; as `choose` says where left out.
        threads: cores to compute on, for the whole process; all but one where left out.
        draft: another such folder, of a smaller network that guesses what this one says.

    Raises:
        WeightsMissing: there is no such folder.
        WeightsDamaged: the files cannot be read.
        DraftDiffers: the one network cannot draft for the other.
        NotEnoughMemory: before weights are read.
    """
    threads = threads or max(1, cores() - 1)
    with _readable(path):
        ends = end_tokens(path)
        try:
            config = read_shape(path)
        except UnknownArchitecture as error:
            if draft:
                raise DraftDiffers(f"{path} takes no draft, which only ringfence's own engine does: {error}") from error
            from ringfence.model.stock import StockService  # transformers takes seconds to import

            torch.set_num_threads(threads)
            return StockService.load(path, FORMS[bits or 4][1], ends)
    with _all_cores(threads):
        # First: the memory that it takes is then known.
        drafting = read_draft(draft, path, bits, threads) if draft else None
        with _readable(path):
            beside = drafting[1].size if drafting else 0
            network, cache = read(path, config, bits, threads, beside)
    return Service(Engine(network, cache, ends, draft=Draft(*drafting) if drafting else None))


@contextmanager
def _all_cores(threads: int) -> Iterator[None]:
    """Let torch have all cores meanwhile, as nothing is computed beside it yet, and so many afterwards."""
    torch.set_num_threads(max(threads, cores()))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


def read_draft(draft: Path, path: Path, bits: Bits | None, threads: int) -> tuple[Network, Cache]:
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
        return read(draft, config, bits, threads)


def read(path: Path, config: Config, bits: Bits | None, threads: int, beside: int = 0) -> tuple[Network, Cache]:
    """Read a checkpoint in one form of its weights, and make room for keys and values.

    In few bits a dense Llama is computed by a graph as well, which wants keys and values in float32; what that leaves
    to the decoder is many tokens at once, for which eight bits a row are faster. What has no graph has both, where it
    is kept in four bits, in the decoder.

    Args:
        bits: as `load`'s.
        beside: bytes that are free, and that something else will take.

    Raises:
        CheckpointDamaged: the files cannot be read, or are not what the configuration says.
        DeltaDiffers: the experts in the folder are to other weights.
        NotEnoughMemory: before weights are read.
    """
    delta = experts_of(path)
    bits = bits or choose(path, config, delta, beside)
    form, dtype = FORMS[bits]
    drawn = DRAWN.get(bits) if drawable(config, delta) else None
    kept = torch.float32 if drawn else dtype
    tokens, together = room(path, config, bits, drawn is not None, kept, beside)
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
            few = assemble(config, take, drawn, dtype, delta)
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


def choose(path: Path, config: Config, delta: Delta | None, beside: int = 0) -> Bits:
    """Say in which bits a checkpoint is kept where nobody said: the best for which there is memory, if it has a graph.

    What has none is fastest in four.
    """
    if not drawable(config, delta):
        return 4
    context = used(config) * per_token(config, torch.float32)
    return next((bits for bits in DRAWN if fits(weigh(path, config, bits, torch.float32) + beside + context)), 4)


def room(path: Path, config: Config, bits: Bits, drawn: bool, dtype: torch.dtype, beside: int) -> tuple[int, bool]:
    """Return for how many tokens to keep keys and values: one context at least, where memory is enough for that.

    And whether it is enough for the graph of many lanes as well, with a whole context.
    """
    each, context = per_token(config, dtype), used(config)
    if context < config.context:
        log.warning("%s: of its context of %d tokens %d are used at most", path.name, config.context, context)
    weights = weigh(path, config, bits, dtype, drawn=drawn) + beside
    many = count_weights(path) * TOGETHER[bits] // 8 if drawn else 0
    together = drawn and fits(weights + many + context * each)
    most = max(context, CACHE // each // PAGE * PAGE)
    what = f"{path.name} at {bits} bits" + (" beside its draft" if beside else "")
    return fitting(what, weights + (many if together else 0), each, context, most), together


def weigh(path: Path, config: Config, bits: Bits, dtype: torch.dtype, drawn: bool = True) -> int:
    """Return the bytes that a checkpoint's weights take in memory."""
    size = count_weights(path) * (KEPT_DRAWN if drawn else KEPT)[bits] // 8
    if bits < 16 or config.tied:  # the words stay as they are, beside the head; each network that is drawn has its own
        size += config.vocabulary * config.width * dtype.itemsize
    return size


def per_token(config: Config, dtype: torch.dtype) -> int:
    """Return the bytes that a token's keys and values take."""
    return 2 * len(config.layers) * config.kv_heads * config.head * dtype.itemsize


def used(config: Config) -> int:
    """Return how many tokens of a checkpoint's context are used."""
    return min(config.context, LONGEST)


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
