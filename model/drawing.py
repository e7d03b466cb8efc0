"""The network on paper: a graph of ONNX Runtime's operators, drawn node by node. Knows nothing of running it.

Source: ONNX Runtime's contrib operators (MatMulNBits, GroupQueryAttention, SkipSimplifiedLayerNormalization).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from ringfence.model.config import Config
from ringfence.model.grouped import Grouped
from ringfence.model.linear import GROUP, Linear
from ringfence.model.llama4 import Decoder, Experts, FeedForward, Grown

OPSET, MICROSOFT = 21, "com.microsoft"

PLACE = "of this process"
"""Where the graph says that its weights are: they are handed over beside it."""


@dataclass(slots=True)
class Drawing:
    """A graph under construction: every method adds nodes and returns the name of their result.

    Attributes:
        lanes: sequences that it computes at once. Alone, one may go on by several tokens.
        weights: what the graph only names, for it holds 2 GB at most.
        size: bytes of weights that a step reads.
    """

    config: Config
    lanes: int
    nodes: list[NodeProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    size: int = 0
    _told: list[TensorProto] = field(default_factory=list)

    def decoder(self, decoder: Decoder, tokens: int) -> None:
        """Draw the whole network, from the words' embedding `x` (lanes, N, width) on."""
        config, norms = self.config, [*(block.attention_norm for block in decoder.blocks), decoder.norm]
        self.inputs.append(_value("x", [self.lanes, "N", config.width]))
        for lane in range(self.lanes):
            self.inputs.append(_value(f"last_{lane}", [1], TensorProto.INT32))
            self.inputs.append(_value(f"length_{lane}", [], TensorProto.INT32))
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
        """Draw one layer's attention: each sequence to its own keys and values, which it also writes."""
        said = self.product(x, qkv)
        apart = [f"{said}_{lane}" for lane in range(self.lanes)] if self.lanes > 1 else [said]
        if self.lanes > 1:
            self._add("Split", [said], apart, axis=0, num_outputs=self.lanes)
        mixed = [self._attend(index, lane, one, turns) for lane, one in enumerate(apart)]
        return self._node("Concat", *mixed, axis=0) if self.lanes > 1 else mixed[0]

    def _attend(self, index: int, lane: int, said: str, turns: tuple[str, str]) -> str:
        config, mixed = self.config, self._new("mixed")
        shape: list[int | str] = [1, config.kv_heads, f"slots_{lane}", config.head]
        past = [f"keys_{index}_{lane}", f"values_{index}_{lane}"]
        self.inputs += [_value(name, shape) for name in past]
        self.outputs += [_value(f"new_{name}", shape) for name in past]
        given = [said, "", "", *past, f"last_{lane}", f"length_{lane}", *turns]
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
        most, chosen = self._new("most"), self._new("chosen")
        self._add("TopK", [says, self._whole(1)], [most, chosen], axis=-1)
        mine = self._node("GatherND", self.constant(layer.mine), chosen)
        share = self._node("Mul", self._node("Sigmoid", most), self.constant(2 * layer.routed))
        scale = self._node("Add", share, self.constant(1 - layer.routed))
        own = self._node("Mul", self.product(x, layer.into), mine)
        pair = self._node("Mul", self.summed(x, layer.parent.gate_up, own, layer.out), scale)
        inner = self.gated(pair)
        own = self._node("Mul", self.product(inner, layer.into_down), mine)
        return self.summed(inner, layer.parent.down, own, layer.out_down)

    def summed(self, x: str, product: Linear, y: str, more: Linear) -> str:
        """Draw the sum of two products; in groups as one product, which takes less than two and a sum."""
        if (
            isinstance(product, Grouped)
            and isinstance(more, Grouped)
            and (product.bits, product.group) == (more.bits, more.group)
        ):
            return self.grouped(x, product.behind(more), [y])
        return self._node("Add", self.product(x, product), self.product(y, more))

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
        if not isinstance(product, Grouped):
            raise TypeError(f"there is no graph of {product!r}")
        return self.grouped(x, product)

    def grouped(self, x: str, product: Grouped, before: Sequence[str] = ()) -> str:
        """Draw a product with weights that are rounded in groups; what it is given before x is of whole groups."""
        rows, groups = product.scale.shape
        given = [*before, x]
        if product.means:  # of (lanes, N, inputs) a channel a token
            given.append(self._node("AveragePool", x, kernel_shape=[GROUP], strides=[GROUP]))
        if len(given) > 1:
            x = self._node("Concat", *given, axis=-1)
        zero: NDArray[Any] = product.zero
        if product.bits == 4:
            zero = np.pad(zero, ((0, 0), (0, groups % 2)))
            zero = zero[:, 0::2] | zero[:, 1::2] << 4
        weights: Sequence[NDArray[Any]] = (product.steps, product.scale, zero)
        self.size += sum(weight.nbytes for weight in weights)
        bias = () if product.bias is None else ("", self.constant(product.bias))
        settings = {
            "K": product.inputs,
            "N": rows,
            "bits": product.bits,
            "block_size": product.group,
            "accuracy_level": 4,
        }
        return self._node("MatMulNBits", x, *map(self._weight, weights), *bias, domain=MICROSOFT, **settings)

    def _output(self, name: str, value: str, width: int) -> None:
        self._add("Identity", [value], [name])
        self.outputs.append(_value(name, [self.lanes, "N", width]))

    def constant(self, tensor: Tensor) -> str:
        """Add a constant in float32; return its name."""
        return self._weight(tensor.float().numpy())

    def model(self) -> bytes:
        """Write down what was drawn, without the weights."""
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self._told)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        written: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return written

    def _node(self, kind: str, *inputs: str, domain: str = "", **settings: float | Sequence[int]) -> str:
        name = self._new(kind)
        self._add(kind, inputs, [name], domain, **settings)
        return name

    def _add(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str = "",
        **settings: float | Sequence[int],
    ) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), domain=domain, **settings))  # type: ignore[arg-type]  # its stub takes them for the name

    def _new(self, kind: str) -> str:
        return f"{kind}_{len(self.nodes)}"

    def _weight(self, value: NDArray[Any]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights[name] = value = np.ascontiguousarray(value)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        told = TensorProto(name=name, dims=value.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        told.external_data.add(key="location", value=PLACE)
        self._told.append(told)
        return name

    def _whole(self, number: int) -> str:
        name = f"whole_{number}"
        if all(one.name != name for one in self._told):
            self._told.append(numpy_helper.from_array(np.array([number], np.int64), name))
        return name


def _value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
