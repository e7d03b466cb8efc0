"""`ringfence policy`: what a policy says, whether it holds together, whether it does what its cases say, and why;
and the thresholds that its targets come to."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ringfence.guard.actions import rewrite
from ringfence.guard.audit.record import Body, decisions_of, lengths_of, who_in
from ringfence.guard.check import Calibrated, Check, UnknownCheck, load_checks, own_checks, said
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.classifier.scorer import WeightsError
from ringfence.guard.known import findable, refuse_unknown
from ringfence.guard.pipeline import Pipeline, Pipelines
from ringfence.policies.cases import (
    Case,
    Judge,
    Outcome,
    Result,
    Shown,
    Tally,
    cases_beside,
    coverage_of,
    run_cases,
    suites_of,
    without_cases,
)
from ringfence.policies.decide import by_text
from ringfence.policies.document import MOST, Problem
from ringfence.policies.explain import Change, Explanation, Flip, Verdict
from ringfence.policies.explain import explain as explain_decisions
from ringfence.policies.findable import scored_by
from ringfence.policies.lint import lint as warnings_of
from ringfence.policies.load import SHIPPED, PolicyError, load_draft, load_policy
from ringfence.policies.lock import Entry, LockFile, dumps_lock, entry_of, lock_beside
from ringfence.policies.overlay import about
from ringfence.policies.overlay import effective as overlaid
from ringfence.policies.schema import schema_of
from ringfence.policies.types import Decision, Fitted, Policy, Stage
from ringfence.policies.words import root
from ringfence.proxy.cli.audit import DEFAULT_DB, Db, opened, refuse, refuse_unwritable
from ringfence.proxy.cli.diff import diff
from ringfence.proxy.cli.failures import kept
from ringfence.proxy.cli.junit import junit_of
from ringfence.proxy.cli.policy_show import as_json as policy_as_json
from ringfence.proxy.cli.policy_show import in_words, print_policy, who_of
from ringfence.proxy.cli.table import coloured, place, table_of
from ringfence.proxy.review.visible import visible
from ringfence.proxy.settings import policy_path
from ringfence.proxy.upstreams import UnknownUpstream, find_upstream

if TYPE_CHECKING:
    from ringfence.proxy.cli.curve import Curves

app = typer.Typer(no_args_is_help=True, help="Read, check and try out a policy.")
app.command()(diff)

PolicyPath = Annotated[
    Path | None, typer.Argument(metavar="[PATH]", help="Policy file; else ./policy.yaml, else the one that ships.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]

OUTCOMES = {Outcome.PASS: "green", Outcome.KNOWN: "yellow", Outcome.FAIL: "bold red", Outcome.ERROR: "magenta"}


@app.command()
def lint(path: PolicyPath = None) -> None:
    """Say what is wrong with a policy, and what it hardly means. Exit status: 0 usable, 2 not."""
    path = policy_path(path) or SHIPPED
    with _told():
        policy = load_policy(path)
        try:
            find_upstream(policy.upstream.use)
        except UnknownUpstream as error:
            raise PolicyError([Problem(policy.origins["upstream.use"], str(error))]) from error
        checks = _checks_of(policy)
        pipeline = Pipelines(policy, checks).base  # what it refuses is an error too

        def reach(category: str) -> tuple[float, float] | None:
            check = pipeline.check_of(category)
            return check.reach(category) if isinstance(check, Calibrated) else None

        suites = list(suites_of(policy, path))
        found = findable(policy, checks.values())
        warnings = list(warnings_of(policy, suites, datetime.now(UTC).date(), reach, found))
    for warning in warnings[:MOST]:
        typer.echo(f"{warning.origin}: warning: {warning.what}")
    if more := warnings[MOST:]:
        typer.echo(f"and {_count(len(more), 'more warning')}, from {more[0].origin} on")
    typer.echo(f"{path}: {_count(len(policy.rules), 'rule')}, {_count(len(warnings), 'warning')}")


@app.command()
def show(
    path: PolicyPath = None,
    effective: Annotated[
        bool, typer.Option("--effective", help="Every value that is in effect, and the line that it comes from.")
    ] = False,
    about_whom: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="KEY=VALUE", help="As for this tenant, key, model or route; may come again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the policy in effect: packs, overrides and overlays resolved, every rule with its origin."""
    with _told():
        policy = load_policy(policy_path(path))
        try:
            policy = overlaid(policy, about(policy, who_of(about_whom or [])))
        except ValueError as error:
            refuse(str(error))
    if as_json:
        typer.echo(json.dumps(policy_as_json(policy), ensure_ascii=False))
    else:
        print_policy(policy, datetime.now(UTC).date(), origins=effective)


