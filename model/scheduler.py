"""Which tokens of which sequences the next step computes. Decides by counts alone: no network, no clock.

Whoever is speaking speaks on: a token each, and guesses where few are speaking. What is left of the step is shared by
the prompts that are being read, so that a long one neither holds up those who speak nor a short one beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """How much of one sequence a step computes.

    Attributes:
        index: which of the sequences it is.
        tokens: how many of its unread tokens.
        guesses: whether it may guess on.
    """

    index: int
    tokens: int
    guesses: bool = False


def share(unread: Sequence[int], budget: int, speakers: int) -> Iterable[Share]:
    """Share a step between sequences.

    Args:
        unread: tokens that each still has to compute, at least 1; who has more than one is reading a prompt.
        budget: tokens that a step computes at most, beside those of the sequences that speak.
        speakers: up to how many sequences that speak, and nothing else, may guess.
    """
    speaking = [index for index, count in enumerate(unread) if count == 1]
    reading = [index for index, count in enumerate(unread) if count > 1]
    for index in speaking:
        yield Share(index, 1, guesses=not reading and len(speaking) <= speakers)
    # The shortest first: of what it leaves, the others have more.
    for place, index in enumerate(sorted(reading, key=lambda one: unread[one])):
        tokens = min(unread[index], -(-budget // (len(reading) - place)))
        if tokens:
            yield Share(index, tokens)
        budget -= tokens
