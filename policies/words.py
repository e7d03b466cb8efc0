"""The smallest pieces that a policy is written with: names, categories, shares, durations, and where a line stands."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn

from annotated_types import Gt, Lt, MinLen
from pydantic import BeforeValidator, ConfigDict, StringConstraints
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

STRICT_KEYS = ConfigDict(extra="forbid")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A rule's or a policy's name: fit for a header, a metric label, a file name."""

Category = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9][A-Za-z0-9_-]*)*$")]
"""A dotted category, most general first."""

Root = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
"""A category of one word."""

Text = Annotated[str, MinLen(1)]

Tag = Annotated[str, StringConstraints(pattern=r"^\S{1,64}$")]
"""What a rule is filed under elsewhere, taxonomy first: `MLCommons:S9`, `OWASP-LLM-2025:LLM01`."""

Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]
"""ISO 639 code, as `de`."""

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
"""Who says a message."""

Voice = Literal[Role, "tool_call"]
"""Whose text a rule looks at: a message's, or what a model hands to a tool."""

Route = Literal[
    "openai.chat", "openai.moderations", "anthropic.messages", "litellm.guardrail", "fms.detectors", "python", "cli"
]
"""How an exchange came."""


def _whole(value: object) -> object:
    if isinstance(value, bool | float):
        raise PydanticCustomError("int_type", "Input should be a whole number")
    return value


WHOLE = BeforeValidator(_whole)
"""Refuses what Python takes for one of several numbers though it is written otherwise: `true` and `1.0` for 1."""

Version = Annotated[Literal[1], WHOLE]
"""Of the language that policies and packs are written in."""

Share = Annotated[float, Gt(0), Lt(1)]

Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[smhd]$")]
"""A whole number of seconds, minutes, hours or days: `90s`, `10m`, `24h`, `7d`."""

FORMS = {
    r"^[1-9][0-9]{0,5}[smhd]$": "must be a number and s, m, h or d, as 90s, 10m, 24h, 7d",
    r"^[A-Za-z][A-Za-z0-9_-]{0,63}$": "must be one word of letters, digits, - and _, without a dot",
    r"^[a-z]{2,3}$": "must be the code of a language, as en or de",
    r"^[0-9a-f]{64}$": "must be 64 hexadecimal digits, as sha256sum prints them",
}
"""What a pattern asks for, in words."""

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def root(category: str) -> str:
    """Return the first word of a category: which check answers for it."""
    return category.partition(".")[0]


def lineage(category: str) -> Iterator[str]:
    """Yield a category and everything above it: `pii.email`, `pii`."""
    while category:
        yield category
        category = category.rpartition(".")[0]


def covers(category: str, other: str) -> bool:
    """Whether the other category is this one or lies below it: `pii` covers `pii.email`, and not `piiish`."""
    return other == category or other.startswith(f"{category}.")


def seconds(duration: str) -> int:
    """Return how long a `Duration` is.

    Raises:
        ValueError: it is none; the message says what one looks like.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", duration):
        raise ValueError(f"{duration!r} is no duration: write a number and s, m, h or d, as 90s, 10m, 24h, 7d")
    return int(duration[:-1]) * SECONDS[duration[-1]]


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """The line of a policy file that a value came from; line and column count from 1. In the order of lines."""

    file: str = "<memory>"
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


def _not_written(value: object) -> NoReturn:
    raise PydanticCustomError("unexpected_keyword_argument", "Unexpected keyword argument")


NOT_WRITTEN = BeforeValidator(_not_written)
"""Refuses a field that is no key of a file: the reader of a file sets it."""

Written = Annotated[SkipJsonSchema[Origin], NOT_WRITTEN]
"""Where something was written."""

Origins = Annotated[SkipJsonSchema[Mapping[str, Origin]], NOT_WRITTEN]
"""Where the values of something were written, by key."""
