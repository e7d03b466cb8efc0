"""What our own network does not compute, transformers does: Mixtral, Qwen3-MoE, OLMoE, gpt-oss and all the others.

Slower, and each sequence by itself; behind the same interface as `service`. Knows nothing of text, safety or HTTP.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Tokens
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging
from transformers.utils.quantization_config import Mxfp4Config

from ringfence.model.checkpoint import CheckpointDamaged
from ringfence.model.config import MOST_LAYERS
from ringfence.model.engine import check
from ringfence.model.memory import count_weights, fitting
from ringfence.model.sampler import Constraint, Sampler, Sampling
from ringfence.model.sequence import Advance
from ringfence.model.service import Tell, told
from ringfence.model.weights import NotEnoughMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEQUENCES = 4
"""Sequences under way at once; more wait. Each has a cache of its own."""

PREFILL = 256
"""Prompt tokens read in one step: a long prompt neither delays leaving nor holds up the other sequences."""


class StockService:
    """A checkpoint of any architecture that transformers knows; a `Service`. Thread-safe."""

    def __init__(self, model: "PreTrainedModel", context: int, ends: frozenset[int]) -> None:
        self.context = context
        self.ends = ends
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self._model = model
        self._workers = ThreadPoolExecutor(SEQUENCES, thread_name_prefix="engine")
        # One step at a time: two of them would only fight over the same cores.
        self._turn = threading.Lock()

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype, ends: frozenset[int]) -> "StockService":
        """Read a checkpoint folder.

        Raises:
            CheckpointDamaged: it cannot be read, or transformers does not know it, or would make up a part of it.
            NotEnoughMemory: before it is read.
        """
        how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _silent():
                config = AutoConfig.from_pretrained(path, **how)
                context = _context(path, config, dtype)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    path,
                    dtype=dtype,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **_written_out(config),
                    **how,
                )
        except (CheckpointDamaged, MemoryError, NotEnoughMemory):
            raise
        except Exception as error:  # of a broken configuration transformers raises whatever comes of it
            raise CheckpointDamaged(f"transformers: {type(error).__name__}: {error}") from error
        model, info = loaded
        # What it does not find, or not in its shape, transformers fills with random numbers.
        made_up = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
        if made_up:
            raise CheckpointDamaged(
                f"{len(made_up)} tensors that a network of type {model.config.model_type!r} has are missing or of "
                f"another shape, such as {made_up[0]}"
            )
        return cls(model, context, ends)

    def submit(
        self, prompt: Tokens[int], sampling: Sampling, tell: Tell, constraint: Constraint | None = None
    ) -> Callable[[], None]:
        """As `Service.submit`."""
        check(prompt, self.vocabulary, self.context)
        left = threading.Event()

        def work() -> None:
            try:
                for advance in self._reply(prompt, sampling, constraint, left):
                    tell(advance)
            except Exception as error:  # noqa: BLE001 — the caller must hear of it, whatever it was
                tell(error)

        self._workers.submit(work)
        return left.set

    def generate(
        self, prompt: Tokens[int], sampling: Sampling, constraint: Constraint | None = None
    ) -> Iterator[Advance]:
        """As `Service.generate`."""
        check(prompt, self.vocabulary, self.context)
        return told(self, prompt, sampling, constraint)

    def close(self) -> None:
        """End the threads when the sequences under way are over."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def problem(self) -> str | None:
        """As `Service.problem`: what goes wrong with a sequence ends no thread."""
        return None

    def _reply(
        self, prompt: Tokens[int], sampling: Sampling, constraint: Constraint | None, left: threading.Event
    ) -> Iterator[Advance]:
        sampler = Sampler(sampling, self.vocabulary, prompt, constraint)
        limit = min(self.context, len(prompt) + sampling.max_tokens)
        cache, tokens, read = DynamicCache(), list(prompt), 0
        while not left.is_set():
            ids = tokens[read : read + PREFILL]
            hidden, logits = self._step(ids, cache)
            start, read = read, read + len(ids)
            if read < len(tokens):
                yield Advance(0, start, hidden)
                continue
            chosen = sampler.choose(logits)
            if chosen.token in self.ends:
                yield Advance(0, start, hidden, end="stop")
                return
            tokens.append(chosen.token)
            yield Advance(0, start, hidden, [chosen], "length" if len(tokens) >= limit else None)
            if len(tokens) >= limit:
                return

    def _step(self, ids: Tokens[int], cache: "DynamicCache") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last hidden states of some tokens (n, width), and the logits of what follows them (V,)."""
        with self._turn, torch.inference_mode():
            model: Any = self._model  # the whole: some scale what the head says, or cap it
            said = model(
                input_ids=torch.tensor([ids]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                output_hidden_states=True,
            )
            return said.hidden_states[-1][0], said.logits[0, -1].float()


def _context(path: Path, config: Any, dtype: torch.dtype) -> int:
    """Return how long a context each sequence may have: what the checkpoint was made for, or what fits."""
    text = config.get_text_config()
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    if not 1 <= layers <= MOST_LAYERS or min(kept, width) < 1:
        raise CheckpointDamaged(f"config.json: {layers} layers of {kept} heads that are {width} wide are no network")
    per_token, context = 2 * layers * kept * width * dtype.itemsize * SEQUENCES, int(text.max_position_embeddings)
    return fitting(path.name, count_weights(path) * dtype.itemsize, per_token, context, context)


def _written_out(config: Any) -> Mapping[str, Any]:
    """Have weights in MXFP4, as gpt-oss has them, written out: to multiply them as they are takes other packages."""
    told = getattr(config, "quantization_config", None) or {}
    return {"quantization_config": Mxfp4Config(dequantize=True)} if told.get("quant_method") == "mxfp4" else {}


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers' progress bar off the terminal while a checkpoint loads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
