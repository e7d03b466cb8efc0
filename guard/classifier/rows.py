"""Reads files of labelled texts, one JSON object a line, compressed or not. Knows nothing of what a row must hold."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


class RowError(ValueError):
    """A file or a line cannot be read; the message begins with `FILE:line`."""


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row of a `.jsonl` or `.jsonl.gz` file with `FILE:line`; empty lines are passed over.

    Raises:
        RowError: the file cannot be read, or a line is not one JSON object in UTF-8.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield where, parse(line, where)
    except (OSError, EOFError, zlib.error) as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: Exception) -> RowError:
    """Say why a file cannot be read: in the system's words, which name no file, where the system says it."""
    return RowError(f"{path}: cannot read the file: {getattr(error, 'strerror', None) or error}")


def exchange_of(row: Row, where: str) -> tuple[str, str | None]:
    """Read `text` and the `response` to it, None where there is none.

    Raises:
        RowError: they are something else.
    """
    text, response = row.get("text"), row.get("response")
    if not isinstance(text, str) or not (response is None or isinstance(response, str)):
        raise RowError(f"{where}: text must be a string, response a string or null")
    return text, response


def zero_or_one(row: Row, key: str) -> int | None:
    """Read a label: 0, 1 or null, or, where a file holds strings only, "0", "1" or nothing.

    Raises:
        ValueError: it is something else.
    """
    value = row.get(key)
    if isinstance(value, str):
        value = {"": None, "0": 0, "1": 1}.get(value, value)
    if value is not None and (isinstance(value, bool) or value not in (0, 1)):
        raise ValueError(f"{key} must be 0, 1 or null, got {value!r}")
    return None if value is None else int(value)


def parse(line: bytes, where: str) -> Row:
    """Read one object."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 alike, and brackets without end
        raise RowError(f"{where}: {error}; one JSON object a line is expected, in UTF-8") from error
    if not isinstance(row, dict):
        raise RowError(f"{where}: one JSON object a line is expected, got {type(row).__name__}")
    return row
