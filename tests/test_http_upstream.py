"""The proxy in front of another OpenAI-compatible server, well-behaved and not."""

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check
from ringfence.guard.guard import Guard
from ringfence.policies.types import Action, Policy, Rule, UpstreamChoice
from ringfence.proxy.app import create_app
from ringfence.proxy.reply import UpstreamError
from ringfence.proxy.service import Service
from ringfence.proxy.upstreams import UnknownUpstream, open_upstream
from ringfence.proxy.upstreams import http as upstreams
from ringfence.proxy.upstreams.http import LONGEST_ANSWER, LONGEST_LIST, LONGEST_REPLY, HttpUpstream
from ringfence.proxy.upstreams.http import open_upstream as open_http

LONG = "There is a lot to say about it and little of it is new. " * 6


@dataclass
class Vendor:
    """An OpenAI-compatible server that does what `answer` says; keeps what it was sent."""

    answer: Callable[[dict[str, object]], Response]
    model: dict[str, object] = field(default_factory=lambda: {"id": "vendor-1", "object": "model"})
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.bodies.append(json.loads(await request.body()))
            self.headers.append(dict(request.headers))
            return self.answer(self.bodies[-1])

        @app.get("/v1/models")
        async def models() -> Response:
            return JSONResponse({"object": "list", "data": [self.model]})

        return app


def completion(content: object, **choice: object) -> dict[str, object]:
    message = {"role": "assistant", "content": content, **choice}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "vendor-1",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def sse(*chunks: object, done: bool = True) -> Response:
    async def frames() -> AsyncIterator[str]:
        for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
        if done:
            yield "data: [DONE]\n\n"

    return StreamingResponse(frames(), media_type="text/event-stream")


def chunk(delta: dict[str, object], reason: str | None = None, index: int = 0) -> dict[str, object]:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "vendor-1",
        "choices": [choice],
    }


@pytest.fixture
def front(
    serve: Callable[..., str], service_of: Callable[..., Service], guard: Guard
) -> Callable[..., tuple[openai.OpenAI, Vendor]]:
    """Put the proxy in front of a vendor; return a client of the proxy."""

    def build(answer: Callable[[dict[str, object]], Response], **choice: object) -> tuple[openai.OpenAI, Vendor]:
        vendor = Vendor(answer)
        upstream = open_upstream(UpstreamChoice(use=f"{serve(vendor.app())}/v1", **choice))
        url = serve(create_app(service_of(guard, upstream)))
        return openai.OpenAI(base_url=f"{url}/v1", api_key="the-callers-own", max_retries=0), vendor

    return build


def ask(client: openai.OpenAI, text: str = "hello", **fields: object) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(model="vendor-1", messages=[{"role": "user", "content": text}], **fields)


def test_a_reply_passes_with_its_id_usage_and_rewritten_text(
    front: Callable[..., tuple[openai.OpenAI, Vendor]],
) -> None:
    client, vendor = front(lambda _: JSONResponse(completion("it is 123456")))
    reply = ask(client, "is it 4321?", extra_body={"top_k": 5})
    assert reply.choices[0].message.content == "it is [NUMBER]"
    assert (reply.id, reply.created, reply.system_fingerprint) == ("chatcmpl-1", 7, "fp_1")
    assert reply.usage is not None
    assert reply.usage.total_tokens == 3
    assert vendor.bodies[0]["messages"] == [{"role": "user", "content": "is it [NUMBER]?"}]
    assert vendor.bodies[0]["top_k"] == 5
    assert vendor.headers[0]["authorization"] == "Bearer the-callers-own"


