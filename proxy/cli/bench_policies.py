"""`ringfence bench policies`: how fast policies load, decide and replay."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ringfence.guard.bench.policies import Pace


def policies(
    replayed: Annotated[
        int | None,
        typer.Option("--replay", metavar="N", min=1, help="Also write a log of N exchanges, and time its replay."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how fast policies load and decide, beside what is promised; takes ten seconds or so."""
    from ringfence.guard.bench.policies import FINDINGS, measure_policies

    paces = [*measure_policies(), *([replay_of(replayed)] if replayed else [])]
    if as_json:
        typer.echo(json.dumps({"findings": FINDINGS, "paces": [pace.to_json() for pace in paces]}))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for heading in ("of", "median", "least", "promised"):
        table.add_column(heading, justify="right")
    for pace in paces:
        median = Text(written(pace.median_ms))
        if pace.bar_ms is not None:
            median.stylize("green" if pace.median_ms <= pace.bar_ms else "red")
        promised = "" if pace.bar_ms is None else f"≤ {written(pace.bar_ms)}"
        unit = "records" if pace.what == "replay" else "rules"
        table.add_row(pace.what, f"{pace.size:,} {unit}", median, written(pace.least_ms), promised)
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(f"decide: on {FINDINGS} findings", "dim"))


def replay_of(records: int) -> "Pace":
    """Write a log of made-up exchanges under the policy that ships, and time its replay."""
    from ringfence.guard.bench.policies import measure_replay
    from ringfence.guard.bench.traffic import write_log
    from ringfence.guard.check import load_checks
    from ringfence.guard.pipeline import revision_of
    from ringfence.policies.load import SHIPPED, load_policy

    policy, checks = load_policy(SHIPPED), load_checks()
    revision = revision_of(checks["classifier"]) or ""
    with TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as progress:
        log = Path(folder) / "log.db"
        for _ in progress.track(write_log(log, policy, records, revision), total=records, description="records"):
            pass
        return measure_replay(log, policy, checks)


def written(milliseconds: float) -> str:
    """Write a duration in the unit that suits it."""
    return f"{milliseconds * 1_000:,.0f} µs" if milliseconds < 1 else f"{milliseconds:,.1f} ms"
