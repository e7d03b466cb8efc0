"""transformers: `generate` judged while it speaks, and stopped where the policy blocks. Knows no model."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import TextIteratorStreamer

from ringfence.guard.call import Call, open_guard
from ringfence.guard.guard import Guard
from ringfence.policies.types import Policy

Message = dict[str, Any]


class GuardedStreamer(TextIteratorStreamer):
    """A streamer for one `generate`, inside a `with`: judges the prompt at once, the text while it comes.

    The prompt as judged is in `prompt`; what may leave comes by iterating, from another thread, or is in `text` at the
    end. Leaving the `with` keeps the record, and raises `Blocked` where the policy stopped the reply. `generate` itself
    returns the tokens of everything, judged or not: do not use them.

    Args:
        tokenizer: of the model.
        guard: a guard, or a policy as `open_guard` takes it.
        prompt: a string, or a list of messages for a chat template.
        model: the name that the record carries; None for the tokenizer's.
        timeout: seconds to wait for more text when iterating; None for any time.
        decode: passed on to the tokenizer's `decode`.

    Attributes:
        stopping_criteria: for `generate`, so that it ends where the policy blocks.
        text: what has been released.

    Raises:
        Blocked: the prompt must not be answered; it is on record.
        TypeError: the prompt is neither.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        guard: Guard | Policy | FilePath | str | None = None,
        *,
        prompt: str | Sequence[Message],
        model: str | None = None,
        timeout: float | None = None,
        **decode: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, timeout=timeout, **{"skip_special_tokens": True, **decode})
        # Whatever else it is, the call refuses it.
        given = list(prompt) if isinstance(prompt, Sequence) and not isinstance(prompt, str) else prompt
        name = model or str(tokenizer.name_or_path)
        self._call = Call(open_guard(guard), given, model=name)
        self._inside = False
        self.text = ""
        self.stopping_criteria = StoppingCriteriaList([_Stop(self._call)])
        try:
            self.prompt: Any = self._call.admit()
        except BaseException as error:
            self._call.__exit__(type(error), error, None)
            raise

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take some more text of the model's, and let go of what may leave."""
        if not self._inside:
            raise RuntimeError("GuardedStreamer stands in a `with`, at the end of which the record is kept")
        released = self._call.release(text, last=stream_end)
        self.text += released
        super().on_finalized_text(released, stream_end)

    def __enter__(self) -> Self:
        self._inside = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.text_queue.put(self.stop_signal)  # whoever iterates must not wait for a `generate` that failed
        if error is not None:
            self._call.__exit__(kind, error, trace)
        else:
            with self._call:
                self._call.stop_if_blocked()


class _Stop(StoppingCriteria):
    """Ends generation once the policy stopped the reply."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        done = torch.full((input_ids.shape[0],), self._call.stopped, device=input_ids.device, dtype=torch.bool)
        return done  # type: ignore[return-value]  # (B,)