def test_the_upstreams_key_replaces_the_callers(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENDOR_KEY", "ours")
    client, vendor = front(lambda _: JSONResponse(completion("hi")), api_key_env="VENDOR_KEY")
    ask(client)
    assert vendor.headers[0]["authorization"] == "Bearer ours"
    monkeypatch.delenv("VENDOR_KEY")
    with pytest.raises(ValueError, match="VENDOR_KEY"):
        open_upstream(UpstreamChoice(use="http://127.0.0.1:1/v1", api_key_env="VENDOR_KEY"))


def test_a_streamed_reply_is_rewritten_across_chunks(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    pieces = ["it is 12", "34", "56, you know. ", LONG]
    usage = chunk({}) | {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    answer = [chunk({"role": "assistant"}), *(chunk({"content": p}) for p in pieces), chunk({}, "stop"), usage]
    client, _ = front(lambda _: sse(*answer))
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == f"it is [NUMBER], you know. {LONG}"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_each_choice_is_judged_on_its_own(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    body = completion("fine") | {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"},
            {"index": 1, "message": {"role": "assistant", "content": "a leak"}, "finish_reason": "stop"},
        ]
    }
    client, _ = front(lambda _: JSONResponse(body))
    assert {choice.finish_reason for choice in ask(client, n=2).choices} == {"content_filter"}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "refusal"])
def test_every_text_of_a_reply_is_judged(front: Callable[..., tuple[openai.OpenAI, Vendor]], field: str) -> None:
    client, _ = front(lambda _: JSONResponse(completion("fine", **{field: "a leak"})))
    assert ask(client).choices[0].finish_reason == "content_filter"
    client, _ = front(lambda _: sse(chunk({"content": "fine"}), chunk({field: "a leak"}), chunk({}, "stop")))
    assert list(ask(client, stream=True))[-1].choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize(
    "given",
    [
        '{"text": "a leak"}',
        '{"a leak": "text"}',
        '{"to": [{"a": {"a leak": null}}]}',
        '{"123456": true}',  # would be rewritten, which the name of a field cannot be
    ],
)
def test_tool_call_arguments_are_judged_across_fragments_names_of_fields_too(
    given: str, front: Callable[..., tuple[openai.OpenAI, Vendor]]
) -> None:
    def fragment(arguments: str, **first: object) -> dict[str, object]:
        return chunk({"tool_calls": [{"index": 0, **first, "function": {"arguments": arguments, **first}}]})

    pieces = [
        fragment("", id="call_1", name="send"),
        fragment(given[: len(given) // 2]),
        fragment(given[len(given) // 2 :]),
        chunk({}, "tool_calls"),
    ]
    client, _ = front(lambda _: sse(*pieces))
    chunks = list(ask(client, stream=True))
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert not any(c.choices[0].delta.tool_calls for c in chunks)


def test_what_nobody_reads_is_withheld_and_said(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], store: Store
) -> None:
    body = completion("fine", annotations=[{"url": "see the leak"}], vendor_flag=True)
    body["choices"][0]["logprobs"] = {"content": [{"token": "fine", "logprob": 0.0}]}  # type: ignore[index]
    client, _ = front(lambda _: JSONResponse(body))
    raw = client.chat.completions.with_raw_response.create(
        model="vendor-1", messages=[{"role": "user", "content": "x"}]
    )
    assert "see the leak" not in raw.text
    assert raw.parse().choices[0].logprobs is None
    [kept] = store.list(limit=1)
    assert kept.body is not None
    withheld = {c["where"] for c in kept.body["coverage"] if c["status"] == "unjudged"}
    assert withheld == {
        "choices[0].message.annotations",
        "choices[0].message.vendor_flag",
        "choices[0].logprobs",
    }


@pytest.mark.parametrize(
    "body",
    [
        completion("fine") | {"write to jane": 0},
        completion("fine") | {"usage": {"write to jane": 1}},
        completion("fine") | {"system_fingerprint": "write to jane"},
        completion("fine")
        | {"choices": [{"index": 0, "message": {"content": "fine"}, "finish_reason": "write to jane"}]},
        completion(
            None, tool_calls=[{"id": "1", "write to jane": {}, "function": {"name": "f", "write to jane": "x"}}]
        ),
        completion([{"type": "text", "text": "write to jane"}]),
    ],
)
def test_words_hidden_anywhere_else_in_a_reply_do_not_leave(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], store: Store, body: dict[str, object]
) -> None:
    client, _ = front(lambda _: JSONResponse(body))
    raw = client.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert "jane" not in raw.text
    [kept] = store.list(limit=1)
    assert kept.body is not None
    assert [c["status"] for c in kept.body["coverage"]].count("unjudged") > 0


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("more", [{}, {"tool_calls": [CALL]}, {"refusal": ""}])
@pytest.mark.parametrize("content", ["", None])
def test_an_empty_text_leaves_empty_and_none_stays_none(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], content: str | None, more: dict[str, object]
) -> None:
    client, _ = front(lambda _: JSONResponse(completion(content, **more)))
    whole = ask(client).choices[0].message
    opening = chunk({"role": "assistant", "content": content, **more})
    client, _ = front(lambda _: sse(opening, chunk({}, "stop")))
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (whole, streamed):
        assert (message.content, message.refusal) == (content, more.get("refusal"))
        assert bool(message.tool_calls) is ("tool_calls" in more)


def test_a_text_that_was_rewritten_to_nothing_is_empty(
    serve: Callable[..., str], service_of: Callable[..., Service], checks: dict[str, Check], store: Store
) -> None:
    policy = Policy("gone", (Rule("no-numbers", "number", Action.REWRITE, replacement=""),))
    upstream = open_upstream(
        UpstreamChoice(use=f"{serve(Vendor(lambda _: JSONResponse(completion('123456'))).app())}/v1")
    )
    url = serve(create_app(service_of(Guard(policy, checks=checks, store=store), upstream)))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert ask(client).choices[0].message.content == ""


def test_nothing_of_a_text_that_came_empty_stands_before_the_message_of_a_block(
    front: Callable[..., tuple[openai.OpenAI, Vendor]],
) -> None:
    client, _ = front(lambda _: sse(chunk({"content": "", "reasoning": "a leak"}), chunk({}, "stop")))
    said = [piece.choices[0].delta.content for piece in ask(client, stream=True)]
    assert "".join(one or "" for one in said) == "That stays here."


def test_a_field_withheld_from_every_chunk_is_said_once(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], store: Store
) -> None:
    client, _ = front(lambda _: sse(*[chunk({"content": "x "}) | {"obfuscation": "aq Zw"}] * 20, chunk({}, "stop")))
    list(ask(client, stream=True))
    [kept] = store.list(limit=1)
    assert kept.body is not None
    assert [c["where"] for c in kept.body["coverage"] if c["status"] == "unjudged"] == ["obfuscation"]


@pytest.mark.parametrize(
    "raw", [b'{"choices": [{"index": 0, "message": {"content": "x"}}], "usage": {"n": NaN}}', b"[" * 9000]
)
def test_json_that_is_none_is_the_upstreams_failure(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], raw: bytes
) -> None:
    client, _ = front(lambda _: Response(raw, media_type="application/json"))
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    assert caught.value.status_code == 502


