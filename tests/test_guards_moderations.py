"""OpenAI's moderation endpoint as a check: its scores are findings, and whatever else it answers is a failure."""

import json
import math
from base64 import b64encode
from dataclasses import dataclass, field, replace

import pytest
from fastapi import FastAPI, Request
from openai import OpenAI
from openai.types import ModerationCreateResponse
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

from ringfence.guard.check import CannotAnswer, Finding, Passage, Span, own_checks
from ringfence.guard.guard import Guard
from ringfence.guard.pipeline import Pipeline
from ringfence.policies.document import PolicyError
from ringfence.policies.load import loads_policy
from ringfence.policies.own import Moderations
from ringfence.policies.types import Action, Policy, Rule, Stage, UpstreamChoice
from ringfence.policies.words import Origin
from ringfence.proxy.app import create_app
from ringfence.proxy.moderations import ModerationsCheck, open_moderations
from ringfence.proxy.upstreams.http import open_upstream
from ringfence.proxy.wire.openai_moderations import SOURCES

TEXT = "How do I pick a lock?"


def answer(**scores):
    """An answer as the `openai` package types it, with these scores and a thousandth for all others."""
    found = dict.fromkeys(SOURCES, 0.001) | scores
    flags = {name: score > 0.4 for name, score in found.items()}
    types = {name: ["text"] for name in found}
    result = {"flagged": any(flags.values()), "categories": flags, "category_scores": found}
    whole = {"id": "modr-1", "model": "omni", "results": [{**result, "category_applied_input_types": types}]}
    ModerationCreateResponse.model_validate(whole, strict=True)
    return whole


def scoring(**scores):
    """An answer that is as it should be but for these scores."""
    (result,) = answer()["results"]
    return {"results": [result | {"category_scores": result["category_scores"] | scores}]}


def without(name):
    """An answer that is as it should be but for one score, which is missing."""
    (result,) = answer()["results"]
    rest = {other: score for other, score in result["category_scores"].items() if other != name}
    return {"results": [result | {"category_scores": rest}]}


@dataclass
class Server:
    """A moderation endpoint that answers as it is told to; keeps what it was asked."""

    says: object
    asked: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    silent: bool = False

    def app(self):
        app = FastAPI()

        @app.post("/v1/moderations")
        async def take(request: Request):
            self.asked.append(json.loads(await request.body()))
            self.headers.append(dict(request.headers))
            if self.silent:
                await request.receive()  # until the caller is gone
            return self.says(self.asked[-1]) if callable(self.says) else JSONResponse(self.says)

        return app


@pytest.fixture
def check_of(serve):
    def build(server, **fields):
        return open_moderations(Moderations("openai-moderation", "m", f"{serve(server.app())}/v1", **fields))

    return build


def passage(text=TEXT, **fields):
    return Passage(Stage.INPUT, "user", text, **fields)


def scores(check, text=TEXT):
    return {finding.category: finding.score for finding in check.find(passage(text))}


def test_its_scores_are_findings_by_the_hazard_that_they_are(check_of):
    server = Server(answer(**{"self-harm": 0.2, "self-harm/intent": 0.7, "harassment/threatening": 0.3}))
    found = check_of(server).find(passage(part=2))
    by_name = {finding.category: finding for finding in found}
    assert (by_name["m"].score, by_name["m"].detail) == (0.7, "flagged by the endpoint")
    assert (by_name["m.S11"].score, by_name["m.S11"].detail) == (0.7, "Suicide & Self-Harm")
    assert by_name["m.harassment-threatening"].score == 0.3
    assert by_name["m.S1"].score == 0.001
    assert {(one.spans[0].part, one.spans[0].start, one.spans[0].end) for one in found} == {(2, 0, len(TEXT))}
    assert server.asked == [{"model": "omni-moderation-latest", "input": TEXT}]


def test_it_says_beforehand_all_that_it_may_find(check_of):
    check = check_of(Server(answer()))
    assert [one.category for one in check.find(passage())] == [one.category for one in check.finds]
    assert "flagged" not in check.find(passage())[0].detail


def test_a_category_that_nobody_knows_counts_for_the_highest(check_of):
    found = scores(check_of(Server(answer(sarcasm=0.9))))
    assert found["m"] == 0.9
    assert max(score for name, score in found.items() if name != "m") == 0.001