@app.command("test")
def run(
    path: PolicyPath = None,
    own: Annotated[bool, typer.Option("--own", help="Leave the cases of packs out.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML into this file as well.")] = None,
    as_json: Json = False,
) -> None:
    """Run the cases of a policy and its packs.

    Exit status: 0 all pass, 1 some do not, 2 the policy cannot be used or there are no cases.
    """
    path = policy_path(path) or SHIPPED
    if junit:
        refuse_unwritable("--junit", junit)
    with _told():
        policy = load_policy(path)
        shown = list(suites_of(policy, path))
        suites = [suite for suite in shown if suite.policy is policy or not own]
        checks = _checks_of(policy)
        if not any(suite.cases for suite in suites):
            refuse(f"{path}: no cases; its own belong in {cases_beside(path)}")
        judges = [judge_of(suite.policy, checks) for suite in suites]
    runs: list[list[Result]] = []
    with kept() as raised, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("cases", total=sum(len(suite.cases) for suite in suites))
        for suite, judge in zip(suites, judges, strict=True):
            runs.append([])
            for result in run_cases(suite.cases, judge):
                runs[-1].append(result)
                progress.advance(task)
    for name, why in raised.items():
        typer.echo(visible(f"the check '{name}' could not answer: {why}"), err=True)
    results = list(chain.from_iterable(runs))
    if junit:
        try:
            junit_of(runs).write(str(junit), pretty=True)
        except OSError as error:
            refuse(str(error))
    coverage = coverage_of(policy, zip(suites, runs, strict=True))
    bare = [rule.id for rule in without_cases(policy, shown)]
    if as_json:
        told = {
            "results": list(map(_as_json, results)),
            "coverage": {name: asdict(shown) for name, shown in coverage.items()},
            "without_cases": bare,
        }
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        _print_results(results, coverage, bare)
    if any(result.outcome in (Outcome.FAIL, Outcome.ERROR) for result in results):
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
    lengths, texts = lengths_of(kept.body), [""] * len(recorded)
    if kept.body.get("apart"):  # then all of them came whole, and each was decided by itself
        each = [*_apart(kept.body, recorded)]
        recorded, texts, lengths = tuple(one for _, one in each), [name for name, _ in each], (0,) * len(each)
    explanation = explain_decisions(policy, recorded, who_in(kept.body), lengths)
    if as_json:
        head = {"seq": kept.seq, "id": kept.body["id"]}
        typer.echo(json.dumps(head | _explanation_as_json(explanation, texts)))
    else:
        _print_explanation(f"record {kept.seq}  {kept.body['id']}", explanation, texts)


def _apart(body: Body, recorded: Sequence[Decision]) -> Iterator[tuple[str, Decision]]:
    """Yield of each text its name, and what was decided with what was found in it alone.

    Those of a request were decided in one go, those of a reply each by itself.
    """
    replies = iter(part["where"] for part in body["reply"])
    names = [part["where"] for part in body["request"]]
    for decision in recorded:
        if decision.stage is Stage.OUTPUT:
            yield next(replies, ""), decision
            continue
        for name, found in zip(names or [""], by_text(decision.findings, range(len(names))), strict=True):
            yield name, replace(decision, findings=(*found,))


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


