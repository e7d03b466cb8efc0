"""`ringfence bench rules`: what a policy does to somebody's texts, rule by rule."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ringfence.policies.types import Policy, Stage
from ringfence.proxy.review.visible import visible

if TYPE_CHECKING:
    from ringfence.guard.bench.rules import Fired, Outcome, Rate, Report, Texts

WIDTH = 100
"""Characters of an example."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was judged, and what came of it: by file, and in all."""

    policy: Policy
    sets: Mapping[str, "Texts"]
    reports: Mapping[str, "Report"]
    total: "Report"
    benign: bool
    examples: bool


def rules(
    data: Annotated[list[Path], typer.Option(help="Texts, a file or a folder; may be given several times.")],
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; else ./policy.yaml, else the one that ships.")
    ] = None,
    stage: Annotated[Stage | None, typer.Option(help="Judge the texts of this stage only.")] = None,
    role: Annotated[str, typer.Option(help="Who said the texts that are no responses: user, tool, system …")] = "user",
    benign: Annotated[
        bool,
        typer.Option("--benign", help="Judge only texts that are labelled as harmless: every alarm is a false one."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many texts of each file, drawn at random, always the same ones.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="Format of the data, as of bench guard; auto tells it by the fields.")
    ] = "auto",
    examples: Annotated[
        bool, typer.Option("--examples", help="Show three texts of each rule that it fired on.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table of the rules.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how often each rule of a policy fires on texts, and what the whole policy does to them."""
    # Imported here: `ringfence --help` must not wait for scipy.
    from ringfence.guard.bench.rules import judge_texts, read_texts, report_on
    from ringfence.guard.check import UnknownCheck
    from ringfence.guard.classifier.rows import RowError
    from ringfence.guard.classifier.scorer import WeightsError
    from ringfence.guard.guard import Guard
    from ringfence.policies.load import PolicyError, load_policy
    from ringfence.proxy.cli.audit import refuse
    from ringfence.proxy.settings import policy_path

    if markdown and as_json:
        refuse("ringfence bench rules: --markdown and --json are two outputs: ask for one at a time")
    try:
        guard = Guard(load_policy(policy_path(policy)))
        wanted = guard.policy.rules
        sets = {
            name: read_texts(path, wanted, form=form, stage=stage, role=role, benign=benign, limit=limit)
            for name, path in named(data).items()
        }
        guard.warm()
        with Progress(console=Console(stderr=True), transient=True) as progress:
            outcomes = {
                name: list(judge_texts(guard.pipeline, progress.track(one.texts, description=f"judging {name}")))
                for name, one in sets.items()
            }
    except (RowError, WeightsError, PolicyError, UnknownCheck) as error:
        refuse(f"ringfence bench rules: {error}")
    reports = {name: report_on(wanted, one) for name, one in outcomes.items()}
    total = report_on(wanted, list(chain.from_iterable(outcomes.values())))
    if markdown:
        typer.echo("\n".join(markdown_of(total, benign)))
        return
    run = Run(guard.policy, sets, reports, total, benign, examples)
    if as_json:
        typer.echo(json.dumps(json_of(run)))
    else:
        show(run)


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Name files by so much of the end of their paths as tells them apart.

    Raises:
        RowError: one is given twice.
    """
    from ringfence.guard.classifier.rows import RowError

    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = {"/".join(path.parts[-depth:]): path for path in paths}
        if len(names) == len(paths):
            return names
    raise RowError("a file is given twice with --data, so that it would count twice")


def markdown_of(report: "Report", benign: bool) -> Iterator[str]:
    """Yield the lines of a table with a row for each rule."""
    yield f"| rule | fires on{' benign' if benign else ''} texts | share | 95 % |"
    yield "|---|---|---|---|"
    for one in report.rules:
        yield f"| `{one.rule.id}` | {' | '.join(written(one.rate))} |"


def json_of(run: Run) -> dict[str, Any]:
    """Return everything as one object."""
    found: dict[str, Any] = {
        "policy": {"name": run.policy.name, "revision": run.policy.revision},
        "benign": run.benign,
        "files": {
            name: report.to_json() | {"skipped": run.sets[name].skipped, "left": run.sets[name].left}
            for name, report in run.reports.items()
        },
        "total": run.total.to_json(),
    }
    if run.examples:
        found["examples"] = {
            one.rule.id: [{"at": example.text.where, "text": excerpt(one, example)} for example in one.examples]
            for one in run.total.rules
        }
    return found


def show(run: Run) -> None:
    """Print a row for each rule and each action, a column for each file, and of all files together."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 240  # a rule a line, for grep
    console.print(f"[bold]{escape(run.policy.name)}[/]  [dim]revision {run.policy.revision[:16]}[/]")
    for name, texts in run.sets.items():
        rest = [f"{texts.skipped:,} skipped"] if texts.skipped else []
        rest += [f"{texts.left:,} more not drawn"] if texts.left else []
        what = f"{name}: {len(texts.texts):,} {'benign ' if run.benign else ''}texts"
        console.print(Text(", ".join([what, *rest]), "dim"))
    console.print(table_of(run.reports, run.total))
    for one in run.total.rules:
        if one.unanswered:
            left_open = f"{one.rule.id}: its check could not answer for {one.unanswered:,} texts more"
            console.print(Text(left_open, "magenta"))
    console.print(Text(f"median {run.total.median_ms:.2f} ms a text", "dim"))
    for one in run.total.rules if run.examples else ():
        if one.examples:
            console.print(f"\n[bold]{one.rule.id}[/]")
        for example in one.examples:
            console.print(Text.assemble((f"{visible(example.text.where)}  ", "dim"), excerpt(one, example)))


def table_of(reports: Mapping[str, "Report"], total: "Report") -> Table:
    """Return a row for each rule and each action: its share in each file, and all there is to say of the total."""
    columns = reports if len(reports) > 1 else {}
    labelled = any(one.recall for one in total.rules)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rule", "asks"):
        table.add_column(name)
    for name in (*columns, "fires", "share", "95 %", *(("precision", "recall") if labelled else ())):
        table.add_column(Text(name), justify="right", overflow="fold")
    for at, one in enumerate(total.rules):
        cells = [share(report.rules[at].rate) for report in columns.values()]
        asks = f"{one.rule.action}{' (shadow)' if one.rule.shadow else ''}"
        right = [measured(one.precision), measured(one.recall)] if labelled else []
        table.add_row(one.rule.id, asks, *cells, *written(one.rate), *right)
    table.add_section()
    for action, rate in total.actions.items():
        cells = [share(report.actions[action]) for report in columns.values()]
        table.add_row("the whole policy", action, *cells, *written(rate), style="bold")
    return table


def excerpt(fired: "Fired", example: "Outcome") -> str:
    """Return one line of a text, from a little before what made the rule fire."""
    text = example.text.passage.text
    start = max(0, example.fired[fired.rule.id] - WIDTH // 4)
    piece = " ".join(visible(text[start : start + WIDTH]).split())
    return f"{'… ' if start else ''}{piece}{' …' if start + WIDTH < len(text) else ''}"


def written(rate: "Rate") -> tuple[str, str, str]:
    """Write how many, which share that is, and its interval."""
    return counted(rate), share(rate), between(rate)


def counted(rate: "Rate") -> str:
    """Write how many of how many; a dash where nothing was there to be counted."""
    return f"{rate.n:,}/{rate.of:,}" if rate.of else "–"


def share(rate: "Rate") -> str:
    """Write a share in per cent."""
    return "–" if rate.share is None else f"{100 * rate.share:.2f} %"


def between(rate: "Rate") -> str:
    """Write its interval in per cent."""
    return "–" if rate.ci95 is None else f"{100 * rate.ci95[0]:.2f}–{100 * rate.ci95[1]:.2f}"


def measured(rate: "Rate | None") -> str:
    """Write a share with its interval; nothing where labels do not say."""
    return "" if rate is None or not rate.of else f"{share(rate)} ({between(rate)})"
