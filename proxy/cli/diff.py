"""`ringfence policy diff`: what is different between two policies, and what that comes to for exchanges on record."""

import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringfence.guard.check import UnknownCheck, load_checks
from ringfence.guard.classifier.scorer import WeightsError
from ringfence.guard.known import refuse_unknown
from ringfence.policies.compare import Difference, compare
from ringfence.policies.document import did_you_mean
from ringfence.policies.load import PolicyError, load_policy
from ringfence.policies.words import Origin
from ringfence.proxy.cli.audit import Since, opened, refuse, since_of
from ringfence.proxy.cli.table import coloured, place
from ringfence.proxy.review.visible import visible

if TYPE_CHECKING:
    from ringfence.guard.replay.proportions import Rate
    from ringfence.guard.replay.replay import Replay

OPERATORS = MappingProxyType(
    {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne}
)
METRICS = ("new_blocks", "fewer_blocks", "new_rewrites", "fewer_rewrites", "changed", "undecided")
SHOWN = 160
"""Characters of an example's text in a terminal."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition under which the command fails: a number of exchanges, or a share of them in percent."""

    text: str
    metric: str
    sign: str
    value: float
    percent: bool

    def trips(self, counts: Mapping[str, int], exchanges: int) -> bool:
        """Whether it is met."""
        found = 100 * counts[self.metric] / exchanges if self.percent else counts[self.metric]
        return bool(OPERATORS[self.sign](found, self.value))


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Policy file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Policy file.")],
    db: Annotated[
        Path | None, typer.Option("--replay", metavar="DB", help="Decide the exchanges of this audit log under both.")
    ] = None,
    since: Since = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="'METRIC > VALUE[%]'", help=f"Exit with status 1; METRIC is {', '.join(METRICS)}."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="How many exchanges to show of each change.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say what is different between two policies, and with --replay what they make of the exchanges on record.

    Exit status: 0 done, 1 a --fail-if is true, 2 a policy, the log or an option cannot be used.
    """
    try:
        start = "" if since is None else since_of(since, datetime.now(UTC))
        gates = [gate_of(text) for text in fail_if or ()]
    except ValueError as error:
        refuse(str(error))
    if db is None and (since or gates):
        refuse(f"{'--since' if since else '--fail-if'} is about exchanges on record: name the audit log with --replay")
    # Imported here: the other commands do without.
    from ringfence.guard.replay.groups import ReplayError
    from ringfence.guard.replay.replay import replay

    found: Replay | None = None
    try:
        before, after = load_policy(old), load_policy(new)
        checks = load_checks()
        for policy in (before, after):
            refuse_unknown(policy, checks.values())
        if db is not None:
            with opened(db), Console(stderr=True).status(f"replaying {db} …"):
                found = replay(db, before, after, checks, since=start, examples=examples)
    except (PolicyError, UnknownCheck, WeightsError, ReplayError) as error:
        refuse(str(error))
    if found and not found.exchanges:
        refuse(f"{db}: no exchange was judged{f' since {start}' if start else ''}, so there is nothing to replay")
    differences = compare(before, after)
    tripped = [gate for gate in gates if found and gate.trips(counts_of(found), found.exchanges)]
    if as_json:
        report = {
            "old": {"name": before.name, "revision": before.revision},
            "new": {"name": after.name, "revision": after.revision},
            "differences": [_difference_as_json(one) for one in differences],
            "replay": found and _replay_as_json(found),
            "failed": [gate.text for gate in tripped],
        }
        typer.echo(json.dumps(report))
    else:
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 240  # a row a line, for grep
        for sign, path, policy in (("-", old, before), ("+", new, after)):
            told = f"{policy.name}  revision {policy.revision[:16]}"
            console.print(Text.assemble(f"{sign} {visible(str(path))}  ", (told, "dim")))
        console.print()
        console.print(_differences_table(differences) if differences else "no difference")
        if found:
            _print_replay(console, found)
        for gate in tripped:
            console.print(Text(f"failed: {gate.text}", "bold red"))
    if tripped:
        raise typer.Exit(1)


def gate_of(text: str) -> Gate:
    """Read `METRIC OP VALUE[%]`.

    Raises:
        ValueError: it is not that; the message says what is wrong.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not match:
        hint = f"write METRIC > VALUE[%], as 'new_blocks > 0.5%'; metrics: {', '.join(METRICS)}"
        raise ValueError(f"--fail-if {text!r} cannot be read; {hint}")
    metric, sign, value, percent = match.groups()
    if metric not in METRICS:
        raise ValueError(f"--fail-if {text!r}: no metric '{metric}'{did_you_mean(metric, METRICS)}")
    return Gate(text.strip(), metric, sign, float(value), bool(percent))


