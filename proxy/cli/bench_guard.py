"""`ringfence bench guard`: measure the guard model, print a table, or JSON."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ringfence.proxy.cli import bench_guards
from ringfence.proxy.cli.bench_guards import Misuse
from ringfence.proxy.cli.figures import between, percent

if TYPE_CHECKING:
    from ringfence.guard.bench.items import LabelledSet
    from ringfence.guard.bench.published import Published
    from ringfence.guard.bench.published import Table as Figures
    from ringfence.guard.bench.run import Report, Reports
    from ringfence.guard.classifier.scorer import Scorer

MEASURES = {
    "f1": "F1",
    "macro_f1": "macro F1",
    "fpr": "false positives",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "recall_at_1_fpr": "recall at 1 % false positives",
}
Weights = Mapping[str, str]
"""`folder` and `revision`."""

DISCLAIMER = "published: others' runs, not re-measured here"


class Target(StrEnum):
    """What the labels of a file say."""

    PROMPT = "prompt"
    RESPONSE = "response"
    ATTACK = "attack"


def guard(
    data: Annotated[
        list[Path] | None, typer.Option(help="Labelled texts, a file or a folder; may be given several times.")
    ] = None,
    target: Annotated[
        Target | None, typer.Option(help="What the labels say: harm of prompts, of responses, or attacks.")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="Format of the data; auto tells it by the fields. One for all, or one each."),
    ] = None,
    threshold: bench_guards.Thresholds = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of weights; else that of RINGFENCE_WEIGHTS, else the shipped.")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Print what others have published.")] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Measure speed instead; takes a minute or two.")] = False,
    guards: bench_guards.Guards = None,
    cascade: bench_guards.CascadeOf = None,
    policy: bench_guards.PolicyFile = None,
    price: bench_guards.Prices = None,
    hour: bench_guards.Hours = None,
    scores: bench_guards.ScoresFile = None,
    disagreements: bench_guards.Shown = 0,
    disagreements_to: bench_guards.ShownIn = None,
    png: bench_guards.Picture = None,
    band: bench_guards.BandOf = None,
    want: bench_guards.Wanted = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the guard model: F1, precision, recall, false positives, calibration error, latency; or its speed.

    With --guards or --cascade, several guards on the same rows.
    """
    # Imported here: `ringfence --help` must not wait for scikit-learn.
    from ringfence.guard.bench.items import read_set
    from ringfence.guard.bench.published import load_published
    from ringfence.guard.bench.run import report_on, report_on_all, score_items
    from ringfence.guard.bench.speed import measure_speed
    from ringfence.guard.classifier.rows import RowError
    from ringfence.guard.classifier.scorer import Scorer, WeightsError

    options = bench_guards.Options(
        guards, cascade, policy, threshold or (), price or (), hour or (), scores,
        disagreements, disagreements_to, png, band, want, weights, as_json,
    )  # fmt: skip
    try:
        bench_guards.refuse_strays(options)
        if published and options.several:
            raise Misuse("--published is for the guard model alone; give it without --guards and --cascade")
        if speed:
            if data or published or options.several or target or form or threshold:  # left undone without a word
                raise Misuse("--speed measures by itself; beside it there may be --weights and --json")
            scorer = Scorer.load(weights, remember=0)
            show_speed(measure_speed(scorer, weights).to_json(), used_weights(weights, scorer), as_json)
            return
        if not data:
            if not published:
                raise Misuse("nothing to do: give --data FILE, --published or --speed")
            show_published(load_published(), target, as_json)
            return
        if target is None:
            raise Misuse(f"--target is needed with --data: {', '.join(Target)}")
        pairs = zip(data, forms_of(form, len(data)), strict=True)
        sets = distinct([(path, read_set(path, target.value, one)) for path, one in pairs])
        if options.several:
            items = [item for one in sets.values() for item in one.items]
            files = {name: about(one) for name, one in sets.items()}
            bench_guards.measure(options, items, target.value, {"target": target.value, "files": files})
            return
        at = bench_guards.numbers("--threshold", options.thresholds, ["ringfence"], most=1).get("ringfence", 0.5)
        scorer = Scorer.load(weights, remember=0)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            scored = {
                name: score_items(scorer, progress.track(one.items, description=f"scoring {name}"), target.value)
                for name, one in sets.items()
            }
    except (Misuse, RowError, WeightsError) as error:
        typer.echo(f"ringfence bench guard: {error}", err=True)
        raise typer.Exit(2) from None
    used, figures = used_weights(weights, scorer), load_published()
    if len(sets) == 1:
        ((name, one),) = sets.items()
        show_report(name, one, report_on(scored[name], at), target, used, figures, as_json, published)
    else:
        show_reports(sets, report_on_all(scored, at), target, used, figures, as_json, published)


