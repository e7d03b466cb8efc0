"""LiteLLM's generic guardrail: what its proxy asks and is told; and its proxy itself, where it is installed.

LiteLLM has so many requirements that it lives in an environment of its own: `make litellm`.
"""

import json
import os
import secrets
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from runpy import run_path
from threading import Event
from time import monotonic
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from ringfence.guard.audit.store import Store
from ringfence.guard.exchange import Exchange
from ringfence.guard.guard import Guard
from ringfence.policies.types import Action, Policy, Rule
from ringfence.proxy import reply
from ringfence.proxy.app import create_app
from ringfence.proxy.service import Service, build
from ringfence.proxy.settings import Settings
from ringfence.proxy.upstreams.fake import FakeUpstream

PATH = "/beta/litellm_basic_guardrail_api"
LITELLM = Path(os.environ.get("RINGFENCE_LITELLM", Path(__file__).parents[1] / ".venv/litellm/bin/litellm"))
LONG = "There is a lot to say about it and little of it is new. " * 6

running = run_path(str(Path(__file__).with_name("conftest.py")))["running"]


@pytest.fixture
def service(service_of: Callable[..., Service], guard: Guard) -> Service:
    return service_of(guard)


@pytest.fixture
def told(serve: Callable[..., str], service: Service, store: Store) -> Callable[..., SimpleNamespace]:
    """Ask the guardrail; return status, answer, headers and the record."""
    url = serve(create_app(service))

    def ask(input_type: str = "request", **fields: object) -> SimpleNamespace:
        answered = httpx.post(url + PATH, json={"input_type": input_type, "request_data": {}, **fields}, timeout=30)
        [kept] = store.list(limit=1)
        return SimpleNamespace(
            status=answered.status_code, body=answered.json(), headers=answered.headers, kept=kept.body
        )

    return ask


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


@pytest.mark.parametrize("end", ["request", "response"])
def test_what_may_pass_passes_and_is_on_record(told, store, end):
    answer = told(end, texts=["a flower", ""])
    assert answer.body.pop("stream_holdback_chars", None) == ([8, 0] if end == "response" else None)
    assert answer.body == {"action": "NONE"}
    assert store.count() == 1
    assert answer.kept["dialect"] == "litellm.guardrail"
    assert answer.kept["id"] == answer.headers["x-ringfence-exchange"]
    assert [decision["stage"] for decision in answer.kept["decisions"]] == ["input" if end == "request" else "output"]


@pytest.mark.parametrize("end", ["request", "response"])
def test_what_is_blocked_comes_back_with_the_policys_message(told, end):
    answer = told(end, texts=["a flower", "a bomb", "a knife"])
    assert (answer.body["action"], answer.body["blocked_reason"]) == ("BLOCKED", "No bombs here.")
    assert "texts" not in answer.body
    assert answer.headers["x-ringfence-rules"].startswith("no-bombs")
    assert answer.kept["action"] == "block"


def test_rules_of_a_stage_hold_at_their_end_of_the_exchange(told):
    assert told("request", texts=["a leak"]).body["action"] == "NONE"
    assert told("response", texts=["a leak"]).body["blocked_reason"] == "That stays here."


def test_a_rewritten_request_comes_back_as_its_texts_whatever_messages_they_stand_in(told):
    texts = ["Be brief 1234.", "pin ", "123456", "pin 123456", "left 5678 over"]
    messages = [
        {"role": "system", "content": texts[0]},
        {"role": "user", "content": [{"type": "text", "text": texts[1]}, {"type": "text", "text": texts[2]}]},
        {"role": "user", "content": texts[3]},
    ]
    answer = told(texts=texts, structured_messages=messages)
    assert answer.body == {
        "action": "GUARDRAIL_INTERVENED",
        "texts": ["Be brief [NUMBER].", "pin ", "[NUMBER]", "pin [NUMBER]", "left [NUMBER] over"],
    }
    assert [part["role"] for part in answer.kept["request"]] == ["system", "user", "user", "user"]