@app.command()
def fit(
    data: Annotated[Path, typer.Option(help="Rows {text, response, prompt_label, response_label, …}, file or folder.")],
    path: PolicyPath = None,
    png: Annotated[Path | None, typer.Option(help="Draw the curves into this file.")] = None,
    day: Annotated[
        datetime | None, typer.Option("--date", formats=["%Y-%m-%d"], help="What the lock file says; else today.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a threshold to every target of a policy, on labelled rows, and write the lock file beside the policy.

    Exit status: 0 written, 1 the rows cannot promise the targets and nothing is written, 2 there is nothing to fit.
    """
    # Imported here: scipy is slow to load, and the other commands do without.
    from ringfence.guard.labelled import digest, read_labelled, refuse_unlabelled, refuse_unread, score
    from ringfence.policies.fit import CannotPromise, refuse_verdicts
    from ringfence.policies.fit import fit as threshold_of
    from ringfence.proxy.cli.curve import Curves, NoPlots, draw, require_plots

    path = policy_path(path) or SHIPPED
    try:
        if png:
            require_plots(png)
            refuse_unwritable("--png", png)
        with _told():
            draft = load_draft(path)
            rules = [rule for rule in draft.rules if rule.target]
            refuse_unread(rules)
            checks = {**load_checks(), **own_checks(draft.checks)}
            pipeline = Pipeline(replace(draft, rules=tuple(rules)), checks)
        if not rules:
            refuse(f"{path}: no rule has a 'target': there is nothing to fit")
        texts = read_labelled(data, rules)
        refuse_unlabelled(rules, texts, data)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            known = progress.track(texts, description="texts")
            scored = score(rules, known, lambda passage: pipeline.judge(passage.stage, [passage]).findings)
        sha256, on = digest(data), day.date() if day else date.today()
    except (RowError, NoPlots, WeightsError, OSError) as error:
        refuse(str(error))
    found, reasons = dict[str, Entry](), list[str]()
    for rule in rules:
        assert rule.target
        try:
            refuse_verdicts(scored[rule.id])
            threshold, samples = threshold_of(rule.target, scored[rule.id])
        except CannotPromise as error:
            reasons += [f"{rule.written_at('target')}: rule '{rule.id}', {line}" for line in str(error).splitlines()]
        else:
            names = dict.fromkeys(root(one.category) for one in scored_by(rule))
            revisions = {name: pipeline.revision_behind(name) for name in names}
            promise = rule.target, rule.category, samples, sha256, revisions, on, rule.roles, rule.when
            found[rule.id] = entry_of(Fitted(threshold, *promise))
    if reasons:
        typer.echo("\n".join([*reasons, "nothing was written"]), err=True)
        raise typer.Exit(1)
    lock = LockFile(rules=found)
    curves: Curves = {(name, stage): one for name in found for stage, one in scored[name].items()}
    try:
        lock_beside(path).write_text(dumps_lock(lock))
        if png:
            draw(png, curves, found)
    except OSError as error:
        refuse(str(error))
    if as_json:
        typer.echo(json.dumps(TypeAdapter(LockFile).dump_python(lock, mode="json", by_alias=True)))
        return
    _print_fits(curves, found)
    typer.echo(f"wrote {lock_beside(path)}")


@contextmanager
def _told() -> Iterator[None]:
    """Turn what is wrong with a policy into its text on standard error and exit status 2."""
    try:
        yield
    except (PolicyError, UnknownCheck, WeightsError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _checks_of(policy: Policy) -> Mapping[str, Check]:
    """Return the installed checks and the policy's own, having refused a category that none of them answers for."""
    installed = load_checks()
    refuse_unknown(policy, installed.values())
    return {**installed, **own_checks(policy.checks)}


def judge_of(policy: Policy, checks: Mapping[str, Check]) -> Judge:
    """Return what judges the text of a case by a policy, as the text of a request or a reply would be.

    Raises:
        UnknownCheck: a rule looks at a category that no check answers for.
    """
    pipelines = Pipelines(policy, checks, may_ask=lambda _: True)  # what it decides, not how often

    def judge(case: Case) -> tuple[Decision, str]:
        passage = said(case.stage, case.voice, case.text, case.prompt, case.system)
        who = asdict(case.for_)
        decision = pipelines.of(who).judge(case.stage, [passage], who=who)
        return decision, rewrite(case.text, decision.rewrites)

    return judge


def _print_explanation(record: str, why: Explanation, texts: Sequence[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 240  # a rule a line, for grep
    console.print(Text.assemble("\n", coloured(why.recorded), f"  {visible(record)}"))
    decided_by = why.judgements[0].recorded.revision
    console.print(Text(f"policy {why.policy.name}, revision {why.policy.revision[:16]}", "dim"))
    _print_overlays(console, why)
    if not why.same_policy:
        console.print(
            f"Not the policy that decided then (revision {visible(decided_by[:16])}): what follows is what this one "
            "makes of the\nfindings on record. What only this one would have looked for is not among them.",
            style="yellow",
            markup=False,
        )
    for judgement, text in zip(why.judgements, texts, strict=True):
        recorded, decided = judgement.recorded, judgement.decided
        console.print(Text.assemble(f"\n{visible(text) or recorded.stage} · ", coloured(decided.action)))
        if decided.action is not recorded.action:
            reason = ""
            if len({*texts}) > 1:
                reason = ", of all texts together: each is decided by itself"
            elif why.same_policy and recorded.stage is Stage.OUTPUT:
                # One thing does that: windows of a reply, of which a later one knew better.
                reason = ": a reply is judged window by window, as it comes"
            console.print(f"on record: {recorded.action}{reason}", style="yellow")
        table = table_of("rule", "looks at", "highest", "threshold", "outcome")
        table.columns[-1].no_wrap = False  # the words of a failed check have no length
        for one in judgement.verdicts:
            table.add_row(*_verdict_row(one))
        console.print(table)
    console.print()
    if why.milder:
        console.print(_flip_text(why.milder))
    if why.stronger:
        console.print(_flip_text(why.stronger))
    if why.unknown:
        console.print(
            "What would have changed it nobody knows: that goes by what was found together in one window of the reply."
        )
    elif not (why.milder or why.stronger):
        console.print("No change to one rule that is in force, or to what is excepted from it, would change that.")


def _print_overlays(console: Console, why: Explanation) -> None:
    """Print which overlays the exchange is under, those on record where they are others, and what they took away."""
    applied = why.policy.applied
    then = tuple(dict.fromkeys(name for one in why.judgements for name in one.recorded.overlays))
    told = f"overlays: {', '.join(applied) or 'none'}" if applied or then else ""
    told += f" (on record: {', '.join(then) or 'none'})" if applied != then else ""
    if told:
        console.print(Text(visible(told)))
    for name in applied:
        if gone := [one.rule for one in why.policy.removed if one.by == f"overlay {name}"]:
            console.print(Text(f"overlay {name} removes {', '.join(gone)}", "dim"))


def _verdict_row(one: Verdict) -> Iterator[Text]:
    found = "nothing" if one.finding is None else f"{one.finding.score:.4f} {visible(one.finding.category)}"
    looks_at = " of ".join([one.rule.category, *([", ".join(one.rule.roles)] if one.rule.roles else [])])
    band = one.rule.escalate and "{:g} to {:g}".format(*one.rule.escalate.between)
    yield from (Text(one.rule.id), Text(looks_at), Text(found), Text(band or f"{one.rule.threshold:g}"))
    outcome = Text()
    if one.asks:
        outcome.append("would " if one.rule.shadow else "fired: ").append_text(coloured(one.asks))
        if one.excepted:
            outcome.append(f"; not on what is excepted: {', '.join(one.excepted)}")
    elif one.unknown:
        outcome.append("what was found together in one window of the reply is not on record", "yellow")
    elif one.short_by is not None:
        outcome.append(f"short by {one.short_by:.4f}", "dim")
    elif one.excepted:
        outcome.append(f"excepted: {', '.join(one.excepted)}")
    elif one.finding and one.unanswered is None and not one.doubts:
        outcome.append("its 'when' does not hold", "dim")
    if one.unanswered:
        outcome.append("; " if outcome else "").append("unanswered: ").append_text(coloured(one.unanswered))
        outcome.append(visible(f" ({'; '.join(one.errors)})"))
    if why := one.decided_by:
        outcome.append("; " if outcome else "").append(visible(why), "dim")
    yield outcome.append(" (shadow)" if one.rule.shadow and outcome else "", "dim")


def _flip_text(flip: Flip) -> Text:
    changes = [
        f"  {change.rule}: {change.key} {in_words(change.old)} → {in_words(change.new)}"
        + (f" (overlay {change.overlay})" if change.overlay else "")
        for change in flip.changes
    ]
    changes += [f"  exception {name}: ended" for name in flip.ended]
    bound = f"{flip.bound} " if flip.bound else ""
    return Text.assemble(f"It would have been {bound}", coloured(flip.action), " with\n", "\n".join(changes))


def _explanation_as_json(why: Explanation, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "recorded": {"action": why.recorded, "revision": why.judgements[0].recorded.revision},
        "policy": {"name": why.policy.name, "revision": why.policy.revision, "same": why.same_policy},
        "overlays": list(why.policy.applied),
        "action": why.decided,
        "decisions": [
            {
                "stage": judgement.recorded.stage,
                **({"text": text} if text else {}),
                "recorded": judgement.recorded.action,
                "action": judgement.decided.action,
                "rules": list(map(_verdict_as_json, judgement.verdicts)),
            }
            for judgement, text in zip(why.judgements, texts, strict=True)
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
        **({"unknown": True} if one.unknown else {}),
        "asks": one.asks,
        "finding": found
        and {
            "check": found.check,
            "category": found.category,
            "score": None if math.isnan(found.score) else found.score,
        },
        "short_by": one.short_by,
        **({"decided_by": one.decided_by} if one.rule.escalate else {}),
        "unanswered": one.unanswered,
        "errors": list(one.errors),
        "excepted": list(one.excepted),
    }


def _flip_as_json(flip: Flip | None) -> dict[str, Any] | None:
    if flip is None:
        return None
    changes = list(map(_change_as_json, flip.changes))
    bound = {"bound": flip.bound} if flip.bound else {}
    return {"action": flip.action, **bound, "changes": changes, "ended": list(flip.ended)}


def _change_as_json(change: Change) -> dict[str, Any]:
    overlay = {"overlay": change.overlay} if change.overlay else {}
    old, new = (to_jsonable_python(value) for value in (change.old, change.new))
    return {"rule": change.rule, "key": change.key, "from": old, "to": new, **overlay}


def _print_fits(curves: "Curves", found: Mapping[str, Fitted]) -> None:
    from ringfence.proxy.cli.curve import as_text

    console = Console(highlight=False)
    for (rule, stage), scored in curves.items():
        one, sample = found[rule], found[rule].samples[stage]
        console.print(
            f"[bold]{rule}[/] · {stage}: from [bold]{one.threshold:g}[/] on, for {one.target}", soft_wrap=True
        )
        left_out = f"; {sample.unanswered} more that the check had no answer to" if sample.unanswered else ""
        console.print(f"{sample.rows} rows, {sample.positives} of them positive{left_out}")
        # The promised figure chose the threshold: its bound is the one that was settled beforehand.
        promised = f"; {'at least' if one.target.min_recall else 'at most'} {sample.bound:.2%} with 95 % confidence"
        shares = (
            ("others", sample.false_positive_rate, sample.false_positive_interval, one.target.min_recall is None),
            ("positives", sample.recall, sample.recall_interval, one.target.min_recall is not None),
        )
        for what, share, interval, is_promised in shares:
            if share is not None and interval is not None:
                low, high = interval
                told = f"fires on {share:.2%} of {what} ({low:.2%} to {high:.2%})"
                console.print(told + (promised if is_promised else ""))
            else:
                told = f"warning: how often it fires on {what} is not known: no row is one of them"
                console.print(told, style="yellow", soft_wrap=True)
        console.print(as_text(scored, one.threshold))
        console.print()


def _as_json(result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "case": str(case.origin),
        "stage": case.stage,
        "expected": case.expect.action,
        "outcome": result.outcome,
        "difference": result.difference,
        "seconds": result.seconds,
    }


def _print_results(results: list[Result], coverage: Mapping[str, Shown], bare: list[str]) -> None:
    console = Console(highlight=False)
    table = table_of("", "case", "expected", "text")
    for result in results:
        case = result.case
        where = place(case.origin)
        mark = f"[{OUTCOMES[result.outcome]}]{result.outcome.upper()}[/]"
        table.add_row(mark, escape(where), case.expect.action, escape(visible(" ".join(case.text.split()))))
    console.print(table)
    for result in results:
        if result.difference:
            console.print(
                f"{result.case.origin}: {result.outcome}: {visible(result.difference)}",
                style=OUTCOMES[result.outcome],
                markup=False,
                soft_wrap=True,
            )
    console.print()
    console.print(_coverage_table(coverage))
    if bare:
        console.print(f"rules without a case: {', '.join(bare)}", style="yellow")
    counts = {outcome: sum(result.outcome is outcome for result in results) for outcome in Outcome}
    told = [f"{count} {outcome}" for outcome, count in counts.items() if count or outcome is not Outcome.KNOWN]
    console.print(f"{_count(len(results), 'case')}: {', '.join(told)}")


def _coverage_table(coverage: Mapping[str, Shown]) -> Table:
    table = table_of("category", "must be caught", "must be left alone")
    for name, shown in coverage.items():
        table.add_row(name, _tally(shown.caught), _tally(shown.left_alone))
    return table


def _tally(one: Tally) -> Text:
    told = Text(f"{one.passing} pass" if one.passing else "0", "" if one.passing else "yellow")
    for number, what, style in ((one.known, "known to fail", "yellow"), (one.failing, "fail", "bold red")):
        if number:
            told.append(", ").append(f"{number} {what}", style)
    return told


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
