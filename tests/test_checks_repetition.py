import random
from time import thread_time

import pytest

from ringfence.guard.check import Passage
from ringfence.guard.checks.repetition import FAR, RepetitionCheck
from ringfence.policies.types import Stage

CHECK = RepetitionCheck()

REFRAIN = """
O the river rolls on, and the river rolls by,
and it carries the moon and the half of the sky.
"""
VERSES = (
    "I came to the ferry at seven o'clock\nwith a coin in my shoe and a hole in my sock,\n"
    "and the ferryman said, as he pulled at his beard,\nthat the water was higher than he would have feared.\n",
    "My mother had told me to follow the hill,\nto sleep in the barn at the foot of the mill,\n"
    "but the miller was gone and the barn was burnt down,\nso I slept in the hay on the far side of town.\n",
    "There were three of us walking the Saturday road,\na mule and a tinker, and I was the load;\n"
    "the tinker sang low and the mule kept the beat,\nand none of us knew about wheels or of wheat.\n",
)
POEM = "".join(verse + REFRAIN for verse in VERSES)
LIST = "".join(
    f"- [ ] {task}\n"
    for task in (
        "Book the hall for the evening of the ninth",
        "Book the hall for the morning of the tenth as well",
        "Ask the caterer about the number of vegetarian meals",
        "Ask the caterer about the number of chairs",
        "Send the invitations to everybody on the first list",
        "Send the invitations to those on the second list",
        "Pay the band",
        "Pay the caterer",
    )
)
TABLE = "| year | region | sold | returned |\n|------|--------|------|----------|\n" + "".join(
    f"| {2000 + n} | {('north', 'south', 'east', 'west')[n % 4]:6} | {n * 7919 % 1000:4} | {n * 104_729 % 1000:8} |\n"
    for n in range(60)
)
CODE = "".join(
    f"""
    def {name}(self, {arg}):
        if not isinstance({arg}, {kind}):
            raise TypeError("{arg} must be {kind}")
        self._{name} = {arg}
        return self
"""
    for name, arg, kind in (("width", "pixels", "int"), ("title", "text", "str"), ("scale", "factor", "float"))
)
CHINESE = "对不起，我不能帮助你做这件事。"


def score(text):
    return max((finding.score for finding in CHECK.find(Passage(Stage.INPUT, "user", text))), default=0.0)


@pytest.mark.parametrize("text", [POEM, LIST, TABLE, CODE, "\n".join(str(n) for n in range(9_000))])
def test_ordinary_texts_with_some_repetition_stay_below_a_half(text):
    assert score(text) < 0.5


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000,
        "\n" * 1_000,
        "the " * 300,
        "I am sorry, but I cannot help with that. " * 50,
        CHINESE * 50,
        "😀\ud800" * 300,
        "".join(f"{n}. I am sorry, but I cannot help with that, not today and not tomorrow. " for n in range(50)),
        POEM * 20,
    ],
)
def test_what_runs_in_circles_scores_above_nine_tenths(text):
    assert score(text) > 0.9


def test_a_window_of_a_stream_is_enough():
    assert score(("I cannot answer this question about the weather, I am afraid. " * 20)[-880:]) > 0.9


def test_short_texts_repeat_nothing():
    assert score("ha " * 80) == 0
    assert score("") == 0


def test_what_is_left_without_the_spans_says_everything_once():
    sentence = "The quick brown fox jumps over the lazy dog, again and again, until it is dark. "
    text = "First\n" + sentence * 9 + "Last, and only once."
    (finding,) = CHECK.find(Passage(Stage.INPUT, "user", text))
    (span,) = finding.spans
    assert text[: span.start] + text[span.end :] == "First\n" + sentence + "Last, and only once."
    assert finding.score == round((span.end - span.start) / len(text), 4)


def test_time_grows_like_the_length_and_the_end_is_read_too():
    text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz 爆é😀", k=2 * FAR))
    began = thread_time()
    assert score(text + "b" * FAR) == pytest.approx(1 / 3, abs=0.001)
    assert thread_time() - began < 5
