"""Products with weights, in the forms that weights are kept in. Knows no network.

One token at a time, a product is as fast as its weights are read, so four bits a weight are read then. Many tokens at
once, it is as fast as the processor multiplies, which is fastest with eight bits a side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

Linear = Callable[[Tensor], Tensor]
"""From (N, in) to (N, out)."""

Form = Callable[[Tensor, Tensor | None], Linear]
"""Makes a product of weights (out, in) and a bias (out,)."""

GROUP = 32
"""Neighbouring weights of a row that share a scale where four bits each are kept: that of GGUF's Q4 types."""

SLICE = 1 << 11
"""Rows of weights that are rounded at once; the kernel takes them in blocks of 64."""

FEW = 4
"""Rows up to which reading the weights takes longer than multiplying them."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Weights as they are.

    Attributes:
        weight: (out, in); laid out as oneDNN reads them where that is there, which multiplies twice to three times as
            fast then.
    """

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Lay weights (out, in) out; where oneDNN is not, keep them."""
        there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if there and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        return cls(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out)."""
        if not self.weight.is_mkldnn:
            return linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


@dataclass(frozen=True, slots=True)
class Int8:
    """Eight bits a weight, a scale a row; many tokens at once are rounded to eight bits as well, each by its own scale.

    What a token gives does therefore not depend on the tokens beside it (Dettmers et al. 2022, LLM.int8, section 2.1).

    Attributes:
        weight: int8 (out, in).
        scale: bfloat16 (out,).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Round weights (out, in) to the nearest of 255 steps of their row."""
        scale = (weight.abs().amax(1, keepdim=True).float() / 127).clamp(min=1e-12).bfloat16()
        slices = zip(torch.split(weight, SLICE), torch.split(scale.float(), SLICE), strict=True)
        rounded = torch.cat([(some / steps).round_().clamp_(-127, 127).to(torch.int8) for some, steps in slices])
        return cls(rounded, scale[:, 0], bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out) for x in bfloat16."""
        if len(x) <= FEW and self.weight.shape[1] % 16 == 0:  # of other widths the kernel reads beyond the end
            out = torch._weight_int8pack_mm(x, self.weight, self.scale)
        else:
            steps = x.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / 127
            rounded = (x / steps).round_().to(torch.int8)
            out = (torch._int_mm(rounded, self.weight.T) * (steps * self.scale)).to(x.dtype)
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, slots=True)
class Int4:
    """Four bits a weight, with a scale and an offset for every group; and eight bits, for many tokens at once.

    Attributes:
        packed: as PyTorch's kernel lays them out.
        scales: bfloat16 (in / group, out, 2), of each group its scale and its middle.
        wide: for more than a few tokens.
    """

    packed: Tensor
    scales: Tensor
    wide: Int8
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> "Int4 | Int8":
        """Round weights (out, in) to the nearest of 16 steps between the least and the largest of their group.

        Weights that came from such groups, as GGUF's Q4_1 keeps them, stay what they are. Where the kernel or the
        groups do not fit the shape, eight bits are kept.
        """
        wide = Int8.of(weight, bias)
        rows, columns = weight.shape
        if rows % 16 or columns % GROUP:
            return wide
        # A slice at a time, so that what is computed on the way takes little memory beside what comes of it.
        packed, scales = zip(*(_grouped(some) for some in torch.split(weight, SLICE)), strict=True)
        return cls(torch.cat(packed), torch.cat(scales, 1), wide, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out) for x in bfloat16."""
        if len(x) > FEW:
            return self.wide(x)
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scales)
        return out if self.bias is None else out + self.bias


def _grouped(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return some rows as the kernel takes them, and their scales (in / group, rows, 2)."""
    rows, columns = weight.shape
    groups = weight.float().view(rows, -1, GROUP)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)  # aminmax takes seven times as long
    scale = ((most - least) / 15).clamp(min=1e-12).bfloat16().float()
    middle = (least + 8 * scale).bfloat16().float()
    steps = ((groups - middle) / scale).round_().clamp_(-8, 7).add_(8).to(torch.int32).view(rows, columns)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 2)
    return packed, torch.cat([scale, middle], -1).transpose(0, 1).bfloat16().contiguous()
