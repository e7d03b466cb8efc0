"""Keys that a file lists: who calls by them, what the policy makes of that, and what they do not open."""

from hashlib import sha256
from pathlib import Path

import httpx
import openai
import pytest

from ringfence.guard.audit.store import Store
from ringfence.policies.document import PolicyError
from ringfence.proxy.app import create_app
from ringfence.proxy.keys import read_keys
from ringfence.proxy.service import UnsafeBinding, build
from ringfence.proxy.settings import Settings
from ringfence.proxy.upstreams.fake import FakeUpstream

POLICY = """\
version: 1
name: keyed
rules:
  - { id: number, category: number, action: log }
  - { id: pause, category: count.many, stages: [input], action: block }
overlays:
  - { id: north, scope: { tenant: [clinic-*] }, override: { number: { action: block } } }
counters:
  - { id: many, rules: [number], at_least: 2, within: 10m, hold: 5m, per: key }
"""


def digest(key):
    return sha256(key.encode()).hexdigest()


KEYS = f"""\
- {{ id: nurse-app, tenant: clinic-north, sha256: {digest("nurse's")} }}
- {{ id: one, sha256: {digest("one's")} }}
- {{ id: other, sha256: {digest("other's")} }}
"""


@pytest.fixture
def settings(tmp_path: Path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "keys.yaml").write_text(KEYS)

    def made(**more):
        files = {
            "policy": tmp_path / "policy.yaml",
            "keys": tmp_path / "keys.yaml",
            "audit_path": tmp_path / "audit.db",
        }
        return Settings(**files | more)

    return made


@pytest.fixture
def ask(serve, settings, checks):
    service = build(settings(api_key="operator's"), upstream=FakeUpstream(), checks=checks)
    url = serve(create_app(service))

    def said(key, text):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        try:
            return client.chat.completions.create(model="fake", messages=[{"role": "user", "content": text}])
        except openai.APIStatusError as error:
            return error.code

    said.url = url
    return said


def test_a_tenants_overlay_and_the_record_go_by_the_key(ask, settings):
    assert ask("nurse's", "say: 12345") == "content_filter"
    assert ask("one's", "say: hi").choices
    store = Store.open(settings().audit_path, read_only=True)
    assert [kept.body["subject"] for kept in store.list()] == [
        {"tenant": "default", "key": "one"},
        {"tenant": "clinic-north", "key": "nurse-app"},
    ]
    text = (settings().audit_path).read_bytes()
    assert b"nurse's" not in text
    assert digest("nurse's").encode() not in text


def test_one_keys_counter_stops_no_other(ask):
    for _ in range(2):
        assert ask("one's", "say: 12345").choices
    assert ask("one's", "say: hi") == "content_filter"
    assert ask("other's", "say: hi").choices
    assert ask("operator's", "say: hi").choices


COUNTED = """\
version: 1
name: counted
rules:
  - { id: number, category: number, action: log }
  - { id: pause, category: count.many, stages: [input], action: block }
counters:
  - { id: many, rules: [number], at_least: 2, within: 10m, hold: 5m, per: conversation }
"""


def test_a_conversation_that_was_counted_full_stops_no_other_and_none_that_has_no_name(serve, settings, checks):
    settings().policy.write_text(COUNTED)
    service = build(settings(api_key="operator's"), upstream=FakeUpstream(), checks=checks)
    url = serve(create_app(service))

    def status(text, key="one's", header="", metadata=None):
        body = {"model": "fake", "messages": [{"role": "user", "content": text}]}
        body |= {"metadata": {"conversation_id": metadata, "other": "words"}} if metadata else {}
        headers = {"authorization": f"Bearer {key}"} | ({"x-ringfence-conversation": header} if header else {})
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).status_code

    for _ in range(3):
        assert status("say: 12345") == 200
    assert [status("say: 12345", header="a"), status("say: 12345", metadata="a"), status("hi", header="a")] == [
        200,
        200,
        400,
    ]
    assert status("hi", metadata="a") == 400
    assert status("hi", metadata="a", header="b") == 200
    assert status("hi", metadata="a", key="other's") == 200
    assert status("hi") == 200
    first = [kept.body for kept in Store.open(settings().audit_path, read_only=True).list()][-5]
    assert [(one["where"], one["status"]) for one in first["coverage"]][1] == ("metadata", "judged")


def test_a_listed_key_calls_models_and_opens_nothing_else(ask):
    def status(path, key, method="GET"):
        return httpx.request(method, ask.url + path, headers={"authorization": f"Bearer {key}"}).status_code

    assert status("/v1/models", "one's") == 200
    for path, method in (("/audit", "GET"), ("/admin/policy", "GET"), ("/admin/reload", "POST")):
        assert status(path, "one's", method) == 403
        assert status(path, "nobody's", method) == 401
        assert status(path, "operator's", method) == 200
    assert status("/v1/models", "nobody's") == 401
    assert httpx.get(f"{ask.url}/v1/models").status_code == 401


def test_keys_alone_let_a_server_listen_elsewhere(settings, checks):
    build(settings(host="0.0.0.0"), upstream=FakeUpstream(), checks=checks).store.close()
    with pytest.raises(UnsafeBinding):
        build(settings(host="0.0.0.0", keys=None), upstream=FakeUpstream(), checks=checks)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {id: a, sha256: abc}", "1:11: 'sha256' must be 64 hexadecimal digits"),
        ("- {id: a, tennant: b, sha256: " + "a" * 64 + "}", "1:11: unknown key 'tennant'; did you mean 'tenant'?"),
        ("- {id: a, sha256: " + "a" * 64 + "}\n- {id: a, sha256: " + "b" * 64 + "}", "2:3: the id of 'a' is already"),
        ("- {id: a, sha256: " + "a" * 64 + "}\n- {id: b, sha256: " + "a" * 64 + "}", "2:3: the key of 'b' is already"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path, text, says):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        read_keys(path)
    assert says in str(error.value)
