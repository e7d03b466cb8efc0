"""The network once more, as a graph for ONNX Runtime: the next few tokens of one sequence, in four bits a weight.

A token at a time, what counts is how fast weights are read and how many calls stand between them. `llama4` makes two
thousand calls a token, this makes one, and reads four bits faster; it says the same as far as four bits let it. It
computes dense Llamas; many tokens or sequences at once remain with `llama4`.

Source: ONNX Runtime's contrib operators (MatMulNBits, GroupQueryAttention, SkipSimplifiedLayerNormalization).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor
from torch.nn.functional import embedding, linear, pad

from ringfence.model.cache import Cache, Held
from ringfence.model.config import Config
from ringfence.model.linear import FEW, GROUP, SLICE, Linear
from ringfence.model.llama4 import Decoder, Experts, FeedForward, Grown, New

OPSET, MICROSOFT = 21, "com.microsoft"

SINGLY = 2
"""Sequences up to which it is faster to compute one after the other."""

PLACE = "of this process"
"""Where the graph says that its weights are: they are handed over beside it, for a graph holds 2 GB at most."""


# Weights


@dataclass(frozen=True, slots=True)
class Four:
    """Weights (out, in) in four bits, as MatMulNBits takes them: `(step - zero) · scale`, group by group.

    Attributes:
        steps: 0 to 15, two a byte (out, groups, GROUP / 2).
        scale: float32 (out, groups).
        zero: the step that stands for 0: uint8 (out, groups).
        sums: whether there are weights for the sum of each group of the input as well, filled up to whole groups.
    """

    steps: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]
    sums: bool = False
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round weights (out, in), in whole groups, to 16 steps between a group's least and largest, one of them 0."""
        steps, scale, zero, _ = _sliced(weight, exact=False)
        return cls(steps, scale, zero, bias=bias)

    @classmethod
    def exact(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round them to 16 steps of which none need be 0, so that what has been in 16 steps, as in GGUF's Q4_1, stays.

        What a group's steps are off by then, all alike, is the weight of its input's sum.
        """
        steps, scale, zero, off = _sliced(weight, exact=True)
        more = _sliced(pad(torch.from_numpy(off), (0, -off.shape[1] % GROUP)), exact=False)
        steps, zero = np.concatenate([steps, more[0]], 1), np.concatenate([zero, more[2]], 1)
        return cls(steps, np.concatenate([scale, more[1]], 1), zero, sums=True, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out), computed with the weights that these steps stand for."""
        steps = torch.from_numpy(np.stack([self.steps & 15, self.steps >> 4], -1)).flatten(2).float()
        weight = (steps - torch.from_numpy(self.zero)[..., None]) * torch.from_numpy(self.scale)[..., None]
        weight = weight.flatten(1).to(x.dtype)
        if self.sums:
            sums = x.view(len(x), -1, GROUP).sum(-1)
            x = torch.cat([x, pad(sums, (0, -sums.shape[1] % GROUP))], 1)
        return linear(x, weight, self.bias)


def _sliced(weight: Tensor, *, exact: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return steps, scale, zero, and what each group is off by where it is rounded exactly; a slice after the other."""
    parts = zip(*(_rounded(some, exact) for some in torch.split(weight, SLICE)), strict=True)
    steps, scale, zero, off = (torch.cat(part).numpy() for part in parts)
    return steps, scale, zero, off


def _rounded(weight: Tensor, exact: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    least, most = groups.aminmax(dim=-1, keepdim=True)
    if not exact:
        least, most = least.clamp(max=0), most.clamp(min=0)
    scale = ((most - least) / 15).clamp(min=1e-12)
    zero = (-least / scale).round().clamp(0, 15)
    start = least if exact else -zero * scale
    steps = ((groups - start) / scale).round().clamp(0, 15).to(torch.uint8)
    packed = steps[..., 0::2] | steps[..., 1::2] << 4
    return packed, scale[..., 0], zero[..., 0].to(torch.uint8), (start + zero * scale)[..., 0]


# The graph at work


class Graph:
    """A network under way in ONNX Runtime, for one sequence at a time.

    Attributes:
        config: of the network.
        size: bytes of weights that a token reads.
    """

    def __init__(self, decoder: Decoder, tokens: int, threads: int) -> None:
        """Build it.

        Args:
            decoder: `drawable`, its products `Four`.
            tokens: positions that there may be.
            threads: cores to compute on.
        """
        self.config = decoder.config
        self._words = decoder.words
        drawing = _Drawing(self.config)
        drawing.decoder(decoder, tokens)
        self.size = drawing.size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in drawing.weights.values()]
        options.add_external_initializers(list(drawing.weights), values)
        self._session = onnxruntime.InferenceSession(drawing.model(), options, providers=["CPUExecutionProvider"])
        self._bound: WeakKeyDictionary[Cache, dict[int, Any]] = WeakKeyDictionary()

    def takes(self, held: Held, count: int) -> bool:
        """Say whether it computes so many more tokens of a sequence, for which there is room."""
        return count <= FEW and len(list(held.slots(0, held.length + count))) == 1

    def __call__(self, held: Held, ids: Sequence[int], cache: Cache) -> tuple[Tensor, Tensor]:
        """Compute new tokens of a sequence that `takes` says yes to.

        Args:
            cache: in float32.

        Returns:
            the last hidden states (N, width), and what they say of the token after each (N, vocabulary), in float32.
        """
        count, length = len(ids), held.length + len(ids)
        start = next(held.slots(0, length)).start
        binding = self._binding(cache, start)
        x = embedding(torch.tensor([ids]), self._words).float()
        hidden, logits = torch.empty(count, self.config.width), torch.empty(count, self.config.vocabulary)
        binding.bind_input("x", "cpu", 0, np.float32, tuple(x.shape), x.data_ptr())
        binding.bind_cpu_input("last", np.array([length - 1], np.int32))
        binding.bind_cpu_input("length", np.array(length, np.int32))
        for name, out in (("hidden", hidden), ("logits", logits)):
            binding.bind_output(name, "cpu", 0, np.float32, (1, *out.shape), out.data_ptr())
        self._session.run_with_iobinding(binding)
        held.length = length
        return hidden, logits

    def _binding(self, cache: Cache, start: int) -> Any:
        """Bind keys and values from a slot on; they are written where they are read.

        The graph is told that they go on for as long as the cache is, so that heads are as far apart as they are there;
        what is beyond the cache's end it neither reads nor writes.
        """
        bound = self._bound.setdefault(cache, {})
        if start not in bound:
            binding = bound[start] = self._session.io_binding()
            shape = (1, *cache.keys.shape[1:])
            for layer in range(len(self.config.layers)):
                for name, whole in (("keys", cache.keys), ("values", cache.values)):
                    place = ("cpu", 0, np.float32, shape, whole[layer, :, start:].data_ptr())
                    binding.bind_input(f"{name}_{layer}", *place)
                    binding.bind_output(f"new_{name}_{layer}", *place)
        return bound[start]


@dataclass(frozen=True, slots=True)
class Both:
    """A network in both forms: the graph computes one or two sequences that speak, the decoder all else.

    Attributes:
        decoder, graph: of the same weights.
    """

    decoder: Decoder
    graph: Graph

    @property
    def config(self) -> Config:
        """Return its shape."""
        return self.decoder.config

    def compute(self, new: Sequence[New], cache: Cache, asked: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Compute as `Decoder.compute` does."""
        if len(new) > SINGLY or not all(self.graph.takes(held, len(ids)) for held, ids in new):
            return self.decoder.compute(new, cache, asked)
        parts = [self.graph(held, ids, cache) for held, ids in new]
        said = [logits[len(logits) - count :] for (_, logits), count in zip(parts, asked, strict=True)]
        return torch.cat([hidden for hidden, _ in parts]), torch.cat(said)


def drawable(config: Config) -> bool:
    """Say whether there is a graph of such a network: a dense Llama of plain attention, in shapes that groups fit."""
    plain = all(layer.rope and not layer.chunk and not layer.experts for layer in config.layers) and not config.qk_norm
    wide = (config.width, config.heads * config.head, *(layer.width for layer in config.layers))
    return plain and config.head % 16 == 0 and all(width % GROUP == 0 for width in wide)


# The graph on paper


@dataclass(slots=True)
class _Drawing:
    """A graph under construction: every method adds nodes and returns the name of their result."""

    config: Config
    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    size: int = 0
    _told: list[TensorProto] = field(default_factory=list)

    def decoder(self, decoder: Decoder, tokens: int) -> None:
        """Draw the whole network, from the words' embedding `x` (1, N, width) on."""
        config, norms = self.config, [*(block.attention_norm for block in decoder.blocks), decoder.norm]
        self.inputs.append(_value("x", [1, "N", config.width]))
        self.inputs += [_value("last", [1], TensorProto.INT32), _value("length", [], TensorProto.INT32)]
        angles = torch.arange(tokens)[:, None] * decoder.frequencies
        turns = self.constant(angles.cos()), self.constant(angles.sin())
        x = "x"
        heard = self._node("SimplifiedLayerNormalization", x, self.constant(norms[0]), axis=-1, epsilon=config.eps)
        for index, block in enumerate(decoder.blocks):
            heard = self.product(self.attention(index, heard, block.attention.qkv, turns), block.attention.out)
            x, heard = self.added(x, heard, block.feed_forward_norm)
            x, heard = self.added(x, self.feed_forward(heard, block.feed_forward), norms[index + 1])
        self._output("hidden", heard, config.width)
        self._output("logits", self.product(heard, decoder.head), config.vocabulary)

    def attention(self, index: int, x: str, qkv: Linear, turns: tuple[str, str]) -> str:
        """Draw one layer's attention, which also writes keys and values (Ainslie et al. 2023)."""
        config, mixed = self.config, self._new("mixed")
        shape: list[int | str] = [1, config.kv_heads, "slots", config.head]
        past = [f"keys_{index}", f"values_{index}"]
        self.inputs += [_value(name, shape) for name in past]
        self.outputs += [_value(f"new_{name}", shape) for name in past]
        given = [self.product(x, qkv), "", "", *past, "last", "length", *turns]
        made = [mixed, *(f"new_{name}" for name in past)]
        heads = {"num_heads": config.heads, "kv_num_heads": config.kv_heads}
        self._add("GroupQueryAttention", given, made, MICROSOFT, **heads, do_rotary=1, rotary_interleaved=1)
        return mixed

    def feed_forward(self, x: str, layer: FeedForward | Experts | Grown) -> str:
        """Draw what is computed on each token by itself."""
        match layer:
            case FeedForward(gate_up=gate_up, down=down):
                return self.product(self.gated(self.product(x, gate_up)), down)
            case Grown():
                return self.grown(x, layer)
        raise TypeError(f"there is no graph of {layer!r}")

    def grown(self, x: str, layer: Grown) -> str:
        """Draw experts of low rank."""
        says = self._node("MatMul", x, self.constant(layer.router.T))
        chosen = self._node("ArgMax", says, axis=-1, keepdims=0)
        share = self._node("Sigmoid", self._node("ReduceMax", says, self._whole(-1), keepdims=1))
        mine = self._node("Gather", self.constant(layer.mine), chosen)
        scale = self._node("Sub", self._node("Add", share, share), self.constant(torch.ones(())))
        scale = self._node("Add", self._node("Mul", scale, self.constant(layer.routed)), self.constant(torch.ones(())))
        own = self.product(x, layer.into)
        own = self.product(self._node("Mul", own, self._node("Mul", mine, share)), layer.out)
        pair = self._node("Add", self._node("Mul", self.product(x, layer.parent.gate_up), scale), own)
        inner = self.gated(pair)
        own = self.product(self._node("Mul", self.product(inner, layer.into_down), mine), layer.out_down)
        return self._node("Add", self.product(inner, layer.parent.down), own)

    def gated(self, pair: str) -> str:
        """Draw what a gate lets through, of both in one."""
        gate, up = self._new("gate"), self._new("up")
        self._add("Split", [pair], [gate, up], axis=-1, num_outputs=2)
        return self._node("Mul", self._node("QuickGelu", gate, domain=MICROSOFT, alpha=1.0), up)

    def added(self, x: str, more: str, norm: Tensor) -> tuple[str, str]:
        """Draw a sum, and the same normalised."""
        total, normal = self._new("sum"), self._new("norm")
        given, made = [x, more, self.constant(norm)], [normal, "", "", total]
        self._add("SkipSimplifiedLayerNormalization", given, made, MICROSOFT, epsilon=self.config.eps)
        return total, normal

    def product(self, x: str, product: Linear) -> str:
        """Draw a product."""
        assert isinstance(product, Four)
        rows, groups = product.scale.shape
        if product.sums:
            x = self.with_sums(x, groups)
        zero = np.pad(product.zero, ((0, 0), (0, groups % 2)))
        weights: Sequence[NDArray[Any]] = (product.steps, product.scale, zero[:, 0::2] | zero[:, 1::2] << 4)
        self.size += sum(weight.nbytes for weight in weights)
        bias = () if product.bias is None else ("", self.constant(product.bias))
        settings = {"K": groups * GROUP, "N": rows, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
        return self._node("MatMulNBits", x, *map(self._weight, weights), *bias, domain=MICROSOFT, **settings)

    def with_sums(self, x: str, wanted: int) -> str:
        """Put the sum of each group of x (1, N, K) behind it, and something to fill up the groups that are wanted."""
        groups = wanted * GROUP // (GROUP + 1)  # of these one in so many, rounded up, is for the sums
        apart = self._node("Reshape", x, self._whole(0, 0, groups, GROUP))
        parts = [x, self._node("ReduceSum", apart, self._whole(-1), keepdims=0)]
        if groups % GROUP:  # whatever it is, its weights are zero
            parts.append(self._node("Slice", "x", self._whole(0), self._whole(-groups % GROUP), self._whole(2)))
        return self._node("Concat", *parts, axis=-1)

    def _output(self, name: str, value: str, width: int) -> None:
        self._add("Identity", [value], [name])
        self.outputs.append(_value(name, [1, "N", width]))

    def constant(self, tensor: Tensor) -> str:
        """Add a constant in float32; return its name."""
        return self._weight(tensor.float().numpy())

    def model(self) -> bytes:
        """Write down what was drawn, without the weights."""
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self._told)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        written: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return written

    def _node(self, kind: str, *inputs: str, domain: str = "", **settings: float | int) -> str:
        name = self._new(kind)
        self._add(kind, inputs, [name], domain, **settings)
        return name

    def _add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **settings: float | int
    ) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), domain=domain, **settings))  # type: ignore[arg-type]  # its stub takes them for the name

    def _new(self, kind: str) -> str:
        return f"{kind}_{len(self.nodes)}"

    def _weight(self, value: NDArray[Any]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(value)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        told = TensorProto(name=name, dims=value.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        told.external_data.add(key="location", value=PLACE)
        self._told.append(told)
        return name

    def _whole(self, *numbers: int) -> str:
        name = f"numbers_{len(self._told)}"
        self._told.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name


def _value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
