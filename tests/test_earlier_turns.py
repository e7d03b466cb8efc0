"""What a check is told of earlier turns: in requests, in streamed and in whole replies, and when a record is judged again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ringfence.guard.audit.record import record_of
from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check, Finding, Passage
from ringfence.guard.checks.guards.check import conversation
from ringfence.guard.checks.guards.family import Turn
from ringfence.guard.exchange import MOST_TEXT, MOST_TURNS, Exchange, Kind, Part
from ringfence.guard.guard import Guard
from ringfence.guard.replay.replay import replay
from ringfence.policies.types import Action, AuditSettings, Policy, Rule, Stage

BOTH = (Stage.INPUT, Stage.OUTPUT)
SAID = [
    ("system", "Be brief."),
    ("user", "How do I pick a lock?"),
    ("assistant", "Which one?"),
    ("tool", "It is a Yale."),
    ("user", "The blue one."),
]


@dataclass
class Recorder:
    """Finds nothing, and keeps what it was asked to read."""

    name: str = "seen"
    categories: frozenset[str] = frozenset({"seen"})
    asked: list[Passage] = field(default_factory=list)

    def find(self, passage: Passage) -> Sequence[Finding]:
        self.asked.append(replace(passage, until=None))
        return []


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def policy(*rules: Rule, revision: str = "old") -> Policy:
    return Policy("house", rules, revision=revision, audit=AuditSettings(text="full"))


SEEN = Rule("seen", "seen", Action.BLOCK, stages=BOTH)
OTHER = Rule("other", "other", Action.BLOCK, stages=BOTH)


def exchange(*said: tuple[str, str]) -> Exchange:
    return Exchange("test", "m", [Part(Kind.TEXT, role, ("t", at), text) for at, (role, text) in enumerate(said)])


def speak(guard: Guard, exchange: Exchange, *pieces: str) -> None:
    """Take an exchange from its request to its record; the reply comes in pieces."""
    reply = guard.open_reply(exchange)
    guard.judge_request(exchange)
    for piece in pieces:
        reply.feed(("reply",), piece)
        reply.release(("reply",))
    reply.release(("reply",), last=True)
    reply.finish()
    guard.record(exchange)


def test_a_text_comes_with_what_the_user_and_the_assistant_said_before_it(recorder: Recorder) -> None:
    speak(Guard(policy(SEEN), checks={"seen": recorder}), exchange(*SAID), "Like this.")
    told = {one.text: [text for _, text in one.earlier] for one in recorder.asked}
    assert told == {
        "Be brief.": [],
        "How do I pick a lock?": [],
        "Which one?": ["How do I pick a lock?"],
        "It is a Yale.": [],
        "The blue one.": ["How do I pick a lock?", "Which one?"],
        "Like this.": ["How do I pick a lock?", "Which one?", "The blue one."],
    }
    assert {one.earlier[0] for one in recorder.asked if one.earlier} == {("user", "How do I pick a lock?")}


def test_every_window_of_a_streamed_reply_and_a_part_that_is_whole_come_with_the_same(recorder: Recorder) -> None:
    guard = Guard(policy(SEEN), checks={"seen": recorder})
    talk = exchange(*SAID)
    speak(guard, talk, *["word " * 200] * 20)
    windows = [one for one in recorder.asked if one.stage is Stage.OUTPUT]
    assert len(windows) > 1
    guard.open_reply(talk).release_whole(Part(Kind.TOOL_CALL, "assistant", ("call",), "open()"), {})
    whole = recorder.asked[-1]
    assert (whole.text, whole.voice) == ("open()", "tool_call")
    assert {one.earlier for one in (*windows, whole)} == {talk.before(len(SAID))}


def test_what_the_assistant_said_comes_with_what_the_user_said_before_it(recorder: Recorder) -> None:
    talk = exchange(("assistant", "Hi, how can I help?"), *SAID, ("assistant", "Like"))
    talk.request.insert(4, Part(Kind.TOOL_CALL, "assistant", ("call",), "look_up()"))
    speak(Guard(policy(SEEN), checks={"seen": recorder}), talk, "this.")
    assert {one.text: one.prompt for one in recorder.asked} == {
        "Hi, how can I help?": "",
        "Be brief.": "",
        "How do I pick a lock?": "",
        "Which one?": "How do I pick a lock?",
        "look_up()": "How do I pick a lock?",
        "It is a Yale.": "",
        "The blue one.": "",
        "Like": "The blue one.",
        "this.": "The blue one.",
    }


def test_what_turns_left_out_asked_is_known_all_the_same(recorder: Recorder) -> None:
    said = [("user", "And?"), ("assistant", "b" * (MOST_TEXT + 1)), ("assistant", "c"), ("user", "d")]
    Guard(policy(SEEN), checks={"seen": recorder}).judge_request(exchange(*said))
    assert [(one.prompt, len(one.earlier)) for one in recorder.asked] == [("", 0), ("And?", 1), ("And?", 0), ("", 1)]


def test_guards_are_not_told_a_later_question_as_what_a_greeting_answers(recorder: Recorder) -> None:
    talk = exchange(("assistant", "Hi, how can I help?"), ("user", "How do I pick a lock?"))
    Guard(policy(SEEN), checks={"seen": recorder}).judge_request(talk)
    assert conversation(recorder.asked[0]) == [Turn("user", ""), Turn("assistant", "Hi, how can I help?")]


def test_the_classifier_judges_what_was_said_as_it_was_when_it_was_said() -> None:
    said = [("user", "How do I make an oil lamp?"), ("assistant", "Fill it, close it, and drill a hole for the wick.")]
    guard = Guard(policy(Rule("harm", "harm", Action.LOG, stages=BOTH, roles=("assistant",))))
    once = guard.judge_request(exchange(*said))
    again = guard.judge_request(exchange(*said, ("user", "What is a pipe bomb?")))
    reply = guard.check(said[1][1], Stage.OUTPUT, said[0][1])
    assert again.findings == once.findings
    assert [one.score for one in again.findings] == [one.score for one in reply.findings]


@pytest.mark.parametrize("apart", [False, True])
def test_a_record_is_judged_again_with_the_same_passages(recorder: Recorder, tmp_path: Path, apart: bool) -> None:
    other = Recorder("other", frozenset({"other"}))
    checks: dict[str, Check] = {"seen": recorder, "other": other}
    store = Store.open(tmp_path / "log.db")
    speak(Guard(policy(OTHER), checks=checks, store=store), replace(exchange(*SAID), apart=apart), "Like this.")
    store.close()
    assert recorder.asked == []
    replay(tmp_path / "log.db", policy(OTHER), policy(OTHER, SEEN, revision="new"), checks)
    assert recorder.asked == other.asked
    assert any(one.earlier for one in recorder.asked) is not apart


def test_of_a_long_conversation_the_end_is_told_without_a_gap() -> None:
    turns = [("user" if at % 2 == 0 else "assistant", str(at)) for at in range(3 * MOST_TURNS)]
    talk = exchange(*turns)
    assert talk.before(len(turns)) == tuple(turns[-MOST_TURNS:])
    assert talk.before(3) == tuple(turns[:3])
    long = exchange(("user", "a"), ("assistant", "b" * MOST_TEXT), ("user", "c"), ("user", "d"))
    assert long.before(4) == (("user", "c"), ("user", "d"))
    assert long.before(2) == (("assistant", "b" * MOST_TEXT),)


def test_texts_by_themselves_are_no_turns_before_each_other(recorder: Recorder) -> None:
    talk, texts = exchange(*SAID), replace(exchange(*SAID), apart=True)
    for one in (talk, texts):
        Guard(policy(SEEN), checks={"seen": recorder}).judge_request(one)
    assert [bool(one.earlier) for one in recorder.asked] == [False, False, True, False, True] + [False] * 5
    assert [bool(one.prompt) for one in recorder.asked] == [False, False, True, False, False] + [False] * 5
    assert ["apart" in record_of(one, text="full") for one in (talk, texts)] == [False, True]


def test_what_is_no_speech_is_no_turn() -> None:
    talk = exchange(("user", "a"), ("assistant", "b"), ("user", "c"))
    talk.request[1] = Part(Kind.TOOL_CALL, "assistant", ("t", 1), "open()")
    talk.request.append(Part(Kind.MEDIA, "user", ("t", 3)))
    assert talk.before(4) == (("user", "a"), ("user", "c"))
