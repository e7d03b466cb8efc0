"""`ringfence audit`: what it prints and the exit status that scripts go by."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ringfence.guard.audit.record import record_of
from ringfence.guard.audit.rows import rows_of
from ringfence.guard.audit.store import Store
from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part, Subject
from ringfence.policies.types import Action, Decision, Finding, Span, Stage
from ringfence.proxy.cli.audit import app
from ringfence.proxy.review.visible import visible_json

WHERE = ("messages", 0, "content")


def exchange(text, action=Action.ALLOW, rules=()):
    finding = Finding("classifier", "harm.S2", 0.875, (Span(0, 0, 4),), "sounds like fraud")
    return Exchange(
        "openai.chat",
        "small",
        [Part(Kind.TEXT, "user", WHERE, text)],
        subject=Subject("acme", "key-7"),
        coverage=[Coverage("messages[0].content", Judged.JUDGED)],
        decisions=[Decision(Stage.INPUT, action, rules=rules, findings=(finding,))],
    )


@pytest.fixture
def db(tmp_path):
    path = tmp_path / "log.db"
    store = Store.open(path)
    for text, *verdict in (("good morning",), ("rob a bank", Action.BLOCK, ("no-fraud",)), ("\x1b[2Jbye",)):
        store.append(record_of(exchange(text, *verdict), text="masked"))
    store.close()
    return path


def run(*words, charset="utf-8"):
    return CliRunner(charset=charset).invoke(app, [str(word) for word in words])


def receipts(db):
    with sqlite3.connect(db) as connection:
        return [f"{seq}:{digest}" for seq, digest in connection.execute("SELECT seq, hash FROM records")]


def test_list_shows_a_record_a_line_newest_first(db):
    lines = run("list", "--db", db).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["3", "2", "1"]
    assert lines[2].split()[4:] == ["block", "no-fraud", "small", "acme/key-7"]
    assert lines[-1].startswith("3 of 3 records")


def test_list_takes_the_action_and_the_number_to_go_on_from(db):
    assert [row["seq"] for row in rows("list", "--action", "block", "--db", db)] == [2]
    assert [row["seq"] for row in rows("list", "--before", 3, "--limit", 1, "--db", db)] == [2]
    assert rows("list", "--since", "2100-01-01", "--db", db) == []
    assert len(rows("list", "--subject", "acme/key-7", "--model", "small", "--db", db)) == 3


@pytest.mark.parametrize("subject", [Subject(), Subject("acme"), Subject("acme", "key-8")])
def test_what_the_column_of_subjects_prints_finds_the_record(db, subject):
    one = exchange("hello")
    one.subject = subject
    with closing(Store.open(db)) as store:
        store.append(record_of(one, text="masked"))
    printed = run("list", "--db", db).stdout.splitlines()[1].split()[-1]
    assert rows("list", "--subject", printed, "--db", db)[0]["seq"] == 4


@pytest.mark.parametrize(("since", "found"), [("5m", 1), ("30d", 2), ("2001-01-01", 3), ("1999-12-31T23:00-02:00", 3)])
def test_list_takes_the_times_that_diff_takes(tmp_path, since, found):
    path, now = tmp_path / "times.db", datetime.now(UTC)
    with closing(Store.open(path)) as store:
        for at in (datetime(2010, 1, 1, tzinfo=UTC), now - timedelta(days=1), now):
            one = exchange("hello")
            one.received_at = at
            store.append(record_of(one, text="masked"))
    assert len(rows("list", "--since", since, "--db", path)) == found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--since", "yesterday"), "write 7d, 24h, 30m, or a date"),
        (("--since", ""), "write 7d, 24h, 30m, or a date"),
        (("--before", "2026-11-21"), "'2026-11-21' is no record's number"),
    ],
)
def test_time_or_number_that_is_none_is_told_what_one_looks_like(db, words, says):
    done = run("list", *words, "--db", db)
    assert done.exit_code == 2
    assert says in done.stderr


def rows(*words):
    return [json.loads(line) for line in run(*words, "--json").stdout.splitlines()]


def test_path_of_the_log_can_come_from_the_environment(db, monkeypatch):
    monkeypatch.setenv("RINGFENCE_AUDIT_PATH", str(db))
    assert len(rows("list")) == 3


def test_show_tells_the_whole_story_of_a_record(db):
    shown = run("show", 2, "--db", db)
    assert shown.exit_code == 0
    for piece in ("rob a bank", "block", "no-fraud", "acme/key-7", "judged", "0.875", "harm.S2", "sounds like fraud"):
        assert piece in shown.stdout


def test_show_takes_an_id_as_well_and_prints_json(db):
    [record] = rows("show", 2, "--db", db)
    assert rows("show", record["id"], "--db", db) == [record]
    assert f"2:{record['hash']}" == receipts(db)[1]


@pytest.mark.parametrize("words", [("show", "3"), ("list",)])
def test_text_of_a_record_cannot_drive_the_terminal(db, words):
    assert "\x1b" not in run(*words, "--db", db).stdout
    assert "\\u001b[2Jbye" in run("show", 3, "--db", db).stdout


def test_verify_says_whole_and_names_the_head(db):
    verified = run("verify", "--db", db)
    assert verified.exit_code == 0
    assert "3 records" in verified.stdout
    assert receipts(db)[-1] in verified.stdout


def test_verify_finds_a_receipt(db):
    assert run("verify", "--db", db, "--expect", receipts(db)[0]).exit_code == 0


def test_verify_of_a_broken_log_names_the_first_bad_record(db):
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE records SET body = replace(body, 'bank', 'tank') WHERE seq = 2")
    broken = run("verify", "--db", db)
    assert broken.exit_code == 1
    assert "broken at record 2" in broken.stdout
    [verdict] = rows("verify", "--db", db)
    assert (verdict["whole"], verdict["seq"]) == (False, 2)
    assert "altered" in run("list", "--db", db).stdout
    assert run("show", 2, "--db", db).exit_code == run("show", 2, "--json", "--db", db).exit_code == 1


def test_verify_of_a_log_whose_end_was_cut_off_fails_on_the_receipt(db):
    last = receipts(db)[-1]
    with sqlite3.connect(db) as connection:
        connection.execute("DELETE FROM records WHERE seq = 3")
    assert run("verify", "--db", db).exit_code == 0
    assert run("verify", "--db", db, "--expect", last).exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--db", "nowhere.db"),
        ("list", "--db", "nowhere.db"),
        ("show", "1", "--db", "nowhere.db"),
        ("list", "--action", "explode"),
        ("list", "--limit", "0"),
    ],
)
def test_bad_input_ends_with_status_2_and_creates_nothing(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("verify", "--expect", "12"), ("show", "nobody"), ("show", "99")])
def test_what_is_not_there_ends_with_status_2(db, words):
    result = run(*words, "--db", db)
    assert result.exit_code == 2
    assert words[-1] in result.stderr


def test_kept_texts_become_rows_to_label(db):
    found = [json.loads(line) for line in run("rows", "--db", db).stdout.splitlines()]
    assert [(row["record"], row["text"], row["action"]) for row in found] == [
        (3, "\x1b[2Jbye", "allow"),
        (2, "rob a bank", "block"),
        (1, "good morning", "allow"),
    ]
    assert found[0]["scores"] == {"input:harm.S2": 0.875}
    assert {row[name] for row in found for name in ("response", "prompt_label", "response_label")} == {None}


@pytest.fixture
def talk(tmp_path):
    """Five records, the newest last: one thing said three times, to two answers."""
    path = tmp_path / "talk.db"
    store = Store.open(path)
    for text, answer in (
        ("hé 你好", "a"),
        ("hé 你好", "b"),
        ("x\x9b\u202e\u2028", None),
        ("hé 你好", "a"),
        ("last", None),
    ):
        one = exchange(text)
        if answer:
            one.reply = [Part(Kind.TEXT, "assistant", WHERE, answer)]
        store.append(record_of(one, text="full"))
    store.close()
    return path


def test_what_was_said_several_times_is_one_row_of_its_newest_record(talk):
    done = run("rows", "--db", talk)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["record"], row["times"], row["text"], row["response"]) for row in found] == [
        (5, 1, "last", None),
        (4, 2, "hé 你好", "a"),
        (3, 1, "x\x9b\u202e\u2028", None),
        (2, 1, "hé 你好", "b"),
    ]
    assert done.stderr == ""


def test_rows_are_readable_and_cannot_drive_a_terminal(talk):
    lines = run("rows", "--db", talk).stdout.splitlines()
    assert '"text": "hé 你好"' in lines[1]
    assert r'"text": "x\u009b\u202e\u2028"' in lines[2]


def test_rows_for_a_terminal_of_another_encoding_are_ascii(talk):
    done = run("rows", "--db", talk, charset="latin-1")
    assert done.stdout_bytes.isascii()
    assert json.loads(done.stdout.splitlines()[1])["text"] == "hé 你好"


def test_rows_beyond_the_limit_are_counted_on_standard_error(talk, db):
    done = run("rows", "--db", talk, "--limit", 2)
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == "3 older records are left out; --limit 5 takes them too\n"
    assert run("rows", "--db", db, "--limit", 1, "--action", "block").stderr == ""


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_readable_json_is_the_same_json(value):
    line = visible_json(value)
    assert json.loads(line) == value
    assert len(line.splitlines()) == 1


def test_lone_surrogate_is_escaped():
    assert visible_json("a\ud800\U000e0001") == r'"a\ud800\udb40\udc01"'


def test_each_answer_is_a_row_and_texts_that_were_not_kept_are_none(tmp_path):
    one, two = exchange("tell me"), exchange("hush")
    one.reply = [Part(Kind.TEXT, "assistant", WHERE, text) for text in ("first", "second")]
    one.coverage = [Coverage("messages[0].content", Judged.JUDGED)]
    assert [(row["text"], row["response"]) for row in rows_of({**record_of(one, text="full"), "seq": 1})] == [
        ("tell me", "first"),
        ("tell me", "second"),
    ]
    assert list(rows_of({**record_of(two, text="none"), "seq": 2})) == []


def test_texts_that_are_apart_have_a_row_and_scores_each():
    one = exchange("fine")
    one.apart, one.request = (
        True,
        [Part(Kind.TEXT, "user", ("input", at), text) for at, text in enumerate(("fine", "bad"))],
    )
    one.coverage = [Coverage(part.where, Judged.JUDGED) for part in one.request]
    found = (Finding("a", "harm", 0.9, (Span(1, 0, 3),)), Finding("b", "count", 0.2))
    one.decisions = [Decision(Stage.INPUT, Action.BLOCK, rules=("a",), findings=found)]
    rows = rows_of({**record_of(one, text="full"), "seq": 1})
    assert [(row["text"], row["scores"]) for row in rows] == [
        ("fine", {"input:count": 0.2}),
        ("bad", {"input:harm": 0.9, "input:count": 0.2}),
    ]


def test_an_answer_is_never_paired_with_a_question_that_it_does_not_answer():
    one = exchange("hello")
    one.request = [Part(Kind.TEXT, "user", WHERE, "hello"), Part(Kind.TEXT, "user", ("messages", 1, "content"), "bad")]
    one.reply = [Part(Kind.REASONING, "assistant", WHERE, "hm"), Part(Kind.TEXT, "assistant", WHERE, "no")]
    whole = {**record_of(one, text="full"), "seq": 1}
    assert [(row["text"], row["response"]) for row in rows_of(whole)] == [("bad", "no")]
    withheld = {**record_of(one, text="masked"), "seq": 1}  # the second message was not judged, so it is not kept
    assert list(rows_of(withheld)) == []