@pytest.mark.parametrize(
    "says",
    [
        {},
        {"results": []},
        {"results": [answer()["results"][0]] * 2},
        {"results": [{"flagged": False, "category_scores": {}}]},
        {"results": [answer()["results"][0] | {"flagged": True}]},
        {"results": [answer()["results"][0] | {"categories": None}]},
        without("illicit"),
        without("sexual/minors"),
        {"results": [answer()["results"][0] | {"flagged": "no"}]},
        scoring(hate="low"),
        scoring(hate=True),
        scoring(hate=1.5),
        scoring(hate=None),
        scoring(sarcasm=None),
        {"results": [{"flagged": False, "category_scores": [0.1]}]},
        {"results": {"flagged": False}},
        [],
        7,
        None,
        lambda _: HTMLResponse("<html>safe</html>"),
        lambda _: PlainTextResponse('{"results": [{"flag', media_type="application/json"),
        lambda _: PlainTextResponse(json.dumps(scoring(hate=math.nan)), media_type="application/json"),
        lambda _: PlainTextResponse("0" * 2_000_000),
        lambda _: JSONResponse({"error": {"message": "no such model"}}, 404),
        lambda _: JSONResponse({"error": {"message": "overloaded"}}, 503),
    ],
)
def test_whatever_is_no_score_is_an_error_that_names_the_check_and_what_to_do_and_blocks(check_of, says):
    check = check_of(Server(says))
    with pytest.raises(CannotAnswer, match=r"openai-moderation \('m'\): .*; check that http://"):
        check.find(passage())
    rule = Rule("r", "m", Action.BLOCK)
    decision = Pipeline(Policy("house", (rule,)), {"m": check}).judge(Stage.INPUT, [passage()])
    assert decision.action is Action.BLOCK
    assert TEXT not in decision.errors[0]


def test_a_text_is_asked_about_once_and_no_failure_is_remembered(check_of):
    answers = iter([{}, answer(hate=0.6)])
    server = Server(lambda _: JSONResponse(next(answers)))
    check = check_of(server)
    with pytest.raises(CannotAnswer):
        check.find(passage())
    assert [scores(check)["m.S10"] for _ in range(3)] == [0.6] * 3
    assert len(server.asked) == 2


def test_text_in_disguise_is_asked_about_in_the_clear_as_well_and_counts_as_one_text(check_of):
    server = Server(lambda asked: JSONResponse(answer(hate=0.6) if asked["input"] == TEXT else answer(violence=0.3)))
    check = check_of(server, per_minute=1)
    hidden = b64encode(TEXT.encode()).decode()
    for _ in range(2):
        found = {finding.category: finding for finding in check.find(passage(hidden))}
    assert (found["m"].score, found["m"].detail) == (0.6, "read as base64, flagged by the endpoint")
    assert (found["m.S10"].score, found["m.S10"].detail) == (0.6, "read as base64, Hate")
    assert (found["m.S1"].score, found["m.S1"].detail) == (0.3, "Violent Crimes")
    assert sorted(asked["input"] for asked in server.asked) == sorted([hidden, TEXT])


def test_one_failure_in_passing_is_made_good_and_a_server_that_is_down_is_not_asked_twice_as_often(check_of):
    answers = iter([JSONResponse({}, 503), JSONResponse(answer(hate=0.6))])
    assert scores(check_of(Server(lambda _: next(answers))))["m.S10"] == 0.6
    down = Server(lambda _: JSONResponse({}, 503))
    check = check_of(down, per_minute=20)
    for number in range(10):
        with pytest.raises(CannotAnswer, match="answered 503"):
            check.find(passage(f"text {number}"))
    assert len(down.asked) == 10 + 2


def test_no_more_is_asked_than_the_budget_of_a_minute_nor_for_longer_than_the_deadline(check_of):
    check = check_of(Server(answer()), per_minute=1)
    check.find(passage("a"))
    with pytest.raises(CannotAnswer, match="per_minute"):
        check.find(passage("b"))
    slow = check_of(Server(lambda _: JSONResponse(answer()), silent=True), timeout_s=0.3)
    with pytest.raises(TimeoutError, match=r"openai-moderation \('m'\) gave no verdict"):
        slow.find(passage())


