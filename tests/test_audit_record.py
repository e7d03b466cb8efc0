"""The record: what it keeps of an exchange, what it never keeps, and the exact bytes its hash is over."""

import hashlib
import json
import math
import runpy
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.audit.record import GENESIS, Receipt, decisions_of, parse_receipt, record_of, seal
from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part
from ringfence.policies.types import Action, Decision, Finding, Rewrite, Span, Stage

GOLDEN = Path(__file__).with_name("golden")
PROMPT = "I am Jo, jo@example.org, call 555-0100."
EMAIL, PHONE = Span(0, 9, 23), Span(0, 30, 38)


def exchange(text=PROMPT, *decisions, **more):
    request = [Part(Kind.TEXT, "user", ("messages", 0, "content"), text)]
    wheres = ("messages[0].content", "choices[0].message.content")
    read = {"coverage": [Coverage(where, Judged.JUDGED) for where in wheres]}
    return Exchange("openai.chat", "m", request, decisions=list(decisions), **read | more)


def test_text_that_no_coverage_speaks_of_is_withheld():
    body = record_of(exchange(PROMPT, coverage=[]), text="masked")
    assert "text" not in body["request"][0]
    assert body["request"][0]["withheld"]


def found(category, *spans, stage=Stage.INPUT, action=Action.LOG, error=None, **more):
    return Decision(stage, action, findings=(Finding("check", category, 0.9, spans, error=error),), **more)


def test_golden_record_keeps_its_bytes():
    sealed = runpy.run_path(str(GOLDEN / "make_audit_record.py"))["sealed"]()
    assert sealed.canonical == (GOLDEN / "audit_record_v1.json").read_bytes()
    assert sealed.hash == "bffb79dcaf2efe09ee84fd1be9602313f4e788547c6698cb20964b38c40c426b"


def test_decisions_are_read_back_as_they_were_recorded():
    findings = (
        Finding("pii", "pii.email", 0.9, (EMAIL,), rewritable=False),
        Finding("classifier", "harm", 0.0, error="took too long"),
    )
    decision = Decision(
        Stage.INPUT,
        Action.BLOCK,
        rules=("mail",),
        unanswered={"harm": Action.BLOCK},
        shadow={"trial": Action.LOG},
        findings=findings,
        rewrites=(Rewrite(EMAIL, "<mail>", "mail"),),
        errors=("classifier: took too long",),
        message="No.",
        revision="r",
    )
    body = json.loads(seal(record_of(exchange(PROMPT, decision), text="masked"), seq=1, prev=GENESIS).canonical)
    assert decisions_of(body) == (decision,)
    assert body["decisions"][0]["shadow"] == {"trial": "would_log"}


def test_score_that_is_no_number_is_read_back_as_one():
    unsure = Decision(Stage.INPUT, Action.LOG, findings=(Finding("check", "harm", math.nan),))
    body = json.loads(seal(record_of(exchange(PROMPT, unsure), text="masked"), seq=1, prev=GENESIS).canonical)
    assert math.isnan(decisions_of(body)[0].findings[0].score)


def test_hash_is_sha256_of_canonical_bytes_that_hold_version_seq_and_prev():
    sealed = seal({"id": "x"}, seq=3, prev=GENESIS)
    assert sealed.canonical == b'{"id":"x","prev":"%s","seq":3,"version":1}' % GENESIS.encode()
    assert sealed.hash == hashlib.sha256(sealed.canonical).hexdigest()


def test_masked_record_replaces_what_the_policy_rewrote():
    rewrite = Rewrite(EMAIL, "<mail>", "mask")
    body = record_of(
        exchange(PROMPT, found("pii.email", EMAIL, action=Action.REWRITE, rewrites=(rewrite,))), text="masked"
    )
    assert body["request"][0]["text"] == "I am Jo, <mail>, call 555-0100."


@pytest.mark.parametrize("action", [Action.ALLOW, Action.LOG, Action.BLOCK])
def test_masked_record_hides_personal_data_that_no_rule_rewrote(action):
    body = record_of(exchange(PROMPT, found("pii.phone", PHONE, action=action)), text="masked")
    assert body["request"][0]["text"] == "I am Jo, jo@example.org, call [PII_PHONE]."


def test_masked_record_hides_secrets_and_leaves_other_findings_readable():
    spans = found("secret.api_key", Span(0, 0, 4)), found("harm.S9", Span(0, 9, 23))
    body = record_of(exchange(PROMPT, *spans), text="masked")
    assert body["request"][0]["text"] == "[SECRET_API_KEY] Jo, jo@example.org, call 555-0100."


def test_output_spans_count_over_the_reply_and_input_spans_over_the_request():
    both = exchange("ab", found("pii.x", Span(0, 0, 1), stage=Stage.OUTPUT))
    both.reply = [Part(Kind.TEXT, "assistant", ("choices", 0, "message", "content"), "cd")]
    body = record_of(both, text="masked")
    assert [body["request"][0]["text"], body["reply"][0]["text"]] == ["ab", "[PII_X]d"]


