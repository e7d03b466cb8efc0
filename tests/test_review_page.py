"""The audit pages: what they show, and that hostile text in a record stays text."""

import base64
import hashlib
import re
import sqlite3
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ringfence.guard.audit.record import record_of
from ringfence.guard.audit.store import Store
from ringfence.guard.audit.verify import verify
from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part, Subject
from ringfence.policies.types import Action, Decision, Finding, Rewrite, Span, Stage
from ringfence.proxy.review.routes import review_router

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></pre></style>{{7*7}}\u202e\x1b[2J"
WHERE, ANSWER = ("messages", 0, "content"), ("choices", 0, "message", "content")


def exchange(text, action=Action.ALLOW, rules=(), **more):
    return Exchange(
        "openai.chat",
        "small",
        [Part(Kind.TEXT, "user", WHERE, text)],
        coverage=[Coverage("messages[0].content", Judged.JUDGED)],
        decisions=[Decision(Stage.INPUT, action, rules=rules)],
        **more,
    )


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "log.db")
    yield store
    store.close()


@pytest.fixture
def client(store):
    app = FastAPI()
    app.include_router(review_router(lambda: store))
    return TestClient(app)


def keep(store, *exchanges, text="masked"):
    return [store.append(record_of(one, text=text)) for one in exchanges]


