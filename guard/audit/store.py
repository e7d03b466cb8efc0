"""Where records are kept: one SQLite table that is only ever appended to, by any number of threads and processes.

Knows the chain's rule and nothing of what a record means. `verify` proves what stands here without this module.
"""

import hashlib
import json
import logging
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self, TextIO

from ringfence.guard.audit.record import GENESIS, Body, Receipt, seal

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
APPLICATION_ID = 0x52464E43  # "RFNC", so that neither we nor `file` take another SQLite file for an audit log
PENDING_LIMIT = 1000

# Everything one can search by is computed from `body`, so there is no second copy of a fact that could be changed
# behind the hash. json_valid: one damaged record must not stop the others from being listed.
COLUMNS = {
    "id": "json_extract(body, '$.id')",
    "at": "json_extract(body, '$.at')",
    "action": "json_extract(body, '$.action')",
    "model": "json_extract(body, '$.model')",
    "subject": "json_extract(body, '$.subject.tenant') || '/' || json_extract(body, '$.subject.key')",
}
SCHEMA = [
    "CREATE TABLE records (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, body TEXT NOT NULL, "
    + ", ".join(
        f"{name} TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN {source} END) VIRTUAL"
        for name, source in COLUMNS.items()
    )
    + ")",
    *(f"CREATE INDEX records_by_{name} ON records ({name})" for name in COLUMNS),
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
]
CONDITIONS = {
    "before": "seq < :before",
    "action": "action = :action",
    "model": "model = :model",
    # As text, '0' is what comes after '/': a range, unlike a pattern, is found by the index.
    "subject": "(subject = :subject OR subject >= :subject || '/' AND subject < :subject || '0')",
    "since": "at >= :since",
}
# As bytes: a changed record may not be UTF-8 any more.
SELECT = "SELECT seq, IFNULL(CAST(hash AS BLOB), x''), IFNULL(CAST(body AS BLOB), x'') FROM records"
HEAD = "SELECT seq, IFNULL(CAST(hash AS BLOB), x'') FROM records ORDER BY seq DESC LIMIT 1"
THERE = "SELECT 1 FROM records WHERE seq = ? AND IFNULL(CAST(hash AS BLOB), x'') = ?"


class StoreError(Exception):
    """The log cannot be opened, read or written; the message says what and what to do. No record is lost by it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One record as it is read back.

    Attributes:
        body: None where the stored text does not have the hash beside it: somebody changed one of the two.
        raw: the stored text, with U+FFFD for bytes that are not UTF-8.
    """

    seq: int
    hash: str
    body: Body | None
    raw: str

    @property
    def json(self) -> Body:
        """The record with its hash, or what is left of it, for machines."""
        if self.body is None:
            return {"seq": self.seq, "hash": self.hash, "altered": True, "raw": self.raw}
        return {**self.body, "hash": self.hash}


