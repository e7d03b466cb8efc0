"""The guard inside SDK clients: the real SDKs, both HTTP libraries, and a server that answers as told."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from ringfence import AsyncGuardedTransport, Guard, GuardedTransport, PolicyError
from ringfence.guard.audit.store import Store

LONG = "There is a lot to say about it and little of it is new. " * 12
Ask = Callable[..., str]


@dataclass
class Vendor:
    """Both APIs: says `text`, in pieces where a stream is asked for, or whatever `answer` is; keeps what it was sent."""

    text: str = "fine"
    answer: Response | None = None
    cut: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/{path:path}")
        async def post(path: str, request: Request) -> Response:
            self.bodies.append(json.loads(await request.body()))
            self.headers.append(dict(request.headers))
            if self.answer is not None:
                return self.answer
            if path == "embeddings":
                return JSONResponse({"object": "list", "model": "m", "data": [{"index": 0, "embedding": [1.0]}]})
            says = chat_says if path == "chat/completions" else messages_says
            return says(self.text, stream=bool(self.bodies[-1].get("stream")), cut=self.cut)

        return app


def pieces(text: str) -> list[str]:
    return [text[at : at + 7] for at in range(0, len(text), 7)]


def sse(events: list[dict[str, Any]], *, end: str = "") -> Response:
    async def frames() -> AsyncIterator[str]:
        for event in events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            yield f"{name}data: {json.dumps(event)}\n\n"
        yield end

    return StreamingResponse(frames(), media_type="text/event-stream")


def chat_says(text: str, *, stream: bool, cut: bool) -> Response:
    about = {"id": "c1", "created": 7, "model": "m-1"}
    if not stream:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**about, "object": "chat.completion", "choices": [choice]})
    deltas = [{"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in pieces(text)]
    last = [] if cut else [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    chunks = [{**about, "object": "chat.completion.chunk", "choices": [choice]} for choice in [*deltas, *last]]
    return sse(chunks, end="" if cut else "data: [DONE]\n\n")


def messages_says(text: str, *, stream: bool, cut: bool) -> Response:
    usage = {"input_tokens": 3, "output_tokens": 5}
    about = {"id": "m1", "type": "message", "role": "assistant", "model": "m-1", "usage": usage}
    if not stream:
        content = [{"type": "text", "text": text}]
        return JSONResponse({**about, "content": content, "stop_reason": "end_turn", "stop_sequence": None})
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in pieces(text)
    ]
    last = [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return sse([{"type": "message_start", "message": {**about, "content": []}}, start, *deltas, *([] if cut else last)])


@pytest.fixture
def vendor(serve: Callable[[FastAPI], str]) -> Vendor:
    vendor = Vendor()
    vendor.url = serve(vendor.app())
    return vendor


def openai_client(vendor: Vendor, guard: Guard, library: Any = httpx2, **options: Any) -> openai.OpenAI:
    http = library.Client(transport=GuardedTransport(guard, **options))
    return openai.OpenAI(base_url=f"{vendor.url}/v1", api_key="the-callers", http_client=http)


def anthropic_client(vendor: Vendor, guard: Guard, **options: Any) -> anthropic.Anthropic:
    http = httpx2.Client(transport=GuardedTransport(guard, **options))
    return anthropic.Anthropic(base_url=vendor.url, api_key="the-callers", http_client=http)


def told(text: str) -> dict[str, Any]:
    return {"model": "m-1", "messages": [{"role": "user", "content": text}]}


CLIENTS = ["openai, httpx", "openai, httpx2", "openai, async", "anthropic", "anthropic, async"]


@pytest.fixture(params=CLIENTS)
def ask(request: pytest.FixtureRequest, vendor: Vendor, guard: Guard) -> Ask:
    """Ask each client in the same way: `ask(text, stream=…)` returns the whole text."""

    def by_openai(text: str, *, stream: bool = False) -> str:
        library = httpx if request.param == "openai, httpx" else httpx2
        with openai_client(vendor, guard, library) as client:
            if stream:
                chunks = client.chat.completions.create(**told(text), stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return client.chat.completions.create(**told(text)).choices[0].message.content or ""

    async def by_async_openai(text: str, *, stream: bool = False) -> str:
        http = httpx2.AsyncClient(transport=AsyncGuardedTransport(guard))
        url = f"{vendor.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="the-callers", http_client=http) as client:
            if stream:
                chunks = await client.chat.completions.create(**told(text), stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
            return (await client.chat.completions.create(**told(text))).choices[0].message.content or ""

    def by_anthropic(text: str, *, stream: bool = False) -> str:
        with anthropic_client(vendor, guard) as client:
            if stream:
                with client.messages.stream(**told(text), max_tokens=9) as streamed:
                    return "".join(streamed.text_stream)
            return client.messages.create(**told(text), max_tokens=9).content[0].text

    async def by_async_anthropic(text: str, *, stream: bool = False) -> str:
        http = httpx2.AsyncClient(transport=AsyncGuardedTransport(guard))
        async with anthropic.AsyncAnthropic(base_url=vendor.url, api_key="the-callers", http_client=http) as client:
            if stream:
                async with client.messages.stream(**told(text), max_tokens=9) as streamed:
                    return "".join([piece async for piece in streamed.text_stream])
            return (await client.messages.create(**told(text), max_tokens=9)).content[0].text

    def run(text: str, *, stream: bool = False) -> str:
        match request.param:
            case "openai, async":
                return asyncio.run(by_async_openai(text, stream=stream))
            case "anthropic, async":
                return asyncio.run(by_async_anthropic(text, stream=stream))
            case "anthropic":
                return by_anthropic(text, stream=stream)
            case _:
                return by_openai(text, stream=stream)

    return run


def kept(store: Store) -> dict[str, Any]:
    [record] = store.list()
    assert record.body is not None
    return record.body


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_rewritten_both_ways_and_leaves_one_record(
    ask: Ask, vendor: Vendor, store: Store, stream: bool
) -> None:
    vendor.text = f"it is 123456, you know. {LONG}"
    assert ask("is it 4321?", stream=stream) == f"it is [NUMBER], you know. {LONG}"
    assert vendor.bodies[0]["messages"] == [{"role": "user", "content": "is it [NUMBER]?"}]
    assert vendor.headers[0]["authorization"] == "Bearer the-callers"
    assert store.count("rewrite") == store.count() == 1


@pytest.mark.parametrize("stream", [False, True])
def test_blocked_prompt_is_sent_nowhere_and_not_tried_again(
    ask: Ask, vendor: Vendor, store: Store, stream: bool
) -> None:
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError), match="No bombs here"):
        ask("a bomb, please", stream=stream)
    assert vendor.bodies == []
    assert store.count("block") == store.count() == 1


def test_text_after_a_block_never_leaves(ask: Ask, vendor: Vendor, store: Store) -> None:
    vendor.text = f"{LONG} a leak {LONG}"
    assert ask("go on") == "That stays here."
    streamed = ask("go on", stream=True)
    before, _, message = streamed.rpartition("\n\n")
    assert LONG.startswith(before)
    assert before
    assert message == "That stays here."
    assert store.count("block") == store.count() == 2


def test_empty_text_leaves_empty(vendor: Vendor, guard: Guard) -> None:
    vendor.text = ""
    with openai_client(vendor, guard) as client:
        assert client.chat.completions.create(**told("go on")).choices[0].message.content == ""
    with anthropic_client(vendor, guard) as client:
        whole = client.messages.create(**told("go on"), max_tokens=9)
        with client.messages.stream(**told("go on"), max_tokens=9) as stream:
            streamed = stream.get_final_message()
    assert [[block.text for block in message.content] for message in (whole, streamed)] == [[""], [""]]


def test_thinking_that_is_left_out_keeps_its_signature(vendor: Vendor, guard: Guard) -> None:
    thinking = {"type": "thinking", "thinking": "", "signature": "QUJD"}
    answer = json.loads(bytes(messages_says("fine", stream=False, cut=False).body))
    vendor.answer = JSONResponse({**answer, "content": [thinking, *answer["content"]]})
    with anthropic_client(vendor, guard) as client:
        content = client.messages.create(**told("go on"), max_tokens=9).content
    assert content[0].to_dict() == thinking
    assert content[1].text == "fine"


def test_blocked_reply_has_the_apis_own_shape(vendor: Vendor, guard: Guard) -> None:
    vendor.text = "a leak"
    with openai_client(vendor, guard) as client:
        choice = client.chat.completions.create(**told("go on")).choices[0]
        assert (choice.finish_reason, choice.message.refusal) == ("content_filter", "That stays here.")
    with anthropic_client(vendor, guard) as client:
        whole = client.messages.create(**told("go on"), max_tokens=9)
        with client.messages.stream(**told("go on"), max_tokens=9) as stream:
            streamed = stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "refusal"
        assert message.stop_details.explanation == "That stays here."


def test_exchange_is_found_by_the_headers_of_its_answer(vendor: Vendor, guard: Guard, store: Store) -> None:
    with openai_client(vendor, guard) as client:
        raw = client.chat.completions.with_raw_response.create(**told("is it 123456?"))
    assert raw.headers["x-ringfence-exchange"] == kept(store)["id"]
    assert raw.headers["x-ringfence-action"] == "rewrite"
    assert raw.headers["x-ringfence-receipt"].startswith("1:")


def test_stream_that_is_left_early_is_on_record(vendor: Vendor, guard: Guard, store: Store) -> None:
    vendor.text = LONG * 50
    with openai_client(vendor, guard) as client:
        stream = client.chat.completions.create(**told("go on"), stream=True)
        next(stream)
        stream.close()
    assert kept(store)["error"] == "the client went away"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.embeddings.create(model="m", input="a bomb"),
        lambda client: client.responses.create(model="m", input="a bomb"),
        lambda client: client.completions.create(model="m", prompt="a bomb"),
        lambda client: client.models.list(),
    ],
)
def test_what_is_not_judged_is_not_sent(call: Callable[[openai.OpenAI], object], vendor: Vendor, guard: Guard) -> None:
    with openai_client(vendor, guard) as client, pytest.raises(openai.NotFoundError, match="was not sent"):
        call(client)
    with anthropic_client(vendor, guard) as other, pytest.raises(anthropic.NotFoundError, match="was not sent"):
        other.messages.count_tokens(**told("a bomb"))
    assert vendor.bodies == []


def test_what_is_let_through_unjudged_is_on_record_as_that(vendor: Vendor, guard: Guard, store: Store) -> None:
    with openai_client(vendor, guard, unjudged=("/embeddings",)) as client:
        assert client.embeddings.create(model="m", input="x", encoding_format="float").data[0].embedding == [1.0]
    assert vendor.bodies[0]["input"] == "x"
    assert [part["status"] for part in kept(store)["coverage"]] == ["unjudged"]


@pytest.mark.parametrize("unjudged", ["/embeddings", [""], ["/"], ["embeddings"]])
def test_unjudged_that_would_let_anything_through_is_refused(guard: Guard, unjudged: Any) -> None:
    with pytest.raises(ValueError, match="begin with '/'"):
        GuardedTransport(guard, unjudged=unjudged)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (JSONResponse({"error": {"message": "slow down", "type": "rate_limit_error"}}, 429), openai.RateLimitError),
        (JSONResponse({"error": {"message": "no key"}}, 401), openai.AuthenticationError),
        (PlainTextResponse("<html>oops</html>", 500), openai.InternalServerError),
        (PlainTextResponse("<html>oops</html>", 200), openai.InternalServerError),
        (JSONResponse({"error": {"message": "a leak"}}, 400), openai.BadRequestError),
    ],
)
def test_error_of_the_api_is_an_error_of_the_sdk(
    vendor: Vendor, guard: Guard, store: Store, answer: Response, error: type[Exception], stream: bool
) -> None:
    vendor.answer = answer
    with openai_client(vendor, guard) as client, pytest.raises(error) as raised:
        client.with_options(max_retries=0).chat.completions.create(**told("go on"), stream=stream)
    assert "leak" not in str(raised.value)
    assert kept(store)["error"].startswith("UpstreamError")


@pytest.mark.parametrize("kind", ["rate_limit_error", "conflict_error"])
def test_anthropics_errors_keep_their_kind_and_say_when_to_try_again(vendor: Vendor, guard: Guard, kind: str) -> None:
    again = {"retry-after": "7", "anthropic-ratelimit-tokens-reset": "2026-10-21T07:28:00Z"}
    vendor.answer = JSONResponse({"type": "error", "error": {"type": kind, "message": "slow down"}}, 429, headers=again)
    with anthropic_client(vendor, guard) as client, pytest.raises(anthropic.RateLimitError) as raised:
        client.with_options(max_retries=0).messages.create(**told("go on"), max_tokens=9)
    assert raised.value.body["error"]["type"] == kind
    assert again.items() <= raised.value.response.headers.items()


def test_half_a_stream_is_an_error_and_no_answer(vendor: Vendor, guard: Guard, store: Store) -> None:
    vendor.text, vendor.cut = LONG, True
    with openai_client(vendor, guard) as client, pytest.raises(openai.APIError, match="in the middle"):
        list(client.chat.completions.create(**told("go on"), stream=True))
    with anthropic_client(vendor, guard) as client, pytest.raises(anthropic.APIError, match="in the middle"):  # noqa: SIM117
        with client.messages.stream(**told("go on"), max_tokens=9) as stream:
            stream.get_final_message()
    assert store.count() == 2


def test_server_that_is_not_there_is_an_error_of_the_sdk(guard: Guard) -> None:
    nowhere = Vendor(url="http://127.0.0.1:1")
    with openai_client(nowhere, guard) as client, pytest.raises(openai.InternalServerError, match="not be reached"):
        client.with_options(max_retries=0).chat.completions.create(**told("go on"))


def test_no_record_no_answer(vendor: Vendor, guard: Guard, store: Store) -> None:
    store.close()
    with openai_client(vendor, guard) as client, pytest.raises(openai.InternalServerError, match="could not be kept"):
        client.with_options(max_retries=0).chat.completions.create(**told("go on"))


def test_body_that_nobody_can_read_is_refused_and_on_record(vendor: Vendor, guard: Guard, store: Store) -> None:
    with openai_client(vendor, guard) as client, pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="m-1", messages=[])
    assert vendor.bodies == []
    assert kept(store)["error"].startswith("BadRequest")


def test_a_wrong_policy_is_refused_where_the_client_is_made(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("rulez: []\n")
    with pytest.raises(PolicyError, match="rulez"):
        GuardedTransport(tmp_path / "policy.yaml")


def test_many_threads_may_share_one_client(vendor: Vendor, guard: Guard, store: Store) -> None:
    async def several(client: openai.OpenAI) -> list[object]:
        def one() -> object:
            return client.chat.completions.create(**told("go on")).choices[0].message.content

        return await asyncio.gather(*(asyncio.to_thread(one) for _ in range(8)))

    with openai_client(vendor, guard) as client:
        assert asyncio.run(several(client)) == ["fine"] * 8
    assert store.count() == 8


def test_client_that_nobody_closes_does_not_keep_the_program_alive(vendor: Vendor, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nname: small\naudit: { path: small.db }\n"
        "checks: [{ kind: keywords, category: bomb, words: [bomb] }]\n"
        "rules: [{ id: no-bombs, category: bomb, action: block }]\n"
    )
    program = (
        "import httpx2, openai; from ringfence import GuardedTransport\n"
        "http = httpx2.Client(transport=GuardedTransport('policy.yaml'))\n"
        f"client = openai.OpenAI(base_url='{vendor.url}/v1', api_key='x', http_client=http)\n"
        "ask = {'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}]}\n"
        "print(client.chat.completions.create(**ask).choices[0].message.content)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
