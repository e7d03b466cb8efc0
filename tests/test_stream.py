"""The hold-back window."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.actions import rewrite
from ringfence.guard.check import Passage
from ringfence.guard.guard import Guard
from ringfence.guard.stream import StreamGuard, hold_back
from ringfence.policies.load import loads_policy
from ringfence.policies.types import Action, Decision, Rewrite, Span, Stage, StreamSettings

SMALL = StreamSettings(window=16, context=40, reach=12)
NUMBER = re.compile(r"\d{4,8}(?: \d{4})?")


def judge(text: str) -> Decision:
    """Block on `bomb`; rewrite numbers, which may hold a space and are at most 13 code points long."""
    if "bomb" in text:
        return Decision(Stage.OUTPUT, Action.BLOCK, rules=("no-bombs",))
    found = tuple(Rewrite(Span(0, *m.span()), "[N]", "numbers") for m in NUMBER.finditer(text))
    return Decision(Stage.OUTPUT, Action.REWRITE if found else Action.ALLOW, rewrites=found)


def run(pieces: list[str], config: StreamSettings = SMALL) -> tuple[str, Decision | None, list[tuple[int, int]]]:
    guard, released, windows = StreamGuard(config), [], []

    def drain() -> None:
        while (window := guard.window()) is not None:
            windows.append((window.start, window.end))
            released.append(guard.settle(window, judge(window.text)))

    for piece in pieces:
        guard.feed(piece)
        drain()
    guard.close()
    drain()
    return "".join(released), guard.decision, windows


WORDS = st.sampled_from(
    ["a", "knife", "bomb", "12345", "1234 5678", "999", "\n", "  ", "日本語", "é", "x" * 40, "😀", "."]
)
TEXTS = st.lists(WORDS, max_size=60).map(" ".join)


@given(TEXTS, st.lists(st.integers(0, 400), max_size=30))
@settings(max_examples=400)
def test_any_chunking_of_a_text_gives_the_same_decision_and_the_same_released_text(text: str, cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    whole = run([text])
    assert run(pieces) == whole
    assert run(list(text)) == whole


@given(TEXTS)
@settings(max_examples=400)
def test_text_that_is_not_blocked_is_released_as_if_it_had_been_rewritten_whole(text: str) -> None:
    released, decision, _ = run(list(text))
    if decision is None or decision.action is not Action.BLOCK:
        assert released == rewrite(text, judge(text).rewrites)


@given(TEXTS)
@settings(max_examples=300)
def test_text_of_which_that_is_known_by_its_length_is_judged_in_one_window(text: str) -> None:
    for length in range(1, min(len(text), 2 * SMALL.window) + 1):
        _, _, windows = run([text[:length]])
        assert len(windows) == 1 or not SMALL.at_once(length)
    assert SMALL.at_once(SMALL.window + 1)
    assert len(run(["x" * SMALL.window + " x"])[2]) == 2


@given(TEXTS)
@settings(max_examples=300)
def test_nothing_leaves_that_no_window_covered(text: str) -> None:
    guard = StreamGuard(SMALL)
    covered = 0
    for character in [*text, None]:
        guard.close() if character is None else guard.feed(character)
        while (window := guard.window()) is not None:
            assert window.start <= guard.released  # what is still held is judged again, together with what is new
            assert window.start <= covered  # no gap between windows
            covered = window.end
            guard.settle(window, judge(window.text))
            assert guard.released <= covered


def test_nothing_leaves_after_a_block() -> None:
    text = "harmless words come first, and then more of them; then a bomb, and then the rest of it all."
    released, decision, _ = run(list(text))
    assert decision is not None
    assert decision.action is Action.BLOCK
    assert text.startswith(released)
    assert "bomb" not in released
    assert released


def test_a_number_split_between_chunks_is_rewritten_whole() -> None:
    assert run(["my number is 12", "34 56", "78, and that is all there is to say about it"])[0].startswith(
        "my number is [N], and"
    )


def test_scripts_without_spaces_do_not_hold_the_stream_back() -> None:
    guard = StreamGuard(SMALL)
    guard.feed("春眠不覚暁処処聞啼鳥夜来風雨声花落知多少" * 4)
    released = ""
    while (window := guard.window()) is not None:
        released += guard.settle(window, judge(window.text))
    assert len(released) > 20


def test_an_empty_text_needs_no_judgement() -> None:
    assert run([]) == ("", None, [])
    assert run([""]) == ("", None, [])


def test_a_finding_in_several_windows_is_reported_once(guard: Guard) -> None:
    stream = StreamGuard(StreamSettings(window=16, context=200, reach=12))
    stream.feed("call 123456 now, " + "and then say nothing else at all " * 3)
    stream.close()
    while (window := stream.window()) is not None:
        stream.settle(window, guard.pipeline.judge(Stage.OUTPUT, [Passage(Stage.OUTPUT, "assistant", window.text)]))
    assert stream.decision is not None
    assert [(f.category, f.spans) for f in stream.decision.findings] == [("number", (Span(0, 5, 11),))]
    assert [r.span for r in stream.decision.rewrites] == [Span(0, 5, 11)]


def test_a_long_value_is_still_known_by_the_name_before_it() -> None:
    name = re.compile(r"(?<=token: )\S+")

    def judge_named(text: str) -> Decision:
        found = tuple(Rewrite(Span(0, *m.span()), "[T]", "tokens") for m in name.finditer(text))
        return Decision(Stage.OUTPUT, Action.REWRITE if found else Action.ALLOW, rewrites=found)

    for length in (10, 300, 900, 3000):
        for context in (0, 40, 800):
            guard = StreamGuard(StreamSettings(window=16, context=context, reach=12))
            released = ""
            for character in f"some words and then the token: {'x7' * (length // 2)} and some more words to end it":
                guard.feed(character)
                while (window := guard.window()) is not None:
                    released += guard.settle(window, judge_named(window.text))
            assert "x7" not in released


EXCEPTED = """
version: 1
name: tiny
checks: [{kind: keywords, category: mail, words: [a@b.org, a@b.org.evil.com, x@y.com]}]
rules: [{id: no-mail, category: mail, action: rewrite, replacement: "[M]"}]
exceptions: [{id: ours, rules: [no-mail], pattern: a@b.org, until: 2999-01-01, why: our own}]
"""


@pytest.mark.parametrize(
    ("text", "left", "excepted"),
    [
        ("write to a@b.org today, {} and to x@y.com", "write to a@b.org today, {} and to [M]", {"no-mail": ("ours",)}),
        ("write to x@y.com today, {} and to a@b.org", "write to [M] today, {} and to a@b.org", {"no-mail": ("ours",)}),
        ("write to x@y.com today, {} and to nobody", "write to [M] today, {} and to nobody", {}),
    ],
)
def test_an_exception_is_on_record_also_where_its_rule_fires_elsewhere_in_the_stream(text, left, excepted):
    filler = "and many more words come " * 10
    guard = Guard(loads_policy(EXCEPTED))
    stream, released = StreamGuard(guard.stream), ""
    stream.feed(text.format(filler))
    stream.close()
    while window := stream.window():
        passage = Passage(Stage.OUTPUT, "assistant", window.text)
        released += stream.settle(window, guard.pipeline.judge(Stage.OUTPUT, [passage]))
    assert released == left.format(filler)
    assert stream.decision is not None
    assert (stream.decision.rules, stream.decision.excepted) == (("no-mail",), excepted)


PHRASE = (
    "the merger of the northern and the southern kettle works, of which nobody outside of these walls may hear a word"
)


@pytest.mark.parametrize(
    "said", [PHRASE, PHRASE.replace(" ", "   \n"), re.sub(r"(?<=\w)(?=\w)", "\u200b" * 9, PHRASE), PHRASE.upper()]
)
@pytest.mark.parametrize("offset", range(0, 160, 23))
def test_a_keyword_longer_than_the_reach_is_replaced_whole(said, offset):
    policy = loads_policy(
        f"version: 1\nname: tiny\nchecks: [{{kind: keywords, category: deal, words: ['{PHRASE}']}}]\n"
        'rules: [{id: deal, category: deal, action: rewrite, replacement: "[D]"}]\n'
    )
    assert hold_back(policy) == StreamSettings(reach=len(PHRASE))
    guard = Guard(policy)
    text = ("words of no weight " * 20)[:offset] + " {} " + "and more of them " * 20
    stream, released = StreamGuard(guard.stream), ""
    for character in text.format(said):
        stream.feed(character)
        while window := stream.window():
            passage = Passage(Stage.OUTPUT, "assistant", window.text)
            released += stream.settle(window, guard.pipeline.judge(Stage.OUTPUT, [passage]))
    assert text.format("[D]").startswith(released)
    assert "[D]" in released


@pytest.mark.parametrize(
    "unit", ["\u200b", "a\u200b", "ａ", "春", "Ab/", "6a 61 ", "QUJD" * 15 + "\n", "\x1b]ab ", "a b ", " ", "word "]
)
def test_however_the_text_is_made_a_stream_takes_linear_time(unit, grows_with_its_length):
    def streamed(text: str) -> None:
        guard = StreamGuard(StreamSettings())
        for start in range(0, len(text), 50):
            guard.feed(text[start : start + 50])
            while (window := guard.window()) is not None:
                guard.settle(window, Decision(Stage.OUTPUT, Action.ALLOW))

    assert grows_with_its_length(streamed, unit)


@pytest.mark.parametrize("unit", ["\u200b", "QUJD", "6a 61 ", "\x1b]ab "])
def test_what_cannot_be_parted_is_judged_the_more_rarely_the_longer_it_is(unit):
    text = unit * 10_000
    windows = run([text[at : at + 50] for at in range(0, len(text), 50)], StreamSettings())[2]
    assert len(windows) < 60
    assert sum(end - start for start, end in windows) < 8 * len(text)


def test_ordinary_text_leaves_no_later_than_its_reach_and_one_word():
    guard = StreamGuard(StreamSettings())
    for at, character in enumerate("all is well and the sun is out " * 40, 1):
        guard.feed(character)
        while (window := guard.window()) is not None:
            guard.settle(window, judge(window.text))
            assert at - guard.released <= 64 + 6 + 1