class Markup(HTMLParser):
    """The tags and the text of a page, as a browser would see them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, data):
        self.text += data


def test_list_shows_what_was_asked_and_what_was_done_newest_first(client, store):
    keep(store, exchange("good morning"), exchange("rob a bank", Action.BLOCK, ("no-fraud",)))
    text = Markup(client.get("/audit").text).text
    assert text.index("rob a bank") < text.index("good morning")
    assert "no-fraud" in text
    assert "all 2" in text
    assert "block 1" in text


def test_list_can_be_narrowed_to_an_action(client, store):
    keep(store, exchange("good morning"), exchange("rob a bank", Action.BLOCK))
    page = client.get("/audit?action=block").text
    assert "rob a bank" in page
    assert "good morning" not in page


def test_following_the_pages_shows_every_record_once(client, store):
    keep(store, *(exchange(f"text {n};") for n in range(7)))
    link, seen = "/audit?limit=3", []
    while link:
        page = client.get(link).text
        seen += re.findall(r"text \d;", page)
        link = next(iter(re.findall(r'rel="next" href="([^"]+)"', page)), "").replace("&amp;", "&")
    assert seen == [f"text {n};" for n in reversed(range(7))]


def test_empty_log_says_so(client):
    assert "the first exchange makes the first" in client.get("/audit").text


def test_record_shows_parts_coverage_findings_decisions_and_chain(client, store):
    asked = "Write to jo@example.org now"
    span = Span(0, 9, 23)
    one = exchange(asked, subject=Subject("acme", "key-7"), timings={"total_s": 0.25}, revisions={"guard": "g1"})
    one.decisions = [
        Decision(
            Stage.INPUT,
            Action.REWRITE,
            rules=("mask-mail",),
            shadow={"stricter": Action.BLOCK},
            findings=(Finding("pii", "pii.email", 0.975, (span,), "an address"),),
            rewrites=(Rewrite(span, "[MAIL]", "mask-mail"),),
            revision="abc",
        )
    ]
    one.reply = [Part(Kind.TEXT, "assistant", ANSWER, "I did.")]
    one.coverage.append(Coverage(one.reply[0].where, Judged.JUDGED))
    [receipt] = keep(store, one)
    text = Markup(client.get(f"/audit/{one.id}").text).text
    for piece in ("Write to [MAIL] now", "I did.", "judged", "pii.email", "0.975", "user 9–23", "an address"):
        assert piece in text
    for piece in ("mask-mail", "stricter would_block", "acme/key-7", "250.0 ms", "g1", receipt.hash, "0" * 64):
        assert piece in text
    assert "jo@example.org" not in text


def test_a_finding_in_one_of_several_texts_of_a_role_names_that_text(client, store):
    one = exchange("first")
    one.request.append(Part(Kind.TEXT, "user", ("messages", 1, "content"), "second"))
    one.coverage.append(Coverage("messages[1].content", Judged.JUDGED))
    one.decisions = [Decision(Stage.INPUT, Action.LOG, findings=(Finding("c", "harm", 0.5, (Span(1, 0, 6),)),))]
    keep(store, one)
    assert "messages[1].content 0–6" in " ".join(Markup(client.get(f"/audit/{one.id}").text).text.split())


@pytest.mark.parametrize("keeping", ["masked", "full", "none"])
def test_every_way_of_keeping_text_has_a_page(client, store, keeping):
    media = exchange("see picture", error="UpstreamError: gone")
    media.request.append(Part(Kind.MEDIA, "user", ("messages", 0, "content", 1)))
    media.coverage.append(Coverage("messages[0].content[1]", Judged.UNJUDGED, "no check reads media"))
    unjudged = Exchange("openai.chat", "small", [], error="TooLong")
    failed = exchange("x")
    failed.decisions = [
        Decision(Stage.INPUT, Action.BLOCK, findings=(Finding("c", "harm", 0.0, error="crashed"),), errors=("crashed",))
    ]
    keep(store, media, unjudged, failed, text=keeping)
    assert client.get("/audit").status_code == 200
    pages = [client.get(f"/audit/{seq}") for seq in (1, 2, 3)]
    assert [page.status_code for page in pages] == [200] * 3
    assert "no check reads media" in pages[0].text
    assert "Nothing was judged" in pages[1].text
    assert "crashed" in pages[2].text


def everywhere(text):
    """An exchange with the same text in every place that a stranger, a check or an upstream can fill."""
    finding = Finding(text, text, 0.5, (Span(0, 0, 1),), text)
    one = exchange(text, Action.BLOCK, (text,), subject=Subject(text, text), error=text, revisions={text: text})
    one.dialect = one.model = text
    one.request.append(Part(Kind.TEXT, text, (text,), text))
    one.coverage.append(Coverage(text, Judged.UNJUDGED, text))
    one.decisions.append(
        Decision(
            stage=Stage.OUTPUT,
            action=Action.BLOCK,
            rules=(text,),
            logged=(text,),
            unanswered={text: Action.BLOCK},
            shadow={text: Action.LOG},
            findings=(finding,),
            errors=(text,),
            message=text,
            revision=text,
        )
    )
    return one


@pytest.mark.parametrize("path", ["/audit?limit=1&before={}", "/audit/{}"])
def test_hostile_text_never_becomes_markup(client, store, path):
    keep(store, exchange("x"), everywhere("word"), everywhere(HOSTILE), text="full")
    hostile, harmless = (client.get(path.format(number)).text for number in ((4, 3) if "before" in path else (3, 2)))
    assert Markup(hostile).tags == Markup(harmless).tags
    assert Markup(hostile).attributes == Markup(harmless).attributes
    assert "<script>alert(1)</script>" in Markup(hostile).text
    assert "{{7*7}}" in Markup(hostile).text
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile


def test_altered_hostile_record_is_shown_as_altered_and_as_text(client, store):
    keep(store, exchange("a"), exchange("b"))
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE records SET body = ? WHERE seq = 1", (HOSTILE,))
    assert "altered" in client.get("/audit").text
    markup = Markup(client.get("/audit/1").text)
    assert "was altered" in markup.text
    assert "<script>" in markup.text
    assert "script" not in markup.tags
    assert client.get("/audit/1.json").json()["altered"] is True


@pytest.mark.parametrize("path", ["/audit", "/audit/1", "/audit/nobody", "/audit/verify", "/audit/verify?expect=x"])
def test_every_page_forbids_scripts_and_allows_only_its_own_style(client, store, path):
    keep(store, exchange("a"))
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    [style] = re.findall(r"<style>(.*?)</style>", answer.text, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}';" in policy
    assert "script-src" not in policy
    assert "style=" not in answer.text
    assert answer.headers["cache-control"] == "no-store"


def test_json_twins_say_what_the_pages_say(client, store):
    keep(store, *(exchange(f"text {n}") for n in range(3)))
    listed = client.get("/audit.json?limit=2").json()
    assert [record["seq"] for record in listed["records"]] == [3, 2]
    assert listed["next"] == 2
    assert listed["counts"] == {"all": 3, "block": 0, "rewrite": 0, "log": 0, "allow": 3}
    assert client.get("/audit.json?before=2").json()["next"] is None
    assert client.get("/audit/2.json").json() == listed["records"][1]
    assert client.get(f"/audit/{listed['records'][1]['id']}.json").json() == listed["records"][1]


def test_verify_page_says_what_the_verifier_says(client, store):
    receipt, *_ = keep(store, exchange("a"), exchange("b"))
    verdict = verify(store.path)
    assert client.get("/audit/verify.json").json() == {"whole": True, "count": 2, "head": verdict.head}
    assert verdict.head in client.get("/audit/verify").text
    assert "is among them" in client.get(f"/audit/verify?expect={receipt}").text
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE records SET body = replace(body, 'small', 'large') WHERE seq = 2")
    assert client.get("/audit/verify.json").json()["seq"] == 2
    assert 'href="/audit/2"' in client.get("/audit/verify").text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/audit/nobody", 404),
        ("/audit/99", 404),
        ("/audit/nobody.json", 404),
        ("/audit/verify?expect=12", 400),
        ("/audit/verify.json?expect=12", 400),
        ("/audit?before=0", 422),
        ("/audit?limit=100000", 422),
        ("/audit?action=explode", 422),
    ],
)
def test_bad_questions_get_an_answer_that_says_so(client, store, path, status):
    assert client.get(path).status_code == status


def test_log_that_cannot_be_read_is_said_and_is_no_crash(client, store):
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE records")
    assert client.get("/audit").status_code == client.get("/audit/1").status_code == 503
    assert client.get("/audit.json").status_code == client.get("/audit/1.json").status_code == 503
    assert client.get("/audit/verify").status_code == 400
