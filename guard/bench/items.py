"""From a path to labelled texts: reads rows, tells their format, takes what is labelled. Scores nothing."""

from dataclasses import dataclass, field
from pathlib import Path

from ringfence.guard.bench.formats import FORMATS, Format, Reading, Target, recognise
from ringfence.guard.classifier.files import READERS, kind, read_path
from ringfence.guard.classifier.rows import Row, RowError

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled text; a response has the prompt that it answers, `""` where that is not known.

    Attributes:
        where: `FILE:line` of its row.
    """

    text: str
    prompt: str | None
    label: int
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """What a path holds for one target.

    Attributes:
        name: of the file or folder.
        format: key of `FORMATS`.
        skipped: how many texts are not among the items: without a label for the target, withheld, or empty.
        empty: how many of these have a label and no text.
        files: names of the files read.
        unread: names of what else is in the folder.
    """

    name: str
    format: str
    items: tuple[Item, ...]
    skipped: int
    empty: int
    files: tuple[str, ...]
    unread: tuple[str, ...]


def read_set(path: Path, target: Target, form: str = AUTO) -> LabelledSet:
    """Read the texts of a file or a folder that are labelled for a target.

    Args:
        form: key of `FORMATS`, or `auto` to tell it by the fields that the rows have.

    Raises:
        RowError: nothing can be read, the format is not known, a row is not as it should be, or none is labelled. The
            message names file and line.
    """
    rows = list(read_path(path))
    if not rows:
        raise RowError(f"{path}:1: there are no rows")
    key = told(path, rows) if form == AUTO else form
    if key not in FORMATS:
        raise RowError(f"no format is called {key}; there are {', '.join(FORMATS)}")
    readings = FORMATS[key].readings.get(target)
    if not readings:
        raise RowError(
            f"{path}: {key} is not labelled for --target {target}, only for {', '.join(FORMATS[key].readings)}"
        )
    items = [labelled(FORMATS[key], reading, row, where, target) for where, row in rows for reading in readings]
    some = [item for item in items if item]
    if not some:
        raise RowError(f"{path}: no row has a label that --target {target} needs; it was read as {key}")
    kept = tuple(item for item in some if item.text.strip())
    if not kept:
        raise RowError(f"{path}: every row that has a label has an empty text; it was read as {key}")
    files = tuple(file.name for file in by_file(rows))
    return LabelledSet(path.name, key, kept, len(items) - len(kept), len(some) - len(kept), files, unread_of(path))


def told(path: Path, rows: list[tuple[str, Row]]) -> str:
    """Tell the format of a file, or the one that all files of a folder have."""
    found = {file: told_of(file, path, own) for file, own in by_file(rows).items()}
    alike = set(found.values())
    if len(alike) > 1:
        seen = ", ".join(f"{file.name} is {' or '.join(keys) or 'of no format known'}" for file, keys in found.items())
        raise RowError(f"{path}: its files differ: {seen}; give each with a --data of its own, or all one --format")
    (keys,) = alike
    if len(keys) == 1:
        return keys[0]
    fields = ", ".join(list(dict.fromkeys(field for _, row in rows for field in row))[:12])
    seen = f"{rows[0][0]}: rows with the fields {fields}"
    if keys:
        raise RowError(f"{seen} could be {' or '.join(keys)}; say which with --format")
    raise RowError(f"{seen} are of no format known; --format takes {', '.join(FORMATS)}")


def told_of(file: Path, path: Path, rows: list[Row]) -> tuple[str, ...]:
    """Return the formats that a file may have, by the fields of its rows together: some sets leave some out.

    The file's name tells between formats with the same fields, else that of the path it was found by.
    """
    fields = dict.fromkeys(field for row in rows for field in row)
    found = recognise(fields, file.name)
    return tuple(found if len(found) == 1 else recognise(fields, path.name))


def by_file(rows: list[tuple[str, Row]]) -> dict[Path, list[Row]]:
    """Return the rows of each file, which `FILE:line` names."""
    found: dict[Path, list[Row]] = {}
    for where, row in rows:
        found.setdefault(Path(where.rpartition(":")[0]), []).append(row)
    return found


def unread_of(path: Path) -> tuple[str, ...]:
    """Name what is in a folder and was not read, but for hidden files."""
    if not path.is_dir():
        return ()
    return tuple(sorted(one.name for one in path.iterdir() if kind(one) not in READERS and one.name[0] != "."))


def labelled(form: Format, reading: Reading, row: Row, where: str, target: Target) -> Item | None:
    """Take one text of a row, None where it is not labelled or withheld."""
    try:
        label = reading.label(row)
    except ValueError as error:
        raise RowError(f"{where}: {error}") from error
    if label is None:
        return None
    # Null, as an empty cell of a table is read, is an empty text; no field at all is a mistake.
    text = "" if row.get(reading.text, 0) is None else text_of(row, reading.text, where)
    if text in form.withheld:
        return None
    if text.strip() and reading.context and row.get(reading.context):
        text = f"{text_of(row, reading.context, where)}\n\n{text}"
    return Item(text, prompt_of(reading, row, where) if target == "response" else None, label, where)


def prompt_of(reading: Reading, row: Row, where: str) -> str:
    """Return the prompt of a response; `""` in sets that give none, or give it under one name or another."""
    if len(reading.prompt) == 1:
        return text_of(row, reading.prompt[0], where)
    return next((text_of(row, key, where) for key in reading.prompt if row.get(key) is not None), "")


def text_of(row: Row, key: str, where: str) -> str:
    """Return a string field, or say what is wrong with it."""
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError(f"{where}: {key} must be a string, got {'nothing' if value is None else type(value).__name__}")
    return value
