"""Reads one YAML file into a typed value, and says of every problem where it stands. Knows nothing of what is read."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ringfence.policies.words import FORMS, NOT_WRITTEN, Origin

T = TypeVar("T")
Loc = tuple[str | int, ...]
"""The way to a value: `("rules", 0, "threshold")`."""

DEEPEST = 16
"""Nesting beyond this is no policy; reading goes by recursion, and would run out of stack."""

LARGEST = 5_000_000
"""Characters; some 30,000 rules. What is read takes a hundred times the room of its text."""

MOST = 100
"""Problems told at once: nobody reads on, and to guess what each could have meant takes time."""

LONG = 200_000
"""Characters that Python's parser is given a second for, to say what libyaml could not read."""

MANY = 300
"""Words among which a mistyped one is not looked for any more."""

LONGEST_NUMBER = 1_000
"""Digits; to read a number takes time with the square of them."""

UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML may not hold (YAML 1.1, 5.1), and the byte order mark, which may only open a file."""

SURROGATE = re.compile("[\ud800-\udfff]")


class Plain(yaml.SafeLoader):
    """PyYAML's parser in Python, but for one thing: in `[How much?, other]` a question mark ends no word.

    By YAML 1.1 and 1.2 it opens a key only as the first character of one, and so libyaml reads it.
    """

    within = False

    def scan_plain(self) -> Any:
        """Read one word without quotes, of which a question mark is then a character like any other."""
        self.within = True
        try:
            return super().scan_plain()
        finally:
            self.within = False

    def peek(self, index: int = 0) -> Any:
        """Return the character that comes so many after this one."""
        character = super().peek(index)
        return "x" if self.within and character == "?" else character


FAST: Any = getattr(yaml, "CSafeLoader", Plain)
"""libyaml where PyYAML was built with it: some twenty times as fast as the parser in Python."""

TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", "!")
"""Tags of what stays as it is written."""

PLAIN = (None, *TEXT, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null", "seq", "map")))
"""Tags of what a file may hold; None where none is written."""

KINDS = {
    "string_type": "text in quotes",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "date_type": "a date, as 2027-03-01",
    "date_parsing": "a date, as 2027-03-01",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    origin: Origin
    what: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.what}"


class PolicyError(ValueError):
    """A policy, pack or case file cannot be used; the text has one line a problem: `FILE:LINE:COLUMN: what`.

    They come in the order of their lines. Beyond `MOST` problems, the last line says that there are more.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        told = sorted(islice(problems, MOST + 1), key=lambda problem: problem.origin)
        if len(told) > MOST:
            told[-1] = Problem(told[-1].origin, "there are more problems")
        self.problems = tuple(told)
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
        PolicyError: with the problems of the text, in its order.
    """
    read, bare, problems = _read(text, name)
    found: list[tuple[Origin, str | _Refusal]] = [(problem.origin, problem.what) for problem in problems]
    try:
        # JSON, because its strict mode is the one that means what a file means: text names an enumeration's
        # member and a list makes a tuple, but "0.5" is no number and "yes" is no boolean.
        adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # mypy takes no type for hashable
        document = Document(adapter.validate_json(json.dumps(read.value), strict=True), read.origins)
    except ValidationError as error:
        refusals = list(_refusals(error, read.value, kind))
        known = {problem.origin for problem in problems}
        within = {refusal.loc[:end] for refusal in refusals for end in range(len(refusal.loc))}
        for refusal in refusals:
            # A list whose items were refused is then also "too short"; that says nothing new.
            if not (refusal.type == "too_short" and refusal.loc in within):
                at = read.at(*refusal.loc)
                found += [] if at in known else [(at, refusal)]
    if found:
        found.sort(key=lambda one: one[0])  # before they are put in words, which only the first of them are
        raise PolicyError(Problem(at, what if isinstance(what, str) else _said(what, bare)) for at, what in found)
    return document


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` where a known word is close, otherwise those to choose from; nothing of too many."""
    known = list(known)
    if len(known) > MANY:
        return ""
    if close := get_close_matches(str(word), known, n=1):
        return f"; did you mean '{close[0]}'?"
    return f"; choose from: {', '.join(known)}" if known else ""


def name_of(path: Path) -> str:
    """Return what to call a file: relative to the working directory where it lies below it."""
    with suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


