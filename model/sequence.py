"""One sequence under way: what it has read and said, and what it said before that it may say next. Knows no network."""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ringfence.model.cache import Held
from ringfence.model.sampler import Chosen, Sampler

End = Literal["stop", "length"]

LOOKUP = 3
"""Tokens that must have stood before in the same order, for what followed them then to be guessed again."""

GUESSES = 3
"""Tokens guessed at once: with the one that is certain, as many as cost hardly more than one."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step did for one sequence.

    Attributes:
        id: the sequence's.
        start: position of the first token that was computed.
        hidden: last hidden states of the tokens computed (n, width): more can be read from them than the next token.
        chosen: the tokens that the sequence goes on by; none while its prompt is being read.
        end: why it is over; None while it goes on. An end token is not among the chosen.
        error: what went wrong with this sequence alone; it is over then.
    """

    id: int
    start: int
    hidden: Tensor
    chosen: Tokens[Chosen] = ()
    end: End | None = None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and the reply so far.

    Attributes:
        tokens: of both; those from `held.length` on are still to be computed, the last one at least.
        prompt: how many of them are the prompt's.
        limit: how many there may be in all.
        held: its part of the cache.
        drafted: its part of the draft's cache, where there is a draft.
        guessed, right: how many tokens were guessed so far, and how many of these it did say.
    """

    id: int
    tokens: list[int]
    prompt: int
    limit: int
    sampler: Sampler
    held: Held = field(default_factory=Held)
    drafted: Held = field(default_factory=Held)
    guessed: int = 0
    right: int = 0
    _seen: dict[tuple[int, ...], int] = field(default_factory=dict)
    _noted: int = 0

    @property
    def unread(self) -> int:
        """How many tokens are still to be computed before the next can be chosen."""
        return len(self.tokens) - self.held.length

    @property
    def guesses(self) -> int:
        """How many tokens it may guess at once; none any more once most were wrong."""
        if 2 * self.right + 16 < self.guessed:
            return 0
        return max(0, min(GUESSES, self.limit - len(self.tokens) - 1))

    def look_up(self, count: int) -> Tokens[int]:
        """Return what followed the last few tokens where they stood before (Saxena 2023, prompt lookup decoding)."""
        tokens = self.tokens
        for end in range(max(self._noted, LOOKUP), len(tokens)):
            self._seen[tuple(tokens[end - LOOKUP : end])] = end
        self._noted = max(self._noted, len(tokens))
        since = self._seen.get(tuple(tokens[-LOOKUP:]))
        return tokens[since : since + count] if since else ()

    def cut(self, length: int) -> None:
        """Forget the tokens from `length` on; where some of them are the prompt's, what is left of it is the prompt."""
        self.sampler.rewind(len(self.tokens) - max(length, self.prompt))
        del self.tokens[length:]
        if length < self.prompt:
            self.limit -= self.prompt - length
            self.prompt = length
            self.sampler.prompt(self.tokens)
        self._seen.clear()
        self._noted = 0
