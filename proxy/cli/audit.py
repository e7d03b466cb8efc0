"""`ringfence audit`: the records in a terminal. Prints what the store and the verifier say; decides nothing."""

import json
import re
import sys
from codecs import lookup
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule as Line
from rich.table import Table
from rich.text import Text

from ringfence.guard.audit.record import parse_receipt
from ringfence.guard.audit.rows import distinct, rows_of
from ringfence.guard.audit.store import Kept, Store, StoreError
from ringfence.guard.audit.verify import Unreadable, Verified
from ringfence.guard.audit.verify import verify as verify_chain
from ringfence.policies.types import Action
from ringfence.policies.words import seconds
from ringfence.proxy.review.visible import visible, visible_json

app = typer.Typer(no_args_is_help=True, help="Look into the audit log, and prove that nobody changed it.")

Db = Annotated[Path, typer.Option("--db", envvar="RINGFENCE_AUDIT_PATH", help="The audit log, an SQLite file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead, one object a line.")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="7d|24h|30m|DATE", help="Only what was received since, in UTC.")
]
DEFAULT_DB = Path("ringfence.db")

COLUMNS = ("time (UTC)", "id", "action", "rules", "model", "subject")
COLOURS = {"block": "bold red", "rewrite": "yellow", "log": "cyan", "allow": "green"}


def number(text: str) -> int:
    """Return a record's number.

    Raises:
        BadParameter: it is none, but a time perhaps.
    """
    if not (text.isascii() and text.isdecimal()):
        raise typer.BadParameter(f"{text!r} is no record's number, as 72; --since is the option that takes a time")
    return int(text)


@app.command("list")
def list_records(
    db: Db = DEFAULT_DB,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    before: Annotated[
        int | None, typer.Option(metavar="SEQ", parser=number, help="Only records before this number: the next page.")
    ] = None,
    action: Annotated[Action | None, typer.Option(help="Only what ended in this action.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests for this model.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(metavar="TENANT[/KEY]", help="Only exchanges of this tenant, or of this one of its keys."),
    ] = None,
    since: Since = None,
    as_json: Json = False,
) -> None:
    """List the newest records."""
    try:
        start = None if since is None else since_of(since, datetime.now(UTC))
    except ValueError as error:
        refuse(str(error))
    with opened(db) as store:
        kept = store.list(
            limit=limit,
            before=before,
            action=action,
            model=model,
            subject=subject,
            since=start,
        )
        total = store.count()
    if as_json:
        _print_json(kept)
        return
    console = Console()
    if not console.is_terminal:
        console.width = 240  # a record a line, for grep
    columns = COLUMNS if console.width >= 110 else COLUMNS[:-2]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("seq", justify="right")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in COLUMNS[:3])
    for one in kept:
        table.add_row(str(one.seq), *_row(one)[: len(columns)])
    console.print(table)
    console.print(Text(f"{len(kept)} of {total} records in {db}", "dim"))