def _read(text: str, name: str) -> tuple[Document[Any], Mapping[Loc, str], list[Problem]]:
    """Read a text; what is not YAML at all is raised.

    Returns:
        what it says, as JSON has it; the words that YAML takes for something else, as they are written; what in it no
        JSON can hold.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > LARGEST:
        raise PolicyError(
            [Problem(Origin(name), f"{len(text):,} characters are too many; at most {LARGEST:,} are read")]
        )
    if bad := UNPRINTABLE.search(text):
        what = f"character U+{ord(bad[0]):04X} is not allowed in YAML"
        raise PolicyError([Problem(_after(text[: bad.start()], name), what)])
    try:
        try:
            return _Reader(FAST(text), name).document()
        except yaml.MarkedYAMLError:
            if len(text) > LONG:
                raise
            # The two parsers differ in corners and in words; where one is at a loss, the other has the say.
            return _Reader(Plain(text), name).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = Origin(name, mark.line + 1, mark.column + 1) if mark else Origin(name)
        raise PolicyError([Problem(origin, _explained(error.problem or str(error)))]) from None


def _explained(problem: str) -> str:
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    return f"not YAML: {problem}"


class _Reader:
    """Goes once through the events of a text, and notes where every piece stands and what no JSON can hold."""

    def __init__(self, loader: Any, name: str, depth: int = 0) -> None:
        self.loader = loader
        self.take = loader.get_event
        self.name = name
        self.depth = depth
        self.origins: dict[Loc, Origin] = {(): Origin(name)}
        self.bare: dict[Loc, str] = {}
        self.problems: list[Problem] = []

    def document(self) -> tuple[Document[Any], Mapping[Loc, str], list[Problem]]:
        self.take()  # the stream starts
        if isinstance(self.take(), yaml.StreamEndEvent):
            raise PolicyError([Problem(Origin(self.name), "the file is empty")])
        value = self.value(self.take(), ())
        self.take()  # the document ends
        if not isinstance(event := self.take(), yaml.StreamEndEvent):
            raise self.refused(event, "a second document begins here ('---'); a file holds one")
        return Document(value, self.origins), self.bare, self.problems

    def value(self, event: Any, loc: Loc) -> Any:
        self.admit(event)
        # Told at the key, as every other problem of a value is, so that it is told once.
        if event.tag not in PLAIN:
            tag = _unquoted(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self.problems.append(Problem(self.origins[loc], f"{_named(loc)} cannot have the tag {tag}; leave it out"))
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
            if value is Ellipsis and event.tag in PLAIN:
                what = f"{_named(loc)} cannot be {_unquoted(event.value)}: {_unreadable(event.value)}"
                self.problems.append(Problem(self.origins[loc], what))
            elif _is_turned(value, event.value):
                self.bare[loc] = event.value
            return None if value is Ellipsis else value
        self.depth += 1
        value = self.mapping(loc) if isinstance(event, yaml.MappingStartEvent) else self.sequence(loc)
        self.depth -= 1
        return value

    def sequence(self, loc: Loc) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self.take(), yaml.SequenceEndEvent):
            here = (*loc, len(items))
            self.origins[here] = self.origin(event)
            items.append(self.value(event, here))
        return items

    def mapping(self, loc: Loc) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := self.take(), yaml.MappingEndEvent):
            what = self.passed_over(event, mapping, loc)
            if what is None:
                here = (*loc, event.value)
                self.origins[here] = self.origin(event)
                mapping[event.value] = self.value(self.take(), here)
            else:
                self.problems.append(Problem(self.origin(event), what))
                _Reader(self.loader, self.name, self.depth).value(self.take(), ())
        return mapping

    def passed_over(self, key: Any, mapping: Mapping[str, Any], loc: Loc) -> str | None:
        """Return why a key and its value are none; a key that is no scalar is read to its end."""
        if not isinstance(key, yaml.ScalarEvent):
            _Reader(self.loader, self.name, self.depth).value(key, ())
            return "a key must be plain text"
        self.admit(key)
        if not _is_text(key.value):
            return "a key must be plain text"
        if key.value in mapping:
            return f"key '{key.value}' is repeated; it is already on line {self.origins[*loc, key.value].line}"
        return None

    def scalar(self, event: Any) -> Any:
        """Return text, number, boolean or None; Ellipsis for what cannot be read as any of them."""
        tag, text = event.tag, event.value
        if tag is None:
            tag = self.loader.resolve(yaml.ScalarNode, text, event.implicit)
        if tag in TEXT:
            return text if _is_text(text) else Ellipsis
        if len(text) > LONGEST_NUMBER:
            return Ellipsis
        try:
            value = self.loader.construct_object(yaml.ScalarNode(tag, text))
        except (yaml.YAMLError, ValueError, OverflowError):
            return Ellipsis
        if value is None or isinstance(value, bool):
            return value
        # What canonical JSON cannot hold: infinity, not-a-number, integers that a double rounds.
        return value if isinstance(value, int | float) and abs(value) <= 2**53 else Ellipsis

    def admit(self, event: Any) -> None:
        if event.anchor is not None:
            # They make a small file as large as its author likes, and a policy is read by people: refused outright.
            raise self.refused(event, f"anchors and aliases are not allowed ('{event.anchor}'); write the value out")
        if self.depth == DEEPEST:
            raise self.refused(event, f"nested deeper than {DEEPEST} levels")

    def refused(self, event: Any, what: str) -> PolicyError:
        return PolicyError([Problem(self.origin(event), what)])

    def origin(self, event: Any) -> Origin:
        mark = event.start_mark
        return Origin(self.name, mark.line + 1, mark.column + 1)


def _unreadable(text: str) -> str:
    if not _is_text(text):
        return "half a character is no text"
    return "a number is finite and at most 2^53; text goes in quotes"


def _is_turned(value: Any, text: str) -> bool:
    """Whether YAML made a truth of another word (`no`, `on`), or a number of a time of day (`12:30`)."""
    if isinstance(value, bool):
        return text.lower() != str(value).lower()
    return not isinstance(value, str) and ":" in text


def _is_text(value: str) -> bool:
    # "\ud800" in double quotes is a lone surrogate: no text, and no canonical bytes.
    return SURROGATE.search(value) is None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What pydantic says of one value.

    Attributes:
        loc: where it stands in the text.
        keys: those that the mapping around it may have.
    """

    type: str
    loc: Loc
    keys: tuple[str, ...]
    got: Any
    bounds: Mapping[str, Any]
    words: str

    @property
    def of_another_kind(self) -> bool:
        return self.type in KINDS or (self.type in ("literal_error", "enum") and not isinstance(self.got, str))


