"""Grows a dense Llama into a mixture of experts of Llama 4's form that says what it said, for training to go on from.

A layer becomes a mixture, or one in so many layers does, as Llama 4 Maverick has it; the others remain dense. The
neurons of its feed-forward are dealt into two halves: one becomes the expert that all tokens share, the other is where
every routed expert starts. A token passes as many neurons as before. The router starts at zero and so halves what an
expert is given (sigmoid(0) = ½); the routed gate and up are doubled against it, which binary floating point does
exactly. What training then changes is a `Delta`, small enough to travel without the weights that it is added to.
Knows no training.

Source: Komatsuzaki et al. 2023 (sparse upcycling), Hu et al. 2022 (low-rank additions).
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ringfence.model.assemble import Take, assemble, neighbours
from ringfence.model.cache import Cache, Held
from ringfence.model.checkpoint import INDEX, CheckpointDamaged, opened, read_shape
from ringfence.model.config import Config, UnknownArchitecture, mixtures
from ringfence.model.delta import DOWN, GATE_UP, ROUTER, SHARED, Delta, DeltaDiffers
from ringfence.model.linear import Linear
from ringfence.model.llama4 import FeedForward
from ringfence.model.weights import Progress, Step, quiet, revision

Choose = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Says of each neuron of a layer how much it should be shared (neurons,), from the layer's number, its gate and up
(neurons, width) and its down (width, neurons). The upper half is shared; of equals the first."""


@dataclass(frozen=True, slots=True)
class Upcycled:
    """A checkpoint of Llama 4's form that is computed from its dense parent, tensor by tensor; a `Take`.

    Attributes:
        config: of what it has become.
        tensors: by Hugging Face's names, what computes each.
    """

    config: Config
    tensors: Mapping[str, Callable[[], Tensor]]

    def __call__(self, name: str) -> Tensor:
        """Compute one tensor, in the parent's dtype; raises KeyError where there is none of that name."""
        return self.tensors[name]()


