"""How the next token of one sequence is chosen from logits: one by one, or several at once by checking a draft.

Knows no network, no text and no other sequence. Computed with numpy: on one core its argmax of a vocabulary takes a
twentieth of torch's time and its sort a fifth, and whoever only wants to name a `Sampling` need not load torch.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Row = NDArray[np.float32]
"""A number for each token of the vocabulary (V,)."""

BANNED = -100.0
"""The bias that takes a token out altogether."""

NEGLIGIBLE = math.exp(-50)
"""Less than so much of the likeliest token's probability is none: a vocabulary full of it is lost in rounding."""

COLDEST = 1e-30
"""The least temperature above 0 that is divided by: less is 0 in float32."""


class SamplingError(RuntimeError):
    """No next token of this sequence can be chosen; the message says why. Other sequences are not concerned."""


class BrokenLogits(SamplingError):
    """The network gives no numbers: whoever asked is not to blame."""


class OutOfBounds(ValueError):
    """A setting has a value that it cannot have.

    Attributes:
        name: of the setting, with which the message begins.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are what the default checkpoint's authors recommend.

    Penalties come first, then the bias; then temperature, top-k, top-p and min-p, each on what the one before it left.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the fewest tokens that together have this much probability (Holtzman et al. 2020).
        top_k: sample from so many of the likeliest tokens; 0 for all, and -1 as well (vLLM's way to say so).
        min_p: sample from tokens that are at least so likely, the likeliest being 1 (Nguyen et al. 2025).
        seed: the same seed gives the same tokens from the same logits; None for a different reply each time.
        max_tokens: the reply ends after so many.
        repetition_penalty: above 1, tokens seen before become less likely (Keskar et al. 2019, CTRL, section 4.1).
        presence_penalty: taken off the logit of each token that the reply has (OpenAI).
        frequency_penalty: the same, as often as the reply has it.
        logit_bias: added to the logits of some tokens; -100 bans one.
        logprobs: how many of the likeliest tokens to report beside each chosen one; None for no probabilities at all.
    """

    temperature: float = 0.2
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 512
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, low, high) in BOUNDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if kind is int and not isinstance(value, int):
                raise OutOfBounds(name, f"must be a whole number, got {value}")
            if not low <= value <= high:
                bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise OutOfBounds(name, f"must be {bounds}, got {value}")
        for token, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise OutOfBounds("logit_bias", f"of token {token} must be between -100 and 100, got {bias}")


BOUNDS: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 100),
    "top_p": (float, 0, 1),
    "top_k": (int, -1, math.inf),
    "min_p": (float, 0, 1),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
    "max_tokens": (int, 1, math.inf),
    "repetition_penalty": (float, 0.01, 100),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "logprobs": (int, 0, 20),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and how likely the network itself held it, before penalties, cuts and temperature.

    Attributes:
        logprob: natural logarithm; None where none was asked for.
        top: the likeliest tokens and their logprobs, likeliest first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """What a sequence may say; it goes along with the sequence, token by token, and back."""

    @property
    def done(self) -> bool:
        """Whether the sequence has ended as it should, so that nothing may follow."""

    def mask(self) -> NDArray[np.bool_]:
        """Return which tokens may come next (V,)."""

    def advance(self, token: int) -> None:
        """Go on by a token that the mask allows."""

    def rewind(self, count: int) -> None:
        """Undo the last tokens."""

    def copy(self) -> Self:
        """Return another that has come as far, and goes its own way."""


