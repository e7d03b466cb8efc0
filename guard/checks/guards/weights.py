"""Loads somebody else's weights with transformers, and says of everything that can be wrong with them what to do.

Knows no guard: who loads says which architectures will do. Nothing that comes with weights is run as a program.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ringfence.guard.check import CannotAnswer
from ringfence.guard.checks.guards.batches import Batches, Row
from ringfence.guard.stamps import Stamp, stamps
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.words import Origin

T = TypeVar("T")

SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""How much of each file tells it from another of its size: a megabyte in all, from all over it."""

LESS = "take fewer `bits`, a smaller model, or a server (`use: http://…/v1`)"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that are there, not yet loaded.

    Attributes:
        who: in error messages, as `the guard of 'harm'`.
        model: a folder, or a name on the hub.
        config: as transformers reads it.
        architecture: the class that they are of.
        revision: what tells them from others.
        seen: what tells the files in the folder from others, as they were before they were read.
    """

    who: str
    model: str
    config: Any
    architecture: str
    bits: int | None
    origin: Origin
    revision: str
    seen: frozenset[Stamp] = frozenset()

    def is_replaced(self) -> bool:
        """Whether other files stand in the place of these; never of weights on the hub."""
        return stamps(Path(self.model)) != self.seen

    def refused(self, what: str) -> PolicyError:
        """Return the error that something is wrong with them."""
        return PolicyError([Problem(self.origin, f"{self.who} cannot use {self.model}: {what}")])


@dataclass(frozen=True, slots=True)
class Loaded:
    """What runs: a network in evaluation mode, on its device, and the tokenizer that came with it."""

    network: Any
    tokenizer: Any
    longest: int


def find_weights(who: str, model: str, bits: int | None, origin: Origin) -> Weights:
    """Read the configuration of weights; of those on the hub, fetch it where it is not here yet.

    Raises:
        PolicyError: there are none, they are gated, or `bits` needs a library that is not installed.
    """
    from transformers import AutoConfig

    found = Weights(who, model, None, "", bits, origin, "")
    folder = Path(model)
    seen = stamps(folder)
    if bits and find_spec("bitsandbytes") is None:
        raise found.refused(f"`bits: {bits}` needs bitsandbytes; install it, or leave `bits` out")
    local = folder.is_dir()
    if not local and (folder.is_absolute() or model.startswith(("./", "../", "~"))):
        raise found.refused("there is no such folder; give one that holds config.json and the weights")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise found.refused(_explained(error, local)) from None
    if local and not any(folder.glob("*.safetensors")):
        raise found.refused("the folder has a config.json and no weights (*.safetensors); download the model anew")
    architecture = (config.architectures or [""])[0]
    revision = _revision(folder) if local else _named(model, config)
    return Weights(who, model, config, architecture, bits, origin, revision, seen)


def load_weights(weights: Weights) -> Loaded:
    """Load weights and their tokenizer; takes long.

    Raises:
        PolicyError: some are missing, they do not fit their configuration, or into memory.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    cuda = torch.cuda.is_available()
    how: dict[str, Any] = {"dtype": "auto", "use_safetensors": True}
    if weights.bits:
        bits: Any = transformers.BitsAndBytesConfig
        how["quantization_config"] = bits(**{f"load_in_{weights.bits}bit": True})
        how["device_map"] = {"": 0} if cuda else "cpu"
    with told_of_memory(weights):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(weights.model)
            kind = getattr(transformers, weights.architecture)
            network, info = kind.from_pretrained(weights.model, output_loading_info=True, **how)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError, SafetensorError) as error:
            raise weights.refused(_explained(error, Path(weights.model).is_dir())) from None
        if missing := sorted(info["missing_keys"]):
            # They would be made up, and the guard would answer all the same.
            what = f"{len(missing)} tensors are missing, as {missing[0]}; choose a model that was trained for this"
            raise weights.refused(what)
        if cuda and not weights.bits:
            network = network.to("cuda")
    text = network.config.get_text_config()
    longest = min(int(getattr(text, "max_position_embeddings", 0) or 2**31), int(tokenizer.model_max_length))
    return Loaded(network.eval(), tokenizer, longest)


def load_processor(weights: Weights) -> Any:
    """Load what makes inputs of images, and of texts with them.

    Raises:
        PolicyError: none came with the weights, or it needs a library that is not installed.
    """
    import transformers

    kind: Any = transformers.AutoProcessor
    try:
        return kind.from_pretrained(weights.model)
    except (ImportError, RuntimeError):  # the second where torchvision is built for another torch
        what = (
            "what reads its images needs torchvision, built for the torch that is here; install it from where that is"
        )
        raise weights.refused(what) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise weights.refused(_explained(error, Path(weights.model).is_dir())) from None


@contextmanager
def told_of_memory(weights: Weights) -> Iterator[None]:
    """Turn what happens where memory ends into a `PolicyError` that says what to do."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise weights.refused(f"there is not enough memory; {LESS}") from None
    except RuntimeError as error:
        if not out_of_memory(error):
            raise weights.refused(_first_line(error)) from None
        raise weights.refused(f"there is not enough memory; {LESS}") from None


def run_in_time(batches: Batches[T], rows: Sequence[Row], until: float, who: str, whose: str) -> Sequence[T]:
    """Return what a network makes of rows.

    Args:
        until: when nobody waits any more, in seconds of `time.monotonic`.
        who: the guard, where it is late; whose: where its memory ran out.

    Raises:
        TimeoutError: it was not done until then.
        CannotAnswer: memory ran out.
    """
    try:
        return batches.run(rows, until)
    except TimeoutError:
        raise TimeoutError(f"{who} gave no verdict in time (timeout_s, or the rule's seconds)") from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise CannotAnswer(f"{whose} ran out of memory; {LESS}") from None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory ended: on the processor, torch has no class for it."""
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _explained(error: BaseException, local: bool) -> str:
    names = {type(one).__name__ for one in _causes(error)}
    said = " ".join(str(one) for one in _causes(error)).lower()
    if "GatedRepoError" in names or "gated repo" in said:
        return "it is gated; accept its licence on its page on the hub, and set HF_TOKEN to a token of yours"
    if local:
        return f"{_first_line(error)}; download the model anew"
    if isinstance(error, OSError):
        return "it is no folder here, and the hub did not give it; download it and name its folder, or check its name"
    return _first_line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _revision(folder: Path) -> str:
    """Return the sha256 of the names and sizes of a folder's files, and of a sample of each; small ones are whole.

    Not of whole files: to read all weights takes minutes. Training moves nearly every weight, so the sample tells.
    """
    digest = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as stored:
            for place in range(SAMPLES):
                stored.seek(place * size // SAMPLES)
                digest.update(stored.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _named(model: str, config: Any) -> str:
    return f"{model}@{getattr(config, '_commit_hash', None)}"
