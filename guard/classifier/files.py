"""Reads rows out of the files that labelled texts come as, each with `FILE:line`. Knows not what a row must hold."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from ringfence.guard.classifier.rows import Row, RowError, cannot_read, read_rows

Rows = Iterator[tuple[str, Row]]

BETWEEN = re.compile(r"[\s,:\[\]]*")
"""What may stand between two objects of a JSON array, or of an object of arrays."""

COLON = re.compile(r"\s*:")

CONVERT = "pandas.read_parquet({0!r}).to_json({1!r}, orient='records', lines=True)"


def read_path(path: Path) -> Rows:
    """Yield the rows of a file, or of every readable file of a folder in the order of their names.

    Raises:
        RowError: there is nothing to read, or something that cannot be read; the message begins with `FILE:line`.
    """
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if kind(one) in READERS)
        if not files:
            columnar = next((one for one in sorted(path.iterdir()) if kind(one) == ".parquet"), None)
            raise unreadable(columnar) if columnar else RowError(f"{path}: no file in it ends in {KINDS}")
    elif kind(path) in READERS:
        files = [path]
    else:
        raise unreadable(path)
    for file in files:
        try:
            yield from READERS[kind(file)](file)
        except RecursionError as error:
            raise RowError(f"{file}: nested too deeply for rows") from error
        except zlib.error as error:  # of gzip, which turns all its other complaints into OSError
            raise RowError(f"{file}: {error}") from error


def kind(path: Path) -> str:
    """Return the ending that says what a file is; `.gz` says only how it is packed."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def unreadable(path: Path) -> RowError:
    """Say what to do with a file that nothing here reads."""
    if kind(path) == ".parquet":
        command = CONVERT.format(str(path), str(path.with_suffix(".jsonl")))
        return RowError(f"{path}: parquet is not read; convert it where pandas is installed: {command}")
    return RowError(f"{path}: the name must end in {KINDS}, with or without .gz")


def read_text(path: Path) -> str:
    """Read a whole file as UTF-8, unpacked."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise cannot_read(path, error) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"{path}:{raw.count(10, 0, error.start) + 1}: {error}; UTF-8 is expected") from error


def read_array(path: Path) -> Rows:
    """Read a JSON array of objects, or an object whose values are such arrays; or, misnamed, an object a line."""
    text = read_text(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data"):  # .json is a common name for files of an object a line
            yield from read_rows(path)
            return
        raise RowError(f"{path}:{error.lineno}: {error.msg}; an array of objects is expected") from error
    decode = json.JSONDecoder().raw_decode  # once more, member by member, as only this tells where they are
    start = len(text) - len(text.lstrip())
    if text[start] not in "[{":
        raise RowError(f"{path}:1: an array of objects is expected")
    keyed, at, line, counted = text[start] == "{", start + 1, 1, 0
    while (at := after(text, at)) < len(text) and text[at] != "}":
        value, end = decode(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if isinstance(value, dict):
            yield f"{path}:{line}", value
        elif not (keyed and isinstance(value, str) and COLON.match(text, end)):
            raise RowError(f"{path}:{line}: an array of objects is expected, got {type(value).__name__}")
        at = end


def after(text: str, at: int) -> int:
    """Return where the next member starts."""
    found = BETWEEN.match(text, at)
    return found.end() if found else at


def read_table(path: Path, delimiter: str) -> Rows:
    """Read rows under a line of names. An empty cell says nothing, as a missing one."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        names = reader.fieldnames or []
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise RowError(f"{path}:1: there are two columns called {twice[0]!r}")
        line = reader.line_num + 1
        for row in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if None in row:  # DictReader's key for cells beyond the last name
                raise RowError(f"{where}: {len(names)} cells are expected, as the first line has, got more")
            yield where, {name: cell or None for name, cell in row.items()}
    except csv.Error as error:
        raise RowError(f"{path}:{line}: {error}") from error


def read_yaml(path: Path) -> Rows:
    """Read a YAML list of mappings."""
    text = read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.SequenceNode):
            raise RowError(f"{path}:1: a list of mappings is expected")
        for member in node.value:
            where = f"{path}:{member.start_mark.line + 1}"
            try:
                row = loader.construct_document(member)
            except ValueError as error:  # of a date that there is not
                raise RowError(f"{where}: {error}") from error
            if not isinstance(row, dict):
                raise RowError(f"{where}: a mapping is expected, got {type(row).__name__}")
            yield where, {str(name): value for name, value in row.items()}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RowError(f"{path}:{line}: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RowError(f"{path}:{line}: {error.reason}") from error


READERS: Mapping[str, Callable[[Path], Rows]] = MappingProxyType(
    {
        ".jsonl": read_rows,
        ".json": read_array,
        ".csv": lambda path: read_table(path, ","),
        ".tsv": lambda path: read_table(path, "\t"),
        ".yaml": read_yaml,
        ".yml": read_yaml,
    }
)
KINDS = ", ".join(READERS)