def used_weights(weights: Path | None, scorer: "Scorer") -> Weights:
    """Say which weights were measured."""
    from ringfence.guard.classifier.scorer import weights_folder

    return {"folder": str(weights_folder(weights)), "revision": scorer.revision}


def forms_of(form: Sequence[str] | None, count: int) -> Sequence[str]:
    """Return a format for each file."""
    from ringfence.guard.bench.formats import FORMATS
    from ringfence.guard.bench.items import AUTO

    given = list(form or [AUTO])
    for one in given:
        if one not in (AUTO, *FORMATS):
            raise Misuse(f"--format {one} is not known; there are {', '.join((AUTO, *FORMATS))}")
    if len(given) not in (1, count):
        raise Misuse(f"--format is given {len(given)} times for {count} --data; once for all, or once for each")
    return given * count if len(given) == 1 else given


def distinct(sets: Sequence[tuple[Path, "LabelledSet"]]) -> dict[str, "LabelledSet"]:
    """Name sets by file; by path where two files have one name."""
    often = Counter(one.name for _, one in sets)
    named = {one.name if often[one.name] == 1 else str(path): one for path, one in sets}
    if len(named) < len(sets):
        raise Misuse("a file is given twice with --data, so that it would count twice")
    return named


def show_report(
    name: str,
    data: "LabelledSet",
    report: "Report",
    target: Target,
    weights: Weights,
    published: "Published",
    as_json: bool,
    with_published: bool,
) -> None:
    """Print what was measured of one set."""
    found = report.to_json()
    known, unlike = comparable(published, target, [(data.format, report)])
    if as_json:
        found |= about(data) | {"weights": weights}
        if with_published:
            found |= published_json(published, target, known, unlike)
        typer.echo(json.dumps(found))
        return
    table = bare_table()
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95 %", justify="right")
    spread = dict(flat(found.pop("ci95")))
    for measure, value in flat(found):
        table.add_row(measure, written(measure, value), between(spread.get(measure)))
    console = Console(highlight=False)
    console.print(f"[bold]{escape(name)}: {target}[/]")
    console.print(Text(weights_line(weights), "dim"))
    console.print(Text(read_as(data), "dim"))
    console.print(table)
    show_truncated(console, report)
    show_comparison(console, published, target, known, unlike)