class Sampler:
    """Chooses the tokens of one sequence, and remembers what it chose as far as that bears on what comes next."""

    def __init__(
        self, sampling: Sampling, vocabulary: int, prompt_ids: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        """Start a sequence.

        Args:
            vocabulary: how many logits there will be each time.
            prompt_ids: what the repetition penalty counts as seen.
            constraint: at its beginning, and this sequence's own.

        Raises:
            OutOfBounds: the bias names a token that there is not, or bans all that there are.
        """
        self._sampling = sampling
        self._constraint = constraint
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % (1 << 64))
        self._tokens: list[int] = []
        self._counts = Counter[int]()
        self._bias = {token: -math.inf if bias == BANNED else bias for token, bias in sampling.logit_bias.items()}
        if stranger := next((token for token in self._bias if not 0 <= token < vocabulary), None):
            raise OutOfBounds(
                "logit_bias",
                f"has a token that there is not: token {stranger} is outside the vocabulary of {vocabulary}",
            )
        self._seen: NDArray[np.bool_] | None = None  # (V,)
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocabulary, np.bool_)
        self.prompt(prompt_ids)
        self._offset: Row | None = None  # what is added to the logits
        if self._bias or sampling.presence_penalty or sampling.frequency_penalty:
            self._offset = np.zeros(vocabulary, np.float32)
            self._offset[list(self._bias)] = list(self._bias.values())
            if self._offset.max() == -math.inf:
                raise OutOfBounds("logit_bias", "bans every token of the vocabulary")

    def prompt(self, ids: Sequence[int]) -> None:
        """Count other tokens as the prompt's, before any is chosen."""
        self._prompt = frozenset(ids)
        if self._seen is not None:
            self._seen[:] = False
            self._seen[list(self._prompt)] = True

    def choose(self, logits: "Tensor") -> Chosen:
        """Choose the next token from what the network says of it (V,).

        Raises:
            SamplingError: the logits are no numbers, or nothing is left to choose from.
        """
        return self.verify(logits[None], ())[0]

    def verify(self, logits: "Tensor", draft: Sequence[int]) -> list[Chosen]:
        """Choose the next tokens by checking a draft of them: as many as it has right, and one more.

        They are, for the same seed, the ones that would be chosen without it: a token is chosen as ever, and the draft
        only tells how long one may go on.

        Args:
            logits: (k + 1, V), the first of what follows the sequence, each other of what follows a drafted token.
            draft: k tokens.

        Returns:
            At least one token; fewer than the draft has right only where the constraint is done.

        Raises:
            SamplingError: as `choose`; tokens before the one that cannot be chosen stay noted.

        Source: Leviathan et al. 2023, section 2; how tokens are drafted for it, `ahead` says.
        """
        rows = as_array(logits)
        if len(rows) != len(draft) + 1:
            raise ValueError(f"a draft of {len(draft)} tokens wants a row of logits for each, and one more")
        chosen: list[Chosen] = []
        for raw, drafted in zip(rows, [*draft, None], strict=True):
            token = self._draw(self._left(raw))
            self._tokens.append(token)
            self._count(token, 1)
            if self._constraint is not None:
                self._constraint.advance(token)
            chosen.append(report(raw, token, self._sampling.logprobs))
            if token != drafted or (self._constraint is not None and self._constraint.done):
                break
        return chosen

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Undo at the end what is chosen meanwhile, randomness too: from the same logits the same is chosen again.

        So a smaller network drafts: what is chosen of its logits, with all settings and the same draw, is what will be
        chosen of the true ones wherever the two agree well enough. Drafts with draws of their own are right more often,
        but to check those takes more draws, and a seed would give another reply whenever there was no draft.
        """
        constraint, random, count = self._constraint, self._random.bit_generator.state, len(self._tokens)
        self._constraint = None if constraint is None else constraint.copy()
        try:
            yield
        finally:
            self._constraint = None  # the copy goes as it is: one that has failed cannot go back
            self.rewind(len(self._tokens) - count)
            self._constraint, self._random.bit_generator.state = constraint, random

    def rewind(self, count: int) -> None:
        """Undo the last tokens, so that what follows is chosen as if they had never been. Randomness goes on.

        Raises:
            ValueError: there are not as many.
        """
        if not 0 <= count <= len(self._tokens):
            raise ValueError(f"{count} tokens cannot be undone, {len(self._tokens)} were chosen")
        kept = len(self._tokens) - count
        for token in self._tokens[kept:]:
            self._count(token, -1)
        del self._tokens[kept:]
        if self._constraint is not None:
            self._constraint.rewind(count)

    def _count(self, token: int, change: int) -> None:
        self._counts[token] += change
        count = self._counts[token]
        if self._seen is not None:
            self._seen[token] = count > 0 or token in self._prompt
        if self._offset is not None:
            penalty = self._sampling.presence_penalty * (count > 0) + self._sampling.frequency_penalty * count
            self._offset[token] = self._bias.get(token, 0.0) - penalty

    def _left(self, raw: Row) -> Row:
        """Return logits after penalties, bias and constraint."""
        if not math.isfinite(raw.max()):  # nan if there is one
            raise BrokenLogits(f"the network's logits are no numbers: the greatest is {raw.max()}")
        left = raw
        if self._seen is not None:
            seen, penalty = np.flatnonzero(self._seen), self._sampling.repetition_penalty
            said = raw[seen]
            left = raw.copy()
            with np.errstate(over="ignore"):  # told below
                left[seen] = np.where(said > 0, said / penalty, said * penalty)
        if self._offset is not None:
            left = left + self._offset
        if self._constraint is not None:
            if self._constraint.done:
                raise SamplingError("the constraint lets nothing follow the end")
            left = np.where(self._constraint.mask(), left, np.float32(-math.inf))
        if left is not raw and not math.isfinite(left.max()):
            raise SamplingError("penalties, bias and constraint leave no token to choose from")
        return left

    def _draw(self, left: Row) -> int:
        if self._sampling.temperature == 0:
            return int(left.argmax())
        ids, weights = cut(left, self._sampling)
        return int(ids[draw(weights, self._random.random())])


def cut(logits: Row, sampling: Sampling) -> tuple[NDArray[np.intp], Row]:
    """Return tokens that may be drawn (K,), rising, and in proportion to what (K,).

    In the order of their ids and not of their weights, the same draw finds the same token in most of two distributions
    that differ a little, which is what makes a draft right.
    """
    with np.errstate(over="ignore"):  # so much less likely than the likeliest that it is -inf
        scaled = (logits - logits.max()) / max(sampling.temperature, COLDEST)
    # What float32 has no normal numbers for is slow to compute with.
    weights = np.exp(np.maximum(scaled, -80))  # (V,); the likeliest has 1
    ids = None
    if 0 < sampling.top_k < len(weights):
        ids = np.sort(weights.argpartition(-sampling.top_k)[-sampling.top_k :])
        weights = weights[ids]
    total = weights.sum(dtype=np.float64)
    # All below this share together have less than 1 - top_p: they are beyond top-p, and need not be sorted.
    beyond = total * (1 - sampling.top_p) / len(weights)
    kept = np.flatnonzero(weights >= max(beyond, sampling.min_p, NEGLIGIBLE))
    if sampling.top_p < 1:
        kept = kept[np.argsort(-weights[kept])]
        kept = np.sort(kept[: 1 + weights[kept].cumsum(dtype=np.float64).searchsorted(sampling.top_p * total)])
    return kept if ids is None else ids[kept], weights[kept]


def draw(weights: NDArray[np.floating], at: float) -> int:
    """Return the index at a share, 0 up to but without 1, of all weights; never one that weighs nothing."""
    rising = weights.cumsum(dtype=np.float64)
    return int(rising.searchsorted(at * rising[-1], side="right"))


def report(raw: Row, token: int, alternatives: int | None) -> Chosen:
    """Tell a chosen token with as many alternatives as were asked for."""
    if alternatives is None:
        return Chosen(token)
    highest = raw.max()
    whole = float(highest) + math.log(np.exp(raw - highest).sum(dtype=np.float64))
    top = np.argpartition(-raw, min(alternatives, len(raw)) - 1)[:alternatives]
    top = top[np.argsort(-raw[top])]
    return Chosen(token, float(raw[token]) - whole, tuple((int(id), float(raw[id]) - whole) for id in top))


def as_array(rows: "Tensor") -> NDArray[np.float32]:
    """Return a tensor's numbers in float32; the same memory where they lie in it so."""
    numbers: NDArray[np.float32] = rows.detach().float().cpu().numpy()
    return numbers
