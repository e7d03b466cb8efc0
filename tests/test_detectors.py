"""The detector API of the FMS guardrails orchestrator, against a real server."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from ringfence.guard.audit.store import Store
from ringfence.guard.guard import Guard
from ringfence.policies.types import Action, Condition, Degrade, Escalate, Overlay, Override, Policy, Rule, Scope, Stage
from ringfence.proxy.app import create_app
from ringfence.proxy.service import Service
from ringfence.proxy.settings import Settings

NAMED = {"detector-id": "ringfence"}


@pytest.fixture
def url(serve: Callable[..., str], service_of: Callable[..., Service], guard: Guard) -> str:
    return serve(create_app(service_of(guard)))


@pytest.fixture
def ask(url: str, store: Store) -> Callable[..., SimpleNamespace]:
    """Ask a detector; return status, answer, headers and the record."""

    def asked(what: str, body: dict[str, object], headers: dict[str, str] = NAMED) -> SimpleNamespace:
        answer = httpx.post(f"{url}/api/v1/text/{what}", json=body, headers=headers, timeout=30)
        [kept] = store.list(limit=1)
        return SimpleNamespace(
            status=answer.status_code, body=answer.json(), headers=answer.headers, kept=kept.body, count=store.count()
        )

    return asked


def evidence(rule: str, action: str) -> list[dict[str, object]]:
    return [{"name": "rule", "value": rule, "evidence": [{"name": "action", "value": action}]}]


def messages(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def test_each_text_has_its_detections_with_places_in_code_points(ask):
    texts = ["a flower", "😀 pin 1234 and 56789", "a bomb"]
    answer = ask("contents", {"contents": texts, "detector_params": {}})
    number = {
        "detection": "number",
        "detection_type": "number",
        "score": 1.0,
        "evidence": evidence("no-numbers", "rewrite"),
    }
    assert answer.body == [
        [],
        [{"start": 6, "end": 10, "text": "1234"} | number, {"start": 15, "end": 20, "text": "56789"} | number],
        [
            {"start": 2, "end": 6, "text": "bomb", "detection": "bomb", "detection_type": "bomb", "score": 1.0}
            | {"evidence": evidence("no-bombs", "block")}
        ],
    ]
    assert answer.count == 1
    assert answer.kept["dialect"] == "fms.detectors"
    assert answer.kept["id"] == answer.headers["x-ringfence-exchange"]
    assert answer.headers["x-ringfence-coverage"] == "judged=3 exempt=0 unjudged=0"


def test_a_rule_that_only_logs_detects_nothing(ask):
    assert ask("contents", {"contents": ["a knife"]}).body == [[]]


def test_the_stage_says_whose_texts_they_are(ask):
    assert ask("contents", {"contents": ["a leak"]}).body == [[]]
    answer = ask("contents", {"contents": ["", "a leak", "no"], "detector_params": {"stage": "output"}})
    assert [[found["text"] for found in text] for text in answer.body] == [[], ["leak"], []]
    assert [part["role"] for part in answer.kept["reply"]] == ["assistant"] * 3


def test_what_a_model_made_of_a_prompt_is_judged_and_the_prompt_only_read(ask):
    answer = ask("generation", {"prompt": "a bomb", "generated_text": "a leak"})
    assert answer.body == [
        {"detection": "leak", "detection_type": "leak", "score": 1.0, "evidence": evidence("no-leaks", "block")}
    ]
    assert answer.headers["x-ringfence-coverage"] == "judged=1 exempt=0 unjudged=1"


def test_a_conversation_is_judged_as_a_request_or_by_its_last_message(ask):
    said = messages(("system", "Be brief."), ("user", "a bomb"), ("assistant", "a leak"))
    for headers in (NAMED, {}):
        found = ask("chat", {"messages": said, "tools": []}, headers).body
        assert [one["detection"] for one in found] == ["bomb"]
        assert "start" not in found[0]
    body = {"messages": said, "detector_params": {"stage": "output"}}
    assert [one["detection"] for one in ask("chat", body).body] == ["leak"]
    tools = [{"type": "function", "function": {"name": "f", "description": "a bomb"}}]
    assert [one["detection"] for one in ask("chat", {"messages": said[:1], "tools": tools}).body] == ["bomb"]


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("contents", {"contents": "a bomb"}),
        ("contents", {"contents": ["a bomb", 7]}),
        ("contents", {"contents": []}),
        ("contents", {"contents": ["a bomb"], "detector_params": {"regex": ["a"]}}),
        ("contents", {"content": ["a bomb"]}),
        ("contents", {}),
        ("generation", {"prompt": "a bomb"}),
        ("generation", {"prompt": "a", "generated_text": "b", "detector_params": {"stage": "input"}}),
        ("chat", {"messages": []}),
        ("chat", {"messages": [{"content": "a bomb"}]}),
        ("chat", {"messages": messages(("user", "a")), "detector_params": {"stage": "output"}}),
        ("chat", {"messages": [{"role": "assistant", "content": None}], "detector_params": {"stage": "output"}}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("chat", {"messages": [{"role": "user", "content": "hi", "new": "words that nobody reads"}]}),
    ],
)
def test_a_bad_request_is_an_error_in_the_apis_shape_and_never_an_empty_list(ask, what, body):
    answer = ask(what, body)
    assert answer.status == 422
    assert answer.body.keys() == {"code", "message"}
    assert answer.body["code"] == 422
    assert answer.kept["error"] == f"BadRequest: {answer.body['message']}"


def test_every_other_error_has_that_shape_too(url, ask, serve, service_of, guard):
    assert ask("contents", {"contents": ["a"]}, headers={}).body["code"] == 422
    assert ask("contents", {"contents": ["a"]}, headers={"detector-id": "two words"}).status == 422
    assert ask("contents", {"contents": ["words and " * 100_000]}).body["code"] == 400
    answers = [
        httpx.post(f"{url}/api/v1/text/contents", content=b"{", headers=NAMED),
        httpx.post(f"{url}/api/v1/text/nothing", json={}),
        httpx.get(f"{url}/api/v1/text/contents"),
        httpx.post(f"{serve(create_app(service_of(guard, settings=Settings(api_key='k'))))}/api/v1/text/contents"),
    ]
    assert [answer.status_code for answer in answers] == [400, 404, 405, 401]
    assert all(answer.json().keys() == {"code", "message"} for answer in answers)
    assert [answer.json()["code"] for answer in answers] == [400, 404, 405, 401]


def test_a_text_that_nobody_could_judge_is_an_error_whatever_on_error_says(
    serve, service_of, broken_check, checks, store
):
    rules = (Rule("broken", "broken", Action.BLOCK, on_error=Action.ALLOW), Rule("no-bombs", "bomb", Action.BLOCK))
    input_only = (Rule("no-bombs", "bomb", Action.BLOCK, stages=(Stage.INPUT,)),)
    for policy, why in ((Policy("broken", rules), "broken: failed"), (Policy("input", input_only), "no rule of the")):
        guard = Guard(policy, checks={**checks, "broken": broken_check}, store=store)
        url = serve(create_app(service_of(guard)))
        for what, body in (
            ("contents", {"contents": ["a", "b"], "detector_params": {"stage": "output"}}),
            ("generation", {"prompt": "a", "generated_text": "b"}),
        ):
            answer = httpx.post(f"{url}/api/v1/text/{what}", json=body, headers=NAMED)
            assert (answer.status_code, answer.json()["code"]) == (500, 500)
            assert why in answer.json()["message"]
            [kept] = store.list(limit=1)
            assert kept.body["error"] == "Unjudged"


BOMBS, TRIAL = Rule("bombs", "bomb", Action.BLOCK), Rule("trial", "broken", Action.BLOCK, shadow=True)
OF_USERS = replace(BOMBS, roles=("user",))


def asked_of(serve, service_of, checks, store, *rules):
    """Return what asks the detectors of a server whose policy has these rules."""
    url = serve(create_app(service_of(Guard(Policy("trial", rules), checks=checks, store=store))))
    return lambda what, body: httpx.post(f"{url}/api/v1/text/{what}", json=body, headers=NAMED, timeout=30)


def test_failure_of_a_check_that_only_rules_in_shadow_ask_is_told_by_the_record_alone(
    serve, service_of, broken_check, checks, store
):
    unsure = replace(TRIAL, id="unsure", category="knife", threshold=0.1, escalate=Escalate("broken", (0.1, 1.01)))
    for trial in (TRIAL, unsure):
        ask = asked_of(serve, service_of, {**checks, "broken": broken_check}, store, BOMBS, trial)
        for what, body in (
            ("contents", {"contents": ["a bomb", "a knife"]}),
            ("contents", {"contents": ["a bomb", "a knife"], "detector_params": {"stage": "output"}}),
            ("chat", {"messages": messages(("system", "a knife"), ("user", "a bomb"))}),
            ("generation", {"prompt": "a knife", "generated_text": "a bomb for a knife"}),
        ):
            answer = ask(what, body)
            found = [one for some in answer.json() for one in (some if what == "contents" else [some])]
            assert (answer.status_code, [one["detection"] for one in found]) == (200, ["bomb"])
            [kept] = store.list(limit=1)
            assert kept.body["error"] is None
            assert "broken: failed with RuntimeError" in [e for d in kept.body["decisions"] for e in d["errors"]]
            # Not every check that the policy asks for has read it: the record says so, as of any other exchange.
            assert "broken: failed with RuntimeError" in [one["why"] for one in kept.body["coverage"]]


@pytest.mark.parametrize(
    "rules",
    [
        [TRIAL],
        [TRIAL, replace(BOMBS, shadow=True)],
        [TRIAL, replace(BOMBS, stages=(Stage.OUTPUT,))],
        [TRIAL, replace(BOMBS, roles=("tool",))],
        [TRIAL, BOMBS, Rule("live", "broken", Action.LOG, on_error=Action.ALLOW)],
        [TRIAL, BOMBS, replace(BOMBS, id="with", when=Condition(category="broken"))],
        [TRIAL, replace(BOMBS, on_error=Degrade("broken"))],
        [TRIAL, replace(BOMBS, escalate=Escalate("broken", (0.1, 0.9)))],
    ],
    ids=["alone", "all in shadow", "another stage", "another role", "live", "condition", "stand-in", "second opinion"],
)
def test_text_is_unjudged_where_no_rule_in_force_has_it_read_or_one_needs_the_check_that_failed(
    serve, service_of, broken_check, checks, store, rules
):
    ask = asked_of(serve, service_of, {**checks, "broken": broken_check}, store, *rules)
    answer = ask("contents", {"contents": ["a flower"]})
    assert (answer.status_code, answer.json()["code"]) == (500, 500)
    assert "contents[0] could not be judged: broken: failed" in answer.json()["message"]


def test_text_that_only_rules_in_shadow_are_about_is_left_out_where_there_is_other_text(
    serve, service_of, broken_check, checks, store
):
    both = messages(("system", "a bomb"), ("user", "another bomb"))
    for rules, found in (((OF_USERS, TRIAL), 1), ((replace(OF_USERS, shadow=True),), 0)):
        ask = asked_of(serve, service_of, {**checks, "broken": broken_check}, store, *rules)
        answers = [ask("chat", {"messages": some}) for some in (both, both[:1])]
        assert [one.status_code for one in answers] == [200, 500]
        assert len(answers[0].json()) == found


def test_a_check_that_fails_of_one_text_is_about_no_other(serve, service_of, sure_of_war, checks, store):
    live, trial = replace(BOMBS, on_error=Action.LOG), Rule("trial", "harm", Action.BLOCK, shadow=True)
    ask = asked_of(serve, service_of, {**checks, "classifier": sure_of_war}, store, live, trial)
    assert ask("contents", {"contents": ["peace", "a bomb", "war"]}).json()[1][0]["detection"] == "bomb"
    in_force = replace(trial, id="in-force", shadow=False, roles=("user",))
    ask = asked_of(serve, service_of, {**checks, "classifier": sure_of_war}, store, live, trial, in_force)
    said = messages(("system", "peace"), ("user", "war"))
    assert [one["detection"] for one in ask("chat", {"messages": said}).json()] == ["harm"]
    assert ask("chat", {"messages": said[:1] + messages(("user", "peace"))}).status_code == 500


def test_only_what_a_rule_fired_on_is_detected(serve, service_of, checks, store):
    rules = (
        Rule("both", "bomb", Action.BLOCK, when=Condition(category="knife")),
        Rule("shadowy", "number", Action.BLOCK, shadow=True),
        Rule("never", "knife", Action.BLOCK, roles=("tool",)),
    )
    url = serve(create_app(service_of(Guard(Policy("fine", rules), checks=checks, store=store))))
    texts = ["a bomb", "a knife and a bomb", "1234", "a knife"]
    answer = httpx.post(f"{url}/api/v1/text/contents", json={"contents": texts}, headers=NAMED)
    assert [[found["text"] for found in text] for text in answer.json()] == [[], ["bomb"], [], []]


def test_text_of_roles_that_no_rule_is_about_is_left_out_unless_there_is_no_other(serve, service_of, checks, store):
    rules = (Rule("bombs", "bomb", Action.BLOCK, roles=("user",)),)
    url = serve(create_app(service_of(Guard(Policy("users", rules), checks=checks, store=store))))
    both = messages(("system", "a bomb"), ("user", "another bomb"))
    answers = [
        httpx.post(f"{url}/api/v1/text/chat", json={"messages": some}, headers=NAMED) for some in (both, both[:1])
    ]
    assert [one.status_code for one in answers] == [200, 500]
    assert len(answers[0].json()) == 1
    assert "no rule of the policy has a check read the input of the role system" in answers[1].json()["message"]


def test_overlays_know_the_detector_as_the_model(serve, service_of, checks, store):
    strict = Overlay(
        "strict",
        Scope(model=("careful",), route=("fms.detectors",)),
        override={"knives": Override(action=Action.BLOCK)},
    )
    guard = Guard(Policy("layered", (Rule("knives", "knife", Action.LOG),), overlays=(strict,)), checks=checks)
    url = serve(create_app(service_of(guard)))
    for detector, found in (("careful", 1), ("other", 0)):
        body = {"contents": ["a knife"]}
        answer = httpx.post(f"{url}/api/v1/text/contents", json=body, headers={"detector-id": detector})
        assert len(answer.json()[0]) == found


def test_health_answers_without_a_key(serve, service_of, guard):
    url = serve(create_app(service_of(guard, settings=Settings(api_key="k"))))
    assert httpx.get(f"{url}/health").status_code == 200