def test_a_rewritten_reply_comes_back_as_its_texts_and_says_what_to_hold_back_in_a_stream(told):
    texts = [f"{LONG} and 1234", "no number"]
    answer = told("response", texts=texts)
    assert answer.body["action"] == "GUARDRAIL_INTERVENED"
    assert answer.body["texts"] == [f"{LONG} and [NUMBER]", "no number"]
    held = answer.body["stream_holdback_chars"]
    assert [held[0] < 400, held[1]] == [True, len("no number")]
    more = told("response", texts=[f"{texts[0]}5678 go on{LONG}", "no number"]).body["texts"][0]
    assert more.startswith(answer.body["texts"][0][: -held[0]]), "what was let out in a stream is changed by what comes"


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_messages": [{"role": "user", "name": "pin 1234", "content": "hello"}]},
        {"structured_messages": [{"role": "user", "content": "split 12"}, {"role": "user", "content": "1234 twice"}]},
        {"structured_messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("x12", "34")]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "as 1234"}}]},
        {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"pin": "1234"}'}}]},
    ],
)
def test_what_cannot_be_handed_back_rewritten_is_blocked(told, fields):
    texts = ["hello", "split 12", "x12", "34"]
    assert told(texts=texts, **fields).body["action"] == "BLOCKED"


def test_a_rewriting_that_a_tool_call_of_a_reply_would_need_blocks_it(told):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"pin": "1234"}'}}
    assert told("response", texts=[], tool_calls=[call]).body["action"] == "BLOCKED"
    call["function"]["arguments"] = "{}"
    assert told("response", texts=[], tool_calls=[call]).body["action"] == "NONE"


def test_rules_by_role_go_by_the_messages(serve, service_of, checks, store):
    rules = (Rule("users", "bomb", Action.BLOCK, roles=("user",)),)
    url = serve(create_app(service_of(Guard(Policy("roles", rules), checks=checks, store=store))))
    for role, action in (("user", "BLOCKED"), ("system", "NONE")):
        body = {"input_type": "request", "texts": ["a bomb"]}
        answer = httpx.post(url + PATH, json={**body, "structured_messages": [{"role": role, "content": "a bomb"}]})
        assert answer.json()["action"] == action


@pytest.mark.parametrize("end", ["request", "response"])
def test_what_nobody_can_read_is_settled_by_the_policy_and_never_judged(serve, service_of, checks, store, end):
    read = Rule("no-bombs", "bomb", Action.BLOCK)
    media = Rule("media", "unjudged.media", Action.BLOCK, message="No images.")
    for rules, action in (((read, media), "BLOCKED"), ((read,), "NONE")):
        url = serve(create_app(service_of(Guard(Policy("media", rules), checks=checks, store=store))))
        body = {"input_type": end, "texts": ["look"], "images": ["data:image/png;base64,AAAA"]}
        answer = httpx.post(url + PATH, json=body)
        assert answer.json()["action"] == action
        assert answer.headers["x-ringfence-coverage"] == "judged=1 exempt=0 unjudged=1"
        answer = httpx.post(
            url + PATH, json={"input_type": end, "texts": ["look"], "later": "words of a later version"}
        )
        assert answer.headers["x-ringfence-coverage"] == "judged=1 exempt=0 unjudged=1"


def test_messages_beside_a_reply_are_fields_that_nobody_reads_and_never_the_reply(told):
    answer = told("response", texts=["a flower"], structured_messages=said("look at a bomb", "look at 1234"))
    assert answer.body["action"] == "NONE"
    assert answer.headers["x-ringfence-coverage"] == "judged=1 exempt=0 unjudged=1"


def test_a_check_that_fails_blocks(serve, service_of, broken_check, store):
    policy = Policy("broken", (Rule("broken", "broken", Action.LOG),), message="Not now.")
    url = serve(create_app(service_of(Guard(policy, checks={"broken": broken_check}, store=store))))
    for end in ("request", "response"):
        answer = httpx.post(url + PATH, json={"input_type": end, "texts": ["anything"]})
        assert (answer.json()["action"], answer.json()["blocked_reason"]) == ("BLOCKED", "Not now.")
        assert answer.headers["x-ringfence-rules"] == "failed:broken"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_type": "both", "texts": ["a"]}, "input_type"),
        ({"input_type": None, "texts": ["a"]}, "input_type"),
        ({"texts": "a bomb"}, "texts"),
        ({"texts": ["a", 7]}, "texts[1]"),
        ({"structured_messages": [{"content": "no role"}]}, "structured_messages[0].role"),
        ({"texts": ["a"], "request_data": 7}, "request_data"),
        ({"texts": []}, None),
        ({}, None),
    ],
)
def test_a_bad_body_is_an_error_and_never_none(told, fields, param):
    answer = told(**fields)
    assert answer.status == 400
    assert answer.body["error"]["param"] == param
    assert "action" not in answer.body
    assert answer.kept["error"].startswith("BadRequest: ")


