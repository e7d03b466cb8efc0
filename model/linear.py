"""Products with weights, in the forms that weights are kept in. Knows no network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import linear

Linear = Callable[[Tensor], Tensor]
"""From (N, in) to (N, out)."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Weights as they are (out, in)."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, out)."""
        return linear(x, self.weight, self.bias)
