"""The proxy as its callers see it: a real server, the real client."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace

import anyio
import httpx
import openai
import pytest

from ringfence.guard.audit.store import Store
from ringfence.guard.check import Check
from ringfence.guard.exchange import Exchange
from ringfence.guard.guard import Guard
from ringfence.policies.types import Action, Condition, Overlay, Override, Policy, Rule, Scope, Stage
from ringfence.proxy.answer import listed
from ringfence.proxy.app import create_app
from ringfence.proxy.reply import About, Event, UpstreamError
from ringfence.proxy.service import Service
from ringfence.proxy.settings import Settings
from ringfence.proxy.upstreams.fake import FakeUpstream

LONG = "There is a lot to say about it and little of it is new. " * 6


@dataclass
class Proxy:
    """A running proxy, and every way to look at it."""

    url: str
    upstream: FakeUpstream
    store: Store

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=2)

    def post(self, body: object, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.url + path, content=raw, headers=headers, timeout=30)

    def ask(self, text: str, **fields: object) -> httpx.Response:
        return self.post({"model": "fake", "messages": [{"role": "user", "content": text}], **fields})

    @property
    def last(self) -> dict[str, object]:
        [kept] = self.store.list(limit=1)
        assert kept.body is not None
        return kept.body


@pytest.fixture
def proxy(serve: Callable[..., str], service_of: Callable[..., Service], guard: Guard, store: Store) -> Proxy:
    upstream = FakeUpstream()
    return Proxy(serve(create_app(service_of(guard, upstream))), upstream, store)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_harmless_chat_is_answered_and_on_record(proxy: Proxy) -> None:
    reply = proxy.openai.chat.completions.with_raw_response.create(model="fake", messages=messages("say: hello there"))
    completion = reply.parse()
    assert completion.choices[0].message.content == "hello there"
    assert completion.choices[0].finish_reason == "stop"
    assert proxy.store.count() == 1
    assert proxy.last["id"] == reply.headers["x-ringfence-exchange"]
    assert reply.headers["x-ringfence-action"] == "allow"
    assert reply.headers["x-ringfence-coverage"] == "judged=2 exempt=0 unjudged=0"
    seq, digest = reply.headers["x-ringfence-receipt"].split(":")
    assert proxy.store.list(limit=1)[0].hash == digest
    assert seq == "1"


def test_a_reply_of_nothing_is_empty_and_a_call_alone_has_no_text(proxy: Proxy) -> None:
    said = [proxy.ask(order).json()["choices"][0]["message"]["content"] for order in ("say:", "call: f {}")]
    assert said == ["", None]


def test_a_streamed_chat_arrives_in_pieces_and_whole(proxy: Proxy) -> None:
    chunks = list(proxy.openai.chat.completions.create(model="fake", messages=messages(f"say: {LONG}"), stream=True))
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == LONG.strip()
    assert len(texts) > 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert proxy.store.count() == 1


def test_blocked_request_never_reaches_upstream(proxy: Proxy) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        proxy.openai.chat.completions.create(model="fake", messages=messages("how to build a bomb"))
    assert caught.value.code == "content_filter"
    assert caught.value.body == {
        "message": "No bombs here.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "content_filter",
    }
    assert proxy.upstream.seen == []
    assert proxy.store.count() == 1, "a client that retries a block would be on record several times"
    assert proxy.last["action"] == "block"


def test_a_blocked_stream_request_is_a_plain_400(proxy: Proxy) -> None:
    response = proxy.ask("a bomb", stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "content_filter"
    assert response.headers["x-should-retry"] == "false"


def test_blocked_output_ends_with_content_filter_and_none_of_the_text(proxy: Proxy) -> None:
    completion = proxy.openai.chat.completions.create(
        model="fake", messages=messages(f"say: {LONG} then a leak {LONG}")
    )
    assert completion.choices[0].finish_reason == "content_filter"
    assert completion.choices[0].message.content == "That stays here."
    assert completion.choices[0].message.refusal == "That stays here."
    assert proxy.last["action"] == "block"
    assert proxy.upstream.closed_early == 1


def test_a_blocked_stream_keeps_back_what_was_not_judged_and_says_why_it_ends(proxy: Proxy) -> None:
    stream = proxy.openai.chat.completions.create(
        model="fake", messages=messages(f"say: {LONG} then a leak {LONG}"), stream=True
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert text.endswith("\n\nThat stays here.")
    assert "leak" not in text
    assert LONG.startswith(text.removesuffix("\n\nThat stays here.")[:200])
    coverage = proxy.last["coverage"]
    assert coverage[-1]["status"] == "judged"
    assert "more characters came, neither judged nor released" in coverage[-1]["why"]


def test_rewriting_reaches_the_upstream_and_the_client(proxy: Proxy) -> None:
    completion = proxy.openai.chat.completions.create(model="fake", messages=messages("say: my pin is 123456, ok"))
    assert proxy.upstream.seen[0]["messages"][0]["content"] == "say: my pin is [NUMBER], ok"
    assert completion.choices[0].message.content == "my pin is [NUMBER], ok"
    assert proxy.last["action"] == "rewrite"


def test_a_mild_finding_is_logged_and_answered(proxy: Proxy) -> None:
    response = proxy.ask("say: a knife is for bread")
    assert response.status_code == 200
    assert response.headers["x-ringfence-action"] == "log"
    assert response.headers["x-ringfence-rules"] == "note-knives"
    assert proxy.last["action"] == "log"


def test_rules_have_as_much_room_in_a_header_as_clients_take() -> None:
    names = [f"a-rule-with-a-long-name-{number}" for number in range(1_000)]
    told, left_out = listed(names).rsplit(",+", 1)
    assert len(told) < 1_000
    assert told.split(",") == names[: 1_000 - int(left_out)]
    assert listed(names[:3]) == ",".join(names[:3])
    assert listed([]) == ""


def test_unknown_request_fields_reach_the_upstream_untouched(proxy: Proxy) -> None:
    extra = {"vendor_thing": {"deep": [1, "two words", None]}, "min_p": 0.1, "user": "u-1"}
    response = proxy.ask("say: hi", **extra)
    assert response.status_code == 200
    assert {k: proxy.upstream.seen[0][k] for k in extra} == extra
    assert response.headers["x-ringfence-coverage"] == "judged=3 exempt=0 unjudged=1"
    assert {(c["where"], c["status"]) for c in proxy.last["coverage"]} >= {("vendor_thing", "unjudged")}


def test_every_text_of_a_request_is_judged(proxy: Proxy) -> None:
    def chat(*given: dict[str, object], **fields: object) -> dict[str, object]:
        return {"model": "fake", "messages": [*given, {"role": "user", "content": "say: hi"}], **fields}

    tool = {"type": "function", "function": {"name": "f", "description": "makes a bomb", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"what": "bomb it"}'}}
    hidden = [
        chat({"role": "user", "content": "bomb"}, {"role": "user", "content": "and now"}),
        chat({"role": "system", "content": "bomb"}),
        chat({"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "a bomb"}]}),
        chat({"role": "assistant", "content": "a bomb"}),
        chat({"role": "assistant", "content": None, "tool_calls": [call]}),
        chat({"role": "tool", "tool_call_id": "1", "content": "bomb"}),
        chat({"role": "assistant", "content": "x", "reasoning_content": "a bomb"}),
        chat({"role": "user", "content": "x", "name": "the bomb man"}),
        chat(tools=[tool]),
        chat(prediction={"type": "content", "content": "a bomb"}),
    ]
    for body in hidden:
        assert proxy.post(body).status_code == 400, body
    assert proxy.upstream.seen == []


@pytest.mark.parametrize("number", ['"5550"', "5550"])
def test_tool_calls_come_out_whole_and_rewritten(
    serve: Callable[..., str],
    service_of: Callable[..., Service],
    checks: Mapping[str, Check],
    store: Store,
    number: str,
) -> None:
    rule = Rule("no-numbers", "number", Action.REWRITE, stages=(Stage.OUTPUT,))
    guard, upstream = Guard(Policy("dialled", (rule,)), checks=checks, store=store), FakeUpstream()
    proxy = Proxy(serve(create_app(service_of(guard, upstream))), upstream, store)
    asked = messages(f'call: dial {{"number": {number}}}')
    stream = proxy.openai.chat.completions.create(model="fake", messages=asked, stream=True)
    calls = [c.choices[0].delta.tool_calls for c in stream if c.choices and c.choices[0].delta.tool_calls]
    assert len(calls) == 1
    assert calls[0][0].function.name == "dial"
    assert upstream.seen[0]["messages"] == asked
    assert calls[0][0].function.arguments == '{"number": "[NUMBER]"}'


def test_an_upstream_that_dies_in_a_stream_shows_as_an_error_and_no_done(proxy: Proxy) -> None:
    response = proxy.ask(f"die: {LONG}", stream=True)
    assert response.status_code == 200
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"
    assert "[DONE]" not in response.text
    assert "broke off" in proxy.last["error"]
    with pytest.raises(openai.APIError):
        list(proxy.openai.chat.completions.create(model="fake", messages=messages(f"die: {LONG}"), stream=True))


def test_an_upstream_that_dies_in_a_plain_reply_is_an_error_in_the_apis_shape(proxy: Proxy) -> None:
    response = proxy.ask(f"die: {LONG}")
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"
    assert proxy.last["error"]


def test_a_client_that_leaves_stops_the_upstream_and_is_on_record(
    proxy: Proxy, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    body = {"model": "fake", "messages": messages("say: " + LONG * 400), "stream": True}
    with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    wait_until(lambda: proxy.store.count() == 1)
    assert proxy.upstream.closed_early == 1
    assert proxy.last["error"] == "the client went away"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model": "fake"', "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": ' + b"7" * 5000 + b"}", "not JSON: 777"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\xff"}]}', "not UTF-8"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "a\\u0000b"}]}', "null character"),
        (b'{"model": "fake"}', "messages"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": "fake", "messages": []}', "messages"),
        (b'{"model": "fake", "messages": "hi"}', "messages"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": ""}]}', "no text"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": 7}]}', "messages[0].content"),
        (b'{"model": "fake", "messages": [{"content": "x"}]}', "messages[0].role"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', "temperature"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "stream"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
    ],
)
def test_bad_input_is_a_400_in_the_apis_shape_and_on_record(proxy: Proxy, raw: bytes, says: str) -> None:
    response = proxy.post(raw)
    assert response.status_code == 400
    error = response.json()["error"]
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in str(proxy.last["error"])
    assert proxy.upstream.seen == []
    assert proxy.ask("say: still there").status_code == 200


def test_a_megabyte_of_text_is_refused_by_name_of_the_limit(proxy: Proxy) -> None:
    response = proxy.ask("words and " * 100_000)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "string_above_max_length"
    assert proxy.last["coverage"][0]["status"] == "unjudged"
    assert proxy.post(b" " * 5_000_000).status_code == 413


def test_unknown_routes_and_methods_answer_in_the_apis_shape(proxy: Proxy) -> None:
    assert httpx.get(f"{proxy.url}/v1/nothing").json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{proxy.url}/v1/chat/completions").status_code == 405


def test_models_and_health(proxy: Proxy) -> None:
    assert [model.id for model in proxy.openai.models.list()] == ["fake"]
    assert httpx.get(f"{proxy.url}/health/liveness").json() == {"status": "ok"}
    ready = httpx.get(f"{proxy.url}/health/readiness")
    assert ready.status_code == 200
    checks = ready.json().pop("checks")
    assert ready.json() == {"status": "ok", "policy": "test-revision", "problems": {}, "checks": checks}
    assert set(checks.values()) == {"unasked"}


def test_another_sites_page_cannot_reach_the_audit_log(proxy: Proxy) -> None:
    assert httpx.get(f"{proxy.url}/audit", headers={"host": "evil.example"}).status_code == 400


def test_a_failing_check_blocks_and_says_so(
    serve: Callable[..., str], service_of: Callable[..., Service], policy: Policy, broken_check: Check, store: Store
) -> None:
    strict = replace(policy, rules=(Rule("needs-it", "broken", Action.LOG, message="Not you."),))
    guard = Guard(strict, checks={"broken": broken_check}, store=store)
    proxy = Proxy(serve(create_app(service_of(guard))), FakeUpstream(), store)
    blocked = proxy.ask("say: hi")
    assert (blocked.status_code, blocked.headers["x-ringfence-rules"]) == (400, "failed:broken")
    assert blocked.json()["error"]["message"] == policy.message, "no rule fired, so none has its say"
    assert proxy.last["rules"] == ["failed:broken"]
    assert proxy.last["decisions"][0]["unanswered"] == {"needs-it": "block"}
    assert "needs-it asks to block" in httpx.get(f"{proxy.url}/audit/1").text
    assert "failed with RuntimeError" in str(proxy.last["decisions"])
    assert "no such luck" not in str(proxy.last), "a failing check's words may quote the text"
    assert proxy.last["coverage"][0]["status"] == "unjudged"
    lenient = replace(policy, rules=(Rule("needs-it", "broken", Action.BLOCK, on_error=Action.LOG),))
    guard = Guard(lenient, checks={"broken": broken_check}, store=store)
    proxy = Proxy(serve(create_app(service_of(guard))), FakeUpstream(), store)
    response = proxy.ask("say: hi")
    assert response.status_code == 200
    assert response.headers["x-ringfence-coverage"] == "judged=0 exempt=0 unjudged=2"


def test_a_record_that_cannot_be_kept_is_an_error_and_the_next_one_keeps_both(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = proxy.store.path.rename(proxy.store.path.with_suffix(".away"))
    response = proxy.ask("say: hello")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "audit_unavailable"
    assert "hello" not in response.text
    assert "cannot be put on record" in caplog.text
    assert httpx.get(f"{proxy.url}/health/readiness").status_code == 503
    hidden.rename(proxy.store.path)
    assert proxy.ask("say: again").status_code == 200
    assert proxy.store.count() == 2


def test_with_a_key_only_its_holder_gets_in(
    serve: Callable[..., str], service_of: Callable[..., Service], guard: Guard, store: Store
) -> None:
    service = service_of(guard, settings=Settings(api_key="open sesame"))
    proxy = Proxy(serve(create_app(service)), FakeUpstream(), store)
    assert proxy.ask("say: hi").status_code == 401
    assert httpx.get(f"{proxy.url}/audit").status_code == 401
    assert httpx.get(f"{proxy.url}/audit", auth=("anyone", "open sesame")).status_code == 200
    assert proxy.openai.with_options(api_key="open sesame").models.list().data
    assert httpx.get(f"{proxy.url}/health/liveness").status_code == 200


def test_an_empty_key_is_a_mistake_and_not_an_open_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGFENCE_API_KEY", "")
    with pytest.raises(ValueError, match="api_key"):
        Settings(host="0.0.0.0")


def test_another_sites_page_cannot_spend_the_operators_key(proxy: Proxy) -> None:
    body = {"model": "fake", "messages": messages("say: hi")}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        refused = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers)
        assert refused.status_code == 403
    assert proxy.upstream.seen == []
    assert httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers={"origin": proxy.url}).status_code == 200


def test_every_answer_names_its_record(proxy: Proxy) -> None:
    long = "words and " * 100_000
    for response in (
        proxy.ask("say: hi"),
        proxy.ask("a bomb"),
        proxy.ask("die: x"),
        proxy.ask(long),
        proxy.post(b"{"),
        proxy.post({}),
        proxy.post({"input": "a bomb"}, "/v1/moderations"),
        proxy.post({"input": long}, "/v1/moderations"),
    ):
        seq, digest = response.headers["x-ringfence-receipt"].split(":")
        kept = proxy.store.get(response.headers["x-ringfence-exchange"])
        assert kept is not None
        assert (kept.seq, kept.hash) == (int(seq), digest)


def test_an_answer_that_is_no_exchange_has_no_exchanges_headers(proxy: Proxy) -> None:
    answers = [httpx.get(proxy.url + path) for path in ("/health/liveness", "/v1/models", "/audit", "/v1/nothing")]
    answers.append(httpx.get(f"{proxy.url}/v1/models", headers={"host": "evil.example"}))
    answers.append(proxy.post({}, origin="https://evil.example"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 400, 403]
    assert not [name for answer in answers for name in answer.headers if name.startswith("x-ringfence")]
    assert proxy.store.count() == 0


def test_an_upstream_that_fails_at_once_keeps_its_status_in_a_stream(proxy: Proxy) -> None:
    assert proxy.ask("fail: 503", stream=True).status_code == 503


def test_a_client_that_leaves_before_the_first_word_is_noticed(
    serve: Callable[..., str],
    service_of: Callable[..., Service],
    guard: Guard,
    store: Store,
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    class Silent(FakeUpstream):
        async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
            yield About({})
            await anyio.sleep_forever()

    url = serve(create_app(service_of(guard, Silent())))
    for stream in (False, True):
        body = {"model": "fake", "messages": messages("hi"), "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.5)
    wait_until(lambda: store.count() == 2)
    assert {kept.body["error"] for kept in store.list() if kept.body} == {"the client went away"}


def test_bad_lone_surrogate_keys_and_query_strings_are_bad_requests(proxy: Proxy) -> None:
    assert proxy.post(b'{"\\ud800": 1}').status_code == 400
    assert proxy.post(b'{"a": 1e999}').status_code == 400
    assert httpx.get(f"{proxy.url}/audit?limit=abc").json()["error"]["param"] == "limit"


def test_a_policy_without_rules_never_says_judged(
    serve: Callable[..., str], service_of: Callable[..., Service], checks: dict[str, Check], store: Store
) -> None:
    guard = Guard(Policy(name="nothing", rules=()), checks=checks, store=store)
    proxy = Proxy(serve(create_app(service_of(guard))), FakeUpstream(), store)
    assert proxy.ask("say: hi").headers["x-ringfence-coverage"] == "judged=0 exempt=0 unjudged=2"


def test_moderations_and_an_upstreams_error_go_by_the_overlays_of_the_exchange(
    serve: Callable[..., str], service_of: Callable[..., Service], checks: dict[str, Check], store: Store
) -> None:
    strict = Overlay("strict", Scope(model=("careful",)), override={"note-knives": Override(action=Action.BLOCK)})
    rules = (Rule("note-knives", "knife", Action.LOG),)
    guard = Guard(Policy("layered", rules, overlays=(strict,)), checks=checks, store=store)

    class Telling(FakeUpstream):
        async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[Event, None]:
            raise UpstreamError("it refused", status=400, code="upstream_error", told="no knife here")
            yield

    proxy = Proxy(serve(create_app(service_of(guard, Telling()))), FakeUpstream(), store)
    for model, flagged in (("careful", True), ("other", False)):
        answer = proxy.openai.moderations.create(model=model, input=["a knife", "a flower"])
        assert [one.flagged for one in answer.results] == [flagged, False]
        refused = proxy.post({"model": model, "messages": messages("hi")}).json()["error"]["message"]
        assert ("no knife here" in refused) is not flagged


def test_a_rule_filed_under_a_moderation_category_gives_it_its_score_where_its_condition_holds(
    serve: Callable[..., str], service_of: Callable[..., Service], checks: dict[str, Check], store: Store
) -> None:
    tags = ("OpenAI-Moderation:hate/threatening", "OpenAI-Moderation:harassment/threatening")
    rule = Rule("both", "knife", Action.LOG, when=Condition(category="bomb"), tags=tags)

    def told(policy: Policy) -> list[tuple[float, float]]:
        guard = Guard(policy, checks=checks, store=store)
        proxy = Proxy(serve(create_app(service_of(guard))), FakeUpstream(), store)
        results = proxy.openai.moderations.create(input=["a knife", "a knife and a bomb", "a bomb"]).results
        scores = [one.category_scores for one in results]
        return [(one.hate_threatening, one.harassment_threatening) for one in scores]

    assert told(Policy("filed", (rule,))) == [(0, 0), (1, 1), (0, 0)]
    assert told(Policy("not filed", (replace(rule, tags=()),))) == [(0, 0)] * 3
    later = Overlay("later", Scope(model=("careful",)), rules=(rule,))
    assert told(Policy("filed for others", (), overlays=(later,))) == [(0, 0)] * 3


def test_moderations_answer_in_the_clients_own_types(proxy: Proxy) -> None:
    result = proxy.openai.moderations.create(model="ringfence", input=["a bomb", "a flower"])
    assert [r.flagged for r in result.results] == [True, False]
    assert proxy.store.count() == 1
    parts = proxy.openai.moderations.create(input=[{"type": "text", "text": "a flower"}])
    assert not parts.results[0].flagged
    assert proxy.post({"input": 7}, "/v1/moderations").status_code == 400
    assert proxy.post({"input": ""}, "/v1/moderations").status_code == 400
