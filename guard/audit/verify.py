"""The proof that an audit log is as it was written. Reads only, and trusts nothing that the store says.

Everything it needs to know is one rule: `hash` is the sha256 of the bytes of `body`, and `body`, a JSON object, names
its own `seq` and, as `prev`, the hash of the record before it. Versions of a record may change the rest, not this.
"""

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ringfence.guard.audit.record import GENESIS, Receipt

# NOT INDEXED and CAST: the rows themselves, in their order on disk, as bytes, also where they are not UTF-8 or JSON.
ROWS = """SELECT seq, IFNULL(CAST(hash AS BLOB), x''), IFNULL(CAST(body AS BLOB), x'')
          FROM records NOT INDEXED ORDER BY seq"""


@dataclass(frozen=True, slots=True)
class Verified:
    """Every record is as it was written; `head` is the hash of the last one, which stands for all of them."""

    count: int
    head: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The chain holds up to the record before `seq`; `why` says what is wrong there."""

    seq: int
    why: str


class Unreadable(Exception):
    """There is no audit log to verify at the path; the message says why."""


def verify(path: str | Path, *, expect: Receipt | None = None) -> Verified | Broken:
    """Recompute the whole chain, one record in memory at a time.

    Args:
        expect: a receipt kept elsewhere; its record must still be in the chain. Without one, a chain whose last
            records were cut off, or that was rewritten from some record on, looks whole.

    Raises:
        Unreadable: no file there, not an SQLite file, or no table of records in it.
    """
    path = Path(path)
    if path.is_dir():
        raise Unreadable(f"{path}: a folder; name the audit log in it, an SQLite file")
    if not path.is_file():
        raise Unreadable(f"{path}: no such file")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute(f"EXPLAIN {ROWS}")  # fails where there is no such table, and reads no record yet
            return _walk(connection, expect)
    except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite quotes a damaged schema as it stands
        raise Unreadable(f"{path}: {error}; is this an audit log, in a folder that you may write to?") from None


def _walk(connection: sqlite3.Connection, expect: Receipt | None) -> Verified | Broken:
    last, head = 0, GENESIS
    try:
        for seq, digest, body in connection.execute(ROWS):
            if wrong := _wrong(seq, digest, body, last, head):
                return wrong
            last, head = seq, digest.decode()
            if expect is not None and seq == expect.seq and head != expect.hash:
                return Broken(seq, f"rewritten: the receipt names {_short(expect.hash)}, here stands {_short(head)}")
    except sqlite3.DatabaseError as error:
        return Broken(last + 1, f"cannot be read: {error}")
    if expect is not None and not 1 <= expect.seq <= last:
        return Broken(last + 1, f"cut off: the receipt names record {expect.seq}, the log ends after {last}")
    return Verified(last, head)


def _wrong(seq: int | None, digest: bytes, body: bytes, last: int, head: str) -> Broken | None:
    """Say what is wrong with the record that follows `last`; None where nothing is."""
    if seq is None:
        return Broken(last + 1, "it has no number: the table itself was changed")
    if seq > last + 1:
        return Broken(last + 1, f"missing: the next record is {seq}")
    if seq <= last:
        return Broken(seq, "out of place: records count up from 1")
    actual = hashlib.sha256(body).hexdigest()
    if actual.encode() != digest:
        beside = digest.decode(errors="replace")
        return Broken(seq, f"changed: its hash is {_short(actual)}, beside it stands {_short(beside)}")
    try:
        named = json.loads(body)
        place = (named["seq"], named["prev"])
    except (ValueError, LookupError, TypeError):
        return Broken(seq, "not a record, though its hash is right: written by something else")
    if place[0] != seq:
        return Broken(seq, f"moved: the record says that it is number {place[0]}")
    if place[1] != head:
        # This record is whole, so it was the one before that changed, together with its hash.
        return Broken(
            max(last, 1), f"rewritten: record {seq} follows {_short(str(place[1]))}, here stands {_short(head)}"
        )
    return None


def _short(digest: str) -> str:
    return f"{digest[:16]}…"