def _refusals(error: ValidationError, value: Any, kind: Any) -> Iterator[_Refusal]:
    """Yield what is refused; of a value that may be one thing or another, as the one that it looks like."""
    unions: dict[Loc, dict[str | int, list[_Refusal]]] = {}
    for detail in error.errors(include_url=False)[: 10 * MOST]:
        loc, bounds = detail["loc"], detail.get("ctx", {})
        if "discriminator" in bounds:  # told at the key that should say which of several things it is
            loc = (*loc, bounds["discriminator"].strip("'"))
        place, member, keys = _placed(loc, value, kind)
        refusal = _Refusal(detail["type"], place, keys, detail["input"], bounds, detail["msg"])
        if member is None:
            yield refusal
        else:
            unions.setdefault(loc[:member], {}).setdefault(loc[member], []).append(refusal)
    for members in unions.values():
        ways = list(members.values())
        itself = min(len(refusal.loc) for way in ways for refusal in way)  # what is refused within it, it has
        others = (way for way in ways if not (len(way) == 1 and way[0].of_another_kind and len(way[0].loc) == itself))
        yield from next(others, ways[0])


def _placed(loc: Loc, value: Any, kind: Any) -> tuple[Loc, int | None, tuple[str, ...]]:
    """Follow pydantic's way to a value, some of whose steps name no place but which of several types was tried.

    Returns:
        where the value stands; the index of the first such step, None where there is none; the keys that the mapping
        around the value may have.
    """
    place: list[str | int] = []
    member: int | None = None
    kinds, around = _choices(kind), list[Any]()
    for index, step in enumerate(loc):
        there = isinstance(value, dict | list) and (step in value if isinstance(value, dict) else isinstance(step, int))
        absent = index == len(loc) - 1 and isinstance(step, str) and any(step in _fields(one) for one in kinds)
        if there or absent:
            place.append(step)
            value = value[step] if there else None
            around, kinds = kinds, [inner for one in kinds for inner in _inside(one, step)]
        elif step != "[key]":  # which is the key itself, of a mapping whose keys are restricted
            member = index if member is None else member
            kinds = [one for one in kinds if _is_called(one, step)]
    return tuple(place), member, tuple(dict.fromkeys(key for one in around for key in _fields(one)))


