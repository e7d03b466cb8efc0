"""A second, smaller network that says what the first may say next. What it says is only ever a guess.

Source: Leviathan et al. 2023 (arXiv 2211.17192).
"""

from collections.abc import Sequence as Tokens

from ringfence.model.cache import Cache, OutOfPages
from ringfence.model.llama4 import Network
from ringfence.model.sampler import SamplingError
from ringfence.model.sequence import Sequence
from ringfence.model.weights import WeightsDamaged

READ = 512
"""Tokens that it reads at once of a text that it has not read yet: more would keep the sequence waiting."""


class DraftDiffers(WeightsDamaged):
    """A network cannot draft for another; the message says why."""


class Draft:
    """A network that drafts, with keys and values of its own.

    Attributes:
        vocabulary: token ids that there are.
    """

    def __init__(self, network: Network, cache: Cache) -> None:
        self.vocabulary = network.config.vocabulary
        self._context = min(network.config.context, cache.tokens)
        self._network = network
        self._cache = cache

    @property
    def free(self) -> int:
        """Pages of its cache that nobody holds."""
        return self._cache.free

    def guess(self, sequence: Sequence, count: int) -> Tokens[int]:
        """Return up to so many tokens that the sequence may go on by.

        None while the draft is still reading what the sequence has, and where its context or its pages end.
        """
        held, tokens = sequence.drafted, sequence.tokens
        if len(tokens) + count > self._context:
            return ()
        if not held.pages:
            self._cache.begin(held, tokens)
        elif held.length == len(tokens):
            self._cache.cut(held, len(tokens) - 1)  # the last token says what comes next: it is computed again
        try:
            self._cache.make_room(held, len(tokens) + count)
        except OutOfPages:
            return ()
        ids: Tokens[int] = tokens[held.length :][:READ]
        guesses: list[int] = []
        with sequence.sampler.ahead():
            while len(guesses) < count:
                ((_, logits),) = self._network.compute([(held, ids)], self._cache, [1])
                if held.length < len(tokens):
                    break
                try:
                    guesses.append(sequence.sampler.choose(logits[0]).token)
                except SamplingError:  # the network itself may know how to go on, or says so
                    break
                ids = guesses[-1:]
        self._cache.cut(held, len(tokens))  # guesses that are right are read with what comes after them
        self._cache.remember(held, tokens)
        return guesses

    def cut(self, sequence: Sequence, length: int) -> None:
        """Forget all but the first so many tokens of a sequence."""
        self._cache.cut(sequence.drafted, length)
