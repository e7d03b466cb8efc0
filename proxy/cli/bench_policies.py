"""`ringfence bench policies`: how fast policies load and decide."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def policies(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Measure how fast policies load and decide, beside what is promised; takes ten seconds or so."""
    from ringfence.guard.bench.policies import FINDINGS, measure_policies

    paces = measure_policies()
    if as_json:
        typer.echo(json.dumps({"findings": FINDINGS, "paces": [pace.to_json() for pace in paces]}))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for heading in ("rules", "median", "least", "promised"):
        table.add_column(heading, justify="right")
    for pace in paces:
        median = Text(written(pace.median_ms))
        if pace.bar_ms is not None:
            median.stylize("green" if pace.median_ms <= pace.bar_ms else "red")
        promised = "" if pace.bar_ms is None else f"≤ {written(pace.bar_ms)}"
        table.add_row(pace.what, f"{pace.rules:,}", median, written(pace.least_ms), promised)
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(f"decide: on {FINDINGS} findings", "dim"))


def written(milliseconds: float) -> str:
    """Write a duration in the unit that suits it."""
    return f"{milliseconds * 1_000:,.0f} µs" if milliseconds < 1 else f"{milliseconds:,.1f} ms"