def test_lone_surrogates_of_an_upstream_become_replacement_characters(
    front: Callable[..., tuple[openai.OpenAI, Vendor]],
) -> None:
    call = {"index": 0, "id": "a\ud800", "function": {"name": "f\ud800", "arguments": "\ud800"}}
    client, _ = front(lambda _: sse(chunk({"tool_calls": [call]}), chunk({"content": "a\ud800"}), chunk({}, "stop")))
    chunks = list(ask(client, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert any(c.choices[0].delta.content == "a\ufffd" for c in chunks)


def test_a_compressed_reply_is_read(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    packed = gzip.compress(json.dumps(completion("a leak")).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    client, _ = front(lambda _: Response(packed, headers=headers))
    assert ask(client).choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize(
    ("response", "status", "code"),
    [
        (JSONResponse({"error": {"message": "no such model", "code": "model_not_found"}}, 404), 404, "model_not_found"),
        (JSONResponse({"error": {"message": "slow down", "code": "rate_limit"}}, 429), 429, "rate_limit"),
        (Response("<html>oops</html>", 500), 502, "upstream_error"),
        (Response("<html>hello</html>", 200), 502, "upstream_malformed"),
        (JSONResponse([1, 2]), 502, "upstream_malformed"),
        (JSONResponse({"choices": [{"index": "x", "message": {}}]}), 502, "upstream_malformed"),
        (JSONResponse({"choices": [7]}), 502, "upstream_malformed"),
    ],
)
def test_an_upstreams_failure_keeps_the_apis_shape(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], store: Store, response: Response, status: int, code: str
) -> None:
    client, _ = front(lambda _: response)
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    assert caught.value.status_code == status
    assert caught.value.code == code
    [kept] = store.list(limit=1)
    assert kept.body is not None
    assert kept.body["error"]


def test_an_upstreams_error_message_is_judged_like_any_text(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    client, _ = front(lambda _: JSONResponse({"error": {"message": "it was a leak"}}, 400))
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client)
    assert "leak" not in str(caught.value)


VLLM = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}
OURS = {"type": "invalid_request_error", "param": None, "code": "upstream_error"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {"error": {"message": "m", "type": "invalid_request_error", "param": "messages[0].role", "code": None}},
            {"message": "m", "type": "invalid_request_error", "param": "messages[0].role", "code": None},
        ),
        ({"error": {"message": "m"}}, {**OURS, "message": "m", "code": None}),
        ({"error": VLLM}, VLLM),
        ({"object": "error", **VLLM}, VLLM),
        ({"error": "boom"}, {**OURS, "message": "boom"}),
        ({"detail": "Not Found"}, {**OURS, "message": "Not Found"}),
        ({"detail": [{"loc": ["body"], "msg": "none"}]}, {**OURS, "message": '[{"loc": ["body"], "msg": "none"}]'}),
        (
            {"error": {"message": "m", "type": "some words", "param": "some words", "code": "some words"}},
            {**OURS, "message": "m", "code": None},
        ),
        ([1, 2], {**OURS, "message": ""}),
    ],
)
def test_an_upstreams_error_comes_as_it_was_written(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], body: object, told: dict[str, object], stream: bool
) -> None:
    client, _ = front(lambda _: JSONResponse(body, 400))
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=stream)
    message = f": {told['message']}" if told["message"] else ""
    assert caught.value.body == {**told, "message": f"the upstream answered 400{message}"}


