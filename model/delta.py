"""What training added to a dense network that grew into a mixture of experts, small enough to travel by itself.

Knows neither how it is trained nor how it is computed.

Source: Hu et al. 2022 (low-rank additions).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ringfence.model.checkpoint import CheckpointDamaged

FORMAT = "ringfence delta 1"

ROUTER, SHARED = "feed_forward.router.weight", "feed_forward.shared_neurons"
GATE_UP, DOWN = "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"


class DeltaDiffers(ValueError):
    """A delta belongs to other weights, or to another number of experts; the message says which."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What training added to the routed experts and the router of an upcycled network.

    Attributes:
        parent: sha256 of the weights that were upcycled, hexadecimal (`weights.revision`).
        experts: of each mixture.
        rank: of what is added to each expert's products.
        interleave: one in so many layers is a mixture, as `config.mixtures` counts them.
        tensors: of each mixture, below `model.layers.N.feed_forward.`: `router.weight` (experts, width);
            `shared_neurons` (neurons,), bool, true for those that the shared expert has; and of the two tensors of the
            experts, named as in the checkpoint, `.a` (experts, in, rank) and `.b` (experts, rank, out), whose product
            is added.
    """

    parent: str
    experts: int
    rank: int
    tensors: Mapping[str, Tensor]
    interleave: int = 1

    def grows(self, layer: int) -> bool:
        """Say whether a layer is a mixture."""
        return (layer + 1) % self.interleave == 0

    def get(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of that shape.

        Raises:
            CheckpointDamaged: there is none.
        """
        tensor = self.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            raise CheckpointDamaged(f"the delta has no tensor {name} of shape {shape}")
        return tensor

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointDamaged: it is missing, cut short, or something else.
        """
        try:
            with safe_open(file, framework="pt") as source:
                said = source.metadata() or {}
                if said.get("format") != FORMAT:
                    raise CheckpointDamaged(f"{file} is no delta to an upcycled checkpoint")
                tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - it is no dict
                experts, rank, interleave = int(said["experts"]), int(said["rank"]), int(said.get("interleave", "1"))
                if interleave < 1:
                    raise CheckpointDamaged(f"{file}: one layer in {interleave} is no mixture")
                return cls(said["parent"], experts, rank, tensors, interleave)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointDamaged(f"{file} cannot be read: {error}") from error

    def save(self, file: Path) -> None:
        """Write it as one safetensors file, equal deltas as equal bytes."""
        shape = {"experts": str(self.experts), "rank": str(self.rank), "interleave": str(self.interleave)}
        said = {"format": FORMAT, "parent": self.parent, **shape}
        data = save({name: tensor.detach().contiguous() for name, tensor in self.tensors.items()}, metadata=said)
        # safetensors writes what is said in another order each time; sorted, the header is as long as it was.
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        header["__metadata__"] = dict(sorted(said.items()))
        text = json.dumps(header, separators=(",", ":")).encode().ljust(end - 8)
        file.write_bytes(data[:8] + text + data[end:])
