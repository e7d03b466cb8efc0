"""`ringfence bench`: measure, print a table, or JSON."""

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measure the guard on labelled data.")


class Target(StrEnum):
    """What the labels of a file say."""

    PROMPT = "prompt"
    RESPONSE = "response"
    ATTACK = "attack"


@app.callback()
def bench() -> None:
    """Measure parts of ringfence."""


@app.command()
def guard(
    data: Annotated[
        Path, typer.Option(help="Rows {text, response, prompt_label, response_label}, .jsonl or .jsonl.gz.")
    ],
    target: Annotated[Target, typer.Option(help="What the labels say: harm of prompts, of responses, or attacks.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Scores at or above it count as flagged.")] = 0.5,
    weights: Annotated[Path | None, typer.Option(help="Folder of weights; else the shipped ones.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the guard model: F1, precision, recall, false positives, calibration error, latency."""
    # Imported here: `ringfence --help` must not wait for scikit-learn.
    from ringfence.guard.bench import bench_guard, read_items
    from ringfence.guard.classifier.rows import RowError
    from ringfence.guard.classifier.scorer import Scorer, WeightsError

    try:
        items = list(read_items(data, target.value))
        scorer = Scorer.load(weights, remember=0)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            watched = progress.track(items, description=f"scoring {data.name}")
            report = bench_guard(scorer, watched, target.value, threshold).to_json()
    except (RowError, WeightsError) as error:
        typer.echo(f"ringfence bench guard: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(report))
    else:
        table = Table("measure", "value", title=f"{data.name}: {target}")
        for name, value in flat(report):
            # A dash: a set with one class cannot say.
            table.add_row(name, "–" if value is None else f"{value:.4g}")
        Console().print(table)


def flat(report: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield the numbers of a report, those inside an object named after it."""
    for key, value in report.items():
        if isinstance(value, Mapping):
            yield from ((f"{key} {name}", number) for name, number in value.items())
        else:
            yield key, value