def test_an_error_in_a_stream_is_told_in_both_of_its_shapes(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    for error in ({"error": VLLM}, {"object": "error", **VLLM}):
        client, _ = front(lambda _, error=error: sse(chunk({"content": LONG}), error))
        with pytest.raises(openai.APIError, match="too long") as caught:
            list(ask(client, stream=True))
        assert caught.value.body == {**VLLM, "message": "the upstream answered 502: too long"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [429, 503])
def test_when_to_try_again_is_passed_on_and_nothing_else(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], status: int, stream: bool
) -> None:
    passed = {
        "retry-after": "Wed, 21 Oct 2026 07:28:00 GMT",
        "retry-after-ms": "1500",
        "x-should-retry": "true",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0.5s",
    }
    kept_back = {"x-ratelimit-reset-requests": "ask jane for more", "x-note": "1", "set-cookie": "a=1"}
    client, _ = front(lambda _: JSONResponse({"error": {"message": "m"}}, status, headers=passed | kept_back))
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, stream=stream)
    assert caught.value.status_code == (429 if status == 429 else 502)
    assert passed.items() <= caught.value.response.headers.items()
    assert not kept_back.keys() & caught.value.response.headers.keys()


@pytest.mark.parametrize(
    "response", [JSONResponse(completion("hi")), Response("<html>hi</html>", media_type="text/html")]
)
def test_something_else_in_place_of_a_stream_is_told_as_that(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], response: Response
) -> None:
    client, _ = front(lambda _: response)
    with pytest.raises(openai.APIStatusError, match="asked for a stream and answered with something else") as caught:
        ask(client, stream=True)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_malformed")


def test_a_stream_that_breaks_off_is_an_error(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    client, _ = front(lambda _: sse(chunk({"content": LONG}), done=False))
    with pytest.raises(openai.APIError, match="broke off"):
        list(ask(client, stream=True))
    client, _ = front(lambda _: sse(chunk({"content": LONG}), chunk({}, "stop"), done=False))
    assert list(ask(client, stream=True))[-1].choices[0].finish_reason == "stop"
    client, _ = front(lambda _: sse(chunk({"content": LONG}), {"error": {"message": "out of memory"}}))
    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(client, stream=True))


