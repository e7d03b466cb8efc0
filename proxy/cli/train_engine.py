"""`ringfence train engine`: teach the embedded engine's experts, and say while it goes on how far it is."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringfence.model import weights

if TYPE_CHECKING:
    from ringfence.model.train import Step

EVERY = 10.0
"""Seconds between two lines of progress."""


class Device(StrEnum):
    """Where to train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def engine(
    pool: Annotated[Path, typer.Option(help="Folder of conversations: chat/NAME.jsonl.gz.")],
    out: Annotated[Path, typer.Option(help="File for what was learnt; a report goes beside it.")] = Path(
        "runs/engine/delta.safetensors"
    ),
    work: Annotated[Path, typer.Option(help="Where the checkpoint is kept.")] = Path("runs/engine"),
    parent: Annotated[
        str, typer.Option(help="A pulled checkpoint's name, or a folder with a dense Llama.")
    ] = weights.DEFAULT,
    own: Annotated[
        Path | None, typer.Option(help="Folder of *.jsonl conversations to learn as well; ours where left out.")
    ] = None,
    experts: Annotated[int, typer.Option(min=1, help="Of each layer.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Of what each expert adds to its products.")] = 8,
    interleave: Annotated[int, typer.Option(min=1, help="One layer in so many has experts.")] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="To learn from in all.")] = 300_000,
    rate: Annotated[float, typer.Option(min=0, help="Highest learning rate of what experts add.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 13,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the work folder.")] = False,
    device: Annotated[Device, typer.Option(help="Where to train; auto: the fastest there is.")] = Device.AUTO,
) -> None:
    """Teach router and experts of the grown embedded engine; the parent's weights stay as they are.

    A quarter of an hour on two cores, minutes on a GPU. Ctrl-C and SIGTERM keep what was done; --resume goes on.
    """
    from ringfence.model.chat import TemplateRefused
    from ringfence.model.checkpoint import CheckpointDamaged
    from ringfence.model.conversations import OWN
    from ringfence.model.train import CHECKPOINT, Order, Plan, Stopped, make

    if not math.isfinite(rate):
        raise typer.BadParameter("it must be a number", param_hint="--rate")
    plan = Plan(seed=seed, tokens=tokens, experts=experts, rank=rank, interleave=interleave, rate=rate)
    report = out.with_suffix(".json")
    try:
        path = Path(parent) if Path(parent).is_dir() else weights.locate(parent)
        order = Order(path, pool, out, work, own or OWN, plan, device, resume)
        with asked_to_stop() as stop:
            tell(make(order, stop))
    except Stopped as stopped:
        kept = (work / CHECKPOINT).exists()
        onward = "the same command with --resume goes on" if kept else "nothing was kept yet"
        typer.echo(f"ringfence train engine: {stopped}; {onward}", err=True)
        raise typer.Exit(1) from None
    except (
        weights.WeightsMissing,
        weights.PullFailed,
        weights.WeightsDamaged,
        TemplateRefused,
        CheckpointDamaged,
        OSError,
        ValueError,
    ) as error:
        typer.echo(f"ringfence train engine: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB; report: {report}")


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM ask, and give what says whether they did."""
    asked = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before: Mapping[signal.Signals, Any] = {one: signal.signal(one, lambda *_: asked.set()) for one in signals}
    try:
        yield asked.is_set
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def tell(steps: Iterator["Step"]) -> None:
    """Print a line of progress when a part begins or ends, and every few seconds between."""
    part, begun, told, tokens, first = "", 0.0, 0.0, 0, 0
    for step in steps:
        now = time.monotonic()
        if step.part != part:
            part, begun, told, tokens, first = step.part, now, 0.0, 0, step.done
            typer.echo(f"{part}: {step.total} steps", err=True)
            continue  # the first step began before the clock did
        tokens += step.tokens
        if now - told < EVERY and step.done < step.total:
            continue
        told, spent = now, max(now - begun, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime(spent / (step.done - first) * (step.total - step.done)))
        loss = "" if math.isnan(step.loss) else f"loss {step.loss:.3f}, imbalance {step.imbalance:.2f}, "
        typer.echo(f"{part} {step.done}/{step.total}: {loss}{tokens / spent:.0f} tokens/s, {left} left", err=True)
