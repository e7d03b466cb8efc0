"""`ringfence policy`: what a policy says, whether it holds together, whether it does what its cases say, and why."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ringfence.guard.actions import rewrite
from ringfence.guard.audit.record import decisions_of
from ringfence.guard.check import Check, Passage, UnknownCheck, load_checks
from ringfence.guard.pipeline import Pipeline
from ringfence.policies.cases import Judge, Outcome, Result, run_cases, suites_of, without_cases
from ringfence.policies.explain import Change, Explanation, Flip, Verdict
from ringfence.policies.explain import explain as explain_decisions
from ringfence.policies.lint import lint as warnings_of
from ringfence.policies.load import SHIPPED, PolicyError, canonical, load_policy
from ringfence.policies.schema import schema_of
from ringfence.policies.types import Action, Decision, Policy, Stage
from ringfence.proxy.cli.audit import DEFAULT_DB, Db, opened, refuse
from ringfence.proxy.review.visible import visible
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
def explain(
    key: Annotated[str, typer.Argument(metavar="ID|SEQ", help="An exchange id, or a record's number.")],
    db: Db = DEFAULT_DB,
    path: Annotated[
        Path | None, typer.Option("--policy", help="Policy file; else ./policy.yaml, else the one that ships.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why an exchange ended as it did, rule by rule, and the smallest change that would have changed it.

    From its record alone: nothing is judged again.
    """
    with _told():
        policy = load_policy(policy_path(path))
    with opened(db) as store:
        kept = store.get(key)
    if kept is None:
        refuse(f"{db}: no record {key}; `ringfence audit list` shows those there are")
    if kept.body is None:
        refuse(f"{db}: record {kept.seq} was altered, so what it says explains nothing; see `ringfence audit verify`")
    recorded = decisions_of(kept.body)
    if not recorded:
        refuse(f"{db}: record {kept.seq} holds no decision: nothing was judged ({kept.body['error'] or 'no error'})")
    explanation = explain_decisions(policy, recorded)
    if as_json:
        head = {"seq": kept.seq, "id": kept.body["id"]}
        typer.echo(json.dumps(head | _explanation_as_json(explanation)))
    else:
        _print_explanation(f"record {kept.seq}  {kept.body['id']}", explanation)


@app.command()
def schema(
    pack: Annotated[bool, typer.Option("--pack", help="Of a pack file instead.")] = False,
    cases: Annotated[bool, typer.Option("--cases", help="Of a case file instead.")] = False,
) -> None:
    """Print the JSON Schema (draft 2020-12) of a policy file, for editors and other programs.

    Keep it beside your policy, `ringfence policy schema > policy.schema.json`, and let the policy begin with the line
    `# yaml-language-server: $schema=policy.schema.json`: editors then complete its keys and mark mistakes.
    """
    if pack and cases:
        refuse("--pack and --cases are two files: ask for one at a time")
    typer.echo(json.dumps(schema_of("pack" if pack else "cases" if cases else "policy"), indent=2))


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


def _print_explanation(record: str, why: Explanation) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 240  # a rule a line, for grep
    console.print(Text.assemble("\n", _coloured(why.recorded), f"  {visible(record)}"))
    decided_by = why.judgements[0].recorded.revision
    console.print(Text(f"policy {why.policy.name}, revision {why.policy.revision[:16]}", "dim"))
    if not why.same_policy:
        console.print(
            f"Not the policy that decided then (revision {visible(decided_by[:16])}): what follows is what this one "
            "makes of the\nfindings on record. What only this one would have looked for is not among them.",
            style="yellow",
            markup=False,
        )
    for judgement in why.judgements:
        recorded, decided = judgement.recorded, judgement.decided
        console.print(Text.assemble(f"\n{recorded.stage} · ", _coloured(decided.action)))
        if decided.action is not recorded.action:
            # Under the same policy, one thing does that: windows of a reply, of which a later one knew better.
            reason = ": a reply is judged window by window, as it comes" if why.same_policy else ""
            console.print(f"on record: {recorded.action}{reason}", style="yellow")
        table = _table("rule", "looks at", "highest", "threshold", "outcome")
        table.columns[-1].no_wrap = False  # the words of a failed check have no length
        for one in judgement.verdicts:
            table.add_row(*_verdict_row(one))
        console.print(table)
    console.print()
    if why.milder:
        console.print(_flip_text(why.milder))
    if why.stronger:
        console.print(_flip_text(why.stronger))
    if not (why.milder or why.stronger):
        console.print("No change to a single rule would change that.")


def _verdict_row(one: Verdict) -> Iterator[Text]:
    found = "nothing" if one.finding is None else f"{one.finding.score:.4f} {visible(one.finding.category)}"
    yield from (Text(one.rule.id), Text(one.rule.category), Text(found), Text(f"{one.rule.threshold:g}"))
    outcome = Text()
    if one.asks:
        outcome.append("would " if one.rule.shadow else "fired: ").append_text(_coloured(one.asks))
    elif one.short_by is not None:
        outcome.append(f"short by {one.short_by:.4f}", "dim")
    if one.unanswered:
        outcome.append("; " if outcome else "").append("unanswered: ").append_text(_coloured(one.unanswered))
        outcome.append(visible(f" ({'; '.join(one.errors)})"))
    yield outcome.append(" (shadow)" if one.rule.shadow and outcome else "", "dim")


def _flip_text(flip: Flip) -> Text:
    changes = "\n".join(
        f"  {change.rule}: {change.key} {_shown(change.old)} → {_shown(change.new)}" for change in flip.changes
    )
    return Text.assemble("It would have been ", _coloured(flip.action), f" with\n{changes}")


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, bool) else str(value)


def _explanation_as_json(why: Explanation) -> dict[str, Any]:
    return {
        "recorded": {"action": why.recorded, "revision": why.judgements[0].recorded.revision},
        "policy": {"name": why.policy.name, "revision": why.policy.revision, "same": why.same_policy},
        "action": why.decided,
        "decisions": [
            {
                "stage": judgement.recorded.stage,
                "recorded": judgement.recorded.action,
                "action": judgement.decided.action,
                "rules": list(map(_verdict_as_json, judgement.verdicts)),
            }
            for judgement in why.judgements
        ],
        "milder": _flip_as_json(why.milder),
        "stronger": _flip_as_json(why.stronger),
    }


def _verdict_as_json(one: Verdict) -> dict[str, Any]:
    found = one.finding
    return {
        "rule": one.rule.id,
        "category": one.rule.category,
        "threshold": one.rule.threshold,
        "shadow": one.rule.shadow,
        "fired": one.asks is not None,
        "asks": one.asks,
        "finding": found
        and {
            "check": found.check,
            "category": found.category,
            "score": None if math.isnan(found.score) else found.score,
        },
        "short_by": one.short_by,
        "unanswered": one.unanswered,
        "errors": list(one.errors),
    }


def _flip_as_json(flip: Flip | None) -> dict[str, Any] | None:
    return None if flip is None else {"action": flip.action, "changes": list(map(_change_as_json, flip.changes))}


def _change_as_json(change: Change) -> dict[str, Any]:
    return {"rule": change.rule, "key": change.key, "from": change.old, "to": change.new}


def _coloured(action: Action) -> Text:
    return Text(action, COLOURS[action])


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
