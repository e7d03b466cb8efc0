"""What our own network does not compute, transformers does: Mixtral, Qwen3-MoE, OLMoE, gpt-oss and all the others.

Slower, and each sequence by itself; behind the same interface as `service`. Knows nothing of text, safety or HTTP.
"""

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from ringfence.model.engine import check
from ringfence.model.sampler import Constraint, Sampler, Sampling
from ringfence.model.sequence import Advance
from ringfence.model.service import Tell, told

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
        self.vocabulary = int(model.config.vocab_size)
        self._model = model
        self._head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._workers = ThreadPoolExecutor(SEQUENCES, thread_name_prefix="engine")
        # One step at a time: two of them would only fight over the same cores.
        self._turn = threading.Lock()

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype, ends: frozenset[int]) -> "StockService":
        """Read a checkpoint folder.

        Raises:
            OSError, ValueError, KeyError: it cannot be read, or transformers does not know it either.
        """
        with _silent():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, use_safetensors=True
            )
        return cls(model, int(model.config.max_position_embeddings), ends)

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
            body: Any = self._model.base_model
            said = body(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            hidden: torch.Tensor = said.last_hidden_state[0]
            return hidden, self._head(hidden[-1]).float()


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