def show_reports(
    sets: Mapping[str, "LabelledSet"],
    reports: "Reports",
    target: Target,
    weights: Weights,
    published: "Published",
    as_json: bool,
    with_published: bool,
) -> None:
    """Print what was measured of several sets, a row each, and of all together."""
    found = reports.to_json()
    known, unlike = comparable(published, target, [(one.format, reports.sets[name]) for name, one in sets.items()])
    if as_json:
        for name, one in sets.items():
            found["sets"][name] |= about(one)
        found["weights"] = weights
        if with_published:
            found |= published_json(published, target, known, unlike)
        typer.echo(json.dumps(found))
        return
    table = bare_table()
    table.add_column("set", overflow="fold")
    for heading in ("n", "pos.", "F1", "95 %", "prec.", "recall", "FPR", "R@1%", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, report in reports.sets.items():
        table.add_row(escape(name), *cells(report))
    table.add_row()
    table.add_row("mean F1", "", "", percent(reports.mean_f1), between(reports.mean_f1_ci95, 100))
    table.add_row("pooled", *cells(reports.pooled))
    console = Console(highlight=False)
    console.print(
        f"[bold]{len(sets)} sets: {target}[/] [dim]in per cent, threshold {reports.pooled.measures.threshold}[/]"
    )
    console.print(Text(weights_line(weights), "dim"))
    console.print(table)
    for name, one in sets.items():
        console.print(Text(f"{name}: {read_as(one)}", "dim"))
    show_truncated(console, reports.pooled)
    show_comparison(console, published, target, known, unlike)


def show_truncated(console: Console, report: "Report") -> None:
    """Say of how many texts the scores do not speak in full."""
    if report.truncated:
        line = (
            f"{report.truncated:,} of {report.measures.n:,} texts were read in part only: too long to be read in full"
        )
        console.print(Text(line, "magenta"), soft_wrap=True)


def cells(report: "Report") -> Iterator[str]:
    """Yield one row of the table of sets."""
    found = report.measures
    yield from (str(found.n), str(found.positives), percent(found.f1), between(report.ci95["f1"], 100))
    yield from map(percent, (found.precision, found.recall, found.fpr, found.recall_at_fpr["0.01"], found.ece))


def comparable(
    published: "Published", target: Target, reports: Sequence[tuple[str, "Report"]]
) -> tuple[dict[str, "Report"], dict[str, str]]:
    """Return by format what may stand beside published figures, and why the rest may not."""
    often = Counter(key for key, _ in reports)
    known, unlike = {}, {}
    for key, report in reports:
        if not any(published.about(target.value, {key})):
            continue
        if often[key] > 1:
            unlike[key] = f"{often[key]} files of it, and no single figure to compare"
        elif why := published.unlike(key, target.value, report.measures.n):
            unlike[key] = why
        else:
            known[key] = report
    return known, unlike


def published_json(
    published: "Published", target: Target, known: Collection[str], unlike: Mapping[str, str]
) -> dict[str, Any]:
    """Return what --published adds to JSON."""
    return {"published": [one.to_json() for one in published.about(target.value, known)], "not_compared": dict(unlike)}


def show_published(published: "Published", target: Target | None, as_json: bool) -> None:
    """Print everything that was published, of one target or of all."""
    tables = list(published.about(target.value if target else None))
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in tables]))
        return
    console = Console(highlight=False)
    console.print("In per cent. Compare figures inside a table, hardly beyond it: policies and subsets differ.\n")
    for one in tables:
        show_figures(console, published, one)


def show_comparison(
    console: Console,
    published: "Published",
    target: Target,
    known: Mapping[str, "Report"],
    unlike: Mapping[str, str],
) -> None:
    """Print published tables with our own figures on top, and what is not compared."""
    if known:
        console.print(f"\nIn per cent; {DISCLAIMER}.\n")
    for one in published.about(target.value, known):
        show_figures(console, published, one, known)
    for key, why in unlike.items():
        console.print(f"not compared with published figures of {key}: {why}", soft_wrap=True)


def show_figures(
    console: Console, published: "Published", figures: "Figures", reports: Mapping[str, "Report"] | None = None
) -> None:
    """Print the figures of one source, ours first where there are reports for its columns."""
    from ringfence.guard.bench.published import ours

    own = [ours(reports[column], figures.measure) for column in figures.columns] if reports else []
    table = bare_table()
    table.padding = (0, 1, 0, 0)  # eight figures beside a long name, in 80 columns
    table.add_column("model", no_wrap=True)
    for column in figures.columns:
        table.add_column(published.titles.get(column, column).replace(" ", "\n"), justify="right")
    several = len(figures.columns) > 1
    if several:
        table.add_column("\nmean", justify="right")
    measured = any(one is not None for one in own)
    rows = {"this run": tuple(own), **figures.rows} if measured else figures.rows
    # as many decimals as the source has
    digits = 1 if all(one is None or round(one, 1) == one for row in figures.rows.values() for one in row) else 2
    if reports:
        sizes = [published.rows[column].get(figures.target) for column in figures.columns]
        table.add_row("texts here", *(f"{reports[column].measures.n:,}" for column in figures.columns), style="dim")
        table.add_row("texts published", *("–" if size is None else f"{size:,}" for size in sizes), style="dim")
    for model, row in rows.items():
        numbers = ["–" if one is None else f"{one:.{digits}f}" for one in row]
        known = [one for one in row if one is not None]
        mean = f"{sum(known) / len(row):.{digits}f}" if len(known) == len(row) else "–"
        table.add_row(model, *numbers, *([mean] if several else []), style="bold green" if model == "this run" else "")
    console.print(f"[bold]{figures.target}: {MEASURES[figures.measure]}[/]")
    console.print(Text(f"{figures.source} ({figures.date}); run by {figures.by}. {figures.note}".strip(), "dim"))
    console.print(table)
    console.print()


