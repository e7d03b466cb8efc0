"""What `ringfence policy show` prints: the policy in effect, and where each of its values was written."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import date
from typing import Any, get_args

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ringfence.policies.load import SETTINGS, canonical
from ringfence.policies.types import Action, Degrade, Overlay, Policy, Rule, RuleException, Scope, Stage
from ringfence.policies.words import Route
from ringfence.proxy.cli.table import COLOURS, place, table_of

WHO = tuple(f.name for f in fields(Scope))

LISTS = ("checks", "counters", "exceptions", "overlays", "exempt")
"""Parts of a policy of which there may be several, beside its rules."""

PLACES = ("origin", "origins")
"""Keys that say where something was written."""

ANOTHER = re.compile(rf"[,;\s](?:{'|'.join(WHO)})=")
"""How a second pair begins that somebody wrote into the first."""


def who_of(pairs: Iterable[str]) -> dict[str, str]:
    """Read `KEY=VALUE` pairs of an exchange that there might be.

    Raises:
        ValueError: one is not such a pair; the message says what they look like.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in WHO:
            raise ValueError(f"{pair!r} is not KEY=VALUE, where KEY is one of {', '.join(WHO)}")
        # Models are called as anybody likes; a tenant or a key that somebody lists has neither sign in its name.
        if ANOTHER.search(value) or (key in ("tenant", "key") and {",", "="} & {*value}):
            hint = "give each KEY=VALUE with a --for of its own"
            raise ValueError(f"--for {pair}: no {key} is called {value!r}; {hint}")
        if key in found:
            raise ValueError(f"--for {pair}: the {key} is {found[key]!r} already, and an exchange has one")
        if key == "route" and value not in get_args(Route):
            raise ValueError(f"--for {pair} is none of {', '.join(get_args(Route))}")
        found[key] = value
    return found


def print_policy(policy: Policy, today: date, *, origins: bool) -> None:
    """Print a policy: its rules in a table, or every value with its origin.

    Args:
        today: exceptions that have run out by then are marked.
    """
    console = Console(highlight=False)
    applied = f"  with {', '.join(policy.applied)}" if policy.applied else ""
    console.print(f"[bold]{policy.name}[/]  [dim]revision {policy.revision[:16]}{applied}[/]\n")
    table = _value_table(policy, today) if origins else _rule_table(policy)
    # Half an id or half a place is none: where the screen is too narrow, it breaks the line itself.
    size = Measurement.get(console, console.options.update(max_width=1_000), table)
    console.width = max(console.width, size.minimum if origins else size.maximum)
    console.print(table)
    if not origins:
        console.print(_settings_table(policy, today))


def as_json(policy: Policy) -> dict[str, Any]:
    """Return the policy in canonical form, with its revision, where its values were written, and what was removed."""
    shown = canonical(policy) | {"revision": policy.revision, "applied": list(policy.applied)}
    for rule, told in zip(policy.rules, shown["rules"], strict=True):
        told["origin"] = str(rule.origin)
        told["origins"] = {key: str(origin) for key, origin in rule.origins.items()}
    shown["removed"] = [{"rule": one.rule, "by": one.by, "origin": str(one.origin)} for one in policy.removed]
    return shown | {"origins": {key: str(origin) for key, origin in policy.origins.items()}}


def _rule_table(policy: Policy) -> Table:
    table = table_of("rule", "looks at", "stage", "from", "action", "written at")
    for rule in policy.rules:
        stage = "both" if set(rule.stages) == set(Stage) else rule.stages[0]
        start = f"{rule.least:g}" + (f" ({rule.target})" if rule.target else "")
        table.add_row(rule.id, rule.category, stage, start, _action(rule), escape(place(rule.origin)))
    return table


