"""From a text to windows of token ids, each with the stretch of text it stands for. Knows no model and no score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from ringfence.guard.unicode import whole

WINDOW = 256
"""Tokens the model reads at once, markers included. Longer texts are read in windows that overlap by a quarter."""

PROMPT_TOKENS = 96
"""Of the prompt beside a response, at most this much of its end is read."""

READ_LIMIT = 500_000
"""Characters of a text that are read at most: three quarters from its start, one from its end. They count as the
tokenizer spells them out: one code point may stand for eighteen."""

STEP = 1_000
"""Code points that are counted at once."""

WINDOW_LIMIT = 512
"""Windows of a text that are read at most, shared out alike; bounds the time that one text can take."""

LONGEST_WORD = 90
"""Characters of one word that are read together; WordPiece gives up on words of more than a hundred."""

UNKNOWN, START, END = 100, 101, 102  # [UNK], [CLS], [SEP] of BERT's vocabulary
INVISIBLE = "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]"


@dataclass(frozen=True, slots=True)
class Window:
    """What the model reads at once.

    Attributes:
        ids: token ids, at most `WINDOW`.
        kinds: 0 where a token belongs to the prompt or to a text that stands alone, 1 in a response.
        start, end: the code points of the judged text that the window covers.
        empty: no token of the judged text is in it; there is none, or none that shows.
    """

    ids: tuple[int, ...]
    kinds: tuple[int, ...]
    start: int
    end: int
    empty: bool = False


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that cuts nothing off and pads nothing."""
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def hardened(tokenizer: Tokenizer) -> Tokenizer:
    """Make a BERT tokenizer see through letters in disguise; offsets still count the text as it came.

    Compatibility forms (fullwidth, mathematical, circled letters) become plain ones, and characters that do not
    show are dropped, so that they cannot split a word. A word too long for the vocabulary's algorithm would become
    one unknown token, and go unread: it is cut.
    """
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(INVISIBLE), ""), normalizers.BertNormalizer(lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.FixedLength(LONGEST_WORD)]
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def cut(tokenizer: Tokenizer, text: str, prompt: str | None = None) -> tuple[list[Window], bool]:
    """Cut a text, or a response with its prompt, into windows that overlap.

    Returns:
        the windows in the order of the text, at least one, and whether some of the text is in none of them.
    """
    text = whole(text)
    pieces, cut_off = readable(text)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for at, piece in pieces:
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        ids.extend(encoding.ids)
        offsets.extend((start + at, end + at) for start, end in encoding.offsets)
    head = [START]
    if prompt is not None:
        tail = whole(prompt[-PROMPT_TOKENS * 32 :])
        head += [*tokenizer.encode(tail, add_special_tokens=False).ids[-PROMPT_TOKENS:], END]
    room = WINDOW - len(head) - 1
    starts = list(strides(len(ids), room))
    kept, skipped = ends(starts, WINDOW_LIMIT)
    windows = [
        frame(head, ids[at : at + room], prompt is not None, *span(offsets[at : at + room], len(text)))
        for _, some in kept
        for at in some
    ]
    return windows, cut_off or skipped


def readable(text: str) -> tuple[list[tuple[int, str]], bool]:
    """Keep what is read of a text, each piece with its index, and say whether that is less than all."""
    if reach(text, READ_LIMIT) == len(text):
        return [(0, text)], False
    first, last = reach(text, READ_LIMIT * 3 // 4), len(text) - reach(text[::-1], READ_LIMIT // 4)
    return [(0, text[:first]), (last, text[last:])], True


def reach(text: str, limit: int) -> int:
    """Return how many code points from the start of a text spell out so many characters, within a step of it."""
    spelled = 0
    for at in range(0, len(text), STEP):
        more = len(normalize("NFKC", text[at : at + STEP]))
        if spelled + more > limit:
            return at + STEP * (limit - spelled) // more
        spelled += more
    return len(text)


def strides(length: int, room: int) -> Iterator[int]:
    """Yield where windows start; the last one ends where the tokens end."""
    yield 0
    step = room * 3 // 4
    for start in range(step, length - room + step, step):
        yield min(start, length - room)


def ends(whole: Any, limit: int) -> tuple[list[tuple[int, Any]], bool]:
    """Keep the first three quarters and the last quarter of what is longer than `limit`, each with its index."""
    if len(whole) <= limit:
        return [(0, whole)], False
    first, last = limit * 3 // 4, len(whole) - limit // 4
    return [(0, whole[:first]), (last, whole[last:])], True


def span(offsets: Sequence[tuple[int, int]], length: int) -> tuple[int, int]:
    """Return the code points that tokens cover; the whole text where there are none."""
    return (offsets[0][0], offsets[-1][1]) if offsets else (0, length)


def frame(head: Sequence[int], body: Sequence[int], response: bool, start: int, end: int) -> Window:
    """Put the markers around the tokens of one window."""
    ids = (*head, *body, END)
    kinds = (0,) * len(head) + (int(response),) * (len(body) + 1)
    return Window(ids, kinds, start, end, empty=not body)