def bare_table() -> Table:
    """Return a table without lines, which fits more into 80 columns."""
    return Table(box=None, header_style="bold", pad_edge=False)


def show_speed(found: dict[str, Any], weights: Weights, as_json: bool) -> None:
    """Print how fast the guard is."""
    if as_json:
        typer.echo(json.dumps(found | {"weights": weights}))
        return
    single, batched, long, crowd = (found[name] for name in ("single", "batched", "long", "concurrent"))
    table = bare_table()
    for heading in ("", "ringfence", "beside it", ""):
        table.add_column(heading)
    table.add_row(
        f"one text of {single['tokens']} tokens",
        f"{single['ringfence_ms']:.2f} ms",
        f"{single['bare_ms']:.2f} ms bare int8 pass",
        f"{single['ratio']:.2f} × its time",
    )
    table.add_row(
        f"{batched['texts']} texts of {batched['tokens']} tokens",
        f"{batched['ringfence_per_s']:.1f} /s",
        f"{batched['transformers_per_s']:.1f} /s transformers fp32",
        f"{batched['ratio']:.2f} × its rate",
    )
    table.add_row(
        f"{crowd['callers']} callers, short texts",
        f"{crowd['together_per_s']:.1f} /s",
        f"{crowd['in_turn_per_s']:.1f} /s one after the other",
        f"{crowd['ratio']:.2f} × its rate",
    )
    table.add_row(f"one text of {long['bytes'] // 1000} kB", f"{long['seconds']:.2f} s", "", "")
    console = Console(highlight=False)
    console.print(Text(weights_line(weights), "dim"))
    console.print(Text(machine_line(found["machine"]), "dim"))
    console.print(table)


def weights_line(weights: Weights) -> str:
    """Name the weights that the figures hold for."""
    return f"weights of {weights['folder']}, revision {weights['revision'][:12]}"


def machine_line(machine: Mapping[str, Any]) -> str:
    """Say in a line what the figures hold for."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = ", ".join(f"{name} {count}" for name, count in machine["threads"].items())
    load = f"; load before {machine['load'][0]}" if machine["load"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores; threads: {threads}{load}; Python {machine['python']}, {versions}"
    )


def read_as(data: "LabelledSet") -> str:
    """Say what a file was taken for, and what was left out."""
    from ringfence.guard.bench.formats import FORMATS

    line = f"read as {data.format} ({FORMATS[data.format].source})"
    if len(data.files) > 1:
        line += f" from {listed(data.files)}"
    if data.unread:
        line += f"; not read: {listed(data.unread)}"
    reasons = {"without a label for it": data.skipped - data.empty, "with an empty text": data.empty}
    left = " and ".join(f"{count:,} {why}" for why, count in reasons.items() if count)
    return f"{line}; skipped: {left}" if left else line


def listed(names: Sequence[str], most: int = 6) -> str:
    """List the first names, and count the rest."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def about(data: "LabelledSet") -> dict[str, Any]:
    """Return what JSON says of a set beside its figures."""
    return {"format": data.format, "skipped": data.skipped, "empty": data.empty}


def written(measure: str, value: float | None) -> str:
    """Write one figure without an exponent; a dash where a set with one class cannot say."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if measure.startswith("latency_ms"):
        return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
    return f"{value:.4f}"


def flat(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a report, those inside an object named after it."""
    for key, value in report.items():
        if isinstance(value, Mapping):
            yield from ((f"{key} {name}", number) for name, number in value.items())
        else:
            yield key, value