def test_it_takes_a_key_as_litellm_sends_it_and_overlays_go_by_whose_that_is(serve, tmp_path, checks):
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nname: keyed\nrules: [{ id: knives, category: knife, action: log }]\n"
        "overlays: [{ id: north, scope: { tenant: [clinic-*], route: [litellm.guardrail] },"
        " override: { knives: { action: block } } }]\n"
    )
    (tmp_path / "keys.yaml").write_text(
        "".join(f"- {{ id: {who}, tenant: {who}, sha256: {sha256(who.encode()).hexdigest()} }}\n" for who in WHO)
    )
    files = {"policy": tmp_path / "policy.yaml", "keys": tmp_path / "keys.yaml", "audit_path": tmp_path / "audit.db"}
    url = serve(create_app(build(Settings(**files), upstream=FakeUpstream(), checks=checks)))

    def ask(**headers: str) -> httpx.Response:
        return httpx.post(url + PATH, json={"input_type": "request", "texts": ["a knife"]}, headers=headers)

    assert ask().status_code == ask(**{"x-api-key": "wrong"}).status_code == 401
    assert ask(**{"x-api-key": "clinic-north"}).json()["action"] == "BLOCKED"
    assert ask(authorization="Bearer clinic-north").json()["action"] == "BLOCKED"
    assert ask(**{"x-api-key": "shop"}).json()["action"] == "NONE"


WHO = ("clinic-north", "shop")

POLICY = """\
version: 1
name: behind-litellm
checks:
  - { kind: keywords, category: bomb, words: [bomb] }
  - { kind: keywords, category: spill, words: [leak] }
  - { kind: keywords, category: poem, words: [poem] }
rules:
  - { id: no-bombs, category: bomb, action: block, message: No bombs here. }
  - { id: no-leaks, category: spill, stages: [output], action: block, message: That stays here. }
  - { id: no-poems, category: poem, roles: [user], action: block, message: No poems. }
  - { id: mail, category: pii.email, action: rewrite }
  - { id: media, category: unjudged.media, action: block, message: No images. }
"""


class Model(FakeUpstream):
    """Says `@` where it is told to say `-at-`, which no check finds in the request; in pieces of seven letters."""

    async def stream(self, exchange: Exchange, headers: Mapping[str, str]) -> AsyncGenerator[reply.Event, None]:
        waiting = ""
        async for event in super().stream(exchange, headers):
            if isinstance(event, reply.Text):
                waiting = (waiting + event.text).replace("-at-", "@")
                while len(waiting) > 10:
                    yield replace(event, text=waiting[:7])
                    waiting = waiting[7:]
            else:
                if waiting:
                    yield reply.Text(0, "content", waiting)
                waiting = ""
                yield event


@dataclass
class Gateway:
    """LiteLLM's proxy, with ringfence as its guardrail and a model behind it that says what it is told to."""

    client: openai.OpenAI
    model: FakeUpstream
    store: Store

    def ask(self, text: str, guardrail: str = "ringfence", **fields: Any) -> Any:
        messages = fields.pop("messages", said(text))
        return self.client.chat.completions.create(
            model="fake", messages=messages, extra_body={"guardrails": [guardrail]}, **fields
        )


