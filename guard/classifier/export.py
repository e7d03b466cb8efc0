"""Writes the network as an int8 ONNX graph, op by op. Knows the runtime's operators; knows nothing of training.

Weights are int8 with a scale for each output. Activations are rounded to 8 bits with a scale for each token. The usual
dynamic quantization takes one scale for a whole batch: the same text then scores differently beside another neighbour
or with more padding (logits moved by 0.1), and a recorded score could not be reproduced. The runtime's blockwise
operator (MatMulNBits) keeps texts apart as well, and is no faster than float32 here.

Products take a sixth of the time, so the rest counts. The runtime's fused operators for attention and for the sum with
its normalisation are slower here than the plain ones. One core, 128 tokens, a text by itself and in a batch of 16:
float32 31 ms; fused 12.9 and 16.2 ms; plain (this) 9.5 and 12.5 ms.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ringfence.guard.classifier.network import Network, nearness
from ringfence.guard.classifier.scorer import GRAPH, Heads
from ringfence.guard.classifier.tokens import WINDOW

OPSET = 21
MICROSOFT = "com.microsoft"
STEP = np.float32(1 / 127)
"""Of the largest value, what one step of an 8-bit code stands for."""

Weights = Mapping[str, NDArray[np.float32]]


def export(network: Network, folder: Path) -> None:
    """Write the graph `(ids, kinds, mask: int64 (B, T)) → features (B, W)`, T at most `WINDOW`, and the heads.

    The heads stand beside it, so that they can be fitted anew to somebody's own texts without any of this.
    """
    onnx.save(build(network), folder / GRAPH)
    weight, bias = (value.detach().float().cpu().numpy() for value in (network.heads.weight, network.heads.bias))
    Heads(weight, bias).write(folder)


def build(network: Network, *, int8: bool = True) -> onnx.ModelProto:
    """Build the graph; in float32 where `int8` is not set, for comparison."""
    weights = {name: value.detach().float().cpu().numpy() for name, value in network.state_dict().items()}
    shape = network.shape
    graph = Graph(weights, int8)
    x = graph.embed(shape.first)
    seen = graph.unseen()
    if network.distances is not None:
        with torch.no_grad():
            near = nearness(network.distances, torch.arange(WINDOW)).float().numpy()
        seen = graph.node("Add", seen, graph.square(near))
    for index in range(shape.layers):
        x = graph.layer(f"layers.{index}", x, seen, shape.attention_heads)
    graph.nodes.append(helper.make_node("Identity", [graph.mean(x)], ["features"]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("ids", "kinds", "mask")]
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", shape.width])
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

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: float | Sequence[int]) -> str:
        """Add an operator; return the name of its result."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))  # type: ignore[arg-type]  # its stub takes them for the name
        return name

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Add a constant; return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def embed(self, first: int) -> str:
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
        places = self.weights["places.weight"][first : first + WINDOW]
        place = self.node("Slice", self.constant(places), zero, length, axis)
        kind = self.node("Gather", self.constant(self.weights["kinds.weight"]), "kinds")
        return self.norm("norm", self.node("Add", word, place), kind)

    def unseen(self) -> str:
        """Return what is added to attention scores (B, 1, 1, T): 0 where the mask marks a token, far less elsewhere."""
        mask = self.node("Unsqueeze", "mask", self.constant(np.array([1, 2])))
        marked = self.node("Sub", self.node("Cast", mask, to=TensorProto.FLOAT), self.constant(np.float32(1)))
        return self.node("Mul", marked, self.constant(np.float32(1e4)))

    def square(self, scores: NDArray[np.float32]) -> str:
        """Cut a constant (1, H, WINDOW, WINDOW) to the tokens there are: (1, H, T, T)."""
        zero, axes = self.constant(np.array([0, 0])), self.constant(np.array([2, 3]))
        length = self.node("Slice", self.node("Shape", "ids"), *(self.constant(np.array([at])) for at in (1, 2)))
        return self.node("Slice", self.constant(scores), zero, self.node("Concat", length, length, axis=0), axes)

    def layer(self, name: str, x: str, unseen: str, heads: int) -> str:
        """Add one transformer layer: x (B, T, W) to the same."""
        mixed = self.attention(name, x, unseen, heads)
        x = self.norm(f"{name}.mix_norm", self.product(mixed, f"{name}.mix"), x, f"{name}.mix")
        up = self.product(x, f"{name}.up")
        up = self.node("BiasGelu", up, self.constant(self.weights[f"{name}.up.bias"]), domain=MICROSOFT)
        return self.norm(f"{name}.down_norm", self.product(up, f"{name}.down"), x, f"{name}.down")

    def attention(self, name: str, x: str, unseen: str, heads: int) -> str:
        """Let tokens look at each other: x (B, T, W) to the same."""
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        bias = np.concatenate([self.weights[f"{part}.bias"] for part in parts])
        width = len(bias) // 3
        together = self.node("Add", self.product(x, *parts), self.constant(bias))  # (B, T, 3W)
        apart = self.node("Reshape", together, self.constant(np.array([0, 0, 3, heads, width // heads])))
        apart = self.node("Transpose", apart, perm=[2, 0, 3, 1, 4])  # (3, B, H, T, D)
        query, key, value = (self.node("Gather", apart, self.constant(np.array(at)), axis=0) for at in range(3))
        query = self.node("Mul", query, self.constant(np.float32((width // heads) ** -0.5)))
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        mixed = self.node("MatMul", self.node("Softmax", self.node("Add", scores, unseen), axis=-1), value)
        mixed = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.node("Reshape", mixed, self.constant(np.array([0, 0, width])))

    def product(self, x: str, *names: str) -> str:
        """Multiply x (B, T, K) by weights (N, K) side by side; their biases are left to the operator that follows."""
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in names])
        if not self.int8:
            return self.node("MatMul", x, self.constant(weight.T))
        last, one, zero = self.constant(np.array([2])), self.constant(np.float32(1)), self.constant(np.uint8(128))
        least = self.node("Neg", self.node("ReduceMin", x, last, keepdims=1))  # (B, T, 1)
        most = self.node("ReduceMax", x, last, keepdims=1)
        scale = self.node("Mul", self.node("Max", most, least, self.constant(np.float32(1e-12))), self.constant(STEP))
        codes = self.node("QuantizeLinear", self.node("Mul", x, self.node("Reciprocal", scale)), one, zero)
        rounded, scales = quantize(weight)
        second = (self.constant(rounded.T), one, self.constant(scales), zero)
        return self.node("Mul", self.node("MatMulIntegerToFloat", codes, *second, domain=MICROSOFT), scale)

    def norm(self, name: str, x: str, other: str, bias_of: str | None = None) -> str:
        """Add two, and a bias where one was left over, and normalise the sum."""
        total = self.node("Add", x, other)
        if bias_of:
            total = self.node("Add", total, self.constant(self.weights[f"{bias_of}.bias"]))
        gain, shift = (self.constant(self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.node("LayerNormalization", total, gain, shift, axis=-1, epsilon=1e-12)

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
