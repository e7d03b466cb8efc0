"""The network once more, as a graph in ONNX Runtime: the next tokens of sequences that speak.

A token at a time, what counts is how fast weights are read and how many calls stand between them. `llama4` makes two
thousand calls a step, a graph one. One or two sequences are computed one after the other, more of them together by a
second graph of the same weights. Prompts, and sequences whose keys lie in several places, remain with `llama4`.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ringfence.model.cache import Cache, Held
from ringfence.model.config import Config
from ringfence.model.delta import Delta
from ringfence.model.drawing import Drawing
from ringfence.model.linear import FEW, GROUP
from ringfence.model.llama4 import Decoder, New, Said

SINGLY = 2
"""Sequences up to which it is faster to compute one after the other."""

LANES = 8
"""Sequences that are computed together; with fewer, the lanes that are left compute nothing of use."""

SPARE = 16
"""Slots for the lanes that are left."""


class Graph:
    """A network under way in ONNX Runtime.

    Attributes:
        config: of the network.
        lanes: sequences at once.
        size: bytes of weights that a step reads.
    """

    def __init__(self, decoder: Decoder, tokens: int, threads: int, lanes: int = 1) -> None:
        """Build it.

        Args:
            decoder: `drawable`; its products are `Grouped`.
            tokens: positions that there may be.
            threads: cores to compute on.
        """
        self.config, self.lanes = decoder.config, lanes
        self._words = decoder.words
        drawing = Drawing(self.config, lanes)
        drawing.decoder(decoder, tokens)
        self.size = drawing.size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in drawing.weights.values()]
        options.add_external_initializers(list(drawing.weights), values)
        self._session = onnxruntime.InferenceSession(drawing.model(), options, providers=["CPUExecutionProvider"])
        self._binding: Any = self._session.io_binding()
        self._cache: ReferenceType[Cache] | None = None
        self._starts: list[int | None] = []
        self._lengths, self._lasts = np.ones(lanes, np.int32), np.zeros(lanes, np.int32)
        for lane in range(lanes):  # bound once; they change where they lie
            for name, numbers, shape in (("length", self._lengths, ()), ("last", self._lasts, (1,))):
                place = numbers[lane:].ctypes.data
                self._binding.bind_input(f"{name}_{lane}", "cpu", 0, np.int32, shape, place)
        self._count = 0
        self._spare = torch.zeros(self.config.kv_heads, SPARE, self.config.head)

    def __call__(self, new: Sequence[New], cache: Cache) -> Sequence[Said]:
        """Compute new tokens of one sequence, or one token each of at most as many as there are lanes.

        Args:
            new: whose tokens all lie in one stretch of the cache, the new ones too.
            cache: in float32.

        Returns:
            of each sequence what it says, with the logits of every token, in float32.
        """
        count = len(new[0][1])
        if count != self._count:
            self._make_place(count)
        starts = [next(held.slots(0, held.length + count)).start for held, _ in new]
        self._bind(cache, starts)
        self._lengths[:] = [held.length + count for held, _ in new] + [1] * (self.lanes - len(new))
        self._lasts[:] = self._lengths - 1
        ids = [id for _, own in new for id in own] + [0] * (self.lanes - len(new))
        for row, id in zip(self._x, ids, strict=True):  # to look up several at once, torch wakes its threads
            row.copy_(self._words[id])
        self._session.run_with_iobinding(self._binding)
        for held, _ in new:
            held.length += count
        said = zip(self._hidden, self._logits, range(len(new)), strict=False)
        return [(torch.from_numpy(hidden.copy()), torch.from_numpy(logits.copy())) for hidden, logits, _ in said]

    def _make_place(self, count: int) -> None:
        """Bind what goes in and comes out, of so many tokens a lane: to do so takes longer than to copy it."""
        self._count = count
        self._x = torch.empty(self.lanes * count, self.config.width)
        shape = (self.lanes, count)
        self._hidden = np.empty((*shape, self.config.width), np.float32)
        self._logits = np.empty((*shape, self.config.vocabulary), np.float32)
        self._binding.bind_input("x", *_CPU, (*shape, self.config.width), self._x.data_ptr())
        for name, out in (("hidden", self._hidden), ("logits", self._logits)):
            self._binding.bind_output(name, *_CPU, out.shape, out.ctypes.data)

    def _bind(self, cache: Cache, starts: Sequence[int]) -> None:
        """Bind each lane's keys and values from a slot on; they are written where they are read.

        The graph is told that they go on for as long as the cache is, so that heads are as far apart as they are there;
        what is beyond the cache's end it neither reads nor writes.
        """
        if self._cache is None or self._cache() is not cache:
            self._cache, self._starts = ref(cache), [-1] * self.lanes
        wanted = [*starts, *[None] * (self.lanes - len(starts))]
        for lane, (start, bound) in enumerate(zip(wanted, self._starts, strict=True)):
            if start == bound:
                continue
            for layer in range(len(self.config.layers)):
                for name, whole in (("keys", cache.keys), ("values", cache.values)):
                    place = _place(self._spare[None])
                    if start is not None:
                        place = (*_CPU, (1, *whole.shape[1:]), whole[layer, :, start:].data_ptr())
                    self._binding.bind_input(f"{name}_{layer}_{lane}", *place)
                    self._binding.bind_output(f"new_{name}_{layer}_{lane}", *place)
        self._starts = wanted


_CPU = ("cpu", 0, np.float32)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return where a tensor of float32 lies, as a binding takes it."""
    return (*_CPU, tuple(tensor.shape), tensor.data_ptr())