@contextmanager
def litellm(config: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """Start LiteLLM's proxy; yield its address and its master key."""
    (folder / "litellm.yaml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key, url = f"sk-{secrets.token_hex(24)}", f"http://127.0.0.1:{port}"
    quiet = dict.fromkeys(("LITELLM_LOCAL_MODEL_COST_MAP", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS"), "True")
    with (folder / "litellm.log").open("w") as log:
        process = subprocess.Popen(
            [LITELLM, "--config", folder / "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | quiet | {"LITELLM_MASTER_KEY": key, "LITELLM_TELEMETRY": "False"},
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        deadline, tick = monotonic() + 180, Event()
        while True:
            assert process.poll() is None, (folder / "litellm.log").read_text()
            assert monotonic() < deadline, "LiteLLM's proxy did not start"
            try:
                httpx.get(f"{url}/health/liveliness", timeout=5)
                break
            except httpx.TransportError:
                tick.wait(0.2)
        yield url, key
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def gateway(built: Callable[[Path, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    built(LITELLM, "litellm")
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "guard.yaml").write_text(POLICY)
    key, model = secrets.token_hex(24), Model()
    settings = Settings(policy=folder / "guard.yaml", audit_path=folder / "guard.db", api_key=key)
    guarding = build(settings, upstream=FakeUpstream())
    (folder / "open.yaml").write_text("version: 1\nname: open\nrules: []\n")
    behind = build(Settings(policy=folder / "open.yaml", audit_path=folder / "open.db"), upstream=model)
    with running(create_app(guarding)) as guard, running(create_app(behind)) as upstream:
        generic = {"guardrail": "generic_guardrail_api", "mode": ["pre_call", "post_call"], "api_base": guard}
        streaming = {"streaming_transform_mode": "incremental_diff", "streaming_sampling_rate": 1}
        detectors = {"guardrail": "ibm_guardrails", "mode": "pre_call", "base_url": guard, "auth_token": key}
        guardrails = {
            "ringfence": {**generic, "api_key": key, **streaming},
            "locked-out": {**generic, "api_key": "wrong"},
            "detectors": {**detectors, "detector_id": "ringfence", "is_detector_server": True},
        }
        config = {
            "model_list": [
                {
                    "model_name": "fake",
                    "litellm_params": {"model": "openai/fake", "api_base": f"{upstream}/v1", "api_key": "none"},
                }
            ],
            "guardrails": [{"guardrail_name": n, "litellm_params": params} for n, params in guardrails.items()],
            "litellm_settings": {"num_retries": 0},
        }
        with litellm(config, folder) as (url, master):
            yield Gateway(openai.OpenAI(base_url=f"{url}/v1", api_key=master, max_retries=0), model, guarding.store)


def test_litellm_passes_what_may_pass_and_both_ends_are_on_record(gateway):
    before = gateway.store.count()
    assert gateway.ask("say: hello there").choices[0].message.content == "hello there"
    kept = [one.body for one in gateway.store.list(limit=2)]
    assert gateway.store.count() == before + 2
    assert [[decision["stage"] for decision in one["decisions"]] for one in kept] == [["output"], ["input"]]


def test_litellm_blocks_a_prompt_and_the_model_never_sees_it(gateway):
    seen = len(gateway.model.seen)
    with pytest.raises(openai.APIStatusError, match="No bombs here") as caught:
        gateway.ask("how to build a bomb")
    assert caught.value.status_code == 400
    assert len(gateway.model.seen) == seen


def test_litellm_blocks_a_reply(gateway):
    with pytest.raises(openai.APIStatusError, match="That stays here"):
        gateway.ask("say: this is a leak")


def test_litellm_sends_on_and_hands_back_what_was_rewritten(gateway):
    answer = gateway.ask("say: write to jane@example.com now")
    assert gateway.model.seen[-1]["messages"][0]["content"] == "say: write to [PII_EMAIL] now"
    assert answer.choices[0].message.content == "write to [PII_EMAIL] now"
    parts = [{"type": "text", "text": "say: from jane@example.com"}, {"type": "text", "text": " to joe@example.com"}]
    gateway.ask("", messages=[{"role": "user", "content": parts}])
    texts = [part["text"] for part in gateway.model.seen[-1]["messages"][0]["content"]]
    assert texts == ["say: from [PII_EMAIL]", " to [PII_EMAIL]"]


def test_litellm_hands_back_a_stream_rewritten_also_where_an_address_comes_in_pieces(gateway):
    chunks = gateway.ask(f"say: {LONG} mail joe-at-example.com or call {LONG}", stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == f"{LONG} mail [PII_EMAIL] or call {LONG}".strip()
    assert len([text for text in texts if text]) > 3, "it was not streamed"


def test_litellm_ends_a_stream_that_is_blocked_and_nothing_of_it_has_left(gateway):
    left = []
    with pytest.raises(openai.APIError, match="That stays here"):
        left.extend(gateway.ask(f"say: {LONG} leak {LONG}", stream=True))
    assert LONG.startswith("".join(c.delta.content or "" for chunk in left for c in chunk.choices))


def test_litellm_tells_who_says_what(gateway):
    system = [{"role": "system", "content": "You write a poem."}]
    assert gateway.ask("", messages=[*system, *said("say: yes")]).choices[0].message.content == "yes"
    with pytest.raises(openai.APIStatusError, match="No poems"):
        gateway.ask("say: a poem")


def test_litellm_lets_no_image_through_that_nobody_can_read(gateway):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.APIStatusError, match="No images"):
        gateway.ask("", messages=[{"role": "user", "content": [{"type": "text", "text": "look"}, image]}])


def test_litellm_passes_nothing_that_it_could_not_ask_about(gateway):
    seen = len(gateway.model.seen)
    with pytest.raises(openai.APIStatusError):
        gateway.ask("say: hello", guardrail="locked-out")
    assert len(gateway.model.seen) == seen


def test_litellms_client_of_the_detector_api_reads_our_detections(gateway):
    assert gateway.ask("say: hello", guardrail="detectors").choices[0].message.content == "hello"
    with pytest.raises(openai.APIStatusError, match=r"(?i)pii"):
        gateway.ask("say: write to jane@example.com", guardrail="detectors")
