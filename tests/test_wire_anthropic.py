"""Anthropic's Messages: what is read of a request, and what comes out for what goes in."""

import json
from typing import Any

import pytest

from ringfence.guard.exchange import Exchange, Kind
from ringfence.policies.types import Action, Decision, Stage
from ringfence.proxy.reply import About, Event, Finish, Stopped, Text, ToolCall, Withheld
from ringfence.proxy.wire.anthropic_messages import (
    ChunkReader,
    Renderer,
    error_body,
    frame,
    read_reply,
    read_request,
)
from ringfence.proxy.wire.body import BadRequest

USAGE = {"input_tokens": 3, "output_tokens": 5}


def asked(*content: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": one} for one in content]
    return {"model": "m-1", "max_tokens": 9, "messages": messages, **fields}


def parts_of(body: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    exchange, _ = read_request(body)
    return {part.where: (part.kind.value, part.role, part.text) for part in exchange.request}


def said(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    about = {"id": "m1", "type": "message", "role": "assistant", "model": "m-1", "usage": dict(USAGE)}
    return {**about, "content": list(content), "stop_reason": "end_turn", "stop_sequence": None, **fields}


def streamed(*blocks: list[dict[str, Any]], **ending: Any) -> list[dict[str, Any]]:
    """Return the events of a message; each block is its start and its deltas."""
    events: list[dict[str, Any]] = [{"type": "message_start", "message": said() | {"stop_reason": None}}]
    for index, (start, *deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": "end_turn", "stop_sequence": None, **ending}
    return [*events, {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}}, {"type": "message_stop"}]


def read(events: list[dict[str, Any]]) -> list[Event]:
    reader = ChunkReader()
    return [event for chunk in events for event in reader.read(chunk)] + list(reader.end())


def answered(events: list[Event], **fields: Any) -> dict[str, Any]:
    renderer = Renderer(read_request(asked("hi", **fields))[0])
    for event in events:
        renderer.collect(event)
    return renderer.body()


THOUGHT = [
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "let me "},
    {"type": "thinking_delta", "thinking": "see"},
    {"type": "signature_delta", "signature": "QUJD=="},
]
SPOKEN = [
    {"type": "text", "text": ""},
    {"type": "text_delta", "text": "hel"},
    {"type": "text_delta", "text": "lo"},
]
CALLED = [
    {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
    {"type": "input_json_delta", "partial_json": '{"where": '},
    {"type": "input_json_delta", "partial_json": '"here"}'},
]


def test_every_text_of_a_request_is_read_in_its_own_voice() -> None:
    body = asked(
        "hi",
        [
            {"type": "text", "text": "a bo", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "mb"},
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "found it"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "nothing", "is_error": True},
        ],
        system=[{"type": "text", "text": "be brief"}],
        tools=[{"name": "look", "description": "looks", "input_schema": {"type": "object"}}],
        stop_sequences=["END"],
        metadata={"user_id": "u-7"},
    )
    body["messages"].insert(1, {"role": "assistant", "content": [CALLED[0] | {"input": {"where": "here"}}]})
    assert parts_of(body) == {
        "system": ("text", "system", "be brief"),
        "messages[0].content": ("text", "user", "hi"),
        "messages[1].content[0]": ("tool_call", "assistant", "t1\nlook\nwhere\nhere"),
        "messages[2].content": ("text", "user", "a bomb"),
        "messages[2].content[2].content": ("text", "tool", "found it"),
        "messages[2].content[3].content": ("text", "tool", "nothing"),
        "tools[0]": ("tool_definition", "system", "look\nlooks"),
        "stop_sequences": ("text", "setting", "END"),
        "metadata": ("text", "setting", "user_id\nu-7"),
    }
    assert read_request(body)[0].subject.user == "u-7"


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image", "source": {"type": "base64", "data": "QUJD"}}, Kind.MEDIA),
        ({"type": "document", "source": {"type": "text", "data": "words"}}, Kind.MEDIA),
        ({"type": "text", "text": "hi", "citations": [{"cited_text": "some words"}]}, Kind.UNKNOWN),
        ({"type": "text", "text": "hi", "cache_control": {"type": "some words"}}, Kind.UNKNOWN),
        ({"type": "tool_result", "tool_use_id": "some words"}, Kind.UNKNOWN),
        ({"type": "redacted_thinking", "data": "QUJD"}, Kind.UNKNOWN),
        ({"type": "thinking", "thinking": "hm", "signature": "QUJD" * 40}, Kind.UNKNOWN),
        ({"type": "nobody knows", "words": "some words"}, Kind.MEDIA),
    ],
)
def test_what_nobody_reads_of_a_block_is_a_part_that_says_so(block: dict[str, Any], kind: Kind) -> None:
    exchange, _ = read_request(asked("hi", [block]))
    assert kind in [part.kind for part in exchange.request]


