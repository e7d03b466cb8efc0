"""From a path to labelled texts: reads rows, tells their format, takes what is labelled. Scores nothing."""

from dataclasses import dataclass
from pathlib import Path

from ringfence.guard.bench.files import read_path
from ringfence.guard.bench.formats import FORMATS, Format, Reading, Target, recognise
from ringfence.guard.classifier.rows import Row, RowError

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled text; a response has the prompt that it answers, `""` where that is not known."""

    text: str
    prompt: str | None
    label: int


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """What a path holds for one target.

    Attributes:
        name: of the file or folder.
        format: key of `FORMATS`.
        skipped: texts that have no label for the target, or that the set withholds.
    """

    name: str
    format: str
    items: tuple[Item, ...]
    skipped: int


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
    kept = tuple(item for item in items if item)
    if not kept:
        raise RowError(f"{path}: no row has a label that --target {target} needs; it was read as {key}")
    return LabelledSet(path.name, key, kept, len(items) - len(kept))


def told(path: Path, rows: list[tuple[str, Row]]) -> str:
    """Tell the format by the fields of all rows together: some sets leave out what was not annotated."""
    fields = dict.fromkeys(field for _, row in rows for field in row)
    found = recognise(fields, path.name)
    if len(found) == 1:
        return found[0]
    seen = f"{rows[0][0]}: rows with the fields {', '.join(list(fields)[:12])}"
    if found:
        raise RowError(f"{seen} could be {' or '.join(found)}; say which with --format")
    raise RowError(f"{seen} are of no format known; --format takes {', '.join(FORMATS)}")


def labelled(form: Format, reading: Reading, row: Row, where: str, target: Target) -> Item | None:
    """Take one text of a row, None where it is not labelled or withheld."""
    try:
        label = reading.label(row)
    except ValueError as error:
        raise RowError(f"{where}: {error}") from error
    if label is None:
        return None
    text = text_of(row, reading.text, where)
    if text in form.withheld:
        return None
    if reading.context and row.get(reading.context):
        text = f"{text_of(row, reading.context, where)}\n\n{text}"
    return Item(text, prompt_of(reading, row, where) if target == "response" else None, label)


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
