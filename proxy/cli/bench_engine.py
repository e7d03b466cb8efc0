"""`ringfence bench engine`: how fast the embedded engine is beside transformers and llama.cpp; what rounding loses."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringfence.model import weights

if TYPE_CHECKING:
    from ringfence.model.bench import Pace
    from ringfence.model.loading import Bits

READY_S = 5.0
"""Seconds from `serve` to ready, with weights in the cache."""

LLAMACPP = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install llama-cpp-python"
"""How to install it: built for this very processor, 0.3.36 crashes at the first token where that has AMX."""


def engine(
    name: Annotated[str, typer.Argument(help="A pulled checkpoint's name, or a folder.")] = weights.DEFAULT,
    bits: Annotated[
        int | None, typer.Option(help="In which weights are kept: 4, 8, 16 or 32.  [default: as they are served]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores for each side.")] = 2,
    gguf: Annotated[Path | None, typer.Option(help=f"The same weights for llama.cpp; needs `{LLAMACPP}`.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="A smaller engine with the same tokens, by name or folder, that guesses ahead.")
    ] = None,
    loss: Annotated[
        Path | None,
        typer.Option(
            help="Measure no speed, but what each form of the weights loses on the conversations of this file, one "
            '{"messages": […]} a line.'
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the embedded engine against others in the same run; takes a few minutes, and wants a quiet machine.

    Where something fails, what was measured until then is printed; exit status 2.
    """
    from ringfence.model.bench import measure_loss
    from ringfence.model.chat import TemplateRefused
    from ringfence.model.checkpoint import CheckpointDamaged, read_shape
    from ringfence.model.config import UnknownArchitecture
    from ringfence.model.conversations import ConversationsUnusable
    from ringfence.model.delta import DeltaDiffers
    from ringfence.model.loading import FORMS, choose, experts_of

    if bits not in (None, *FORMS):
        raise typer.BadParameter(f"weights are kept in {', '.join(map(str, FORMS))} bits, not {bits}")
    if loss and (gguf or draft):
        raise typer.BadParameter("--loss measures no speed; leave --gguf and --draft out")
    if gguf is not None and not gguf.is_file():
        raise typer.BadParameter(f"{gguf}: no such file")
    if gguf is not None and not find_spec("llama_cpp"):
        raise typer.BadParameter(f"--gguf needs llama.cpp; `{LLAMACPP}`")
    paces: list[Pace] = []
    try:
        path = Path(name) if Path(name).is_dir() else weights.locate(name)
        smaller = weights.locate(draft) if draft is not None else None
        bits = bits or choose(path, read_shape(path), experts_of(path))
        of_speed = measure_speed(path, bits, threads, gguf, smaller)
        for pace in measure_loss(path, loss, threads) if loss else of_speed:
            paces.append(pace)
    except (
        weights.WeightsMissing,
        weights.PullFailed,
        weights.WeightsDamaged,
        weights.NotEnoughMemory,
        CheckpointDamaged,
        ConversationsUnusable,
        DeltaDiffers,
        TemplateRefused,
        UnknownArchitecture,
        ImportError,
    ) as error:
        typer.secho(f"ringfence bench engine: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    finally:  # minutes of measuring are not lost to what came last
        if paces:
            show(paces, bits, threads, as_json)


def measure_speed(path: Path, bits: "Bits", threads: int, gguf: Path | None, draft: Path | None) -> Iterator["Pace"]:
    """Yield what is measured of the engine, and of a server that has it."""
    from ringfence.model.bench import Pace, measure_engine

    yield from measure_engine(path, bits, threads, gguf, draft)
    yield Pace("from `serve` to ready", "s", time_to_ready(path), "promised at most", READY_S)


def time_to_ready(path: Path) -> float:
    """Start a server with the shipped policy and a checkpoint; return the seconds until it says where it listens."""
    serve = ["serve", "--port", "0", "--upstream", f"embedded:{path.absolute()}", "--no-watch"]
    command = [sys.executable, "-c", "from ringfence.proxy.cli import main; main()", *serve]
    with TemporaryDirectory(prefix="ringfence-") as folder:
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - ours
            assert process.stderr is not None
            said = "".join(takewhile(lambda line: "http://" not in line, process.stderr))
            seconds = time.perf_counter() - started
            process.terminate()
            process.stderr.read()
        if process.returncode not in (0, -signal.SIGTERM):
            raise weights.WeightsDamaged(f"`ringfence serve` did not start:\n{said}")
    return seconds


def show(paces: Sequence["Pace"], bits: int | None, threads: int, as_json: bool) -> None:
    """Print measurements."""
    if as_json:
        typer.echo(json.dumps({"bits": bits, "threads": threads, "paces": [told(pace) for pace in paces]}))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "ours", "", "beside", "", "times", "promised"):
        table.add_column(heading, justify="left" if heading in ("", "beside") else "right")
    for pace in paces:
        table.add_row(*cells(pace))
    Console(highlight=False).print(table)


def told(pace: "Pace") -> dict[str, object]:
    """Return a measurement for machines."""
    return {**asdict(pace), "better": pace.better}


def cells(pace: "Pace") -> list[str | Text]:
    """Return a measurement for people."""
    theirs = "" if pace.theirs is None else number(pace.theirs)
    times = Text("" if pace.better is None else f"{pace.better:.2f}")
    if pace.bar is not None and pace.better is not None:
        times.stylize("green" if pace.better >= pace.bar else "red")
    promised = "" if pace.bar is None else f"≥ {pace.bar:g}"
    return [pace.what, number(pace.ours), pace.unit, pace.peer, theirs, times, promised]


def number(value: float) -> str:
    """Write a number with as many places as tell something."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.3f}"