class Store:
    """An open audit log. Thread-safe; several processes may have the same file open."""

    @classmethod
    def open(
        cls, path: str | Path, *, read_only: bool = False, wait_s: float = 5.0, spill: TextIO | None = None
    ) -> Self:
        """Open the log, and create it where there is none.

        Args:
            read_only: create nothing, write nothing.
            wait_s: seconds to wait for another process that is writing.
            spill: where records go, one JSON line each, that can be kept neither on disk nor in memory; None for
                standard error.

        Raises:
            StoreError: the file cannot be opened, is not an audit log, or was written by a newer version.
        """
        path = Path(path).absolute()
        if path.is_dir():
            raise StoreError(f"{path}: a folder; name the audit log in it, an SQLite file")
        if read_only and not path.is_file():
            raise StoreError(f"{path}: no such audit log; check the path, or let `ringfence serve` create it")
        try:
            if not read_only:
                path.touch(mode=0o600)  # texts of other people: for the owner only; SQLite's side files follow suit
            connection = sqlite3.connect(
                f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}",
                uri=True,
                timeout=wait_s,
                isolation_level=None,  # transactions are written out, below
                check_same_thread=False,  # `_lock` does that
            )
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{path}: cannot be opened: {error}; check that its folder exists and permits it"
            ) from None
        try:
            _prepare(connection, read_only=read_only, wait_s=wait_s)
        except (sqlite3.Error, UnicodeDecodeError, StoreError) as error:  # SQLite quotes a damaged schema as it is
            connection.close()
            raise StoreError(f"{path}: {_explained(error)}") from None
        return cls(path, connection, spill or sys.stderr)

    def __init__(self, path: Path, connection: sqlite3.Connection, spill: TextIO) -> None:
        self.path = path
        self._connection = connection
        self._spill = spill
        self._lock = Lock()
        self._pending: deque[Body] = deque()
        self._inode = path.stat().st_ino
        self._head: tuple[int, bytes] | None = None  # number and hash of the newest record after the last write

    def append(self, body: Body) -> Receipt:
        """Put a record at the end of the chain, on disk, and return its receipt.

        A body that is in the log already is not put there twice: the receipt it has is returned.

        Raises:
            StoreError: the log could not be written. The record is kept in memory and goes in, before any other, with
                the next append that succeeds; where memory is full too, it is written to the spill as one JSON line.
            ValueError: the body is not JSON.
        """
        with self._lock:
            try:
                with self._writing():
                    *_, receipt = [self._insert(waiting) for waiting in (*self._pending, body)]
            except (sqlite3.Error, StoreError) as error:
                place = self._keep(body)
                raise StoreError(f"{self.path}: cannot write: {_explained(error)}. {place}") from error
            self._pending.clear()
            return receipt

    def check_writable(self) -> None:
        """Write to the log without adding to it, and let in what waits in memory; for a readiness probe.

        Raises:
            StoreError: the log cannot be written.
        """
        with self._lock:
            try:
                with self._writing():
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # dirties a page: a true write
                    for waiting in self._pending:
                        self._insert(waiting)
            except (sqlite3.Error, StoreError) as error:
                raise StoreError(f"{self.path}: cannot write: {_explained(error)}") from error
            self._pending.clear()

    def get(self, key: str | int) -> Kept | None:
        """Return one record by exchange id or by sequence number, also in digits; None where there is none."""
        if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 19:  # an id has 26 characters
            key = int(key)
        column = "seq" if isinstance(key, int) else "id"
        rows = self._read(f"{SELECT} WHERE {column} = ? ORDER BY seq LIMIT 1", (key,))
        return _kept(*rows[0]) if rows else None

    def list(
        self,
        *,
        limit: int = 50,
        before: int | None = None,
        action: str | None = None,
        model: str | None = None,
        subject: str | None = None,
        since: str | None = None,
    ) -> Sequence[Kept]:
        """Return records, newest first.

        Args:
            before: only those with a smaller sequence number; the last one's of a page asks for the next page.
            action: only those whose strongest action this is.
            subject: `tenant` for all of its keys, or `tenant/key`.
            since: only those received at or after this time, `2026-11-21T00:00:00Z` or a beginning of that.
        """
        asked = {"before": before, "action": action, "model": model, "subject": subject, "since": since}
        given = {name: value for name, value in asked.items() if value is not None}
        where = " AND ".join(CONDITIONS[name] for name in given) or "1"
        query = f"{SELECT} WHERE {where} ORDER BY seq DESC LIMIT :limit"
        return [_kept(*row) for row in self._read(query, {**given, "limit": limit})]

    def count(self, action: str | None = None) -> int:
        """Return how many records there are, in all or with this strongest action."""
        if action is None:
            [(count,)] = self._read("SELECT count(*) FROM records", ())
        else:
            [(count,)] = self._read("SELECT count(*) FROM records WHERE action = ?", (action,))
        return int(count)

    def close(self) -> None:
        """Let in what waits in memory, or spill it, and close the file."""
        try:
            if self._pending:
                self.check_writable()
        except StoreError:
            for body in self._pending:
                self._spill_out(body)
        finally:
            self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction that sees the end of the chain and lets no other process add to it meanwhile."""
        # Deleted or moved, the file would go on taking records that nobody will ever see.
        try:
            inode = self.path.stat().st_ino
        except OSError:
            inode = None
        if inode != self._inode:
            raise StoreError("the file was moved or deleted while open; put it back, or restart to begin a new one")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._look_back()
            yield
            head = self._connection.execute(HEAD).fetchone()
            self._connection.execute("COMMIT")
            self._head = head
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _look_back(self) -> None:
        """Say loudly where the record that was the newest after the last write is not there any more as it was.

        The chain cannot show that its end was cut off. Records after that one are no news: other processes add some.
        """
        if self._head and not self._connection.execute(THERE, self._head).fetchone():
            seq, digest = self._head
            log.error(
                "%s: somebody changed the audit log: the newest record after the last write, %d:%s, is gone or another "
                "now; new records follow what is left",
                *(self.path, seq, digest.decode(errors="replace")),
            )

    def _insert(self, body: Body) -> Receipt:
        for row in self._connection.execute(f"{SELECT} WHERE id = ?", (_text(body.get("id")),)):
            there = _kept(*row)
            if there.body is not None and seal(body, there.seq, str(there.body.get("prev"))).hash == there.hash:
                return Receipt(there.seq, there.hash)
        last = self._connection.execute(HEAD).fetchone()
        seq, prev = (last[0], last[1].decode(errors="replace")) if last else (0, GENESIS)
        sealed = seal(body, seq + 1, prev)
        row = (sealed.seq, sealed.hash, sealed.canonical.decode())
        self._connection.execute("INSERT INTO records (seq, hash, body) VALUES (?, ?, ?)", row)
        return Receipt(sealed.seq, sealed.hash)

    def _keep(self, body: Body) -> str:
        """Hold a record that could not be written; return where, for the message."""
        seal(body, 0, GENESIS)  # raises on what could never be written, and would hold up all that come after it
        if body not in self._pending:  # the caller may try again
            if len(self._pending) >= PENDING_LIMIT:
                self._spill_out(body)
                return "Memory is full as well: the record went to standard error as one JSON line."
            self._pending.append(body)
        return f"The record waits in memory ({len(self._pending)} of {PENDING_LIMIT}) for the next write."

    def _spill_out(self, body: Body) -> None:
        print(json.dumps(body), file=self._spill, flush=True)

    def _read(self, query: str, values: Sequence[str | int] | Mapping[str, str | int]) -> Sequence[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except (OverflowError, UnicodeError) as error:
            raise StoreError(f"{self.path}: nothing can be found by {values!r}: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot be read: {error}; `ringfence audit verify` says where") from error


def _prepare(connection: sqlite3.Connection, *, read_only: bool, wait_s: float) -> None:
    """Make sure that the file is ours, write the schema where it is empty, and set the connection up."""

    def is_empty() -> bool:
        return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None

    if read_only or not is_empty():
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise StoreError("this SQLite file is not an audit log; name another path")
        if version > SCHEMA_VERSION:
            raise StoreError(f"schema {version} of a newer ringfence, this one knows {SCHEMA_VERSION}; upgrade it")
    if read_only:
        return
    _use_wal(connection, wait_s)
    # A receipt is a promise. FULL syncs every commit, so that a power cut cannot take back a record whose receipt is
    # already with the caller; NORMAL is faster, and can.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    if is_empty():  # asked again: of several processes that start together, one writes the schema
        for statement in SCHEMA:
            connection.execute(statement)
    connection.execute("COMMIT")


def _use_wal(connection: sqlite3.Connection, wait_s: float) -> None:
    """Switch to the journal under which readers and the writer do not wait for each other.

    SQLite does not wait at this statement, whatever the timeout: it is refused at once while another process makes the
    same switch, or is the last to close the file.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _kept(seq: int, digest: bytes, raw: bytes) -> Kept:
    body = None
    if hashlib.sha256(raw).hexdigest().encode() == digest:
        with suppress(ValueError):
            body = json.loads(raw)
    if not isinstance(body, dict):
        body = None
    return Kept(seq, digest.decode(errors="replace"), body, raw.decode(errors="replace"))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _explained(error: Exception) -> str:
    """Say what is wrong and what to do about it; SQLite's own words name the first only."""
    remedies = {
        "database or disk is full": "free some space",
        "disk I/O error": "free some space, or check the disk",
        "attempt to write a readonly database": "make the file and its folder writable",
        "database is locked": "another process has been writing for too long; end it",
    }
    return f"{error}; {remedies[str(error)]}" if str(error) in remedies else str(error)