def test_field_that_nobody_knows_is_a_part_that_says_so() -> None:
    assert parts_of(asked("hi", mcp_servers=[{"name": "some words"}]))["mcp_servers"][0] == "unknown"
    assert set(parts_of(asked("hi", thinking={"type": "enabled", "budget_tokens": 2000}))) == {"messages[0].content"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "model"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": [{"role": "tool", "content": "hi"}]}, "role"),
        ({"model": "m", "messages": [{"role": "user", "content": 7}]}, "content"),
        ({"model": "m", "messages": [{"role": "user", "content": " "}]}, "no text"),
    ],
)
def test_request_that_the_api_does_not_allow_is_refused_with_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match=field):
        read_request(body)


def test_whole_and_streamed_reply_are_the_same_events() -> None:
    whole = said(
        {"type": "thinking", "thinking": "let me see", "signature": "QUJD=="},
        {"type": "text", "text": "hello"},
        CALLED[0] | {"input": {"where": "here"}},
    )

    def joined(events: list[Event]) -> tuple[dict[str, str], list[Event]]:
        texts: dict[str, str] = {}
        for event in events:
            if isinstance(event, Text):
                texts[event.field] = texts.get(event.field, "") + event.text
        return texts, [event for event in events if isinstance(event, ToolCall | Finish)]

    assert joined(list(read_reply(whole))) == joined(read(streamed(THOUGHT, SPOKEN, CALLED)))


def test_reply_comes_out_as_it_came_in() -> None:
    blocks = [
        {"type": "thinking", "thinking": "let me see", "signature": "QUJD=="},
        {"type": "text", "text": "hello", "citations": None},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"where": "here"}},
    ]
    assert answered(list(read_reply(said(*blocks)))) == said(*blocks)


def test_streamed_reply_comes_out_in_one_block_each_with_calls_at_the_end() -> None:
    renderer = Renderer(read_request(asked("hi", stream=True))[0])
    chunks = [chunk for event in read(streamed(THOUGHT, SPOKEN, CALLED)) for chunk in renderer.chunks(event)]
    chunks += renderer.last_chunks()
    again = [event for event in read(chunks) if not isinstance(event, About) and getattr(event, "text", True)]
    assert again == [
        Text(0, "reasoning", "let me ", Kind.REASONING),
        Text(0, "reasoning", "see", Kind.REASONING),
        Text(0, "content", "hel"),
        Text(0, "content", "lo"),
        ToolCall(0, 0, {"type": "tool_use", "id": "t1", "name": "look", "input": {"where": "here"}}),
        Finish(0, "end_turn"),
    ]
    assert [chunk["type"] for chunk in chunks][-2:] == ["message_delta", "message_stop"]
    assert chunks[-2]["usage"] == {"input_tokens": 3, "output_tokens": 9}


def test_block_drops_the_calls_and_what_a_whole_reply_said() -> None:
    decision = Decision(Stage.OUTPUT, Action.BLOCK, message="Not here.")
    body = answered([*read(streamed(SPOKEN, CALLED)), Stopped(decision)])
    assert body["content"] == [{"type": "text", "text": "Not here.", "citations": None}]
    assert body["stop_reason"] == "refusal"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "web_search_tool_result", "x": "words"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "redacted_thinking", "data": "QUJD"}},
        {"type": "content_block_start", "index": 0, "content_block": SPOKEN[0] | {"citations": [{"a": "words"}]}},
        {"type": "content_block_start", "index": 0, "content_block": THOUGHT[0] | {"signature": "some words"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {"a": "words"}}},
        {"type": "content_block_delta", "index": 4, "delta": CALLED[1]},
        {"type": "message_delta", "delta": {"stop_reason": "some words"}},
        {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": {"explanation": "some words"}}},
        {"type": "message_start", "message": {"id": "some words"}},
        {"type": "message_start", "message": {"usage": {"input_tokens": 1, "note": "some words"}}},
        {"type": "some words"},
    ],
)
def test_what_no_check_reads_is_withheld_and_said(event: dict[str, Any]) -> None:
    events = read([event])
    assert any(isinstance(one, Withheld) for one in events)
    assert "words" not in json.dumps(answered(events))


