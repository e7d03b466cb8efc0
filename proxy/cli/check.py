"""`ringfence check`: judge one text and say what the policy makes of it."""

import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from ringfence.guard.actions import rewrite
from ringfence.guard.check import UnknownCheck
from ringfence.guard.classifier.scorer import WeightsError
from ringfence.guard.exchange import Subject
from ringfence.guard.guard import NOBODY, Guard
from ringfence.policies.decide import reasons
from ringfence.policies.load import PolicyError
from ringfence.policies.types import Action, Decision, Stage
from ringfence.policies.words import Route, Voice
from ringfence.proxy.cli.failures import kept, lines, said
from ringfence.proxy.settings import policy_path, read_settings

STYLE = {Action.ALLOW: "green", Action.LOG: "yellow", Action.REWRITE: "yellow", Action.BLOCK: "red"}
SHOWN_FROM = 0.05


def check(
    text: Annotated[str, typer.Argument(help="The text to judge; - reads it from standard input.")],
    stage: Annotated[Stage, typer.Option(help="Judge it as what goes into a model, or comes out.")] = Stage.INPUT,
    prompt: Annotated[str, typer.Option(help="On the output stage: what the text answers.")] = "",
    role: Annotated[str, typer.Option(help="Whose text it is: user, tool, tool_call …", show_default=False)] = "",
    system: Annotated[str, typer.Option(help="On the output stage: what the model was told.")] = "",
    model: Annotated[str, typer.Option(help="Whom it goes to, for overlays and exceptions that are about some.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose it is, in the same way.")] = NOBODY.tenant,
    key: Annotated[str, typer.Option(help="The id of the key that it came by.", show_default=False)] = "",
    route: Annotated[str, typer.Option(help=f"How it came: {', '.join(get_args(Route))}.")] = "cli",
    policy: Annotated[Path | None, typer.Option(help="Policy file; else ./policy.yaml, else what ships.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge a text. Exit status: 0 allowed or logged, 1 blocked or rewritten, 2 bad input."""
    try:
        guard = Guard(policy_path(read_settings(policy=policy).policy))
        text = _read(text)
        if role and role not in get_args(Voice):
            raise ValueError(f"--role {role} is none of {', '.join(get_args(Voice))}")
        if route not in get_args(Route):
            raise ValueError(f"--route {route} is none of {', '.join(get_args(Route))}")
        if stage is Stage.INPUT and (prompt or system):
            raise ValueError("--prompt and --system are about what a model said: add --stage output")
        limit = guard.policy.limits.text
        if len(text) > limit:
            raise ValueError(f"the text has {len(text):,} characters; the policy's limits.text is {limit:,}")
        _warm(guard)
    except (PolicyError, UnknownCheck, WeightsError, ValueError, OSError) as error:
        typer.echo(f"ringfence check: {error}", err=True)
        raise typer.Exit(2) from None
    started = perf_counter()
    with kept() as raised:
        subject = Subject(tenant, key)
        decision = guard.check(text, stage, prompt, role=role, system=system, subject=subject, model=model, route=route)
    latency_ms = (perf_counter() - started) * 1000
    for line in lines(decision, raised, guard.policy):
        typer.echo(f"ringfence check: {line}", err=True)
    if as_json:
        typer.echo(json.dumps(_as_json(decision, latency_ms), ensure_ascii=False))
    else:
        _show(decision, text, latency_ms)
    if decision.action in (Action.REWRITE, Action.BLOCK):
        raise typer.Exit(1)


def _warm(guard: Guard) -> None:
    try:
        guard.warm()
    except (PolicyError, WeightsError, OSError):
        raise
    except Exception as error:  # a check may be anybody's, and so may what it raises
        raise ValueError(f"{said(error)}; mend what that check needs, or take out the rules over it") from error


def _read(text: str) -> str:
    # What the shell hands over that is not UTF-8 arrives as lone surrogates, and is given back as it was.
    raw = sys.stdin.buffer.read() if text == "-" else os.fsencode(text)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the text is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None
    if not text.strip():
        raise ValueError("the text is empty: there is nothing to judge")
    return text


def _as_json(decision: Decision, latency_ms: float) -> dict[str, object]:
    return {
        "action": decision.action.value,
        "rules": list(reasons(decision)),
        **({"escalated": dict(decision.escalated)} if decision.escalated else {}),
        **({"shadow": dict(decision.would)} if decision.shadow else {}),
        **({"excepted": {rule: list(ids) for rule, ids in decision.excepted.items()}} if decision.excepted else {}),
        **({"overlays": list(decision.overlays)} if decision.overlays else {}),
        "findings": [
            {
                "check": finding.check,
                "category": finding.category,
                "score": finding.score,
                "spans": [[span.start, span.end] for span in finding.spans],
                **({"detail": finding.detail} if finding.detail else {}),
                **({"error": finding.error} if finding.error else {}),
            }
            for finding in decision.findings
        ],
        "policy": decision.revision,
        "latency_ms": round(latency_ms, 2),
    }


def _show(decision: Decision, text: str, latency_ms: float) -> None:
    console = Console(highlight=False, soft_wrap=True)  # a text is shown as it is, not as wide as the screen
    style = STYLE[decision.action]
    why = ", ".join(reasons(decision))
    rules = f" by {why}" if why else ""
    console.print(f"[bold {style}]{decision.action}[/]{rules}  [dim]{latency_ms:.1f} ms[/]")
    if decision.action is Action.BLOCK:
        console.print(decision.message, markup=False)
    if decision.action is Action.REWRITE:
        console.print(rewrite(text, decision.rewrites), markup=False)
    for rule, to in decision.escalated.items():
        console.print(f"escalated: {rule} to {to}", style="dim", markup=False)
    for rule, would in decision.would.items():
        console.print(f"in shadow: {rule} {would}", style="dim", markup=False)
    for rule, ids in decision.excepted.items():
        console.print(f"excepted: {rule} by {', '.join(ids)}", style="dim", markup=False)
    if decision.overlays:
        console.print(f"overlays: {', '.join(decision.overlays)}", style="dim", markup=False)
    for error in decision.errors:
        console.print(f"check failed: {error}", style="red", markup=False)
    table = Table("finding", "score", "where", "", box=None, header_style="dim")
    for finding in sorted(decision.findings, key=lambda f: -f.score):
        if finding.score >= SHOWN_FROM:
            where = ", ".join(f"{span.start}-{span.end}" for span in finding.spans)
            table.add_row(finding.category, f"{finding.score:g}", where, finding.detail)
    if table.row_count:
        console.print(table)