class Both:
    """A network as graphs and as a decoder, of the same weights.

    Attributes:
        decoder: its products are `Int8`.
        graph: of one lane.
        together: whether there is memory for a graph of many lanes; if not, the decoder does its work.
    """

    def __init__(self, decoder: Decoder, grouped: Decoder, tokens: int, threads: int, together: bool = True) -> None:
        """Draw the graph of one lane.

        Args:
            grouped, tokens, threads: as `Graph`'s.
            together: as the attribute.
        """
        self.config = decoder.config
        self.decoder, self.graph = decoder, Graph(grouped, tokens, threads)
        self.together = together
        self._tokens, self._threads = tokens, threads
        if together:
            self._grouped = grouped

    def compute(self, new: Sequence[New], cache: Cache, asked: Sequence[int]) -> Sequence[Said]:
        """Compute as `Decoder.compute` does."""
        said = dict(self._speak(new, cache, asked))
        if rest := [index for index in range(len(new)) if index not in said]:
            others = self.decoder.compute([new[index] for index in rest], cache, [asked[index] for index in rest])
            said |= zip(rest, others, strict=True)
        return [said[index] for index in range(len(new))]

    def _speak(self, new: Sequence[New], cache: Cache, asked: Sequence[int]) -> Iterator[tuple[int, Said]]:
        """Compute what graphs can; yield which sequence it was, and what came of it."""
        able = [index for index, (held, ids) in enumerate(new) if len(ids) <= FEW and whole(held, len(ids))]
        if len(able) <= SINGLY:
            for index in able:
                ((hidden, logits),) = self.graph([new[index]], cache)
                yield index, (hidden, logits[len(logits) - asked[index] :])
            return
        if not self.together:
            return
        able = [index for index in able if len(new[index][1]) == 1 and asked[index] == 1]
        for start in range(0, len(able), LANES):
            some = able[start : start + LANES]
            yield from zip(some, self.many([new[index] for index in some], cache), strict=True)

    @cached_property
    def many(self) -> Graph:
        """Draw the graph of many lanes: when it is needed first, as it takes half a second and memory."""
        graph = Graph(self._grouped, self._tokens, self._threads, LANES)
        del self._grouped  # both graphs have its weights as they are run
        return graph


def whole(held: Held, count: int) -> bool:
    """Say whether a sequence and so many more tokens of it, for which there is room, lie in one stretch."""
    return len(list(held.slots(0, held.length + count))) == 1


def drawable(config: Config, delta: Delta | None = None) -> bool:
    """Say whether there is a graph of such a network: a Llama of plain attention, in shapes that groups fit."""
    plain = all(layer.rope and not layer.chunk and not layer.experts for layer in config.layers) and not config.qk_norm
    wide = [config.width, config.heads * config.head, *(layer.width for layer in config.layers)]
    if delta:
        wide.append(delta.experts * delta.rank)
    return plain and config.head % 16 == 0 and all(width % GROUP == 0 for width in wide)