@pytest.mark.parametrize("line", [b"data: {}", b": nothing said\n\n"])
def test_a_stream_without_end_is_cut_off(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield line * 1_000
            await anyio.lowlevel.checkpoint()  # for whoever says that the client has gone

    monkeypatch.setattr(upstreams, "LONGEST_STREAM", 100_000)
    client, _ = front(lambda _: StreamingResponse(endless(), media_type="text/event-stream"))
    with pytest.raises(openai.APIError, match="longer than 100,000 bytes"):
        list(ask(client, stream=True))


@pytest.mark.parametrize(
    ("status", "size", "told"), [(200, LONGEST_REPLY, "64,000,000 bytes"), (500, LONGEST_ANSWER, "1,000,000 bytes")]
)
def test_an_answer_of_no_end_is_not_read_to_it(
    front: Callable[..., tuple[openai.OpenAI, Vendor]], status: int, size: int, told: str
) -> None:
    packed = gzip.compress(b" " * (size + 1))
    client, _ = front(lambda _: Response(packed, status, {"content-encoding": "gzip"}, "application/json"))
    with pytest.raises(openai.APIStatusError, match=f"the upstream's answer is longer than {told}") as caught:
        ask(client)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_malformed")


def test_an_upstream_that_is_not_there_is_a_502(
    serve: Callable[..., str], service_of: Callable[..., Service], guard: Guard
) -> None:
    url = serve(create_app(service_of(guard, open_upstream(UpstreamChoice(use="http://127.0.0.1:9/v1")))))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    response = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_unreachable"
    assert httpx.get(f"{url}/health/readiness").status_code == 503
    assert httpx.get(f"{url}/v1/models").status_code == 502


def test_an_upstream_that_is_too_slow_is_a_504(front: Callable[..., tuple[openai.OpenAI, Vendor]]) -> None:
    async def never() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    client, _ = front(lambda _: StreamingResponse(never()), timeout_s=0.2)
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    assert caught.value.status_code == 504
    assert caught.value.code == "upstream_timeout"


def test_models_are_the_upstreams_with_their_names_and_numbers(
    front: Callable[..., tuple[openai.OpenAI, Vendor]],
) -> None:
    client, vendor = front(lambda _: JSONResponse(completion("hi")))
    [model] = client.models.list()
    assert model.to_dict() == {"id": "vendor-1", "object": "model", "created": 0, "owned_by": ""}
    told = {"id": "vendor-1", "object": "model", "created": 7, "owned_by": "vllm", "root": "org/vendor-1"}
    told |= {"parent": None, "max_model_len": 8192}
    vendor.model = {**told, "description": "write to jane", "permission": [{"id": "modelperm-1"}]}
    [model] = client.models.list()
    assert model.to_dict() == told


def asked(
    serve: Callable[..., str], answer: Callable[[], Response], ask: Callable[[HttpUpstream], Awaitable[object]]
) -> Any:
    """Return what the upstream in front of a server makes of that server's list of models."""
    app = FastAPI()
    app.add_route("/v1/models", lambda _: answer())
    upstream = open_http(UpstreamChoice(f"{serve(app)}/v1", timeout_s=5))

    async def ask_and_close() -> object:
        try:
            return await ask(upstream)
        finally:
            await upstream.aclose()

    return anyio.run(ask_and_close)


def test_whether_a_server_is_there_is_known_by_its_status_and_nothing_that_follows(serve: Callable[..., str]) -> None:
    async def without_end() -> AsyncIterator[bytes]:
        yield b" "
        await anyio.sleep_forever()

    for status, seen in ((200, None), (401, None), (503, "upstream answers 503")):
        answer = asked(serve, lambda status=status: StreamingResponse(without_end(), status), HttpUpstream.ready)
        assert answer == seen


def test_a_list_of_models_is_read_to_a_limit(serve: Callable[..., str]) -> None:
    entry = json.dumps({"data": [{"id": "m"}]}).encode()
    fitting, longer = (gzip.compress(entry.rjust(LONGEST_LIST + more)) for more in (0, 1))

    def models(sent: bytes) -> list[dict[str, object]]:
        answer = Response(sent, headers={"content-encoding": "gzip"})
        return asked(serve, lambda: answer, lambda upstream: upstream.models({}))

    [model] = models(fitting)
    assert model["id"] == "m"
    with pytest.raises(UpstreamError, match="the upstream's answer is longer than 10,000,000 bytes"):
        models(longer)


def test_an_unknown_upstream_lists_the_known_ones() -> None:
    with pytest.raises(UnknownUpstream, match="embedded, fake"):
        open_upstream(replace(UpstreamChoice(), use="embeded"))
