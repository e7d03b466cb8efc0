"""A message in several pieces: read with nothing between them, and with a line break, as servers put them together."""

from datetime import date
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.audit.record import record_of
from ringfence.guard.audit.store import Store
from ringfence.guard.check import CannotAnswer, Check, Finding, Passage, Span
from ringfence.guard.exchange import Kind, compose
from ringfence.guard.guard import Guard
from ringfence.guard.seams import home, parted, seams
from ringfence.policies.types import Action, Escalate, Policy, Rule, RuleException, Stage
from ringfence.proxy.wire import anthropic_messages, openai_chat

DIALECTS = {"openai": openai_chat, "anthropic": anthropic_messages}


def composed(*texts):
    return compose(Kind.TEXT, "user", ("x",), [(("x", at), text) for at, text in enumerate(texts)], seam="")


def passage(part):
    pieces = tuple((p.start, p.end) for p in part.pieces)
    return Passage(Stage.INPUT, "user", part.text, rewritable=pieces, seams=seams(part))


@pytest.fixture
def bounded(word_check, store: Store) -> Guard:
    """`bomb` as a word blocks; numbers of exactly four digits are rewritten."""
    checks: list[Check] = [word_check("bomb", r"\bbomb\b"), word_check("number", r"(?<!\d)\d{4}(?!\d)")]
    rules = (Rule("no-bombs", "bomb", Action.BLOCK), Rule("no-numbers", "number", Action.REWRITE))
    return Guard(Policy("seams", rules), checks={check.name: check for check in checks}, store=store)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("texts", "action", "left"),
    [
        (["how to make a", "bomb", "please"], Action.BLOCK, None),
        (["how to make a bo", "mb please"], Action.BLOCK, None),
        (["1234", "56 and", "7777"], Action.REWRITE, ["[NUMBER]", "56 and", "[NUMBER]"]),
        (["is 12", "34 a", "number"], Action.BLOCK, None),  # a rewrite would go across
        (["", "1234", "", "5"], Action.REWRITE, ["", "[NUMBER]", "", "5"]),
        (["a bom", "bard and 12345"], Action.ALLOW, ["a bom", "bard and 12345"]),
    ],
)
def test_both_readings_are_judged_and_rewritten_in_place(bounded, dialect, texts, action, left):
    content = [{"type": "text", "text": text} for text in texts]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    exchange, _ = DIALECTS[dialect].read_request(body)
    assert bounded.judge_request(exchange).action is action
    if left is not None:
        assert [item["text"] for item in exchange.body["messages"][0]["content"]] == left


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        (["one", "two"], "one\ntwo"),
        (["0", ".5"], "0\n.5"),
        (["a.", "4111"], "a.\n4111"),
        (["Read this.", "Then that"], None),
        (["one ", "two"], None),
        (["one", "\ntwo"], None),
        (["one"], None),
        (["", "one", ""], None),
    ],
)
def test_a_break_stands_where_it_may_matter(texts, read):
    part = composed(*texts)
    assert [one.passage.text for one in parted([passage(part)])] == ([] if read is None else [read])


@given(st.lists(st.text("ab1. ", max_size=4), min_size=1, max_size=6), st.data())
def test_what_is_found_in_the_other_reading_is_told_where_it_stands_in_the_text(texts, data):
    part = composed(*texts)
    for reading in parted([passage(part)]):
        other = reading.passage
        assert other.text.replace("\n", "") == part.text
        assert [other.text[a:b].replace("\n", "") for a, b in other.rewritable] == texts
        start = data.draw(st.integers(0, len(other.text)))
        end = data.draw(st.integers(start, len(other.text)))
        found = Finding("c", "x", 1.0, (Span(other.part, start, end),))
        [told] = home([found], [reading])
        assert told.spans[0].part == 0
        assert part.text[told.spans[0].start : told.spans[0].end] == other.text[start:end].replace("\n", "")


def test_of_what_both_readings_show_the_surer_is_told():
    part = composed("one", "two")
    [reading] = parted([passage(part)])
    plain, other = Finding("c", "x", 0.4, (Span(0, 0, 6),)), Finding("c", "x", 0.6, (Span(1, 0, 7),))
    assert (
        home([plain, other], [reading]) == home([other, plain], [reading]) == [Finding("c", "x", 0.6, (Span(0, 0, 6),))]
    )


def asked(*messages):
    body = {"model": "m", "messages": [{"role": "user", "content": content} for content in messages]}
    return openai_chat.read_request(body)[0]


def in_pieces(*texts):
    return [{"type": "text", "text": text} for text in texts]


class Failing:
    """Cannot read a text with some word in it; finds the same in every other."""

    name = "failing"
    categories = frozenset({"x"})

    def __init__(self, word, score=0.9):
        self.word, self.score, self.read = word, score, []

    def find(self, passage):
        self.read.append(passage.text)
        if self.word and self.word in passage.text:
            raise CannotAnswer("too odd")
        [category] = self.categories
        return [Finding(self.name, category, self.score, (Span(passage.part, 0, len(passage.text)),))]


@pytest.mark.parametrize(("word", "unread"), [("ab", [0]), ("a\nb", [0]), ("\n", [0, 2]), ("c", [2])])
def test_a_check_that_fails_at_one_reading_has_not_read_that_text(store, word, unread):
    rule = Rule("any", "x", Action.LOG, on_error=Action.LOG)
    guard = Guard(Policy("seams", (rule,)), checks={"failing": Failing(word)}, store=store)
    exchange = asked(in_pieces("a", "b"), "plain", in_pieces("c", "d"))
    decision = guard.judge_request(exchange)
    assert [at for at, one in enumerate(exchange.coverage) if one.status == "unjudged"] == unread
    assert {span.part for finding in decision.findings for span in finding.spans} <= {0, 1, 2}
    for finding in decision.findings:
        for span in finding.spans:
            assert span.end <= len(exchange.request[span.part].text)
    record_of(exchange, text="masked")


def test_a_second_opinion_is_asked_for_the_text_and_once(store):
    first, second = Failing("", 0.5), Failing("", 0.1)
    second.name, second.categories = "second", frozenset({"y"})
    rule = Rule("any", "x", Action.BLOCK, escalate=Escalate("y", (0.15, 0.85), per_minute=1))
    guard = Guard(Policy("seams", (rule,)), checks={"failing": first, "second": second}, store=store)
    assert guard.judge_request(asked(in_pieces("a", "b"))).action is Action.ALLOW
    assert (first.read, second.read) == (["ab", "a\nb"], ["ab"])


def test_an_exception_for_a_text_holds_for_both_its_readings(store):
    text = "Hello therefriend"
    digest = sha256(text.encode()).hexdigest()
    exception = RuleException("known", ("any",), date.max, "a greeting", "us", fingerprint=digest)
    policy = Policy("seams", (Rule("any", "x", Action.BLOCK),), exceptions=(exception,))
    guard = Guard(policy, checks={"failing": Failing("")}, store=store)
    assert guard.judge_request(asked(text)).action is Action.ALLOW
    assert guard.judge_request(asked(in_pieces("Hello there", "friend"))).action is Action.ALLOW


def test_fields_that_nobody_reads_are_each_told(bounded):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "foo": "x y z", "other": "a b c"}
    decision = bounded.judge_request(openai_chat.read_request(body)[0])
    assert [finding.detail for finding in decision.findings if finding.category == "unjudged.field"] == ["foo", "other"]