def test_second_signature_is_withheld_as_thinking_is_one_block() -> None:
    events = read(streamed(THOUGHT, [*THOUGHT[:2], {"type": "signature_delta", "signature": "REVG"}]))
    assert [event.where for event in events if isinstance(event, Withheld)] == ["content[1].signature"]
    assert answered(events)["content"][0]["signature"] == "QUJD=="


def test_stop_sequence_is_the_callers_own_word_or_nothing() -> None:
    events = read(streamed(SPOKEN, stop_reason="stop_sequence", stop_sequence="END"))
    assert answered(events, stop_sequences=["END"])["stop_sequence"] == "END"
    assert answered(events)["stop_sequence"] is None


def test_numbers_that_are_no_usage_are_left_out() -> None:
    assert answered(list(read_reply(said({"type": "text", "text": "hi"}, usage=5))))["usage"]["output_tokens"] == 0


def test_half_a_character_in_what_a_tool_is_given_does_not_come_out() -> None:
    reply = said({"type": "tool_use", "id": "t1", "name": "f", "input": {"q\ud83d": ["x\ud83d", 1]}})
    [call] = answered(list(read_reply(reply)))["content"]
    assert call["input"] == {"q\ufffd": ["x\ufffd", 1]}


@pytest.mark.parametrize("word", ["How_to", ["How", "to"]])
def test_words_of_a_block_in_fields_that_it_does_not_have_are_unread(word: Any) -> None:
    told = parts_of(asked([{"type": "text", "text": "hi", "Text": word, "cache_control": {"type": "ephemeral"}}]))
    assert told["messages[0].content[0]"][0] == "unknown"


def test_call_that_was_cut_off_is_withheld() -> None:
    events = read(streamed(SPOKEN, CALLED[:2], stop_reason="max_tokens"))
    assert not any(isinstance(event, ToolCall) for event in events)
    assert "content[1].input" in [event.where for event in events if isinstance(event, Withheld)]


@pytest.mark.parametrize(
    "nonsense", [None, [], "hi", {}, {"content": "hi"}, {"content": [7]}, {"type": "error"}, {"choices": []}]
)
def test_nonsense_is_no_reply(nonsense: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        list(read_reply(nonsense))


@pytest.mark.parametrize(
    "nonsense", [None, {}, {"type": 7}, {"type": "message_start"}, {"type": "content_block_delta", "index": "x"}]
)
def test_nonsense_is_no_chunk(nonsense: Any) -> None:
    with pytest.raises(ValueError, match="none of a message"):
        list(ChunkReader().read(nonsense))


def test_stream_that_never_says_why_it_ended_has_not_ended() -> None:
    reader = ChunkReader()
    for event in streamed(SPOKEN)[:-2]:
        list(reader.read(event))
    assert not reader.ended
    list(reader.read(streamed(SPOKEN)[-2]))
    assert reader.ended


def test_chunk_is_named_by_its_type() -> None:
    assert frame({"type": "message_stop"}) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def test_error_has_the_apis_kinds() -> None:
    assert error_body("no", kind="overloaded_error", code=None)["error"]["type"] == "overloaded_error"
    assert error_body("no", kind="server_error", code=None)["error"]["type"] == "api_error"
    assert error_body("no", kind="invalid_request_error", code=None, param="model") == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "model: no"},
    }


def test_reply_without_id_gets_the_exchanges() -> None:
    exchange = Exchange("anthropic.messages", "m-1", [])
    assert Renderer(exchange).body()["id"] == f"msg_{exchange.id}"
