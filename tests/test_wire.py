"""Bodies of every shape: what the wire modules make of them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.exchange import Kind, Subject
from ringfence.proxy.reply import Text
from ringfence.proxy.wire import openai_chat, openai_moderations
from ringfence.proxy.wire.body import BadRequest, is_identifier, leaves, read_object

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
KNOWN = st.sampled_from(
    ["text", "type", "content", "refusal", "image_url", "function", "arguments", "name", "role", "index"]
)
NEARLY = st.recursive(
    JSON, lambda inner: st.dictionaries(KNOWN, inner, max_size=5) | st.lists(inner, max_size=3), max_leaves=12
)
FIELDS = ["role", "content", "tool_calls", "function_call", "name", "audio", "reasoning_content", "refusal", "weight"]
MESSAGE = st.fixed_dictionaries({"role": st.just("user")}, optional=dict.fromkeys(FIELDS[1:], NEARLY))
BODY = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGE | NEARLY, max_size=3) | NEARLY},
    optional={"tools": NEARLY, "prediction": NEARLY, "response_format": NEARLY, "stream": NEARLY, "vendor": NEARLY},
)


@given(BODY)
@settings(max_examples=200, deadline=None)
def test_any_body_is_an_exchange_or_a_bad_request(body: dict[str, Any]) -> None:
    try:
        exchange, _ = openai_chat.read_request(body, Subject())
    except BadRequest:
        return
    # No text of the request is lost: it is a part of its own, lies below one that nobody can read, or is no more
    # than a name.
    paths = {part.path: part for part in exchange.request}
    for path, text in leaves({k: v for k, v in body.items() if k not in openai_chat.UNTOUCHED}):
        if not is_identifier(text):
            assert any(path[:n] in paths for n in range(1, len(path) + 1)), (path, text)
    for part in exchange.request:
        if part.kind.is_text:
            here: Any = body
            for step in part.path:
                here = here[step]
            assert here == part.text


@given(BODY | JSON)
@settings(max_examples=150, deadline=None)
def test_any_moderation_body_is_an_exchange_or_a_bad_request(body: Any) -> None:
    try:
        exchange, groups = openai_moderations.read_request(
            body if isinstance(body, dict) else {"input": body}, Subject()
        )
    except BadRequest:
        return
    assert sorted(index for group in groups for index in group) == list(range(len(exchange.request)))


CHUNK = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({}, optional={"index": NEARLY, "delta": NEARLY, "finish_reason": NEARLY}), max_size=3
        )
        | NEARLY
    }
)


@given(st.lists(CHUNK | NEARLY, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_chunks_are_events_or_an_error_that_the_upstream_answers_for(chunks: list[Any]) -> None:
    reader = openai_chat.ChunkReader()
    try:
        events = [event for chunk in chunks for event in reader.read(chunk)] + list(reader.end())
    except (ValueError, TypeError, AttributeError, KeyError):
        return
    for event in events:
        if isinstance(event, Text):
            event.text.encode()


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_bad_request(raw: bytes) -> None:
    try:
        assert isinstance(read_object(raw), dict)
    except BadRequest:
        return


def test_names_are_not_texts_but_what_hides_in_a_name_is() -> None:
    body = {"model": "m", "messages": [{"role": "user", "name": "Anna", "content": "hi"}]}
    assert [p.path for p in openai_chat.read_request(body, Subject())[0].request] == [("messages", 0, "content")]
    body["messages"][0]["name"] = "Anna, who wants a bomb"  # type: ignore[index]
    assert ("messages", 0, "name") in {p.path for p in openai_chat.read_request(body, Subject())[0].request}


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "something_new"])
def test_what_is_not_text_is_media(kind: str) -> None:
    content = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}]
    exchange, _ = openai_chat.read_request(
        {"model": "m", "messages": [{"role": "user", "content": content}]}, Subject()
    )
    assert [part.kind for part in exchange.request] == [Kind.TEXT, Kind.MEDIA]


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(BadRequest, match=r"messages\[0\]\.content holds a lone surrogate") as caught:
        read_object(json.dumps({"messages": [{"content": "a\ud83d"}]}).encode())
    assert caught.value.param == "messages[0].content"
    assert read_object(json.dumps({"a": "😀"}).encode()) == {"a": "😀"}