def counts_of(found: "Replay") -> Mapping[str, int]:
    """Return the numbers that a gate may ask for, by metric; each is one of exchanges."""
    blocked, rewritten = found.blocked, found.rewritten
    numbers = (blocked.gained, blocked.lost, rewritten.gained, rewritten.lost, found.changed, found.undecided)
    return dict(zip(METRICS, numbers, strict=True))


def _differences_table(differences: Sequence[Difference]) -> Table:
    table = _table("", "what", "key", "was", "is", "written at")
    for one in differences:
        sign = "~" if one.edits else "-" if one.new is None else "+"
        what = one.name if one.section == "rules" else f"{one.section} {one.name}".strip()
        first = (Text(sign, {"+": "green", "-": "red", "~": "yellow"}[sign]), Text(visible(what)))
        for edit in one.edits:
            table.add_row(*first, edit.key, *map(_shown, (edit.old, edit.new)), _places(edit.old_at, edit.new_at))
            first = (Text(), Text())
        if not one.edits:
            table.add_row(*first, "added" if sign == "+" else "removed", "", "", _places(one.old, one.new))
    return table


def _print_replay(console: Console, found: "Replay") -> None:
    undecided = f", {found.undecided:,} undecided" if found.undecided else ""
    console.print(
        f"\n[bold]{found.exchanges:,} exchanges[/], {found.changed:,} of them with another decision{undecided}"
    )
    if found.unjudged:
        console.print(f"{found.unjudged:,} more are left out: nothing of them was judged then")
    if found.decided_then:
        console.print(
            f"{found.reproduced:,} of the {found.decided_then:,} that one of the two policies decided then come out "
            "as on record",
            style="dim" if found.reproduced == found.decided_then else "yellow",
        )
    if found.rejudged:
        console.print(f"{found.rejudged:,} were judged again, by their text")
    table = _table("", "old", "new", "change", "95 % interval", "whatever the undecided come to")
    for name, rate in (("blocked", found.blocked), ("rewritten", found.rewritten)):
        table.add_row(name, *_rate_row(rate, found.exchanges))
    console.print(table)
    for change in found.changes:
        arrow = Text.assemble(coloured(change.old), " → ", coloured(change.new))
        console.print(Text.assemble(f"\n{change.stage} · ", arrow, f"  {change.count:,}"))
        for (rule, category), count in change.causes.items():
            console.print(Text(visible(f"  {count:>9,}  {rule} on {category}")))
        for example in change.examples:
            text = " ".join(example.text.split())
            short = f"{text[:SHOWN]}…" if len(text) > SHOWN else text
            console.print(Text(visible(f"  {example.id}  {example.at[:19]}  {short}"), "dim"))
    if found.undecided:
        share = found.undecided / found.exchanges
        console.print(f"\n[yellow]undecided  {found.undecided:,} ({share:.2%})[/]")
        for why, count in found.reasons.items():
            console.print(Text(visible(f"  {count:>9,}  {why}")))


def _rate_row(rate: "Rate", exchanges: int) -> Iterator[str]:
    yield from (f"{rate.old:,} ({rate.old / exchanges:.2%})", f"{rate.new:,} ({rate.new / exchanges:.2%})")
    yield f"{rate.change:+.3%} (+{rate.gained:,} −{rate.lost:,})"
    yield f"{rate.low:+.3%} to {rate.high:+.3%}"
    yield "" if (rate.least, rate.most) == (rate.low, rate.high) else f"{rate.least:+.3%} to {rate.most:+.3%}"


def _difference_as_json(one: Difference) -> dict[str, Any]:
    return {
        "section": one.section,
        "name": one.name,
        "kind": "changed" if one.edits else "removed" if one.new is None else "added",
        "old_at": one.old and str(one.old),
        "new_at": one.new and str(one.new),
        "changes": [
            {
                "key": edit.key,
                "from": edit.old,
                "to": edit.new,
                "old_at": edit.old_at and str(edit.old_at),
                "new_at": edit.new_at and str(edit.new_at),
            }
            for edit in one.edits
        ],
    }


def _replay_as_json(found: "Replay") -> dict[str, Any]:
    plain = asdict(found)
    for change in plain["changes"]:
        change["causes"] = [
            {"rule": rule, "category": category, "count": count} for (rule, category), count in change["causes"].items()
        ]
    return plain | {"metrics": dict(counts_of(found))}


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name)
    return table


def _shown(value: object) -> str:
    return "" if value is None else visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _places(old: Origin | None, new: Origin | None) -> str:
    return " → ".join(dict.fromkeys(visible(place(one)) for one in (old, new) if one is not None))
