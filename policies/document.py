"""Reads one YAML file into a typed value, and says of every problem where it stands. Knows nothing of what is read."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ringfence.policies.types import Origin

T = TypeVar("T")
Loc = tuple[str | int, ...]
"""The way to a value: `("rules", 0, "threshold")`."""

DEEPEST = 16
"""Nesting beyond this is no policy; PyYAML composes by recursion, and would run out of stack."""

NOT_WRITTEN = ("origin", "fitted")
"""Fields that are no keys of a file."""

KINDS = {
    "string_type": "text in quotes",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    origin: Origin
    what: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.what}"


class PolicyError(ValueError):
    """A policy, pack or case file cannot be used; the text has one line a problem: `FILE:LINE:COLUMN: what`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Document(Generic[T]):
    """A value and where each piece of it was written; `origins` has the key of a mapping, the item of a list."""

    value: T
    origins: Mapping[Loc, Origin]

    def at(self, *loc: str | int) -> Origin:
        """Return where a value was written; for one that was not, where the nearest thing around it was."""
        return next(self.origins[loc[:end]] for end in range(len(loc), -1, -1) if loc[:end] in self.origins)


def read_document(path: Path, kind: type[T]) -> Document[T]:
    """Read a file; see `parse_document`. A file that cannot be opened is a problem on its first line."""
    name = name_of(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PolicyError([Problem(Origin(name), f"cannot read the file: {error.strerror}")]) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise PolicyError([Problem(_after(before, name), what)]) from None
    return parse_document(text, name, kind)


def parse_document(text: str, name: str, kind: type[T]) -> Document[T]:
    """Read YAML text as a value of the type, strictly: no unknown or repeated keys, no coercion, no aliases.

    Args:
        name: what to call the text in problems.
        kind: any type that pydantic can validate from JSON.

    Raises:
        PolicyError: with every problem of the text.
    """
    origins: dict[Loc, Origin] = {(): Origin(name)}
    problems: list[Problem] = []
    data = _plain(_compose(text, name), (), name, origins, problems)
    try:
        # JSON, because its strict mode is the one that means what a file means: text names an enumeration's
        # member and a list makes a tuple, but "0.5" is no number and "yes" is no boolean.
        document = Document(TypeAdapter(kind).validate_json(json.dumps(data), strict=True), origins)
    except ValidationError as error:
        known = {problem.origin for problem in problems}
        for detail in error.errors(include_url=False):
            origin = Document(data, origins).at(*detail["loc"])
            # A list whose items were refused is then also "too short"; that says nothing new.
            if origin not in known and not (detail["type"] == "too_short" and detail["input"]):
                problems.append(Problem(origin, _said(detail, kind)))
    if problems:
        raise PolicyError(sorted(problems, key=lambda p: (p.origin.line, p.origin.column)))
    return document


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` where a known word is close, otherwise the list of those to choose from."""
    known = list(known)
    if close := get_close_matches(str(word), known, n=1):
        return f"; did you mean '{close[0]}'?"
    return f"; choose from: {', '.join(known)}" if known else ""


def name_of(path: Path) -> str:
    """Return what to call a file: relative to the working directory where it lies below it."""
    with suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


class _Refused(yaml.MarkedYAMLError):
    """YAML, but more of it than a policy needs."""


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            # They make a small file as large as its author likes, and a policy is read by people: refused outright.
            what = f"anchors and aliases are not allowed ('{event.anchor}'); write the value out"
            raise _Refused(problem=what, problem_mark=event.start_mark)
        if self.depth == DEEPEST:
            what = f"nested deeper than {DEEPEST} levels"
            raise _Refused(problem=what, problem_mark=event.start_mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, name: str) -> yaml.Node:
    try:
        node: yaml.Node | None = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = Origin(name, mark.line + 1, mark.column + 1) if mark else Origin(name)
        problem = error.problem or str(error)
        what = problem if isinstance(error, _Refused) else _explained(problem)
        raise PolicyError([Problem(origin, what)]) from None
    except yaml.reader.ReaderError as error:
        what = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise PolicyError([Problem(_after(text[: error.position], name), what)]) from None
    if node is None:
        raise PolicyError([Problem(Origin(name), "the file is empty")])
    return node


def _explained(problem: str) -> str:
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    if problem == "but found another document":
        return "a second document begins here ('---'); a file holds one"
    return f"not YAML: {problem}"


def _plain(
    node: yaml.Node, loc: Loc, name: str, origins: dict[Loc, Origin], problems: list[Problem], at: str = ""
) -> Any:
    """Return the node as JSON has it, noting where every piece stands and what no JSON can hold."""

    def origin(of: yaml.Node) -> Origin:
        return Origin(name, of.start_mark.line + 1, of.start_mark.column + 1)

    origins.setdefault(loc, origin(node))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or not _is_text(key):
                problems.append(Problem(origin(key_node), "a key must be plain text"))
            elif key in mapping:
                first = origins[(*loc, key)]
                problems.append(
                    Problem(origin(key_node), f"key '{key}' is repeated; it is already on line {first.line}")
                )
            else:
                origins[(*loc, key)] = origin(key_node)
                mapping[key] = _plain(value_node, (*loc, key), name, origins, problems)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*loc, i), name, origins, problems) for i, item in enumerate(node.value)]
    value = _scalar(node)
    if value is Ellipsis:
        # Told at the key, as every other problem of a value is, so that it is told once.
        problems.append(Problem(origins[loc], f"not text, a number, true or false: {_shown(node.value)}"))
        return None
    return value


def _scalar(node: yaml.Node) -> Any:
    """Return text, number, boolean or None; Ellipsis for what cannot be read as any of them."""
    constructor = yaml.constructor.SafeConstructor()
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    try:
        value = constructor.construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        return Ellipsis
    match value:
        case str():
            return value if _is_text(value) else Ellipsis
        case int() | float():
            # What canonical JSON cannot hold: infinity, not-a-number, integers that a double rounds.
            return value if abs(value) <= 2**53 else Ellipsis
        case None:
            return None
    return Ellipsis


def _is_text(value: str) -> bool:
    # "\ud800" in double quotes is a lone surrogate: no text, and no canonical bytes.
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _said(detail: ErrorDetails, kind: Any) -> str:
    """Return a pydantic error in the words of a file."""
    loc, got, bounds = detail["loc"], detail["input"], detail.get("ctx", {})
    key = next((f"'{step}'" for step in reversed(loc) if isinstance(step, str)), "the file")
    if loc and isinstance(loc[-1], int):
        key = f"an item of {key}"
    match detail["type"]:
        case "missing":
            return f"{key} is missing here"
        case "unexpected_keyword_argument":
            return f"unknown key {key}{did_you_mean(loc[-1], _keys(kind, loc[:-1]))}"
        case "enum" | "literal_error":
            # A literal of enumeration members is shown as <Action.LOG: 'log'>, a plain one as 'log'.
            allowed = re.findall(r"'([^']*)'", bounds["expected"]) or [str(bounds["expected"])]
            return f"{key} cannot be {_shown(got)}{did_you_mean(got, allowed)}"
        case "greater_than_equal":
            return f"{key} must be at least {bounds['ge']:g}, got {_shown(got)}"
        case "greater_than":
            return f"{key} must be more than {bounds['gt']:g}, got {_shown(got)}"
        case "less_than":
            return f"{key} must be less than {bounds['lt']:g}, got {_shown(got)}"
        case "less_than_equal":
            return f"{key} must be at most {bounds['le']:g}, got {_shown(got)}"
        case "string_too_short" | "too_short":
            return f"{key} must not be empty"
        case "string_pattern_mismatch":
            return f"{key} must match {bounds['pattern']}, got {_shown(got)}"
        case type_error if type_error in KINDS:
            return f"{key} must be {KINDS[type_error]}, got {_shown(got)}"
    return f"{key}: {detail['msg']}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(kind: Any, loc: Loc) -> list[str]:
    """Return the keys that a mapping at `loc` may have, following the types from the top."""
    for step in loc:
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(str(step))
        else:
            kind = get_args(kind)[1 if isinstance(step, str) else 0]
        if isinstance(kind, UnionType):  # `Target | None`
            kind = get_args(kind)[0]
    return [f.name for f in fields(kind) if f.name not in NOT_WRITTEN] if is_dataclass(kind) else []


def _after(text: str, name: str) -> Origin:
    """Return the place right after a text."""
    line = text.count("\n") + 1
    return Origin(name, line, len(text) - (text.rfind("\n") + 1) + 1)
