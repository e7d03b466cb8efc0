"""Weights rounded in groups, as ONNX Runtime's MatMulNBits takes them. Knows no graph."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, pad

from ringfence.model.linear import GROUP, SLICE

WIDE = 64
"""Neighbours that share a scale where they have eight bits each: twice as many, which loses nothing and reads less."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """Weights (out, in) in four or eight bits: `(step - zero) · scale`, group by group.

    Attributes:
        inputs: numbers that it is given; the last group may have places for more.
        bits: of a step.
        steps: one a byte (out, groups, group), or two.
        scale: float32 (out, groups).
        zero: the step that stands for 0: uint8 (out, groups).
        means: whether the mean of each group of the input is among the inputs, behind the others.
    """

    inputs: int
    bits: int
    steps: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]
    means: bool = False
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None, bits: int = 4, group: int = GROUP) -> Self:
        """Round weights (out, in), in whole groups, to steps between a group's least and largest, one of them 0."""
        steps, scale, zero, _ = _sliced(weight, bits, group, exact=False)
        return cls(weight.shape[1], bits, steps, scale, zero, bias=bias)

    @classmethod
    def fine(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round them to 256 steps."""
        return cls.of(weight, bias, bits=8, group=GROUP if weight.shape[1] % WIDE else WIDE)

    @classmethod
    def exact(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round them to 16 steps of which none need be 0, so that what has been in 16 steps, as in GGUF's Q4_1, stays.

        What a group's steps are off by then, all alike, is for the mean of its input.
        """
        steps, scale, zero, off = _sliced(weight, 4, GROUP, exact=True)
        groups = off.shape[1]
        more = _sliced(pad(torch.from_numpy(GROUP * off), (0, -groups % GROUP)), 4, GROUP, exact=False)
        steps, zero = np.concatenate([steps, more[0]], 1), np.concatenate([zero, more[2]], 1)
        scale = np.concatenate([scale, more[1]], 1)
        return cls(weight.shape[1] + groups, 4, steps, scale, zero, means=True, bias=bias)

    @property
    def group(self) -> int:
        """Neighbours that share a scale."""
        return int(self.steps.shape[-1]) * 8 // self.bits

    def behind(self, other: "Grouped") -> Self:
        """Return the sum of two of the same bits and groups as one; the other's inputs, in whole groups, come first."""
        return replace(
            self,
            inputs=other.inputs + self.inputs,
            steps=np.concatenate([other.steps, self.steps], 1),
            scale=np.concatenate([other.scale, self.scale], 1),
            zero=np.concatenate([other.zero, self.zero], 1),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out), computed with the weights that these steps stand for."""
        steps = self.steps if self.bits == 8 else np.stack([self.steps & 15, self.steps >> 4], -1)
        steps_ = torch.from_numpy(steps).reshape(len(steps), -1, self.group).float()
        weight = (steps_ - torch.from_numpy(self.zero)[..., None]) * torch.from_numpy(self.scale)[..., None]
        weight = weight.flatten(1).to(x.dtype)
        if self.means:
            x = torch.cat([x, x.view(len(x), -1, GROUP).mean(-1)], 1)
        return linear(x, weight[:, : self.inputs], self.bias)


def _sliced(
    weight: Tensor, bits: int, group: int, *, exact: bool
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return steps, scale, zero, and what each group is off by where it is rounded exactly; a slice after the other."""
    parts = zip(*(_rounded(some, bits, group, exact) for some in torch.split(weight, SLICE)), strict=True)
    steps, scale, zero, off = (torch.cat(part).numpy() for part in parts)
    return steps, scale, zero, off


def _rounded(weight: Tensor, bits: int, group: int, exact: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups, last = weight.float().view(len(weight), -1, group), 2**bits - 1
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)  # aminmax takes seven times as long
    if not exact:
        least, most = least.clamp(max=0), most.clamp(min=0)
    scale = ((most - least) / last).clamp(min=1e-12)
    zero = (-least / scale).round().clamp(0, last)
    start = least if exact else -zero * scale
    steps = (groups - start).div_(scale).round_().clamp_(0, last).to(torch.uint8)
    if bits == 4:
        steps = steps[..., 0::2] | steps[..., 1::2] << 4  # two a byte
    return steps, scale[..., 0], zero[..., 0].to(torch.uint8), (start + zero * scale)[..., 0]
