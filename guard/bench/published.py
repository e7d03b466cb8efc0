"""What others have published of their guards, and where. Measures nothing; figures are as their sources print them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ringfence.guard.bench.formats import Target
from ringfence.guard.bench.run import Report

PUBLISHED = Path(__file__).parent / "published.yaml"

TOLERANCE = 0.1
"""A set whose size is further from the published one than this share of it is another set."""


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of one source, which may be compared with each other.

    Attributes:
        measure: what the figures are: f1, macro_f1, fpr, accuracy, auroc, recall_at_1_fpr; in per cent.
        by: who ran the models.
        columns: benchmarks; those that are keys of `FORMATS` can be measured here as well.
        rows: by model, a figure a column, None where the source has none.
    """

    target: Target
    measure: str
    source: str
    date: str
    by: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return one object, with a model's figures by benchmark."""
        rows = {model: dict(zip(self.columns, row, strict=True)) for model, row in self.rows.items()}
        names = ("target", "measure", "source", "date", "by", "note")
        return {**{name: getattr(self, name) for name in names}, "unit": "percent", "rows": rows}

    def narrowed(self, benchmarks: Collection[str]) -> "Table | None":
        """Return these columns alone, and the models that have a figure there; None where there is none."""
        kept = [at for at, column in enumerate(self.columns) if column in benchmarks]
        rows = {model: tuple(row[at] for at in kept) for model, row in self.rows.items()}
        rows = {model: row for model, row in rows.items() if any(figure is not None for figure in row)}
        columns = tuple(self.columns[at] for at in kept)
        if not rows:
            return None
        return Table(self.target, self.measure, self.source, self.date, self.by, columns, rows, self.note)


@dataclass(frozen=True, slots=True)
class Published:
    """The whole file.

    Attributes:
        titles: short names of benchmarks.
        rows: by benchmark, how many texts the published set has for a target; None where that is not known.
    """

    titles: Mapping[str, str]
    rows: Mapping[str, Mapping[str, int | None]]
    tables: tuple[Table, ...]

    def about(self, target: Target | None = None, benchmarks: Collection[str] | None = None) -> Iterator[Table]:
        """Yield the tables for a target, or all; of benchmarks, only the columns that are about them."""
        for table in self.tables:
            narrowed = table if benchmarks is None else table.narrowed(benchmarks)
            if narrowed and target in (None, table.target):
                yield narrowed

    def unlike(self, benchmark: str, target: Target, texts: int) -> str | None:
        """Say why so many texts cannot be that benchmark; None where they can."""
        rows = self.rows[benchmark].get(target)
        if rows is None or abs(texts - rows) <= TOLERANCE * rows:
            return None
        return f"{texts:,} texts here, {rows:,} in the published set: another selection is another benchmark"


def load_published(path: Path = PUBLISHED) -> Published:
    """Read the file of published figures."""
    found = yaml.safe_load(path.read_text())
    tables = [
        Table(**{**one, "columns": tuple(one["columns"]), "rows": rows_of(one["columns"], one["rows"])})
        for one in found["tables"]
    ]
    benchmarks = found["benchmarks"].items()
    titles = MappingProxyType({name: one["title"] for name, one in benchmarks})
    rows = MappingProxyType({name: one.get("rows", {}) for name, one in benchmarks})
    return Published(titles, rows, tuple(tables))


def rows_of(columns: list[str], rows: Mapping[str, list[float | None]]) -> Mapping[str, tuple[float | None, ...]]:
    """Check that every model has a figure or a null for each column."""
    for model, row in rows.items():
        if len(row) != len(columns):
            raise ValueError(f"{PUBLISHED.name}: {model} has {len(row)} figures for {len(columns)} benchmarks")
    return MappingProxyType({model: tuple(row) for model, row in rows.items()})


def ours(report: Report, measure: str) -> float | None:
    """Return our own figure of the kind a table has, in per cent; None where we have none of that kind."""
    found = report.measures
    negatives = found.n - found.positives
    alarms = round((found.fpr or 0) * negatives)
    right = round((found.recall or 0) * found.positives) + negatives - alarms
    kinds = {
        "f1": found.f1,
        "fpr": found.fpr,
        "auroc": found.auroc,
        "recall_at_1_fpr": found.recall_at_fpr["0.01"],
        "accuracy": right / found.n,
    }
    figure = kinds.get(measure)
    return None if figure is None else 100 * figure