def test_overlapping_masks_become_one_and_leave_nothing_of_either():
    masks = found("pii.name", Span(0, 2, 6)), found("pii.email", Span(0, 4, 8)), found("pii.name", Span(0, 8, 9))
    body = record_of(exchange("0123456789", *masks), text="masked")
    assert body["request"][0]["text"] == "01[PII_NAME][PII_NAME]9"


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6))
def test_masking_agrees_with_masking_one_code_point_at_a_time(text, stretches):
    text = text.replace("X", "_").encode("utf-8", "replace").decode()
    body = record_of(exchange(text, *(found("pii", Span(0, a, b)) for a, b in stretches)), text="masked")
    hidden = {at for a, b in stretches for at in range(a, b)}
    survivors = "".join(char for at, char in enumerate(text) if at not in hidden)
    assert body["request"][0]["text"].replace("[PII]", "") == survivors.replace("[PII]", "")


def test_text_that_not_every_check_read_is_withheld_from_a_masked_record():
    unread = [Coverage("messages[0].content", Judged.UNJUDGED, "pii: check raised")]
    body = record_of(exchange(PROMPT, coverage=unread), text="masked")
    assert "Jo" not in json.dumps(body)
    assert "text" not in body["request"][0]
    assert body["request"][0]["withheld"]


def test_exempt_text_is_kept_as_the_operator_chose():
    exempt = exchange("Be brief.", coverage=[Coverage("messages[0].content", Judged.EXEMPT, "our own words")])
    assert record_of(exempt, text="masked")["request"][0]["text"] == "Be brief."


def test_full_record_keeps_the_text_as_it_came():
    part = record_of(exchange(PROMPT, found("pii.email", EMAIL)), text="full")["request"][0]
    assert part["text"] == PROMPT
    assert part["digest"] == hashlib.sha256(PROMPT.encode()).hexdigest()


def test_record_without_text_keeps_a_digest_and_a_length_only():
    body = record_of(exchange(PROMPT), text="none")
    assert "Jo" not in json.dumps(body)
    assert body["request"][0]["digest"] == hashlib.sha256(PROMPT.encode()).hexdigest()
    assert body["request"][0]["length"] == len(PROMPT)


@pytest.mark.parametrize("keep", ["masked", "none"])
def test_digest_gives_no_way_to_find_masked_data_by_trying(keep):
    part = record_of(exchange("PIN 1234", found("pii.pin", Span(0, 4, 8))), text=keep)["request"][0]
    guesses = {hashlib.sha256(f"PIN {pin:04}".encode()).hexdigest() for pin in range(10_000)}
    assert part["digest"] not in guesses
    assert part["digest"] == hashlib.sha256(b"PIN [PII_PIN]").hexdigest()


def test_credentials_in_the_wire_body_are_never_stored():
    body = {"messages": [{"role": "user", "content": PROMPT}], "api_key": "sk-hunter2", "headers": {"x": "sk-hunter2"}}
    assert "hunter2" not in json.dumps(record_of(exchange(PROMPT, body=body), text="full"))


def test_media_has_no_text_and_no_digest():
    picture = exchange()
    picture.request = [Part(Kind.MEDIA, "user", ("messages", 0, "content", 1))]
    [part] = record_of(picture, text="full")["request"]
    assert part == {"kind": "media", "role": "user", "where": "messages[0].content[1]"}


def test_strongest_action_is_named_with_the_rules_that_asked_for_it():
    log = Decision(Stage.INPUT, Action.LOG, rules=("watch",))
    block = Decision(Stage.OUTPUT, Action.BLOCK, rules=("stop", "halt"), logged=("watch",))
    body = record_of(exchange(PROMPT, log, block), text="none")
    assert (body["action"], body["rules"]) == ("block", ["stop", "halt"])


def test_exchange_that_nobody_judged_is_not_said_to_be_allowed():
    assert record_of(exchange(error="body too large"), text="none")["action"] is None


def test_time_is_written_in_utc_so_that_it_sorts_as_text():
    at = datetime(2026, 11, 21, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert record_of(exchange(received_at=at), text="none")["at"] == "2026-11-20T23:00:00.000000Z"
    assert record_of(exchange(received_at=at.astimezone(UTC)), text="none")["at"] == "2026-11-20T23:00:00.000000Z"


def test_lone_surrogates_and_infinities_do_not_lose_the_record():
    body = record_of(exchange("a\ud800b", timings={"total_s": 0.5}), text="full")
    body["timings"]["total_s"] = float("inf")
    stored = json.loads(seal(body, 1, GENESIS).canonical)
    assert stored["request"][0]["text"] == "a\ufffdb"
    assert stored["timings"]["total_s"] is None


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_every_text_can_be_recorded_and_its_digest_is_of_the_text_stored(text):
    stored = json.loads(seal(record_of(exchange(text), text="full"), 1, GENESIS).canonical)["request"][0]
    assert stored["digest"] == hashlib.sha256(stored["text"].encode()).hexdigest()


def test_receipt_is_read_as_it_is_written():
    receipt = Receipt(12, "0f" * 32)
    assert parse_receipt(str(receipt)) == receipt


@pytest.mark.parametrize(
    "text", ["", "12", "12:abc", f"x:{'0' * 64}", f"-1:{'0' * 64}", f"²:{'0' * 64}", f"1:{'G' * 64}"]
)
def test_what_is_no_receipt_is_refused_with_what_one_looks_like(text):
    with pytest.raises(ValueError, match="SEQ:HASH"):
        parse_receipt(text)
