"""The engine: sequences join, each step computes some tokens of all together, and they leave. Token ids in and out.

A plain object for one thread: `add`, then `step` until it says that a sequence is over; `abort` at any time between two
steps. Knows nothing of text, chat, safety or HTTP.
"""

from collections import deque
from collections.abc import Sequence as Tokens

import torch
from torch import Tensor

from ringfence.model.cache import PAGE, Cache, OutOfPages
from ringfence.model.draft import Draft, DraftDiffers
from ringfence.model.llama4 import Network
from ringfence.model.memory import LONGEST
from ringfence.model.sampler import Chosen, Constraint, Sampler, Sampling, SamplingError
from ringfence.model.scheduler import Share, share
from ringfence.model.sequence import Advance, End, Sequence

SEATS = 16
"""Sequences under way at once; more wait. What a step costs grows slowly up to there."""

BUDGET = 512
"""Tokens of prompts that a step reads where nobody speaks: as many as make use of the processor."""

BESIDE = 64
"""Tokens of prompts that a step reads where somebody speaks: far into a long one, each takes a core five milliseconds,
and who speaks waits for them all."""

GUESSERS = 2
"""Up to how many sequences that speak may guess: with more, their guesses take more than they give."""


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


def check(prompt: Tokens[int], vocabulary: int, context: int) -> None:
    """Refuse a prompt that nothing can be said to.

    Raises:
        ContextOverflow: it leaves no room for a reply.
        ValueError: it is empty, or has a token that there is not.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens; a reply needs at least one")
    if stranger := next((id for id in prompt if not 0 <= id < vocabulary), None):
        raise ValueError(f"token id {stranger} is outside the vocabulary of {vocabulary}")
    if len(prompt) >= context:
        raise ContextOverflow(len(prompt), context)


class Engine:
    """Sequences under way on one network.

    Attributes:
        vocabulary: token ids that there are.
        context: tokens that prompt and reply may have together.
        ends: tokens that end a reply; never among the chosen.
    """

    def __init__(
        self,
        network: Network,
        cache: Cache,
        ends: frozenset[int],
        guessers: int = GUESSERS,
        draft: Draft | None = None,
    ) -> None:
        """Start with nobody.

        Args:
            guessers: up to how many sequences that speak may guess.
            draft: guesses where the text before tells nothing.

        Raises:
            DraftDiffers: its vocabulary is of another size.
        """
        self.vocabulary = network.config.vocabulary
        if draft and draft.vocabulary != self.vocabulary:
            raise DraftDiffers(
                f"the draft has a vocabulary of {draft.vocabulary} tokens, the network {self.vocabulary}"
            )
        self.context = min(network.config.context, cache.tokens, LONGEST)
        self.ends = ends
        self._guessers = guessers
        self._draft = draft
        self._network = network
        self._cache = cache
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # the longest under way first
        self._added = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._running or self._waiting)

    @property
    def free(self) -> int:
        """Pages of the cache that nobody holds."""
        return self._cache.free

    def add(self, prompt: Tokens[int], sampling: Sampling, constraint: Constraint | None = None) -> int:
        """Let a sequence join, and return its id.

        Args:
            prompt: at least one token, each below the size of the vocabulary.

        Raises:
            ContextOverflow, ValueError: before anything is computed.
        """
        check(prompt, self.vocabulary, self.context)
        sampler = Sampler(sampling, self.vocabulary, prompt, constraint)
        limit = min(self.context, len(prompt) + sampling.max_tokens)
        self._added += 1
        self._waiting.append(Sequence(self._added, list(prompt), len(prompt), limit, sampler))
        return self._added

    @torch.inference_mode()
    def step(self) -> Tokens[Advance]:
        """Compute a few tokens of the sequences whose turn it is, and return what that did for each of them."""
        turns = self._turns()
        if not turns:
            return ()
        starts = [sequence.held.length for sequence, _ in turns]
        # Of a prompt that is not read to its end nothing is asked; of a sequence that guesses, what follows each guess.
        asked = [max(0, 1 + one.held.length + len(ids) - len(one.tokens)) for one, ids in turns]
        said = self._network.compute([(one.held, ids) for one, ids in turns], self._cache, asked)
        return [
            self._advance(sequence, ids, start, hidden, logits)
            for (sequence, ids), start, (hidden, logits) in zip(turns, starts, said, strict=True)
        ]

    def abort(self, id: int) -> None:
        """Let a sequence leave; one that is over already is none."""
        if sequence := self._find(id):
            self._leave(sequence)

    def rewind(self, id: int, length: int) -> None:
        """Cut a sequence back to its first so many tokens; it goes on from there as if the rest had never been.

        A cut into the prompt leaves a shorter prompt, with as long a reply to it at most, or what the context has left.

        Raises:
            KeyError: no such sequence is under way.
            ValueError: nothing would be left, or the cut is beyond its end.
        """
        sequence = self._find(id)
        if sequence is None:
            raise KeyError(f"no sequence {id} is under way")
        if not 1 <= length <= len(sequence.tokens):
            raise ValueError(f"sequence {id} may be cut to between 1 and {len(sequence.tokens)} tokens, not {length}")
        sequence.cut(length)
        self._cache.cut(sequence.held, length - 1)  # the last token says what comes next: it is computed again
        if self._draft:
            self._draft.cut(sequence, length - 1)

    def _find(self, id: int) -> Sequence | None:
        return next((one for one in (*self._running, *self._waiting) if one.id == id), None)

    def _turns(self) -> Tokens[tuple[Sequence, Tokens[int]]]:
        """Choose the next step's sequences and what each of them computes, and make room for it."""
        self._admit()
        running = list(self._running)
        unread = [one.unread for one in running]
        budget = BESIDE if 1 in unread else BUDGET
        shares = sorted(share(unread, budget, self._guessers), key=lambda part: part.index)
        chosen = ((running[part.index], part) for part in shares)
        turns = ((sequence, self._next(sequence, part)) for sequence, part in chosen)
        return [(sequence, ids) for sequence, ids in turns if self._make_room(sequence, len(ids))]

    def _admit(self) -> None:
        """Let those who wait begin, in their order, as long as there is room for all that is to be read."""
        for sequence in list(self._waiting):
            if len(self._running) == SEATS:
                return
            if self._is_read(sequence):
                continue
            self._cache.begin(sequence.held, sequence.tokens, copies=self._has_room(sequence))
            if self._running and not self._has_room(sequence):
                self._cache.cut(sequence.held, 0)
                return
            self._waiting.remove(sequence)
            self._running.append(sequence)

    def _has_room(self, sequence: Sequence) -> bool:
        """Say whether there is room for all that those under way have read and will, and for one more."""
        return self._cache.fits(*((one.held, len(one.tokens) + 1) for one in (*self._running, sequence)))

    def _is_read(self, sequence: Sequence) -> bool:
        """Say whether another sequence is reading what this one begins with: once it has, nobody needs to again."""
        ends = ((one, (one.held.length // PAGE + 1) * PAGE) for one in self._running if one.unread > 1)
        return any(end < len(sequence.tokens) and one.tokens[:end] == sequence.tokens[:end] for one, end in ends)

    def _next(self, sequence: Sequence, part: Share) -> Tokens[int]:
        first = sequence.held.length
        ids = sequence.tokens[first : first + part.tokens]
        return [*ids, *self._guess(sequence)] if part.guesses else ids

    def _guess(self, sequence: Sequence) -> Tokens[int]:
        if not (count := sequence.guesses):
            return ()
        return sequence.look_up(count) or (self._draft.guess(sequence, count) if self._draft else ())

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Make room for so many more tokens, and say whether there is.

        Where there is none, the sequence that came last waits again; what it said it has said.
        """
        while sequence in self._running:
            try:
                self._cache.make_room(sequence.held, sequence.held.length + count)
                return True
            except OutOfPages:
                last = self._running.pop()
                self._cache.cut(last.held, 0)
                self._waiting.appendleft(last)
        return False

    def _advance(self, sequence: Sequence, ids: Tokens[int], start: int, hidden: Tensor, logits: Tensor) -> Advance:
        """Let a sequence go on by what its logits (n, vocabulary) say; n is 0 while its prompt is being read."""
        guesses = ids[len(sequence.tokens) - start :]
        chosen: Tokens[Chosen] = ()
        end: End | None = None
        if len(logits):
            try:
                chosen = sequence.sampler.verify(logits, guesses)
            except SamplingError as error:
                self._leave(sequence)
                return Advance(sequence.id, start, hidden, error=error)
            chosen, end = self._until_end(sequence, chosen)
            sequence.guessed += len(guesses)
            sequence.right += max(0, len(chosen) - 1)
            sequence.tokens += [one.token for one in chosen]
            self._cache.cut(sequence.held, len(sequence.tokens) - 1)  # what was guessed wrong
        self._cache.remember(sequence.held, sequence.tokens)
        if end:
            self._leave(sequence)
        return Advance(sequence.id, start, hidden, chosen, end)

    def _until_end(self, sequence: Sequence, chosen: Tokens[Chosen]) -> tuple[Tokens[Chosen], End | None]:
        for index, one in enumerate(chosen):
            if one.token in self.ends:
                return chosen[:index], "stop"
        return chosen, "length" if len(sequence.tokens) + len(chosen) >= sequence.limit else None

    def _leave(self, sequence: Sequence) -> None:
        self._cache.cut(sequence.held, 0)
        if self._draft:
            self._draft.cut(sequence, 0)
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