def _choices(kind: Any) -> list[Any]:
    """Return the types that a value may have, without their restrictions."""
    if get_origin(kind) is Annotated:
        return _choices(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for member in get_args(kind) for one in _choices(member)]
    return [kind]


def _inside(kind: Any, step: str | int) -> list[Any]:
    if keys := _fields(kind):
        return _choices(keys.get(str(step)))
    inner = get_args(kind)[isinstance(step, str) :]
    return _choices(inner[0]) if inner else []


def _is_called(kind: Any, step: str | int) -> bool:
    # As pydantic names members of a union: by their class, or by what they have under the key that tells them apart.
    tags = (tag for hint in _fields(kind).values() if get_origin(hint) is Literal for tag in get_args(hint))
    return getattr(kind, "__name__", None) == step or step in tags


@cache
def _fields(kind: Any) -> Mapping[str, Any]:
    """Return the keys of a mapping that is read as a dataclass, with the types of their values; of others, none."""
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind, include_extras=True)
    notes = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    alias = {name: note.alias for name in hints for note in notes[name] if isinstance(note, FieldInfo)}
    return {alias.get(name) or name: hint for name, hint in hints.items() if NOT_WRITTEN not in notes[name]}


def _named(loc: Loc) -> str:
    key = next((f"'{step}'" for step in reversed(loc) if isinstance(step, str)), "the file")
    return f"an item of {key}" if loc and isinstance(loc[-1], int) else key


def _said(refusal: _Refusal, bare: Mapping[Loc, str]) -> str:
    """Return a refusal in the words of a file."""
    loc, bounds, key, got = refusal.loc, refusal.bounds, _named(refusal.loc), _shown(refusal.got)
    if loc in bare:
        got += f", which YAML makes of {_unquoted(bare[loc])} without quotes"
    match refusal.type:
        case "missing" | "union_tag_not_found":
            return f"{key} is missing here"
        case "unexpected_keyword_argument":
            return f"unknown key {key}{did_you_mean(loc[-1], refusal.keys)}"
        case "literal_error" if bounds["expected"] == refusal.got:
            return f"{key} must be the number {refusal.got}, without quotes"
        case "enum" | "literal_error":
            # A literal of enumeration members is shown as <Action.LOG: 'log'>, a plain one as 'log'.
            allowed = re.findall(r"'([^']*)'", bounds["expected"]) or [str(bounds["expected"])]
            return f"{key} cannot be {got}{did_you_mean(bare.get(loc, refusal.got), allowed)}"
        case "union_tag_invalid":
            allowed = re.findall(r"'([^']*)'", bounds["expected_tags"])
            return f"{key} cannot be {_shown(bounds['tag'])}{did_you_mean(bounds['tag'], allowed)}"
        case "greater_than_equal":
            return f"{key} must be at least {bounds['ge']:g}, got {got}"
        case "greater_than":
            return f"{key} must be more than {bounds['gt']:g}, got {got}"
        case "less_than":
            return f"{key} must be less than {bounds['lt']:g}, got {got}"
        case "less_than_equal":
            return f"{key} must be at most {bounds['le']:g}, got {got}"
        case "string_too_short" | "too_short" if bounds["min_length"] == 1:
            return f"{key} must not be empty"
        case "too_short":
            return f"{key} must have at least {bounds['min_length']} items, got {len(refusal.got)}"
        case "too_long":
            return f"{key} must have at most {bounds['max_length']} items, got {len(refusal.got)}"
        case "string_pattern_mismatch":
            wanted = FORMS.get(bounds["pattern"]) or f"must match {bounds['pattern']}"
            return f"{key} {wanted}, got {got}"
        case type_error if type_error in KINDS:
            return f"{key} must be {KINDS[type_error]}, got {got}"
    return f"{key}: {refusal.words}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unquoted(text: str) -> str:
    return _shown(text).strip('"')


def _after(text: str, name: str) -> Origin:
    """Return the place right after a text."""
    line = text.count("\n") + 1
    return Origin(name, line, len(text) - (text.rfind("\n") + 1) + 1)
