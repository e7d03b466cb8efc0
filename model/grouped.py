"""Weights rounded in groups, as ONNX Runtime's MatMulNBits takes them. Knows no graph."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, pad

from ringfence.model.linear import GROUP, SLICE


@dataclass(frozen=True, slots=True)
class Grouped:
    """Weights (out, in) in four or eight bits: `(step - zero) · scale`, group by group.

    Attributes:
        bits: of a step.
        steps: one a byte (out, groups, GROUP), or two.
        scale: float32 (out, groups).
        zero: the step that stands for 0: uint8 (out, groups).
        sums: whether there are weights for the sum of each group of the input as well, filled up to whole groups.
    """

    bits: int
    steps: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]
    sums: bool = False
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None, bits: int = 4) -> Self:
        """Round weights (out, in), in whole groups, to steps between a group's least and largest, one of them 0."""
        steps, scale, zero, _ = _sliced(weight, bits, exact=False)
        return cls(bits, steps, scale, zero, bias=bias)

    @classmethod
    def fine(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round them to 256 steps."""
        return cls.of(weight, bias, bits=8)

    @classmethod
    def exact(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round them to 16 steps of which none need be 0, so that what has been in 16 steps, as in GGUF's Q4_1, stays.

        What a group's steps are off by then, all alike, is the weight of its input's sum.
        """
        steps, scale, zero, off = _sliced(weight, 4, exact=True)
        more = _sliced(pad(torch.from_numpy(off), (0, -off.shape[1] % GROUP)), 4, exact=False)
        steps, zero = np.concatenate([steps, more[0]], 1), np.concatenate([zero, more[2]], 1)
        return cls(4, steps, np.concatenate([scale, more[1]], 1), zero, sums=True, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out), computed with the weights that these steps stand for."""
        steps = self.steps if self.bits == 8 else np.stack([self.steps & 15, self.steps >> 4], -1)
        steps_ = torch.from_numpy(steps).reshape(len(steps), -1, GROUP).float()
        weight = (steps_ - torch.from_numpy(self.zero)[..., None]) * torch.from_numpy(self.scale)[..., None]
        weight = weight.flatten(1).to(x.dtype)
        if self.sums:
            sums = x.view(len(x), -1, GROUP).sum(-1)
            x = torch.cat([x, pad(sums, (0, -sums.shape[1] % GROUP))], 1)
        return linear(x, weight, self.bias)


def _sliced(weight: Tensor, bits: int, *, exact: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return steps, scale, zero, and what each group is off by where it is rounded exactly; a slice after the other."""
    parts = zip(*(_rounded(some, bits, exact) for some in torch.split(weight, SLICE)), strict=True)
    steps, scale, zero, off = (torch.cat(part).numpy() for part in parts)
    return steps, scale, zero, off


def _rounded(weight: Tensor, bits: int, exact: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups, last = weight.float().view(len(weight), -1, GROUP), 2**bits - 1
    least, most = groups.aminmax(dim=-1, keepdim=True)
    if not exact:
        least, most = least.clamp(max=0), most.clamp(min=0)
    scale = ((most - least) / last).clamp(min=1e-12)
    zero = (-least / scale).round().clamp(0, last)
    start = least if exact else -zero * scale
    steps = ((groups - start) / scale).round().clamp(0, last).to(torch.uint8)
    if bits == 4:
        steps = steps[..., 0::2] | steps[..., 1::2] << 4
    return steps, scale[..., 0], zero[..., 0].to(torch.uint8), (start + zero * scale)[..., 0]