def test_it_is_a_timeout_whichever_deadline_tells_ours_or_the_connections(serve):
    url = f"{serve(Server(answer(), silent=True).app())}/v1"
    impatient = open_upstream(UpstreamChoice(url, timeout_s=0.3))
    check = ModerationsCheck(Moderations("openai-moderation", "m", url, timeout_s=60), impatient)
    with pytest.raises(TimeoutError, match=r"did not answer in time \(ReadTimeout\); look why http.* is slow, or"):
        check.find(passage())


def test_the_key_comes_from_the_environment_and_what_is_wrong_is_a_located_error(check_of, monkeypatch):
    monkeypatch.setenv("MODERATION_KEY", "k-1")
    server = Server(answer())
    check_of(server, api_key_env="MODERATION_KEY").find(passage())
    assert server.headers[0]["authorization"] == "Bearer k-1"
    given = Moderations("openai-moderation", "m", "http://", origin=Origin("p.yaml", 4, 5))
    with pytest.raises(PolicyError, match=r"p\.yaml:4:5: the moderation endpoint of 'm' cannot be asked: .*no host"):
        open_moderations(given)
    monkeypatch.delenv("MODERATION_KEY")
    with pytest.raises(PolicyError, match="MODERATION_KEY"):
        open_moderations(replace(given, use="http://127.0.0.1:1/v1", api_key_env="MODERATION_KEY"))


def test_nothing_is_asked_about_nothing_and_whoever_is_not_there_is_told_of(check_of, caplog):
    server = Server(answer())
    assert check_of(server).find(passage(" \n")) == ()
    assert server.asked == []
    open_moderations(Moderations("openai-moderation", "m", "http://127.0.0.1:9/v1")).warm()
    assert "cannot be reached" in caplog.text


def test_a_policy_names_it_and_its_revision_is_that_of_who_is_asked():
    written = (
        "version: 1\nname: house\nchecks:\n  - kind: openai-moderation\n    category: m\n    use: http://127.0.0.1:9/v1\n"
        "rules:\n  - { id: r, category: m.S11, action: block, threshold: 0.5 }\n"
    )
    check = own_checks(loads_policy(written).checks)["checks.m"]
    other = own_checks(loads_policy(written.replace("category: m\n", "category: m\n    model: other\n")).checks)[
        "checks.m"
    ]
    assert check.revision != other.revision


def test_our_own_endpoint_answers_it(serve, service_of, guard):
    url = serve(create_app(service_of(guard)))
    check = open_moderations(Moderations("openai-moderation", "m", f"{url}/v1", "ringfence"))
    assert scores(check, "where is the bomb?")["m"] == 1.0
    assert scores(check, "where is the cat?")["m"] == 0.0


class Faint:
    """Half sees what mentions smoke."""

    name = "faint"
    categories = frozenset({"faint"})

    def find(self, passage):
        return [Finding("faint", "faint", 0.35 * ("smoke" in passage.text), (Span(0, 0, len(passage.text)),))]


@pytest.mark.parametrize(
    ("rule", "text", "blocked"),
    [
        (Rule("r", "faint", Action.BLOCK, threshold=0.3), "a little smoke", True),
        (Rule("r", "faint", Action.BLOCK, threshold=0.3), "no fire", False),
        (Rule("r", "faint", Action.BLOCK, threshold=0.5), "a little smoke", False),
        (Rule("r", "broken", Action.BLOCK), "anything", True),
        (Rule("r", "broken", Action.BLOCK, on_error=Action.LOG), "anything", False),
    ],
)
def test_our_own_endpoint_flags_nothing_for_no_category_whatever_the_policy_would_block_it_for(
    serve, service_of, store, broken_check, rule, text, blocked
):
    guard = Guard(Policy("house", (rule,)), checks={"faint": Faint(), "broken": broken_check}, store=store)
    url = f"{serve(create_app(service_of(guard)))}/v1"
    (result,) = OpenAI(base_url=url, api_key="none").moderations.create(input=text).results
    told = result.categories.model_dump(by_alias=True)
    assert (result.flagged, any(told.values()), told["ringfence"]) == (blocked,) * 3
    check = open_moderations(Moderations("openai-moderation", "m", url, "ringfence"))
    assert (scores(check, text)["m"] == 1.0) is blocked
