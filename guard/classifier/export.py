"""Writes the network as an int8 ONNX graph, op by op. Knows the runtime's fused operators; knows nothing of training.

Weights are int8 with a scale for each output. Activations are rounded to 8 bits with a scale for each token. The usual
dynamic quantization takes one scale for a whole batch: the same text then scores differently beside another neighbour
or with more padding (logits moved by 0.1), and a recorded score could not be reproduced. The runtime's blockwise
operator (MatMulNBits) keeps texts apart as well, and is no faster than float32 here. One core, 128 tokens, batch 1:
float32 31 ms, one scale a batch 13 ms, one a token (this) 15 ms.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ringfence.guard.classifier.heads import HEADS
from ringfence.guard.classifier.network import Network
from ringfence.guard.classifier.tokens import WINDOW

OPSET = 21
MICROSOFT = "com.microsoft"

Weights = Mapping[str, NDArray[np.float32]]


def export(network: Network, path: Path) -> None:
    """Write the graph `(ids, kinds, mask: int64 (B, T)) → logits (B, heads)`, T at most `WINDOW`."""
    onnx.save(build(network), path)


def build(network: Network, *, int8: bool = True) -> onnx.ModelProto:
    """Build the graph; in float32 where `int8` is not set, for comparison."""
    weights = {name: value.detach().float().cpu().numpy() for name, value in network.state_dict().items()}
    shape = network.shape
    graph = Graph(weights, int8)
    x = graph.embed()
    seen = graph.node("Cast", "mask", to=TensorProto.INT32)
    for index in range(shape.layers):
        x = graph.layer(f"layers.{index}", x, seen, shape.attention_heads)
    mean = graph.mean(x)
    logits = graph.node(
        "Gemm", mean, graph.constant(weights["heads.weight"]), graph.constant(weights["heads.bias"]), transB=1
    )
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("ids", "kinds", "mask")]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", len(HEADS)])
    proto = helper.make_graph(graph.nodes, "guard", inputs, [output], graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=10, producer_name="ringfence")


class Graph:
    """A graph under construction: every method adds nodes and returns the name of their result."""

    def __init__(self, weights: Weights, int8: bool) -> None:
        self.weights = weights
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: int | float) -> str:
        """Add an operator; return the name of its result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))  # type: ignore[arg-type]  # its stub takes them for the name
        return name

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Add a constant; return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def embed(self) -> str:
        """Look up words, places and kinds, and normalise their sum. Words are int8, each with its own scale."""
        words = self.weights["words.weight"]
        if not self.int8:
            word = self.node("Gather", self.constant(words), "ids")
        else:
            codes, scales = quantize(words)
            table = self.node("Cast", self.node("Gather", self.constant(codes), "ids"), to=TensorProto.FLOAT)
            word = self.node("Mul", table, self.node("Gather", self.constant(scales[:, None]), "ids"))
        length = self.node("Slice", self.node("Shape", "ids"), *(self.constant(np.array([at])) for at in (1, 2)))
        zero, axis = self.constant(np.array([0])), self.constant(np.array([0]))
        place = self.node("Slice", self.constant(self.weights["places.weight"][:WINDOW]), zero, length, axis)
        kind = self.node("Gather", self.constant(self.weights["kinds.weight"]), "kinds")
        return self.norm("norm", self.node("Add", word, place), kind)

    def layer(self, name: str, x: str, seen: str, heads: int) -> str:
        """Add one transformer layer: x (B, T, W) to the same, `seen` (B, T) marking the tokens."""
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        together = self.product(x, *parts)
        self.nodes.append(helper.make_node("Split", [together], parts, axis=-1, num_outputs=3))
        bias = self.constant(np.concatenate([self.weights[f"{part}.bias"] for part in parts]))
        mixed = self.node("MultiHeadAttention", *parts, bias, seen, domain=MICROSOFT, num_heads=heads)
        x = self.norm(f"{name}.mix_norm", self.product(mixed, f"{name}.mix"), x, f"{name}.mix")
        up = self.product(x, f"{name}.up")
        up = self.node("BiasGelu", up, self.constant(self.weights[f"{name}.up.bias"]), domain=MICROSOFT)
        return self.norm(f"{name}.down_norm", self.product(up, f"{name}.down"), x, f"{name}.down")

    def product(self, x: str, *names: str) -> str:
        """Multiply x (B, T, K) by weights (N, K) side by side; their biases are left to the operator that follows."""
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in names])
        if not self.int8:
            return self.node("MatMul", x, self.constant(weight.T))
        last, one, zero = self.constant(np.array([2])), self.constant(np.float32(1)), self.constant(np.uint8(128))
        largest = self.node("ReduceMax", self.node("Abs", x), last, keepdims=1)  # (B, T, 1)
        nonzero = self.node("Max", largest, self.constant(np.float32(1e-12)))
        scale = self.node("Mul", nonzero, self.constant(np.float32(1 / 127)))
        codes = self.node("QuantizeLinear", self.node("Div", x, scale), one, zero)
        rounded, scales = quantize(weight)
        second = (self.constant(rounded.T), one, self.constant(scales), zero)
        return self.node("Mul", self.node("MatMulIntegerToFloat", codes, *second, domain=MICROSOFT), scale)

    def norm(self, name: str, x: str, other: str, bias_of: str | None = None) -> str:
        """Add two, and a bias where one was left over, and normalise the sum."""
        gain, shift = (self.constant(self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        extra = [self.constant(self.weights[f"{bias_of}.bias"])] if bias_of else []
        return self.node("SkipLayerNormalization", x, other, gain, shift, *extra, domain=MICROSOFT, epsilon=1e-12)

    def mean(self, x: str) -> str:
        """Average the states (B, T, W) of the tokens that the mask marks."""
        last, middle = self.constant(np.array([2])), self.constant(np.array([1]))
        weight = self.node("Cast", self.node("Unsqueeze", "mask", last), to=TensorProto.FLOAT)
        total = self.node("ReduceSum", self.node("Mul", x, weight), middle, keepdims=0)
        return self.node("Div", total, self.node("ReduceSum", weight, middle, keepdims=0))


def quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a weight (N, K) to int8 codes (N, K) with one scale (N,) for each row."""
    scale = np.abs(weight).max(axis=1).clip(1e-8) / 127
    return np.rint(weight / scale[:, None]).astype(np.int8), scale.astype(np.float32)