@app.command("show")
def show_record(
    key: Annotated[str, typer.Argument(metavar="ID|SEQ", help="An exchange id, or a record's number.")],
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Show one record whole.

    Exit status: 0 shown, 1 shown, and altered since it was written, 2 there is no such record.
    """
    with opened(db) as store:
        kept = store.get(key)
    if kept is None:
        refuse(f"{db}: no record {key}; `ringfence audit list` shows those there are")
    if as_json:
        _print_json([kept])
    else:
        Console().print(_page(kept))
    if kept.body is None:
        raise typer.Exit(1)


@app.command("rows")
def label_rows(
    db: Db = DEFAULT_DB,
    limit: Annotated[int, typer.Option(min=1, help="Of how many records, newest first.")] = 1000,
    action: Annotated[Action | None, typer.Option(help="Only what ended in this action.")] = None,
) -> None:
    """Print the kept texts as rows to label, for `ringfence train guard --head-only`; one JSON object a line.

    What was said several times is one row, with the number of the newest record and, as `times`, how often.
    """
    with opened(db) as store:
        kept = store.list(limit=limit, action=action)
        older = store.count(action) - len(kept)
    # Other encodings get escapes only: rows that go into a file are read as UTF-8.
    plain = lookup(sys.stdout.encoding).name == "utf-8"
    for row in distinct(row for one in kept if one.body is not None for row in rows_of(one.json)):
        typer.echo(visible_json(row) if plain else json.dumps(row))
    if older > 0:
        typer.echo(f"{older:,} older records are left out; --limit {limit + older} takes them too", err=True)


@app.command()
def verify(
    db: Db = DEFAULT_DB,
    expect: Annotated[
        str | None,
        typer.Option(metavar="SEQ:HASH", help="A receipt, as in the header x-ringfence-receipt, that must be found."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that no record was changed, deleted, moved or put in.

    Exit status: 0 where all is as it was written, 1 where something is not, 2 where there is no log to verify.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        receipt = None if expect is None else parse_receipt(expect)
        with Console(stderr=True).status(f"reading {db} …"):
            verdict = verify_chain(db, expect=receipt)
    except (ValueError, Unreadable) as error:
        refuse(str(error))
    whole = isinstance(verdict, Verified)
    if as_json:
        typer.echo(json.dumps({"whole": whole, **{name: getattr(verdict, name) for name in verdict.__slots__}}))
    elif isinstance(verdict, Verified):
        console.print(Text.assemble(("whole", "bold green"), f"  {verdict.count} records, each as it was written"))
        if receipt:
            console.print(f"       among them record {receipt.seq} of the receipt")
        console.print(Text(f"head   {verdict.count}:{verdict.head}", "dim"), soft_wrap=True)
    else:
        console.print(Text.assemble(("broken", "bold red"), f" at record {verdict.seq}: {visible(verdict.why)}"))
    if not whole:
        raise typer.Exit(1)


@contextmanager
def opened(db: Path) -> Iterator[Store]:
    """The log, to read; what goes wrong with it ends the command with a message and status 2."""
    try:
        store = Store.open(db, read_only=True)
        try:
            yield store
        finally:
            store.close()
    except StoreError as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """End the command with a message on standard error and status 2."""
    typer.echo(visible(message), err=True)
    raise typer.Exit(2)


def refuse_unwritable(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before anybody has waited for what is to stand in it."""
    there = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        hint = "name a file in a folder that is there, where you may write"
        refuse(f"{option} {path}: the file cannot be written ({error.strerror}); {hint}")
    if not there:
        path.unlink()


def since_of(text: str, now: datetime) -> str:
    """Return the time that `7d`, `24h`, `30m` or an ISO date or time stands for, as records write it.

    Args:
        now: with its time zone. A time that names none is in UTC.

    Raises:
        ValueError: it is none of these.
    """
    try:
        if re.fullmatch(r"\d+[smhd]", text):
            at = now - timedelta(seconds=seconds(text))
        else:
            at = datetime.fromisoformat(text)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        hint = "write 7d, 24h, 30m, or a date as 2026-11-21 or 2026-11-21T08:00"
        raise ValueError(f"--since {text!r} is no time: {hint}") from None


def _print_json(kept: Sequence[Kept]) -> None:
    for one in kept:
        typer.echo(json.dumps(one.json))


def _row(kept: Kept) -> tuple[Text, ...]:
    body = kept.body
    if body is None:
        return (Text(), Text(), Text("altered", "bold white on red"), Text("its hash does not fit"))
    rules = ", ".join(body["rules"]) or ("error" if body["error"] else "")
    plain = (rules, body["model"], _subject(body))
    return (Text(_time(body)), Text(visible(body["id"])), _action(body["action"]), *map(Text, map(visible, plain)))


def _page(kept: Kept) -> Group:
    """The whole record, top to bottom as it happened."""
    body = kept.body
    if body is None:
        warning = Text(f"record {kept.seq} was altered: its hash does not fit its text", "bold white on red")
        return Group(warning, Text(f"hash {visible(kept.hash)}"), Text(visible(kept.raw)))
    coverage = {where["where"]: where for where in body["coverage"]}
    head = _pairs(
        ("record", f"{kept.seq}  {body['id']}"),
        ("time", f"{_time(body)} UTC"),
        ("from", f"{_subject(body)} by {body['dialect']}, for {body['model']}"),
        ("error", body["error"] or ""),
        ("took", ", ".join(f"{step} {seconds:.3f}" for step, seconds in body["timings"].items())),
        ("revisions", ", ".join(f"{name} {revision}" for name, revision in body["revisions"].items())),
        ("hash", kept.hash),
        ("prev", body["prev"]),
    )
    return Group(
        Text.assemble("\n", _action(body["action"]), "  ", visible(", ".join(body["rules"]))),
        head,
        *(line for part in body["request"] for line in _part("request", part, coverage)),
        *(line for part in body["reply"] for line in _part("reply", part, coverage)),
        *(line for decision in body["decisions"] for line in _decision(decision)),
    )


def _part(side: str, part: dict[str, Any], coverage: dict[str, Any]) -> Iterator[Padding]:
    seen = coverage.get(part["where"], {"status": "unjudged", "why": ""})
    why = f" ({seen['why']})" if seen["why"] else ""
    yield _heading(f"{side} · {part['role']} · {part['where']} · {seen['status']}{why}")
    if "text" in part:
        yield Padding(Text(visible(part["text"]), overflow="fold"), (0, 2))
    else:
        yield Padding(Text(f"{part['kind']}, {part.get('withheld', 'not kept')}", "dim italic"), (0, 2))


def _decision(decision: dict[str, Any]) -> Iterator[Padding | Table]:
    yield _heading(f"decision on the {decision['stage']} · {decision['action']}")
    unanswered = decision.get("unanswered", {})  # a record has it only where a check failed
    yield _pairs(
        ("rules", ", ".join(decision["rules"])),
        ("also", ", ".join(decision["logged"])),
        ("unanswered", ", ".join(f"{rule} asks to {action}" for rule, action in unanswered.items())),
        ("escalated", ", ".join(f"{rule} to {to}" for rule, to in decision.get("escalated", {}).items())),
        ("shadow", ", ".join(f"{rule} {would}" for rule, would in decision["shadow"].items())),
        ("excepted", "; ".join(f"{rule} by {', '.join(ids)}" for rule, ids in decision.get("excepted", {}).items())),
        ("overlays", ", ".join(decision.get("overlays", ()))),
        ("told", decision["message"]),
        ("policy", decision["revision"]),
    )
    if decision["findings"]:
        table = Table(box=None, header_style="bold", padding=(0, 2))
        for name in ("score", "category", "check", "where", "detail"):
            table.add_column(name)
        for finding in sorted(decision["findings"], key=lambda finding: -finding["score"]):
            spans = ", ".join(f"{span['part']}:{span['start']}-{span['end']}" for span in finding["spans"])
            score = "error" if finding["error"] else f"{finding['score']:g}"
            cells = (score, finding["category"], finding["check"], spans, finding["error"] or finding["detail"])
            table.add_row(*(Text(visible(cell)) for cell in cells))
        yield table


def _pairs(*pairs: tuple[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value:
            grid.add_row(Text(name, "dim"), Text(visible(value), overflow="fold"))
    return Table.grid() if not grid.rows else grid


def _heading(title: str) -> Padding:
    return Padding(Line(Text(visible(title)), align="left", style="dim"), (1, 0, 0, 0))


def _action(action: str | None) -> Text:
    return Text(action or "unjudged", COLOURS.get(action or "", "magenta"))


def _time(body: dict[str, Any]) -> str:
    return str(body["at"])[:19].replace("T", " ")


def _subject(body: dict[str, Any]) -> str:
    subject = body["subject"]
    return f"{subject['tenant']}/{subject['key']}" if subject["key"] else str(subject["tenant"])