def _action(rule: Rule) -> Text:
    """Return what a rule asks for, and whatever of it a hasty reader should not miss."""
    notes = [f"on error: {in_words(rule.on_error)}"] if rule.on_error is not Action.BLOCK else []
    notes += [f"escalates {rule.escalate}"] if rule.escalate else []
    notes += [f"{key}: {in_words(value)}" for key, value in (("roles", rule.roles), ("when", rule.when)) if value]
    notes += ["shadow"] if rule.shadow else []
    return Text.assemble((rule.action, COLOURS[rule.action]), f" ({'; '.join(notes)})" if notes else "")


def _settings_table(policy: Policy, today: date) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    for removal in policy.removed:
        table.add_row("removed", escape(f"{removal.rule}: by {removal.by} ({place(removal.origin)})"))
    for exemption in policy.exempt:
        table.add_row("exempt", escape(f"{exemption.role}: {exemption.why}"))
    for check in policy.checks:
        table.add_row("check", escape(f"{check.category}: {check.kind}"))
    for counter in policy.counters:
        line = f"count.{counter.id}: {counter.at_least} of {', '.join(counter.rules)} within {counter.within}"
        table.add_row("counter", escape(f"{line}, per {counter.per}, held {counter.hold}"))
    for one in policy.exceptions:
        until = f"until {one.until}{_ran_out(one, today)}"
        table.add_row("exception", escape(f"{one.id}: {', '.join(one.rules)} {until}: {one.why}"))
    for overlay in policy.overlays:
        table.add_row("overlay", escape(f"{overlay.id}: {in_words(overlay.scope)}"))
    sections = canonical(policy)
    for name in ("message", *SETTINGS):
        table.add_row(name, escape(in_words(sections[name])))
    return table


def _ran_out(one: object, today: date) -> str:
    return " (ran out)" if isinstance(one, RuleException) and one.until < today else ""


def _value_table(policy: Policy, today: date) -> Table:
    """Every value that is not a default, and where it was written."""
    table = table_of("what", "key", "written at", "value", wraps="value")
    for rule in policy.rules:
        name = rule.id
        for key, value in _written(rule):
            table.add_row(name, key, _place_of(rule, key), escape(in_words(value)))
            name = ""
    for removal in policy.removed:
        table.add_row("removed", removal.rule, escape(place(removal.origin)), escape(f"by {removal.by}"))
    for kind in LISTS:
        for one in getattr(policy, kind):
            name = getattr(one, "id", "") or getattr(one, "category", "") or one.role
            told = one.scope if isinstance(one, Overlay) else one  # what it changes is seen with --for
            table.add_row(kind, name + _ran_out(one, today), escape(place(one.origin)), escape(in_words(told)))
    sections = canonical(policy)
    table.add_row("message", "", _place_of(policy, "message"), escape(in_words(policy.message)))
    for section in SETTINGS:
        for key, value in sections[section].items():
            table.add_row(section, key, _place_of(policy, f"{section}.{key}"), escape(in_words(value)))
    return table


def _place_of(written: Policy | Rule, key: str) -> str:
    return escape(place(written.origins[key])) if key in written.origins else "default"


def _written(rule: Rule) -> Iterator[tuple[str, object]]:
    """Yield the keys of a rule that say something, and those of which nothing is left because a null took it out."""
    for f in fields(rule):
        value = getattr(rule, f.name)
        if f.name not in ("id", "fitted", *PLACES) and value not in (None, "", (), False):
            yield f.name, value
        elif value is None and f.name in rule.origins:
            yield f.name, "null"


def in_words(value: object) -> str:
    """Return a value in one line, as a person would write it down in YAML."""
    match value:
        case Degrade():
            return f"degrade to {value.degrade}"
        case Mapping():
            said = ((key, item) for key, item in value.items() if item not in (None, "", [], {}) and key not in PLACES)
            return ", ".join(f"{key} {in_words(item)}" for key, item in said)
        case str():
            return value
        case tuple() | list():
            return ", ".join(map(in_words, value))
        case float():
            return f"{value:g}"
        case bool() | int() | None:
            return json.dumps(value)
    return in_words(TypeAdapter(type(value)).dump_python(value, mode="json", by_alias=True))
