"""The embedded engine: token ids in, token ids out. Knows nothing of text, chat, safety or HTTP.

The first form: transformers' own forward pass with a key/value cache, and a decode loop written here. What stands
above it uses `Engine` alone, so that another engine can take its place.
"""

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from ringfence.model.weights import WeightsMissing, revision

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import Cache, PreTrainedModel

SEQUENCES = 4
"""How many sequences may be under way; more wait. Each holds a cache that grows to `context_length` tokens."""

PREFILL = 256
"""Prompt tokens read in one step: a long prompt neither delays cancelling nor holds up the other sequences."""


class ContextOverflow(ValueError):
    """The prompt leaves no room for a reply.

    Attributes:
        prompt: tokens in the prompt.
        context: tokens that prompt and reply may have together.
    """

    def __init__(self, prompt: int, context: int) -> None:
        super().__init__(f"the prompt has {prompt} tokens, the engine's context is {context}; shorten the prompt")
        self.prompt = prompt
        self.context = context


class WeightsDamaged(RuntimeError):
    """A checkpoint is in its place but cannot be read; the message says how to replace it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are what the default checkpoint's authors recommend.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that together have this much probability.
        top_k: sample from so many of the likeliest tokens; 0 for all.
        seed: the same seed, prompt and machine give the same tokens; None for a different reply each time.
        max_tokens: the reply ends after so many.
        repetition_penalty: above 1, tokens seen before become less likely (Keskar et al. 2019, CTRL, section 4.1).
    """

    temperature: float = 0.2
    top_p: float = 0.9
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 512
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        bounds: tuple[tuple[str, float, float], ...] = (
            ("temperature", 0, 100),
            ("top_p", 0, 1),
            ("top_k", 0, math.inf),
            ("max_tokens", 1, math.inf),
            ("repetition_penalty", 0.01, 100),
            ("seed", -(1 << 63), (1 << 63) - 1),
        )
        for name, low, high in bounds:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def never() -> bool:
    """Answer that nobody cancelled."""
    return False


