"""The verifier: any change to any record is named by the first bad number, and a receipt shows what a chain cannot."""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.guard.audit.record import GENESIS, Receipt, seal
from ringfence.guard.audit.store import Store
from ringfence.guard.audit.verify import Broken, Unreadable, Verified, verify

COUNT = 12


def body(n):
    return {"id": f"id-{n}", "at": "2026-11-21T10:00:00.000000Z", "action": "allow", "model": "m", "said": "é☂😀" * n}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A log of a dozen records in one file, without SQLite's side files, and its receipts."""
    path = tmp_path_factory.mktemp("whole") / "log.db"
    store = Store.open(path)
    receipts = [store.append(body(n)) for n in range(1, COUNT + 1)]
    store.close()
    assert not path.with_name("log.db-wal").exists()
    return path, receipts


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copy(whole[0], tmp_path / "log.db")


@pytest.fixture
def receipts(whole):
    return whole[1]


def tamper(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement, *values in statements:
            connection.execute(statement, values)


def columns(path, seq):
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT CAST(hash AS BLOB), CAST(body AS BLOB) FROM records WHERE seq = ?"
        return dict(zip(("hash", "body"), connection.execute(query, (seq,)).fetchone(), strict=True))


def test_untouched_log_is_verified(path, receipts):
    assert verify(path) == Verified(COUNT, receipts[-1].hash)


def test_empty_log_is_verified(tmp_path):
    Store.open(tmp_path / "log.db").close()
    assert verify(tmp_path / "log.db") == Verified(0, GENESIS)


def test_log_that_is_being_written_is_verified(tmp_path):
    store = Store.open(tmp_path / "log.db")
    receipt = store.append(body(1))
    assert verify(tmp_path / "log.db") == Verified(1, receipt.hash)
    store.close()


@settings(max_examples=150)
@given(st.data())
def test_any_flipped_byte_of_any_record_names_that_record(whole, tmp_path_factory, data):
    path = shutil.copy(whole[0], tmp_path_factory.getbasetemp() / "flipped.db")
    seq, column = data.draw(st.integers(1, COUNT)), data.draw(st.sampled_from(["hash", "body"]))
    changed = bytearray(columns(path, seq)[column])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    tamper(path, (f"UPDATE records SET {column} = CAST(? AS TEXT) WHERE seq = ?", bytes(changed), seq))
    assert verify(path) == Broken(seq, verify(path).why)


@settings(max_examples=200)
@given(st.data())
def test_any_flipped_byte_of_the_file_is_noticed_or_changes_no_record(whole, tmp_path_factory, data):
    original = whole[0].read_bytes()
    path = tmp_path_factory.getbasetemp() / "flipped-file.db"
    changed = bytearray(original)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        verdict = verify(path)
    except Unreadable:
        return
    if isinstance(verdict, Verified):
        assert verdict == verify(whole[0])
        for seq in range(1, COUNT + 1):
            assert columns(path, seq) == columns(whole[0], seq)


def test_every_byte_of_a_record_on_disk_is_covered(whole, tmp_path):
    """Not drawn but all of them: each byte where the file holds the text of record 3."""
    original = whole[0].read_bytes()
    text = b"".join(columns(whole[0], 3).values())
    assert original.count(text) == 1
    for at in range(start := original.index(text), start + len(text)):
        changed = bytearray(original)
        changed[at] ^= 0x80
        (tmp_path / "flipped.db").write_bytes(changed)
        assert verify(tmp_path / "flipped.db").seq == 3


@pytest.mark.parametrize("seq", [1, 5, COUNT - 1])
def test_deleted_record_is_named(path, seq):
    tamper(path, ("DELETE FROM records WHERE seq = ?", seq))
    assert verify(path) == Broken(seq, f"missing: the next record is {seq + 1}")


def test_records_that_changed_places_are_named(path):
    renumber = "UPDATE records SET seq = ? WHERE seq = ?"
    tamper(path, (renumber, 99, 4), (renumber, 4, 7), (renumber, 7, 99))
    assert verify(path) == Broken(4, "moved: the record says that it is number 7")


def test_record_deleted_with_those_after_it_moved_up_is_named(path):
    tamper(path, ("DELETE FROM records WHERE seq = 5",), ("UPDATE records SET seq = seq - 1 WHERE seq > 5",))
    assert verify(path).seq == 5


def test_changed_number_is_named(path):
    tamper(path, ("UPDATE records SET seq = 400 WHERE seq = ?", COUNT))
    assert verify(path).seq == COUNT


@pytest.mark.parametrize("seq", [0, -3])
def test_record_put_in_before_the_first_is_named(path, seq):
    tamper(path, ("INSERT INTO records (seq, hash, body) VALUES (?, '', '{}')", seq))
    assert verify(path).seq == seq


def test_record_put_in_at_the_end_without_a_place_in_the_chain_is_named(path):
    tamper(path, ("INSERT INTO records (hash, body) SELECT hash, body FROM records WHERE seq = 3",))
    assert verify(path) == Broken(COUNT + 1, "moved: the record says that it is number 3")


def test_record_rewritten_together_with_its_hash_is_named(path):
    prev = columns(path, 4)["hash"].decode()
    forged = seal(body(5) | {"action": "block"}, 5, prev)
    tamper(path, ("UPDATE records SET hash = ?, body = ? WHERE seq = 5", forged.hash, forged.canonical.decode()))
    assert verify(path).seq == 5


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"', "{}", '{"seq":5}', "{"])
def test_what_is_no_record_is_named_also_when_its_hash_is_right(path, text):
    digest = hashlib.sha256(text.encode()).hexdigest()
    tamper(path, ("UPDATE records SET hash = ?, body = ? WHERE seq = 5", digest, text))
    assert verify(path).seq == 5


def test_every_receipt_is_found_in_an_untouched_log(path, receipts):
    assert {verify(path, expect=receipt) for receipt in receipts} == {Verified(COUNT, receipts[-1].hash)}


def test_cut_tail_looks_whole_but_a_receipt_shows_it(path, receipts):
    tamper(path, ("DELETE FROM records WHERE seq > 8",))
    assert verify(path) == Verified(8, receipts[7].hash)
    assert verify(path, expect=receipts[7]) == Verified(8, receipts[7].hash)
    assert verify(path, expect=receipts[-1]).seq == 9


def test_chain_rewritten_to_its_end_looks_whole_but_a_receipt_shows_it(path, receipts):
    prev = receipts[3].hash
    for seq in range(5, COUNT + 1):
        forged = seal(body(seq) | {"action": "block"}, seq, prev)
        prev = forged.hash
        row = forged.hash, forged.canonical.decode(), seq
        tamper(path, ("UPDATE records SET hash = ?, body = ? WHERE seq = ?", *row))
    assert verify(path) == Verified(COUNT, prev)
    assert verify(path, expect=receipts[3]).head == prev
    assert verify(path, expect=receipts[4]).seq == 5


def test_receipt_of_another_log_is_not_found(path, receipts):
    assert verify(path, expect=Receipt(2, receipts[2].hash)).seq == 2
    assert isinstance(verify(path, expect=Receipt(0, GENESIS)), Broken)


def test_verifier_agrees_with_a_chain_recomputed_from_the_records_alone(path, receipts):
    prev = GENESIS
    for seq in range(1, COUNT + 1):
        stored = json.loads(columns(path, seq)["body"])
        prev = seal({key: stored[key] for key in body(seq)}, seq, prev).hash
    assert verify(path).head == prev


def test_missing_file_is_unreadable(tmp_path):
    with pytest.raises(Unreadable, match="no such file"):
        verify(tmp_path / "log.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no database " * 500])
def test_file_without_records_is_unreadable(tmp_path, content):
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(Unreadable, match=r"log\.db"):
        verify(tmp_path / "log.db")


def test_table_whose_numbers_were_taken_away_is_broken(path):
    tamper(
        path,
        ("PRAGMA writable_schema = ON",),
        ("UPDATE sqlite_schema SET sql = replace(sql, 'INTEGER PRIMARY KEY', 'INTEGER') WHERE name = 'records'",),
    )
    assert verify(path).seq == 1
