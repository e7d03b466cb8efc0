"""The store: an unbroken chain by any number of writers, nothing lost, nothing twice, errors that say what to do."""

import io
import json
import multiprocessing
import resource
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Barrier

import pytest

from ringfence.guard.audit import store as store_module
from ringfence.guard.audit.record import GENESIS, seal
from ringfence.guard.audit.store import Store, StoreError
from ringfence.guard.audit.verify import Verified, verify


def body(name, **more):
    return {"id": name, "at": "2026-11-21T10:00:00.000000Z", "action": "allow", "model": "m"} | more


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.db"


@pytest.fixture
def store(path):
    store = Store.open(path, wait_s=0.01, spill=io.StringIO())
    yield store
    store.close()


@contextmanager
def another_writer(path):
    """Hold the file's write lock, as a stuck process would."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


@contextmanager
def full_disk(path):
    """Let no file of this process grow beyond what the log has reached: writes fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    grown = path.with_name(path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (grown, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def names(store):
    return [kept.body["id"] for kept in reversed(store.list(limit=10_000))]


def test_each_record_is_chained_to_the_one_before(store):
    first, second = store.append(body("a")), store.append(body("b"))
    assert first.hash == seal(body("a"), 1, GENESIS).hash
    assert second.hash == seal(body("b"), 2, first.hash).hash


def test_record_is_read_back_by_id_by_number_and_by_number_in_digits(store):
    receipt = store.append(body("a"))
    kept = store.get("a")
    assert kept == store.get(1) == store.get("1")
    assert kept.hash == receipt.hash
    assert kept.body == {**body("a"), "seq": 1, "prev": GENESIS, "version": 1}
    assert kept.json == {**kept.body, "hash": receipt.hash}
    assert store.get("b") is None
    assert store.get(2) is None


def test_list_is_newest_first_and_pages_by_number(store):
    for name in "abcde":
        store.append(body(name))
    assert [kept.seq for kept in store.list(limit=2)] == [5, 4]
    assert [kept.seq for kept in store.list(limit=2, before=4)] == [3, 2]


def test_list_finds_by_action_model_subject_and_time(store):
    store.append(body("a", action="block"))
    store.append(body("b", model="other"))
    store.append(body("c", subject={"tenant": "acme", "key": "k"}))
    store.append(body("d", at="2027-01-01T00:00:00.000000Z"))
    assert [kept.seq for kept in store.list(action="block")] == [1]
    assert [kept.seq for kept in store.list(model="other")] == [2]
    assert [kept.seq for kept in store.list(since="2026-12")] == [4]
    assert store.list(action="block", model="other") == []
    assert (store.count(), store.count("block"), store.count("allow")) == (4, 1, 3)


@pytest.mark.parametrize(
    ("asked", "found"),
    [("acme", [3, 2, 1]), ("acme/k", [2]), ("acme/", [1]), ("acme2", [4]), ("acm", []), ("acme/k2", [3]), ("a%", [])],
)
def test_subject_is_a_tenant_with_all_its_keys_or_one_key(store, path, asked, found):
    for subject in ("acme/", "acme/k", "acme/k2", "acme2/k"):
        tenant, key = subject.split("/")
        store.append(body(subject, subject={"tenant": tenant, "key": key}))
    assert [kept.seq for kept in store.list(subject=asked)] == found
    with sqlite3.connect(path) as connection:
        query = f"EXPLAIN QUERY PLAN SELECT seq FROM records WHERE {store_module.CONDITIONS['subject']}"
        assert "SCAN" not in str(connection.execute(query, {"subject": asked}).fetchall())


def test_every_searchable_column_has_an_index_that_is_used(store, path):
    with sqlite3.connect(path) as connection:
        for column in store_module.COLUMNS:
            query = f"EXPLAIN QUERY PLAN SELECT seq FROM records WHERE {column} = 'x' ORDER BY seq DESC"
            assert f"INDEX records_by_{column}" in str(connection.execute(query).fetchall())


def test_the_log_goes_on_after_it_was_closed(path):
    for name in "ab":
        store = Store.open(path)
        store.append(body(name))
        store.close()
    assert verify(path).count == 2


def test_threads_may_append_to_one_store(store, path):
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(store.append, (body(f"n{n}") for n in range(200))))
    assert sorted(receipt.seq for receipt in receipts) == list(range(1, 201))
    assert isinstance(verify(path), Verified)


def append_some(path, name, count):
    store = Store.open(path, wait_s=60)
    for n in range(count):
        store.append(body(f"{name}-{n}"))
    store.close()


def test_processes_may_create_and_append_to_one_file(path):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=append_some, args=(path, name, 40)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert verify(path).count == 160


def test_a_new_file_may_be_opened_by_many_at_the_same_moment(tmp_path):
    together = Barrier(8)

    def open_with_the_others(path):
        together.wait()
        Store.open(path, wait_s=60).close()

    with ThreadPoolExecutor(8) as pool:
        for n in range(100):
            list(pool.map(open_with_the_others, [tmp_path / f"{n}.db"] * 8))


def test_same_record_is_not_put_in_twice_and_keeps_its_receipt(store):
    first = store.append(body("a"))
    store.append(body("b"))
    assert store.append(body("a")) == first
    assert store.count() == 2


def test_other_content_under_the_same_id_is_a_record_of_its_own(store):
    store.append(body("a"))
    store.append(body("a", action="block"))
    assert [kept.body["action"] for kept in store.list()] == ["block", "allow"]


def test_locked_log_is_an_error_that_says_so_and_loses_nothing(store, path):
    store.append(body("a"))
    with another_writer(path):
        for name in "bc":
            with pytest.raises(StoreError, match=r"log\.db: cannot write: database is locked; another process.*waits"):
                store.append(body(name))
        with pytest.raises(StoreError, match="database is locked"):
            store.check_writable()
    store.append(body("d"))
    assert names(store) == list("abcd")
    assert verify(path).count == 4


def test_full_disk_is_an_error_that_says_so_and_loses_nothing(store, path):
    store.append(body("a"))
    with full_disk(path):
        with pytest.raises(StoreError, match=r"cannot write: .*free some space"):
            store.append(body("b", model="m" * 100_000))
        with pytest.raises(StoreError, match="free some space"):
            store.append(body("c"))
        assert names(store) == ["a"]
    store.append(body("d"))
    assert names(store) == list("abcd")
    assert verify(path).count == 4


def test_caller_that_tries_again_after_an_error_makes_no_second_record(store, path):
    with another_writer(path):
        for _ in range(3):
            with pytest.raises(StoreError, match=r"1 of 1000"):
                store.append(body("a"))
    assert store.append(body("a")).seq == 1
    assert store.count() == 1


def test_readiness_probe_lets_in_what_waits(store, path):
    with another_writer(path), pytest.raises(StoreError):
        store.append(body("a"))
    store.check_writable()
    assert names(store) == ["a"]


def test_closing_lets_in_what_waits(path):
    store = Store.open(path, wait_s=0.01)
    with another_writer(path), pytest.raises(StoreError):
        store.append(body("a"))
    store.close()
    assert verify(path).count == 1


def test_closing_a_log_that_cannot_be_written_spills_what_waits(path):
    store = Store.open(path, wait_s=0.01, spill=(spill := io.StringIO()))
    with another_writer(path):
        with pytest.raises(StoreError):
            store.append(body("a"))
        store.close()
    assert [json.loads(line) for line in spill.getvalue().splitlines()] == [body("a")]


def test_memory_is_bounded_and_what_it_cannot_hold_is_spilled_as_json_lines(path, monkeypatch):
    monkeypatch.setattr(store_module, "PENDING_LIMIT", 2)
    store = Store.open(path, wait_s=0, spill=(spill := io.StringIO()))
    with another_writer(path):
        for name in "abcd":
            with pytest.raises(StoreError):
                store.append(body(name))
    assert [json.loads(line)["id"] for line in spill.getvalue().splitlines()] == ["c", "d"]
    store.append(body("e"))
    assert names(store) == list("abe")
    store.close()


def test_body_that_is_not_json_is_refused_and_does_not_hold_up_others(store, path):
    with pytest.raises(ValueError, match="unsupported"):
        store.append(body("a", what=object()))
    with another_writer(path), pytest.raises(ValueError, match="unsupported"):
        store.append(body("a", what=object()))
    store.append(body("b"))
    assert names(store) == ["b"]


@pytest.mark.parametrize("put_in_its_place", [False, True])
def test_log_that_was_taken_away_takes_no_more_records_unnoticed(store, path, put_in_its_place):
    store.append(body("a"))
    path.rename(path.with_name("elsewhere.db"))
    if put_in_its_place:
        path.touch()
    with pytest.raises(StoreError, match="moved or deleted"):
        store.append(body("b"))
    with pytest.raises(StoreError, match="moved or deleted"):
        store.check_writable()


def test_changed_record_is_shown_as_changed_and_does_not_hide_the_others(store, path):
    for name in "abc":
        store.append(body(name))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET body = replace(body, 'allow', 'block') WHERE seq = 1")
        connection.execute("UPDATE records SET body = CAST(x'7bff' AS TEXT) WHERE seq = 2")
    third, second, first = store.list()
    assert third.body["id"] == "c"
    assert second.body is None
    assert second.raw == "{\ufffd"
    assert first.json["altered"]


def test_log_goes_on_after_its_last_record_was_damaged_and_the_damage_stays_visible(store, path):
    store.append(body("a"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET hash = CAST(x'ff' AS TEXT)")
    assert store.append(body("b")).seq == 2
    assert verify(path).seq == 1


CUT_OFF = "DELETE FROM records WHERE seq = 2"
REWRITTEN = "UPDATE records SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE seq = 2"


@pytest.mark.parametrize(("change", "following"), [(CUT_OFF, 2), (REWRITTEN, 3)])
def test_newest_record_that_somebody_took_is_told_of_once_and_the_log_goes_on(store, path, change, following, caplog):
    store.append(body("a"))
    receipt = store.append(body("b"))
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    assert store.append(body("c")).seq == following
    store.append(body("d"))
    [told] = caplog.records
    assert told.levelname == "ERROR"
    assert str(receipt) in told.message


def test_readiness_probe_sees_that_the_newest_record_was_taken(store, path, caplog):
    receipt = store.append(body("a"))
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM records")
    store.check_writable()
    assert str(receipt) in caplog.text


def test_record_of_another_process_is_no_news(store, path, caplog):
    store.append(body("a"))
    with closing(Store.open(path)) as other:
        other.append(body("b"))
    store.append(body("c"))
    assert names(store) == ["a", "b", "c"]
    assert not caplog.records


def test_only_the_owner_may_read_a_new_log(store, path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_reading_creates_no_log(path):
    with pytest.raises(StoreError, match="no such audit log"):
        Store.open(path, read_only=True)
    assert not path.exists()


def test_log_opened_for_reading_cannot_be_written(store, path):
    store.append(body("a"))
    reader = Store.open(path, read_only=True, spill=io.StringIO())
    assert names(reader) == ["a"]
    with pytest.raises(StoreError, match="readonly"):
        reader.append(body("b"))
    reader.close()


def test_newer_schema_is_refused_with_what_to_do(path):
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreError, match=r"log\.db: schema 2 of a newer ringfence.*upgrade"):
        Store.open(path)


def test_foreign_sqlite_file_is_refused_and_left_as_it_was(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not an audit log"):
        Store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", [lambda path: path.write_text("no database " * 100), lambda path: path.mkdir()])
def test_what_is_no_database_is_refused_by_name(path, make):
    make(path)
    with pytest.raises(StoreError, match=r"log\.db: "):
        Store.open(path)


def test_missing_folder_is_named(path):
    with pytest.raises(StoreError, match=r"nowhere/log\.db: cannot be opened.*folder"):
        Store.open(path.parent / "nowhere" / "log.db")


def test_path_with_characters_of_uris_is_opened_as_it_is_written(tmp_path):
    path = tmp_path / "a?b#c%20d.db"
    Store.open(path).close()
    assert path.is_file()
    assert verify(path).count == 0
