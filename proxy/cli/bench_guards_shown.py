"""How guards look beside each other: tables and a picture. Knows figures; asks and measures nobody."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sklearn.metrics import precision_recall_curve

from ringfence.guard.bench.answers import Answer
from ringfence.guard.bench.cascade import Cascade
from ringfence.guard.bench.items import Item
from ringfence.guard.bench.side_by_side import Disagreement, Figures, Side, SideBySide, scores_of
from ringfence.guard.classifier.measure import measure
from ringfence.proxy.cli.figures import between, percent
from ringfence.proxy.review.visible import visible

WIDTH = 100
"""Columns that the tables fit into; characters of a text that is cut to a line."""


def show_sides(found: SideBySide, target: str, disagreements: int) -> None:
    """Print the tables of guards side by side, and so many of the texts that they disagree on."""
    console = Console(highlight=False, width=WIDTH)
    console.print(title(found, target))
    console.print(quality(found.sides, {side.name: side.answered for side in found.sides}))
    if failed := [side for side in found.sides if side.failed]:
        console.print(failures({side.name: side.failures for side in failed}))
        if found.shared:
            console.print(f"\n[bold]{found.shared:,} texts that all answered[/]")
            console.print(quality(found.sides, {side.name: side.shared for side in found.sides}))
        else:
            console.print(Text("no text was answered by all", "magenta"))
    console.print()
    console.print(costs(found))
    console.print(f"\n{len(found.disagreements):,} texts that some flag and others do not", style="dim")
    for one in found.disagreements[:disagreements]:
        console.print(line_of(one), soft_wrap=True)


def show_cascade(found: Cascade, target: str, names: tuple[str, str], failed: Mapping[str, Mapping[str, int]]) -> None:
    """Print what two guards, the small one first, do alone and together."""
    console = Console(highlight=False, width=WIDTH)
    console.print(title(found, target))
    if any(failed.values()):
        console.print(failures(failed))
    alone = {"small": f"{names[0]} alone", "big": f"{names[1]} alone"}
    if found.chosen:
        alone["small_at_best"] = f"{names[0]} alone, from {found.chosen.small_threshold:g} on"
    console.print(ways(found, alone))
    for line in told(found, names[1]):
        console.print(line)


def draw(
    path: Path,
    items: Sequence[Item],
    answers: Mapping[str, Sequence[Answer]],
    places: Sequence[int],
    sides: Sequence[Side],
    missing: Sequence[str] = (),
) -> None:
    """Draw precision over recall of each guard, on the texts at some places, which all answered; a dot stands for its
    threshold. There must be texts of both labels.

    Args:
        missing: guards that are not drawn, which the legend says.
    """
    from matplotlib.figure import Figure

    labels = [items[at].label for at in places]
    figure = Figure(figsize=(6, 5), layout="constrained")
    panel = figure.subplots()
    for side in sides:
        precision, recall, _ = precision_recall_curve(labels, scores_of(answers[side.name], places))
        measures = measure(scores_of(answers[side.name], places), labels, side.threshold)
        (line,) = panel.step(recall, precision, where="post", label=f"{side.name}: AUPRC {measures.auprc:.3f}")
        panel.plot([measures.recall or 0], [measures.precision or 0], "o", color=line.get_color())
    for name in missing:
        panel.plot([], [], " ", label=f"{name}: not drawn, too few answers")
    title = f"{len(places):,} texts, {sum(labels):,} positive"
    panel.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    panel.legend()
    figure.savefig(path, dpi=150)


def title(found: SideBySide | Cascade, target: str) -> Text:
    """Say what the figures are of."""
    rows = f"{found.n:,} texts, {found.positives:,} positive: {target}"
    return Text.assemble((rows, "bold"), ("  F1 to ECE in per cent, seconds one text at a time", "dim"))


def quality(sides: Sequence[Side], figures: Mapping[str, Figures | None]) -> Table:
    """Return a row for each guard: how good it is."""
    table = table_of("n", "failed", "thr.", "F1", "95 %", "AUPRC", "R@1%", "R@5%", "ECE")
    for side in sides:
        one = figures[side.name]
        n = one.report.measures.n if one else 0
        cells = [f"{n:,}", f"{side.failed:,}", f"{side.threshold:g}"]
        if one:
            measures = one.report.measures
            cells += [percent(measures.f1), between(one.report.ci95["f1"], 100)]
            cells += map(percent, (measures.auprc, measures.recall_at_fpr["0.01"], one.recall_at_5_fpr, one.ece))
        table.add_row(side.name, *cells, *["–"] * (9 - len(cells)))
    return table


def costs(found: SideBySide) -> Table:
    """Return a row for each guard: what it costs, and what it gains over the first."""
    first = found.sides[0].name
    table = table_of("p50 ms", "p95 ms", "s/1000", "USD/million", f"F1 − {short(first)}", "95 %")
    for side in found.sides:
        latency = side.answered.report.latency_ms if side.answered else {}
        money = "–" if side.usd_per_million is None else f"{side.usd_per_million:,.2f}"
        gain = side.gain
        over = ["", ""] if gain is None else [signed(gain.f1), signed_between(gain.ci95)]
        speed = [amount(latency.get("p50")), amount(latency.get("p95")), amount(side.seconds_per_1000)]
        table.add_row(side.name, *speed, money, *over)
    return table


def ways(found: Cascade, names: Mapping[str, str]) -> Table:
    """Return a row for each guard alone, as it is called then, and for both together."""
    table = table_of("F1", "95 %", "prec.", "recall", "FPR", "p50 ms", "p95 ms", "s/1000", "USD/million")
    for key, way in found.ways.items():
        one = way.measures
        quality = [
            percent(one.f1),
            between(way.report.ci95["f1"], 100),
            *map(percent, (one.precision, one.recall, one.fpr)),
        ]
        speed = [amount(way.report.latency_ms[at]) for at in ("p50", "p95")] + [amount(way.seconds_per_1000)]
        money = "–" if way.usd_per_million is None else f"{way.usd_per_million:,.2f}"
        table.add_row(names.get(key, key), *quality, *speed, money)
    return table


def told(found: Cascade, big: str) -> Iterator[str]:
    """Yield what there is to say of a cascade beside its table."""
    asked, band, big = found.escalated, found.band, short(big)
    share = f"{percent(asked.share)} % ({between(asked.ci95, 100)})"
    yield f"{big} is asked about {asked.n:,} of {asked.of:,}, {share}: {band.low:g} ≤ score < {band.high:g}"
    as_big = percent(found.as_big.share)
    yield f"the two agree on {percent(found.agree.share)} % of all; the cascade agrees with {big} on {as_big} %"
    called = {"small": "small one", "big": "big one", "small_at_best": "small one at its best"}
    for name, gain in found.over.items():
        yield f"F1 of the cascade − that of the {called[name]}: {signed(gain.f1)} ({signed_between(gain.ci95)})"
    if chosen := found.chosen:
        did = f"F1 {percent(chosen.f1)}, {percent(chosen.escalated)} % asked"
        missed = "" if chosen.kept_by(found) else f"; here it misses {chosen.want}"
        yield f"the band was chosen for {chosen.want} on {chosen.n:,} other texts ({did}){missed}"
    if chosen and found.in_vain:
        yield f"the small one alone does as well from {chosen.small_threshold:g} on: {big} is asked in vain"


def failures(failed: Mapping[str, Mapping[str, int]]) -> Text:
    """Return a line for each reason why a guard could not answer."""
    return Text("\n", "magenta").join(
        Text(visible(f"{name}: {count:,} not answered: {why}"), "magenta")
        for name, reasons in failed.items()
        for why, count in reasons.items()
    )


def line_of(one: Disagreement) -> Text:
    """Return a text that guards disagree on, cut to a line, below their scores."""
    scores = "  ".join(f"{name} {'–' if score is None else f'{score:.3f}'}" for name, score in one.scores.items())
    text = " ".join(visible(one.item.text).split())
    cut = text if len(text) <= WIDTH - 4 else f"{text[: WIDTH - 6]} …"
    place = visible(one.item.where.rpartition("/")[2])
    return Text.assemble((f"{place}, label {one.item.label}: {scores}\n", "dim"), f"    {cut}")


def table_of(*columns: str) -> Table:
    """Return a table whose first column names guards, and folds where a name is long."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("guard", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def short(name: str) -> str:
    """Cut a name that would make a column too wide."""
    return name if len(name) <= 16 else f"{name[:15]}…"


def signed(value: float | None) -> str:
    """Write a difference in points of per cent."""
    return "–" if value is None else f"{100 * value:+.1f}"


def signed_between(values: tuple[float, float] | None) -> str:
    """Write the interval of a difference."""
    return "–" if values is None else f"{100 * values[0]:+.1f} … {100 * values[1]:+.1f}"


def amount(value: float | None) -> str:
    """Write a time with three digits that count."""
    return "–" if value is None else f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