def alternating(layer: int, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Share every other neuron: two halves alike, and the same ones on every machine.

    The norms of a neuron's weights say less than nothing of how much it matters: without the half that has the smaller
    ones SmolLM2-135M is worse off than without every other neuron. Where there is text, `busiest` knows better.
    """
    return (torch.arange(len(gate)) + 1) % 2


def busiest(config: Config, take: Take, texts: Sequence[Sequence[int]]) -> Choose:
    """Share the neurons that say the most on some texts, so that nothing that is routed can spoil much.

    Of SmolLM2-135M, a loss of 3.56 on other text becomes 4.7 without any routed expert, and 13.2 where neurons
    alternate. The whole parent is in memory, in float32, while it reads.

    Args:
        config, take: of the parent.
        texts: token ids; some hundreds in all are enough.

    Raises:
        UnknownArchitecture, CheckpointDamaged: as `grow` does.
        ValueError: there are none.
    """
    _check(config)
    if not any(texts):
        raise ValueError("no neuron is busy on a text without tokens")
    network = assemble(config, partial(_read, take))
    ears: list[_Ear] = []
    blocks = []
    for block, layer in zip(network.blocks, config.layers, strict=True):
        assert isinstance(block.feed_forward, FeedForward)  # of a dense network all are
        ears.append(_Ear(block.feed_forward.down, torch.zeros(layer.width)))
        blocks.append(replace(block, feed_forward=replace(block.feed_forward, down=ears[-1])))
    with torch.inference_mode():
        for ids in texts:
            cache, held = Cache(config, len(ids), torch.float32), Held()
            cache.make_room(held, len(ids))
            replace(network, blocks=blocks)([(held, ids)], cache)
    return lambda layer, gate, up, down: ears[layer].energy * down.float().square().sum(0)


@dataclass(frozen=True, slots=True)
class _Ear:
    """A product that also keeps the energy of what it was given (in,)."""

    product: Linear
    energy: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        self.energy.add_(x.square().sum(0))
        return self.product(x)


def upcycle(
    parent: Path,
    into: Path,
    experts: int,
    delta: Delta | None = None,
    progress: Progress = quiet,
    choose: Choose = alternating,
    interleave: int = 1,
) -> None:
    """Write a dense checkpoint folder as a mixture of experts: config.json, a shard a layer, and the tokenizer's files.

    One layer is in memory at a time. The folder appears whole or not at all.

    Args:
        experts, delta, choose, interleave: as `grow`'s.

    Raises:
        FileExistsError: there is something at `into`.
        UnknownArchitecture: the parent is no dense Llama, or cannot be halved.
        CheckpointDamaged: the parent's files cannot be read.
        DeltaDiffers: the delta is to something else.
    """
    if into.exists():
        raise FileExistsError(f"{into} is there already; name a folder that is not")
    config = read_shape(parent)
    if delta and delta.parent != (found := revision(parent)):
        raise DeltaDiffers(f"the delta is to weights of sha256 {delta.parent}; those at {parent} have {found}")
    into.parent.mkdir(parents=True, exist_ok=True)
    with opened(parent) as take, TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as beside:
        grown = grow(config, take, experts, delta, choose, interleave)
        work = Path(beside) / "checkpoint"
        work.mkdir()
        for file in _companions(parent):
            shutil.copy(file, work)
        told = json.loads((parent / "config.json").read_text(encoding="utf-8"))
        _write_json(work / "config.json", describe(grown.config, told))
        _write_shards(grown, work, progress)
        work.rename(into)


def grow(
    config: Config,
    take: Take,
    experts: int,
    delta: Delta | None = None,
    choose: Choose = alternating,
    interleave: int = 1,
) -> Upcycled:
    """See a dense checkpoint as a mixture of so many experts, top-1; nothing is read until it is asked for.

    Args:
        config, take: of the parent.
        experts: at least one.
        delta: what to add; it also says which layers are mixtures, and which of their neurons are shared.
        choose, interleave: which neurons and layers where no delta says so; one layer in `interleave` is a mixture.

    Raises:
        UnknownArchitecture: the parent is no dense Llama, or has an odd number of neurons.
        DeltaDiffers: the delta is to another number of experts.
        ValueError: there would be no mixture.
        CheckpointDamaged: when a tensor is asked for that the parent or the delta lacks or has in another shape.
    """
    mixed = _mixtures(config, delta.interleave if delta else interleave)
    if experts < 1:
        raise ValueError(f"a mixture has one expert or more, not {experts}")
    if delta and delta.experts != experts:
        raise DeltaDiffers(f"the delta is to {delta.experts} experts a layer, not {experts}")
    names = ["model.embed_tokens.weight", "model.norm.weight", *([] if config.tied else ["lm_head.weight"])]
    tensors: dict[str, Callable[[], Tensor]] = {name: partial(_read, take, name) for name in names}
    for index in range(len(config.layers)):
        layer = _Layer(config, index, take, experts, delta, choose)
        tensors |= {layer.below + name: how for name, how in layer.tensors(mixture=index in mixed).items()}
    layers = tuple(
        replace(layer, experts=experts, width=layer.width // 2) if index in mixed else layer
        for index, layer in enumerate(config.layers)
    )
    return Upcycled(replace(config, layers=layers, top_k=1, halves=False), tensors)


def start(
    config: Config,
    take: Take,
    parent: str,
    experts: int,
    rank: int,
    generator: torch.Generator,
    choose: Choose = alternating,
    interleave: int = 1,
) -> Delta:
    """Return a delta that adds nothing yet: the router and every `.b` are zero, every `.a` is random.

    Args:
        config, take: of the parent.
        parent: sha256 of its weights.
        generator: where the random numbers come from.
        choose: which neurons are shared from now on.
        interleave: one layer in so many is a mixture.

    Raises:
        UnknownArchitecture, ValueError, CheckpointDamaged: as `grow` does.
    """
    made: dict[str, Tensor] = {}
    for index in _mixtures(config, interleave):
        layer = config.layers[index]
        below = f"model.layers.{index}."
        made[below + ROUTER] = torch.zeros(experts, config.width)
        made[below + SHARED] = _Layer(config, index, take, experts, None, choose).shared()
        for name, inner, outer in ((GATE_UP, config.width, layer.width), (DOWN, layer.width // 2, config.width)):
            made[f"{below}{name}.a"] = torch.randn(experts, inner, rank, generator=generator) / inner**0.5
            made[f"{below}{name}.b"] = torch.zeros(experts, rank, outer)
    return Delta(parent, experts, rank, made, interleave)


def describe(config: Config, parent: Mapping[str, Any]) -> dict[str, object]:
    """Return the config.json of an upcycled network; special tokens and dtype are as its parent's says."""
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "torch_dtype", "dtype")
    rope, layers = config.rope, len(config.layers)
    interleave, mixture = next((number, layer) for number, layer in enumerate(config.layers, 1) if layer.experts)
    stretched = {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low,
        "high_freq_factor": rope.high,
        "original_max_position_embeddings": rope.original,
    }
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        **{key: parent[key] for key in kept if key in parent},
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": mixture.width,
        "intermediate_size_mlp": 2 * mixture.width,
        "num_hidden_layers": layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "attention_bias": config.bias,
        "tie_word_embeddings": config.tied,
        "rope_theta": rope.theta,
        "rope_scaling": stretched if rope.factor != 1 else None,
        "num_local_experts": mixture.experts,
        "num_experts_per_tok": config.top_k,
        "interleave_moe_layer_step": interleave,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
        "no_rope_layers": [1] * layers,  # Hugging Face's name for its opposite: 1 is a layer with positions
        "layer_types": ["full_attention"] * layers,
        "attention_chunk_size": config.context,  # no layer is chunked, but transformers wants a number
    }


