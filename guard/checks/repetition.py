"""Finds texts that say the same thing over and over: a model that runs away, a flood. Knows characters, no words.

The score is the share of the text's characters that lie in a stretch of `LONG` characters or more which already stood
in it further up; as the repeated n-grams that Rae et al. (2021, "Scaling Language Models", table A1) take out of
training data, with n-grams of characters, so that a language without spaces is read like any other. One sentence fifty
times is 0.98, a refrain after each of six verses below 0.5. Texts below `LEAST` characters are not judged.

Records of one form (JSON, logs, lists of files in one folder) are repetition too: of 1,760 stretches of such files one
in twenty scored 0.5 or more, the highest 0.8911; of 5,064 of Python code 31 did, of 418 of manuals and licences none.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ringfence.guard.check import Findable, Finding, Passage, Span

ROUNDS = 6
LONG = 2**ROUNDS
"""Characters that must come again in a row: longer than what the rows of a table or the lines of code share."""

LEAST = 256
"""A text shorter than this repeats nothing; the hold-back window of a stream is several times as long."""

FAR = 2**20
"""Characters that are looked at together, so that time is linear: what comes again a book later is no repetition."""

ODD = np.uint64(0x9E3779B97F4A7C15)


class RepetitionCheck:
    """Reports `repetition`, with a span for each stretch that stood there before: what is left says everything once."""

    name = "repetition"
    categories = frozenset({"repetition"})
    finds = (Findable("repetition"),)

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return one finding, or none where nothing is repeated. Time is linear in the length of the passage."""
        text = passage.text
        blocks = [repeated(text[at : at + FAR]) for at in range(0, len(text), FAR)]
        covered = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.bool_)
        if not covered.any():
            return ()
        edges = np.flatnonzero(np.diff(covered, prepend=False, append=False)).tolist()
        spans = tuple(Span(passage.part, start, end) for start, end in zip(edges[::2], edges[1::2], strict=True))
        score = round(float(covered.mean()), 4)
        return (Finding(self.name, self.name, score, spans, f"{score:.0%} of it stood there before"),)


def repeated(text: str) -> NDArray[np.bool_]:
    """Say of each code point whether it is in a stretch that stood in the text before: (len(text),)."""
    covered = np.zeros(len(text), dtype=np.bool_)
    if len(text) < LEAST:
        return covered
    grams = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    for doubling in range(ROUNDS):  # a number for each stretch of 2, 4, 8 … characters; equal where they are
        half = 2**doubling
        grams = (grams[:-half] * ODD) ^ (grams[half:] + (grams[half:] >> np.uint64(29)))
    ordered = np.sort(grams)
    if not (ordered[1:] == ordered[:-1]).any():  # nearly always, and found out in a fifth of the time
        return covered
    again = np.ones(len(grams), dtype=np.bool_)
    again[np.unique(grams, return_index=True)[1]] = False
    # Each repeated stretch begins at one place and covers LONG; so many are open at each code point.
    opened = np.zeros(len(text) + 1, dtype=np.int32)
    opened[: len(again)] += again
    opened[LONG : LONG + len(again)] -= again
    return np.asarray(np.cumsum(opened[:-1]) > 0)
