"""From the name of a corpus of our own to its texts and the stretches in them that a check should find. Scores nothing.

A row of `corpora/NAME.jsonl` is `{"id", "text", "spans": [[start, end, category], …]}`. Where it has a `cut`, the text
is stored with that mark set into it, and the spans count the text without: what only looks like a token then stops no
scanner of repositories.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ringfence.guard.classifier.rows import Row, RowError, read_rows

FOLDER = Path(__file__).parent / "corpora"


@dataclass(frozen=True, slots=True)
class LabelledSpan:
    """What a check should find: `[start, end)` in code points of the text."""

    start: int
    end: int
    category: str


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text of a corpus; `spans` are in order, do not overlap, and are empty where there is nothing to find."""

    id: str
    text: str
    spans: tuple[LabelledSpan, ...]


def load_corpus_of(name: str, folder: Path = FOLDER) -> list[LabelledText]:
    """Read a corpus by its name, such as `secrets`.

    Raises:
        RowError: there is no such corpus, or a row is not as it should be. The message names file and line.
    """
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise RowError(f"{folder}: no corpus is called {name}; there are {', '.join(names_in(folder)) or 'none'}")
    return [labelled_text(row, where) for where, row in read_rows(path)]


def names_in(folder: Path = FOLDER) -> list[str]:
    """Name the corpora of a folder."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def labelled_text(row: Row, where: str) -> LabelledText:
    """Put a row's text together and check that its spans lie in it, one after another."""
    text, spans = string_of(row, "text", where), row.get("spans")
    if "cut" in row:
        text = text.replace(string_of(row, "cut", where), "")
    if not isinstance(spans, list):
        raise RowError(f"{where}: spans must be a list of [start, end, category]")
    found = tuple(labelled_span(span, text, where) for span in spans)
    for one, other in pairwise(found):
        if one.end > other.start:
            raise RowError(f"{where}: spans must stand in order and not overlap, got {one} before {other}")
    return LabelledText(string_of(row, "id", where), text, found)


def labelled_span(span: Any, text: str, where: str) -> LabelledSpan:
    """Read one `[start, end, category]`."""
    match span:
        case [int(start), int(end), str(category)] if 0 <= start < end <= len(text) and category:
            return LabelledSpan(start, end, category)
    raise RowError(f"{where}: a span is [start, end, category] within the {len(text)} characters of text, got {span}")


def string_of(row: Row, key: str, where: str) -> str:
    """Return a field that must be there and hold something."""
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise RowError(f"{where}: {key} must be a string that is not empty, got {value!r}")
    return value
