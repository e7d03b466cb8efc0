"""One exchange with a language model, in our words, whatever API it came by."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ulid import ULID

from ringfence.policies.types import Decision

Path = tuple[str | int, ...]
"""Where a text stands in the wire body it came in: `("messages", 0, "content")`."""


class Kind(StrEnum):
    """What a part is. The first group is text that checks read; media is not."""

    TEXT = "text"
    TOOL_DEFINITION = "tool_definition"
    TOOL_CALL = "tool_call"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    MEDIA = "media"
    UNKNOWN = "unknown"

    @property
    def is_text(self) -> bool:
        """Whether a check can read it."""
        return self not in (Kind.MEDIA, Kind.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Part:
    """One text, or one thing that is not text, of a request or a reply.

    Attributes:
        path: where it stands in the wire body; rewriting replaces the string found there.
        text: empty for media and unknown parts.
    """

    kind: Kind
    role: str
    path: Path
    text: str = ""

    @property
    def where(self) -> str:
        """The path as people write it."""
        return dotted(self.path)


def dotted(path: Path) -> str:
    """Return a path as people write it: `messages[0].content`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


class Judged(StrEnum):
    """What became of a part."""

    JUDGED = "judged"
    EXEMPT = "exempt"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether one part was read by the checks that the policy asks for, and if not, why not."""

    where: str
    status: Judged
    why: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose exchange it is."""

    tenant: str = "default"
    key: str = ""


@dataclass(slots=True)
class Exchange:
    """What happened, from the request to the last byte of the reply. Mutable; owned by one task.

    Attributes:
        dialect: the API it came by (`openai.chat`, `openai.moderations`, `python`, `cli`).
        body: the request as it came, or as rewritten: what goes to the upstream.
        request: the parts of the request, in wire order.
        reply: the parts of the reply as far as they were judged, before rewriting.
        timings: seconds by step (`input_s`, `upstream_first_s`, `output_s`, `total_s`).
        error: what went wrong outside judging: upstream failure, disconnect. None where nothing did.
        revisions: sha256 of what produced the reply (`engine`) and the scores (by check).
    """

    dialect: str
    model: str
    request: list[Part]
    body: dict[str, Any] = field(default_factory=dict)
    subject: Subject = field(default_factory=Subject)
    id: str = field(default_factory=lambda: str(ULID()))
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    reply: list[Part] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def prompt(self) -> str:
        """The last thing the user said; empty where the user said nothing."""
        return next((p.text for p in reversed(self.request) if p.kind is Kind.TEXT and p.role == "user"), "")


def text_parts(parts: Iterable[Part]) -> Iterator[tuple[int, Part]]:
    """Yield each part that checks can read, with its index among all of them."""
    return ((index, part) for index, part in enumerate(parts) if part.kind.is_text)
