"""`ringfence bench checks`: what the checks without a model find in our corpora, beside others, and what they cost."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ringfence.guard.bench.checks import Comparison, Speed
    from ringfence.guard.bench.peers import Peer

OURS_IN_SAMPLE = (
    "Our own corpora, written by the authors of the checks, who mended kinds of mistakes that they showed: ringfence's "
    "figures are in-sample, the other tools' are not. Negatives are as hard as we could make them."
)
RULE = (
    "A mark is met where a finding of its category touches it, whole where findings hold all its letters and digits; "
    "a finding is right where it touches a mark of its category. Ours from a score of 0.5 on, as in the packs."
)


def checks(
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure Presidio and detect-secrets too; pip install 'ringfence\\[peers]'.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Time texts up to 100 kB only, not up to 10 MB.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the checks without a model: precision and recall of pii and secrets, and time per kilobyte."""
    # Imported here: `ringfence --help` must not wait for the tables of telephone numbers.
    from ringfence.guard.bench.checks import (
        SIZES,
        compare_pii,
        compare_secrets,
        measure_speed,
        timed_checks,
        with_live_values,
    )
    from ringfence.guard.bench.peers import NotInstalled, detect_secrets, presidio
    from ringfence.guard.bench.spans import load_corpus_of

    missing: list[str] = []
    for_pii: list[Peer] = []
    for_secrets: list[Peer] = []
    for tool, into in ((presidio, for_pii), (detect_secrets, for_secrets)) if peers else ():
        try:
            into.append(tool())
        except NotInstalled as error:
            missing.append(str(error))
    pii, secrets = load_corpus_of("pii"), load_corpus_of("secrets")
    comparisons = [
        compare_pii(pii, for_pii),
        compare_pii(with_live_values(pii), for_pii, "pii, with values that are in use for stand-ins"),
        compare_secrets(secrets, for_secrets),
    ]
    speed = measure_speed(timed_checks(), [size for size in SIZES if size <= 100_000 or not quick])
    if as_json:
        found: dict[str, Any] = {
            "note": OURS_IN_SAMPLE,
            "rule": RULE,
            "missing": missing,
            "quality": [one.to_json() for one in comparisons],
            "speed": speed.to_json(),
        }
        typer.echo(json.dumps(found))
        return
    console = Console(highlight=False)
    console.print(f"{OURS_IN_SAMPLE}\n[dim]{RULE}[/]")
    for line in missing:
        console.print(f"not compared: {line}", markup=False)
    for one in comparisons:
        show_comparison(console, one)
    show_speed(console, speed)


def show_comparison(console: Console, comparison: "Comparison") -> None:
    """Print what every tool found in one corpus, category by category."""
    console.print(f"\n[bold]{comparison.corpus}[/]: {comparison.texts} texts [dim]in per cent[/]")
    for result in comparison.results:
        console.print(f"[bold]{result.tool}[/] [dim]{result.note}[/]", soft_wrap=True)
        table = bare_table("category", "marks", "findings", "precision", "recall", "whole", "F1")
        rows = [(name, tally.to_json()) for name, tally in result.by_category.items()]
        few = {"marks": 0, "categories": 0}
        for name, row in rows:
            if row["findings"] is None and row["marks"] < 5:
                few = {"marks": few["marks"] + row["marks"], "categories": few["categories"] + 1}
                continue
            table.add_row(
                name, *cells(row), style="" if row["findings"] is None or name in comparison.compared else "dim"
            )
        table.add_row("compared", *cells(result.overall.to_json()), style="bold")
        console.print(table)
        if few["categories"]:
            console.print(
                f"[dim]not shown: {few['categories']} categories with fewer than 5 marks, {few['marks']} in all[/]"
            )
    if comparison.left_out:
        console.print(f"[dim]not compared: {'; '.join(comparison.left_out)}[/]", soft_wrap=True)


def cells(row: dict[str, Any]) -> Sequence[str]:
    """Write one row; a dash where there is no figure."""
    counts = ["–" if row[name] is None else str(row[name]) for name in ("marks", "findings")]
    shares = ["–" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("precision", "recall", "whole", "f1")]
    return [*counts, *shares]


def show_speed(console: Console, speed: "Speed") -> None:
    """Print what each check costs."""
    console.print("\n[bold]speed[/] [dim]milliseconds of the processor, without what else runs on this machine[/]")
    table = bare_table("median of 1 kB", *speed.per_text)
    for name in next(iter(speed.per_text.values())):
        row = (f"{by_check[name]:.3f}" for by_check in speed.per_text.values())
        table.add_row(name, *row, style="bold" if name == "all" else "")
    table.add_row("texts", *(str(texts) for texts in speed.texts.values()), style="dim")
    console.print(table)
    promised = speed.to_json()["promised"]
    kept = promised["median_ms"] <= promised["bar_ms"]
    console.print(
        f"all checks on 1 kB of {promised['kind']} text: {promised['median_ms']:.3f} ms, promised ≤ "
        f"{promised['bar_ms']:.3f} ms",
        style="" if kept else "red",
    )
    sizes = [*next(iter(speed.per_kilobyte.values()))]
    table = bare_table("each kB of a text of", *(f"{size:,} B" for size in sizes), "over 1 kB", "over a tenth")
    for name, by_size in speed.per_kilobyte.items():
        table.add_row(
            name,
            *(f"{by_size[size]:.3f}" for size in sizes),
            *(f"{factors[name]:.2f} ×" for factors in (speed.over_one, speed.over_tenth)),
        )
    console.print(table)
    broken = speed.to_json()["not_linear"]
    console.print(f"[red]not linear: {', '.join(broken)}[/]" if broken else "all linear: see the last column")


def bare_table(first: str, *others: str) -> Table:
    """Return a table without lines, numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