# The tensors of one layer


class _Layer:
    """How each tensor of one upcycled layer comes from those of its parent's.

    Attributes:
        below: what stands before the names of its tensors.
    """

    def __init__(
        self, config: Config, index: int, take: Take, experts: int, delta: Delta | None, choose: Choose
    ) -> None:
        self.below, self._index = f"model.layers.{index}.", index
        self._config, self._neurons = config, config.layers[index].width
        self._take, self._experts, self._delta, self._choose = take, experts, delta, choose
        self._shared: Tensor | None = None

    def tensors(self, mixture: bool) -> dict[str, Callable[[], Tensor]]:
        """Return what computes each tensor, of a mixture or of a dense layer, by its name below this layer's."""
        same = ["self_attn.v_proj", "self_attn.o_proj", "input_layernorm", "post_attention_layernorm"]
        made: dict[str, Callable[[], Tensor]] = {
            **{f"{name}.weight": partial(self._read, f"{name}.weight") for name in same},
            **{f"self_attn.{name}_proj.weight": partial(self._turned, name, "weight") for name in "qk"},
            **(self._mixture() if mixture else self._gated("", self._every)),
        }
        if self._config.bias:
            made |= {f"self_attn.{name}_proj.bias": partial(self._turned, name, "bias") for name in "qk"}
            made |= {f"self_attn.{name}_proj.bias": partial(self._read, f"self_attn.{name}_proj.bias") for name in "vo"}
        return made

    def _mixture(self) -> dict[str, Callable[[], Tensor]]:
        return {
            ROUTER: self._router,
            GATE_UP: self._gate_up,
            DOWN: lambda: self._grown(DOWN, self._down(~self.shared()).T),
            **self._gated("shared_expert.", self.shared),
        }

    def _gated(self, name: str, which: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
        """Return what computes a feed-forward of some of the neurons."""
        return {
            f"feed_forward.{name}gate_proj.weight": lambda: self._rows("gate", which()),
            f"feed_forward.{name}up_proj.weight": lambda: self._rows("up", which()),
            f"feed_forward.{name}down_proj.weight": lambda: self._down(which()),
        }

    def shared(self) -> Tensor:
        """Return which neurons the shared expert has (neurons,), bool: half of them."""
        if self._shared is None:
            self._shared = self._choice() if self._delta is None else self._delta_to(SHARED, self._neurons)
            if self._shared.dtype != torch.bool or self._shared.sum() * 2 != self._neurons:
                raise CheckpointDamaged(f"{self.below}{SHARED} does not name half of {self._neurons} neurons")
        return self._shared

    def _choice(self) -> Tensor:
        every = self._every()
        weights = self._rows("gate", every), self._rows("up", every), self._down(every)
        order = self._choose(self._index, *weights).argsort(descending=True, stable=True)
        return torch.zeros(self._neurons, dtype=torch.bool).index_fill(0, order[: self._neurons // 2], True)

    def _every(self) -> Tensor:
        return torch.ones(self._neurons, dtype=torch.bool)

    def _router(self) -> Tensor:
        norm = self._read("post_attention_layernorm.weight")  # only for its dtype
        if self._delta is None:
            return norm.new_zeros(self._experts, self._config.width)
        return self._delta_to(ROUTER, self._experts, self._config.width).to(norm.dtype)

    def _gate_up(self) -> Tensor:
        routed = ~self.shared()
        return self._grown(GATE_UP, 2 * torch.cat([self._rows("gate", routed), self._rows("up", routed)]).T)

    def _grown(self, name: str, start: Tensor) -> Tensor:
        """Start every expert from the same (in, out), and add what the delta says (experts, in, out)."""
        every = start.expand(self._experts, *start.shape)
        if self._delta is None:
            return every.contiguous()
        a = self._delta_to(f"{name}.a", self._experts, start.shape[0], self._delta.rank)
        b = self._delta_to(f"{name}.b", self._experts, self._delta.rank, start.shape[1])
        return torch.baddbmm(every.float(), a.float(), b.float()).to(start.dtype)

    def _turned(self, name: str, kind: str) -> Tensor:
        """Read queries or keys, with what is rotated together side by side, as Llama 4 has it."""
        heads = self._config.heads if name == "q" else self._config.kv_heads
        width = (self._config.width,) if kind == "weight" else ()
        rows = self._read(f"self_attn.{name}_proj.{kind}", heads * self._config.head, *width)
        return neighbours(rows, self._config.head)

    def _rows(self, name: str, mask: Tensor) -> Tensor:
        rows = self._read(f"mlp.{name}_proj.weight", self._neurons, self._config.width)
        return rows[mask]

    def _down(self, mask: Tensor) -> Tensor:
        columns = self._read("mlp.down_proj.weight", self._config.width, self._neurons)
        return columns[:, mask]

    def _read(self, name: str, *shape: int) -> Tensor:
        return _read(self._take, self.below + name, *shape)

    def _delta_to(self, name: str, *shape: int) -> Tensor:
        assert self._delta is not None
        return _read(self._delta.tensors.__getitem__, self.below + name, *shape)


def _check(config: Config) -> None:
    """Refuse what cannot be upcycled."""
    if any(layer.experts or not layer.rope or layer.chunk for layer in config.layers) or not config.halves:
        raise UnknownArchitecture(
            "only a dense Llama can be upcycled; this checkpoint is a mixture, or another network"
        )
    if odd := next((layer.width for layer in config.layers if layer.width % 2), None):
        raise UnknownArchitecture(f"a feed-forward of {odd} neurons has no halves")


def _mixtures(config: Config, interleave: int) -> range:
    """Return which layers become mixtures; refuse where none can."""
    _check(config)
    if not 1 <= interleave <= len(config.layers):
        raise ValueError(f"one layer in 1 to {len(config.layers)} can be a mixture here, not one in {interleave}")
    return mixtures(len(config.layers), interleave)


def _read(take: Take, name: str, *shape: int) -> Tensor:
    """Read a tensor that must be there, and of the shape that is said, if one is."""
    try:
        tensor = take(name)
    except KeyError:
        raise CheckpointDamaged(f"there is no tensor {name}") from None
    if shape and tensor.shape != shape:
        raise CheckpointDamaged(f"{name} is of shape {tuple(tensor.shape)}, not {shape}")
    return tensor


# The folder


def _write_shards(upcycled: Upcycled, into: Path, progress: Progress) -> None:
    """Write what belongs to no layer, then a layer at a time, and which file has what."""
    groups = _groups(upcycled)
    where: dict[str, str] = {}
    size = 0
    for number, names in enumerate(groups, 1):
        progress(Step("upcycling", number - 1, len(groups), "shards"))
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: upcycled(name).contiguous() for name in names}
        save_file(tensors, into / file, metadata={"format": "pt"})
        # safetensors writes files that only their owner may read; these are as open as the folder's others.
        (into / file).chmod((into / "config.json").stat().st_mode)
        where |= dict.fromkeys(names, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    _write_json(into / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    progress(Step("upcycling", len(groups), len(groups), "shards"))


def _groups(upcycled: Upcycled) -> list[list[str]]:
    def layer(name: str) -> str:
        return name.split(".")[2] if name.startswith("model.layers.") else ""

    return [list(names) for _, names in groupby(upcycled.tensors, layer)]


def _companions(parent: Path) -> Iterator[Path]:
    """Yield what a tokenizer and a chat need: everything but weights and configuration."""
    for pattern in ("*.json", "*.jinja", "*.txt", "*.model"):
        yield from (file for file in sorted(parent.glob(pattern)) if file.name not in ("config.json", INDEX))


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
