"""`ringfence bench checks`: counts are those of the rule, tools are compared alike, and what is fast finds the same."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import Leniency, PhoneNumberMatcher, phonenumbermatcher
from typer.testing import CliRunner

from ringfence.guard.bench.checks import (
    AGAIN,
    KILOBYTE,
    NEW,
    NOTHING,
    PII,
    Tally,
    blocks_of,
    compare_pii,
    compare_secrets,
    measure_speed,
    replies_and_prompts,
    system_message,
    tally,
    timed_checks,
    with_live_values,
)
from ringfence.guard.bench.peers import Peer, Scored, places_of
from ringfence.guard.bench.spans import LabelledSpan, LabelledText, load_corpus_of
from ringfence.guard.check import Passage
from ringfence.guard.checks import identity, phones
from ringfence.policies.types import Stage
from ringfence.proxy.cli.bench import app

CORPORA = {name: load_corpus_of(name) for name in ("pii", "secrets")}
TEXTS = [text.text for texts in CORPORA.values() for text in texts]
CALL = LabelledText("1", "call 212 555 0187 now, or 212 555 0188", (LabelledSpan(5, 17, "phone"),))


def peer(*found: Scored, categories: tuple[str, ...] = PII, unmapped: tuple[str, ...] = ()) -> Peer:
    return Peer("other", "other 1.0", frozenset(categories), lambda _: found, unmapped=unmapped)


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([], (1, 0, 0, 0, 0)),
        ([(5, 17)], (1, 1, 1, 1, 1)),
        ([(0, 40)], (1, 1, 1, 1, 1)),
        ([(5, 8)], (1, 1, 0, 1, 1)),
        ([(5, 8), (9, 12), (13, 17)], (1, 1, 1, 3, 3)),  # between them are only spaces
        ([(26, 38)], (1, 0, 0, 1, 0)),
        ([(17, 20)], (1, 0, 0, 1, 0)),
    ],
)
def test_a_mark_is_met_by_a_touch_and_whole_when_all_its_digits_are_held(found, counts):
    spans = [Scored(*span, "phone", 1.0) for span in found]
    assert tally([CALL], [spans], "phone") == Tally(*counts)


def test_a_finding_of_another_category_neither_meets_a_mark_nor_is_right():
    assert tally([CALL], [[Scored(5, 17, "ssn", 1.0)]], "phone") == Tally(1, 0, 0, 0, 0)
    assert tally([CALL], [[Scored(5, 17, "ssn", 1.0)]], "ssn") == Tally(0, 0, 0, 1, 0)


def test_shares_that_nothing_was_counted_for_are_null():
    shares = Tally(0, 0, 0, 0, 0).to_json()
    assert (shares["precision"], shares["recall"], shares["f1"]) == (None, None, None)
    assert Tally(4, 3, 2, 6, 3).to_json()["f1"] == pytest.approx(2 * 0.75 * 0.5 / 1.25)


def test_a_category_that_a_peer_does_not_claim_is_left_out_of_what_is_compared_and_listed():
    texts = [replace(CALL, spans=(*CALL.spans, LabelledSpan(26, 38, "name")))]
    comparison = compare_pii(texts, [peer(categories=("name", "card"), unmapped=("URL",))])
    assert comparison.compared == ()
    assert comparison.left_out == ("name", "phone", "other: URL")
    both = compare_pii(texts, [peer(Scored(5, 17, "phone", 0.4), categories=("phone",))])
    assert both.compared == ("phone",)
    assert [result.overall.met for result in both.results] == [1, 1]


def test_a_peer_is_measured_at_its_own_threshold_and_at_the_best_one_for_it():
    right, wrong = Scored(5, 17, "phone", 0.8), Scored(26, 38, "phone", 0.1)
    _, own, best = compare_pii([CALL], [peer(right, wrong)]).results
    assert (own.overall.findings, best.overall.findings) == (2, 1)
    assert "0.8" in best.note


def test_a_secret_is_met_by_a_finding_of_any_kind():
    texts = [LabelledText("1", "pw: aB3$xY9z", (LabelledSpan(4, 12, "password"),))]
    tool = Peer("other", "other 1.0", frozenset({"secret"}), lambda _: [Scored(4, 12, "secret", 1.0)])
    result = compare_secrets(texts, [tool]).results[1]
    assert result.overall == Tally(1, 1, 1, 1, 1)
    assert result.by_category["password"] == Tally(1, 1, 1, None, None)


def test_live_values_leave_every_span_where_it_was():
    for one, live in zip(CORPORA["pii"], with_live_values(CORPORA["pii"]), strict=True):
        assert len(one.text) == len(live.text)
        assert one.spans == live.spans
    assert any("192.3.2." in text.text for text in with_live_values(CORPORA["pii"]))


def test_every_place_of_a_value_is_found():
    assert places_of("ab ab", "ab") == [(0, 2), (3, 5)]


def test_blocks_are_of_the_size_asked_for():
    assert [len(block.encode()) for block in blocks_of(["ab", "c"], 10, 3)] == [10, 10, 10]
    assert all(KILOBYTE - 4 < len(block.encode()) <= KILOBYTE for block in blocks_of(TEXTS, KILOBYTE))


def test_speed_is_told_of_each_check_and_of_their_sum_beside_what_is_promised():
    sides = {"one": lambda passage: len(passage.text), "other": lambda passage: sorted(passage.text)}
    speed = measure_speed(sides, sizes=(1000, 10_000), rounds=1)
    assert list(speed.per_text) == [NEW, AGAIN, NOTHING, "pii", "secrets"]
    assert list(speed.per_text["pii"]) == ["one", "other", "all"]
    assert list(speed.per_kilobyte["one"]) == [1000, 10_000]
    told = speed.to_json()
    assert told["promised"] == {"kind": NEW, "median_ms": told["per_text_ms"][NEW]["all"], "bar_ms": 1.0}


def test_a_check_whose_time_grows_faster_than_its_text_is_named():
    def slow(passage):
        return [passage.text.count(passage.text[at:]) for at in range(0, len(passage.text), 10)]

    speed = measure_speed({"slow": slow, "fast": lambda passage: sorted(passage.text)}, sizes=(1000, 10_000), rounds=3)
    assert "slow" in speed.to_json()["not_linear"]
    factors = {"slow": 2.5, "fast": 1.5}  # timed ones jump about
    assert replace(speed, over_tenth=factors).to_json()["not_linear"] == ["slow"]


def test_speed_is_measured_on_many_replies_to_prompts_under_a_system_message():
    read = []
    measure_speed({"one": read.append}, sizes=(1000, 2000), rounds=2)
    assert {passage.stage for passage in read} == {Stage.OUTPUT}
    assert (
        len({passage.system for passage in read if passage.text.startswith("The lighthouse")}) == 3
    )  # and twice a new one
    assert KILOBYTE - 4 <= len(read[0].system.encode()) <= KILOBYTE
    replies = [text for text, _ in replies_and_prompts()]
    assert len(set(replies)) == len(replies) >= 20
    assert all(KILOBYTE - 4 <= len(text.encode()) <= KILOBYTE for text in replies)
    assert all(passage.prompt for passage in read)


def test_what_is_remembered_of_a_text_is_timed_apart():
    seen = set()

    def remembers(passage):
        for text in {passage.text, passage.system} - seen:
            seen.add(text)
            sum(range(20_000))

    per_text = measure_speed({"one": remembers}, sizes=(1000, 2000), rounds=3).per_text
    assert per_text[AGAIN]["all"] < per_text[NEW]["all"] / 5
    assert per_text[NOTHING]["all"] > per_text[NEW]["all"] * 1.3


def test_leakage_is_timed_where_it_has_something_to_compare():
    reply, prompt = replies_and_prompts()[0]
    sides = timed_checks()
    passage = Passage(Stage.OUTPUT, "assistant", f"{reply}\n{system_message()}", prompt, system_message())
    assert [finding.category for finding in sides["leakage"](passage)] == ["leak.system_prompt"]


def test_checks_with_weights_are_not_timed_here():
    assert {"normalise", "pii", "secrets", "hidden", "exfiltration"} <= set(timed_checks())
    assert "classifier" not in timed_checks()


def test_help_names_what_to_install_with_its_brackets():
    result = CliRunner().invoke(app, ["checks", "--help"], env={"COLUMNS": "200"})
    assert "pip install 'ringfence[peers]'" in result.output


def test_the_command_prints_figures_that_it_calls_in_sample():
    result = CliRunner().invoke(app, ["checks", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "in-sample" in found["note"]
    assert [one["corpus"].split(",")[0] for one in found["quality"]] == ["pii", "pii", "secrets"]
    assert found["quality"][0]["results"][0]["overall"]["f1"] > 0.85
    assert found["quality"][2]["results"][0]["overall"]["f1"] > 0.95
    assert found["missing"] == []
    assert found["speed"]["promised"]["bar_ms"] == 1.0
    assert found["speed"]["texts"][NEW] >= 20


# ---- what is fast, beside the slow twin that defines it

KNOWN = {region: phones._known_numbers(region) for region in ("US", "DE", "GB", "MX", "ZZ")}
NUMBER = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "", "+", "+1 ", "1-", "11", "1 1 ", "011 44 ", "00", "(", "(+49) ", "tel ", "0"]),
        st.one_of(
            st.from_regex(r"[2-9][0-9]{2}[ )./-]{0,2}[2-9][0-9]{2}[ .-]?[0-9]{4}", fullmatch=True),
            st.from_regex(r"310[ -]?[0-9]{4}", fullmatch=True),
            st.from_regex(r"[0-9]{2,6}([ ./-]{0,2}[0-9]{2,5}){1,4}", fullmatch=True),
        ),
        st.sampled_from(
            ["", "", " x12", " ext. 345", "#", "/31", " - 212 555 0187", "%", "€", "\u0663", "(2003)", ","]
        ),
    ),
)


def found_by(matcher):
    return [(match.start, match.end, match.raw_string, str(match.number)) for match in matcher]


def slow_twin(text, region):
    return PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=len(text) + 1)


@pytest.mark.parametrize("region", ["US", "DE", "GB", "MX", "ZZ"])
def test_asking_the_tables_less_often_loses_no_number_of_the_corpora(region):
    for text in TEXTS:
        fast = phones._Matcher(text, region, KNOWN[region])
        assert found_by(fast) == found_by(slow_twin(text, region)), text


@settings(max_examples=400)
@given(
    st.lists(st.one_of(NUMBER, st.text("0123456789 ()./+-x,a\n", max_size=12)), max_size=4).map(" ".join),
    st.sampled_from(list(KNOWN)),
)
def test_asking_the_tables_less_often_loses_no_number_of_any_text(text, region):
    assert found_by(phones._Matcher(text, region, KNOWN[region])) == found_by(slow_twin(text, region))


def test_the_tables_are_not_asked_of_digits_that_are_nobodys(monkeypatch):
    asked = []
    parse = phonenumbermatcher.parse

    def counted(number, *rest, **more):
        asked.append(number)
        return parse(number, *rest, **more)

    monkeypatch.setattr(phonenumbermatcher, "parse", counted)
    text = "case 4711 0815 2023, lot 123-45678, 2024-11-22 at 10:45, 58 0000 0000 4473 8739 56, call 212 555 0187"
    assert found_by(phones._Matcher(text, "US", KNOWN["US"])) == found_by(slow_twin(text, "US")) != []
    assert asked[0] == "212 555 0187"
    assert len(asked) > 10


HINTS = {
    "names": (identity.NAMES, identity.may_name),
    "passports": (identity.PASSPORT, identity.may_be_passport),
    "phones": (phones.NAMED, phones.may_name),
}


@pytest.mark.parametrize("words", HINTS)
@settings(max_examples=300)
@given(text=st.text("abcdeilnoprstuvy .:'AINS§éß\u017f\u0131\u212a", max_size=40) | st.sampled_from(TEXTS))
def test_looking_for_words_in_lower_case_first_loses_none(words, text):
    pattern, may_hold = HINTS[words]
    assert may_hold(text) or not pattern.search(text)


@pytest.mark.parametrize("document", identity.DOCUMENTS, ids=lambda document: document.cue[:20])
def test_every_name_of_a_document_is_seen_in_capitals_too(document):
    for name in re.sub(r"\(\?-i:|\(\?:|[()?\\*]|\[([^\]])[^\]]*\]", r"\1", document.cue).split("|"):
        for written in (name, name.upper(), name.title()):
            assert identity.may_name(written) or not identity.NAMES.search(written)