class Engine:
    """A loaded checkpoint. Thread-safe: several threads may each read a reply of their own.

    Attributes:
        context_length: tokens that prompt and reply may have together.
        eos_ids: tokens that end a reply; never yielded.
        revision: sha256 of the weights, hexadecimal.
        dtype: in which weights and activations are kept (`bfloat16`, `float32`).
    """

    def __init__(
        self, model: "PreTrainedModel", *, context_length: int, vocabulary: int, eos_ids: frozenset[int], revision: str
    ) -> None:
        self.context_length = context_length
        self.eos_ids = eos_ids
        self.revision = revision
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model
        self._vocabulary = vocabulary
        self._seats = threading.BoundedSemaphore(SEQUENCES)
        # One forward pass at a time: two of them would only fight over the same cores. The lock is let go between
        # steps, so sequences take turns and a reader that pauses stops nobody else.
        self._turn = threading.Lock()

    @classmethod
    def load(cls, path: Path, threads: int | None = None) -> Self:
        """Read a checkpoint folder (config.json, *.safetensors) from disk; never from a network.

        Args:
            path: as `weights.locate` returns it.
            threads: cores to compute on, for the whole process; all but one where left out.

        Raises:
            WeightsMissing: there is no such folder.
            WeightsDamaged: the files cannot be read.
        """
        if not (path / "config.json").is_file():
            raise WeightsMissing(f"no checkpoint at {path}; run `ringfence engine pull`")
        import torch
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(threads or max(1, cores() - 1))
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            with silent():
                model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                    path, config=config, dtype=best_dtype(), local_files_only=True, use_safetensors=True
                )
            eos_ids = end_tokens(path)
            digest = revision(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise WeightsDamaged(
                f"{path} cannot be read ({error}); delete it and run `ringfence engine pull`"
            ) from error
        return cls(
            model,
            context_length=int(config.max_position_embeddings),
            vocabulary=int(config.vocab_size),
            eos_ids=eos_ids,
            revision=digest,
        )

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, cancelled: Callable[[], bool] = never
    ) -> Iterator[int]:
        """Yield the reply's token ids one by one, up to an end token, `max_tokens`, the end of the context, or cancel.

        Args:
            prompt_ids: at least one, each below the size of the vocabulary.
            sampling: how to choose.
            cancelled: asked before every step; once true, the reply ends there.

        Raises:
            ContextOverflow: at the call, before any work.
            ValueError: at the call, for an empty prompt or an id that the checkpoint does not have.
        """
        if not prompt_ids:
            raise ValueError("the prompt has no tokens; a reply needs at least one")
        if stranger := next((id for id in prompt_ids if not 0 <= id < self._vocabulary), None):
            raise ValueError(f"token id {stranger} is outside the vocabulary of {self._vocabulary}")
        if len(prompt_ids) >= self.context_length:
            raise ContextOverflow(len(prompt_ids), self.context_length)
        return self._reply(prompt_ids, sampling, cancelled)

    def _reply(self, prompt_ids: Sequence[int], sampling: Sampling, cancelled: Callable[[], bool]) -> Iterator[int]:
        import torch
        from transformers import DynamicCache

        while not self._seats.acquire(timeout=0.05):
            if cancelled():
                return
        try:
            generator = torch.Generator()  # its own: the process's seed is the application's
            generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
            seen = torch.zeros(self._vocabulary, dtype=torch.bool)
            cache = DynamicCache()
            unread = list(prompt_ids)
            for _ in range(min(sampling.max_tokens, self.context_length - len(prompt_ids))):
                while unread:
                    if cancelled():
                        return
                    step, unread = unread[:PREFILL], unread[PREFILL:]
                    seen[step] = True
                    logits = self._forward(step, cache)
                chosen = choose(logits, seen, sampling, generator)
                if chosen in self.eos_ids:
                    return
                yield chosen
                unread = [chosen]
        finally:
            self._seats.release()

    def _forward(self, ids: list[int], cache: "Cache") -> "Tensor":
        """Read tokens after those in the cache; return the logits (V,) of what comes next, in float32."""
        import torch

        with self._turn, torch.inference_mode():
            output = self._model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            return cast("Tensor", output.logits[0, -1].float())


def choose(logits: "Tensor", seen: "Tensor", sampling: Sampling, generator: "Generator") -> int:
    """Choose the next token.

    Args:
        logits: (V,), float32.
        seen: (V,), bool: the tokens of the prompt and the reply so far.
        sampling: temperature, penalties and cuts, applied in the order penalty, temperature, top-k, top-p.
        generator: where randomness comes from; untouched at temperature 0.
    """
    import torch

    if sampling.repetition_penalty != 1:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    # The maximum is taken off before dividing: a temperature near 0 would overflow to inf and then to nan.
    logits = (logits - logits.max()) / sampling.temperature
    kept = min(sampling.top_k or len(logits), len(logits))
    logits, ids = logits.topk(kept)  # (K,), falling
    probabilities = logits.softmax(-1)  # (K,)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities  # what the likelier tokens have; 0 for the first, always kept
        probabilities = torch.where(before <= sampling.top_p, probabilities, 0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def cores() -> int:
    """Return how many cores this process may use.

    The engine leaves one of them alone: torch's threads meet some two hundred times a token and spin while they wait,
    so with as many threads as cores one busy neighbour, such as the guard judging the last window, costs nine tenths of
    the speed (two cores: from 20 tokens a second down to 1.3; with one thread from 14 to 10).
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best_dtype() -> Any:
    """Return bfloat16 where the processor multiplies it in hardware, else float32.

    Without AVX-512 torch has no fast bfloat16 kernels, and emulating them is slower than reading twice the bytes.
    """
    import torch

    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else torch.float32


def end_tokens(path: Path) -> frozenset[int]:
    """Read which tokens end a reply: from generation_config.json where it says so, else from config.json."""
    for name in ("generation_config.json", "config.json"):
        if (file := path / name).is_file():
            match json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"):
                case int(one):
                    return frozenset({one})
                case [*several]:
                    return frozenset(int(id) for id in several)
    return frozenset()


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers' progress bar off the terminal while a checkpoint loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
