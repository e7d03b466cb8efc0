"""`ringfence policy`: what a policy says, whether it holds together, and whether it does what its cases say."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ringfence.guard.actions import rewrite
from ringfence.guard.check import Check, Passage, UnknownCheck, load_checks
from ringfence.guard.pipeline import Pipeline
from ringfence.policies.cases import Judge, Outcome, Result, run_cases, suites_of, without_cases
from ringfence.policies.lint import lint as warnings_of
from ringfence.policies.load import SHIPPED, PolicyError, PolicyFile, canonical, load_policy
from ringfence.policies.types import Action, Decision, Policy, Stage
from ringfence.proxy.settings import policy_path

app = typer.Typer(no_args_is_help=True, help="Read, check and try out a policy.")

PolicyPath = Annotated[
    Path | None, typer.Argument(metavar="[PATH]", help="Policy file; else ./policy.yaml, else the one that ships.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]

COLOURS = {Action.BLOCK: "red", Action.REWRITE: "yellow", Action.LOG: "cyan", Action.ALLOW: "green"}
OUTCOMES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.ERROR: "magenta"}


@app.command()
def lint(path: PolicyPath = None) -> None:
    """Say what is wrong with a policy, and what it hardly means. Exit status: 0 usable, 2 not."""
    path = policy_path(path) or SHIPPED
    with _told():
        policy = load_policy(path)
        Pipeline(policy, load_checks())  # a rule over a category that no check knows is an error too
        warnings = list(warnings_of(policy, list(suites_of(policy, path))))
    for warning in warnings:
        typer.echo(f"{warning.origin}: warning: {warning.what}")
    typer.echo(f"{path}: {_count(len(policy.rules), 'rule')}, {_count(len(warnings), 'warning')}")


@app.command()
def show(path: PolicyPath = None, as_json: Json = False) -> None:
    """Print the policy in effect: packs and overrides resolved, every rule with the line that it comes from."""
    with _told():
        policy = load_policy(policy_path(path))
    if as_json:
        rules = [rule | {"origin": str(policy.rules[i].origin)} for i, rule in enumerate(canonical(policy)["rules"])]
        typer.echo(json.dumps(canonical(policy) | {"rules": rules, "revision": policy.revision}, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{policy.name}[/]  [dim]revision {policy.revision[:16]}[/]\n")
    console.print(_rule_table(policy))
    console.print(_settings_table(policy))


@app.command("test")
def run(path: PolicyPath = None, as_json: Json = False) -> None:
    """Run the cases of a policy and its packs. Exit status: 0 all pass, 1 some do not, 2 the policy cannot be used."""
    path = policy_path(path) or SHIPPED
    with _told():
        policy = load_policy(path)
        suites = list(suites_of(policy, path))
        checks = load_checks()
        judges = [_judge(suite.policy, checks) for suite in suites]
    results: list[Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("cases", total=sum(len(suite.cases) for suite in suites))
        for suite, judge in zip(suites, judges, strict=True):
            for result in run_cases(suite.cases, judge):
                results.append(result)
                progress.advance(task)
    bare = [rule.id for rule in without_cases(policy, suites)]
    if as_json:
        typer.echo(json.dumps({"results": list(map(_as_json, results)), "without_cases": bare}, ensure_ascii=False))
    else:
        _print_results(results, bare)
    if any(result.outcome is not Outcome.PASS for result in results):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors and other programs."""
    found = TypeAdapter(PolicyFile).json_schema()
    typer.echo(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | found, indent=2))


@contextmanager
def _told() -> Iterator[None]:
    """Turn what is wrong with a policy into its text on standard error and exit status 2."""
    try:
        yield
    except (PolicyError, UnknownCheck) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _judge(policy: Policy, checks: Mapping[str, Check]) -> Judge:
    pipeline = Pipeline(policy, checks)

    def judge(stage: Stage, text: str, prompt: str) -> tuple[Decision, str]:
        role = "user" if stage is Stage.INPUT else "assistant"
        decision = pipeline.judge(stage, [Passage(stage, role, text, prompt)])
        return decision, rewrite(text, decision.rewrites)

    return judge


def _rule_table(policy: Policy) -> Table:
    table = _table("rule", "looks at", "stage", "from", "action", "written at")
    for rule in policy.rules:
        action = f"[{COLOURS[rule.action]}]{rule.action}[/]"
        action += " (shadow)" if rule.shadow else ""
        # Failing closed is the rule; what departs from it should catch the eye.
        action += f" (on error: {rule.on_error})" if rule.on_error is not Action.BLOCK else ""
        stage = "both" if set(rule.stages) == set(Stage) else rule.stages[0]
        origin = f"{_short(rule.origin.file)}:{rule.origin.line}"
        table.add_row(rule.id, rule.category, stage, f"{rule.threshold:g}", action, escape(origin))
    return table


def _settings_table(policy: Policy) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    for exemption in policy.exempt:
        table.add_row("exempt", escape(f"{exemption.role}: {exemption.why}"))
    sections = canonical(policy)
    for name in ("message", "upstream", "stream", "audit", "limits"):
        value = sections[name]
        line = value if isinstance(value, str) else ", ".join(f"{key} {v}" for key, v in value.items() if v is not None)
        table.add_row(name, escape(line))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, expand="text" in columns)
    for name in columns:
        # A text takes the room that is left; everything else is shown whole.
        table.add_column(name, no_wrap=True, ratio=1 if name == "text" else None)
    return table


def _short(file: str) -> str:
    """Return the last folder and the name: enough to tell `packs/pii.yaml` from `policy.yaml`."""
    return "/".join(Path(file).parts[-2:])


def _as_json(result: Result) -> dict[str, str]:
    case = result.case
    return {
        "case": str(case.origin),
        "stage": case.stage,
        "expected": case.expect.action,
        "outcome": result.outcome,
        "difference": result.difference,
    }


def _print_results(results: list[Result], bare: list[str]) -> None:
    console = Console(highlight=False)
    table = _table("", "case", "expected", "text")
    for result in results:
        case = result.case
        where = f"{_short(case.origin.file)}:{case.origin.line}"
        mark = f"[{OUTCOMES[result.outcome]}]{result.outcome.upper()}[/]"
        table.add_row(mark, escape(where), case.expect.action, escape(" ".join(case.text.split())))
    console.print(table)
    for result in results:
        if result.difference:
            console.print(
                f"{result.case.origin}: {result.difference}",
                style=OUTCOMES[result.outcome],
                markup=False,
                soft_wrap=True,
            )
    if bare:
        console.print(f"rules without a case: {', '.join(bare)}", style="yellow")
    counts = (f"{sum(result.outcome is outcome for result in results)} {outcome}" for outcome in Outcome)
    console.print(f"{_count(len(results), 'case')}: {', '.join(counts)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
