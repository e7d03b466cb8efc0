"""One exchange with a language model, in our words, whatever API it came by."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from ulid import ULID

from ringfence.guard.images import Image, Unreadable, read_image
from ringfence.policies.types import Decision

MOST_TURNS, MOST_TEXT = 10, 10_000
"""What is told of earlier turns at most: so many, of so many code points together."""

LONGEST_NAME = 64
"""Characters of the name of a field."""

MOST_DIGITS = 4
"""Digits in it: fewer than a card or a telephone number has."""

SPEAKERS = ("user", "assistant")

Path = tuple[str | int, ...]
"""Where a text stands in the wire body it came in: `("messages", 0, "content")`."""


class Kind(StrEnum):
    """What a part is. The first group is text; of media, an image may be read."""

    TEXT = "text"
    TOOL_DEFINITION = "tool_definition"
    TOOL_CALL = "tool_call"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    MEDIA = "media"
    UNKNOWN = "unknown"

    @property
    def is_text(self) -> bool:
        """Whether it is text."""
        return self not in (Kind.MEDIA, Kind.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a part's text, `[start, end)` in code points, that is one string or number of the body.

    Attributes:
        path: where that string or number stands; None where it cannot be replaced, as the name of a field cannot.
    """

    start: int
    end: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class Part:
    """One text, or one thing that is not text, of a request or a reply.

    Attributes:
        path: where it stands in the wire body; where there are no pieces, the string there is the text.
        text: empty for media and unknown parts.
        pieces: the strings that the text was put together from, so that nothing can hide in a seam.
        image: what it is, where it is an image that came with the request.
        why: why nobody can read it, where that is known.
    """

    kind: Kind
    role: str
    path: Path
    text: str = ""
    pieces: tuple[Piece, ...] = ()
    image: Image | None = None
    why: str = ""

    @property
    def where(self) -> str:
        """The path as people write it."""
        return dotted(self.path)

    @property
    def voice(self) -> str:
        """Whose text it is, as rules name it."""
        return "tool_call" if self.kind is Kind.TOOL_CALL else self.role


def compose(kind: Kind, role: str, path: Path, strings: Iterable[tuple[Path | None, str]], seam: str = "\n") -> Part:
    """Put strings together to one part, with `seam` between them."""
    texts: list[str] = []
    pieces: list[Piece] = []
    at = 0
    for where, text in strings:
        pieces.append(Piece(at, at + len(text), where))
        texts.append(text)
        at += len(text) + len(seam)
    return Part(kind, role, path, seam.join(texts), tuple(pieces))


def image_part(role: str, path: Path, url: str | None) -> Part:
    """Return the part that stands for media, with the image in its address, where it has one.

    Args:
        url: that of an image; None where it is something else.
    """
    try:
        return Part(Kind.MEDIA, role, path, image=read_image(url) if url is not None else None)
    except Unreadable as error:
        return Part(Kind.MEDIA, role, path, why=str(error))


def unread(kind: Kind, why: str = "") -> str:
    """Return what the coverage says of a part that no check reads.

    Args:
        why: of an image, why none could; empty where none does.
    """
    return f"no check reads {kind}: {why}" if why else f"no check reads {kind}"


def dotted(path: Path) -> str:
    """Return a path as people write it: `messages[0].content`. A step that may say more than a name is told by length.

    For paths are on records that hold no text.
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{name_of(step)}" for step in path).removeprefix(".")


def name_of(step: str) -> str:
    """Return the name of a field, or how long it is where it may be something else."""
    is_name = len(step) <= LONGEST_NAME and _NAME.fullmatch(step) and sum(map(str.isdigit, step)) <= MOST_DIGITS
    return step if is_name else f"({len(step)} characters)"


_NAME = re.compile(r"[A-Za-z_$/][\w$./-]*", re.ASCII)


def words(value: Any, path: Path = ()) -> Iterator[tuple[Path | None, str]]:
    """Yield every string and number below a JSON value with its path, and the name of every field with None.

    The arguments of a tool call are JSON inside a string; where they can be read, what is inside is yielded, with a
    path that goes on into it (`actions.put` follows it).

    Args:
        value: as `json.loads` makes it.
    """
    if isinstance(value, str):
        inner = _embedded(value) if path and path[-1] == "arguments" else None
        if inner is None:
            yield path, value
        else:
            yield from words(inner, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, str(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield None, key
            yield from words(item, (*path, key))
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from words(item, (*path, index))


def _embedded(text: str) -> Any:
    """Return the JSON object or list in a string; None where there is none, or one that can be read in two ways."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a field stands there twice")
        return found

    try:
        inner = json.loads(text, object_pairs_hook=once, parse_float=_AsWritten)
    except (ValueError, RecursionError):
        return None
    return inner if isinstance(inner, dict | list) else None


class _AsWritten(float):
    """A number with a point, and its digits: all of them go on, and not only those that a float has."""

    def __new__(cls, digits: str) -> "_AsWritten":
        made = super().__new__(cls, digits)
        made.digits = digits
        return made

    digits: str

    def __str__(self) -> str:
        return self.digits


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
    """Whose exchange it is.

    Attributes:
        user: whom the request names as its user, in whatever words the caller has for that; on no record.
        conversation: which conversation the request says that it goes on with, in the same way.
    """

    tenant: str = "default"
    key: str = ""
    user: str = ""
    conversation: str = ""


def whose(subject: Subject, model: str, route: str) -> dict[str, str]:
    """Return what a policy's scopes ask for, by the names that they have for it."""
    return {"tenant": subject.tenant, "key": subject.key, "model": model, "route": route}


@dataclass(slots=True)
class Exchange:
    """What happened, from the request to the last byte of the reply. Mutable; owned by one task.

    Attributes:
        dialect: the API it came by (`openai.chat`, `anthropic.messages`, `python`, `cli` …).
        body: the request as it came, or as rewritten: what goes to the upstream.
        request: the parts of the request, in wire order.
        apart: whether these are texts by themselves, sent together: none was said before another.
        reply: the parts of the reply as far as they were judged, before rewriting.
        timings: seconds by step (`input_s`, `upstream_first_s`, `output_s`, `total_s`).
        receipt: `SEQ:HASH` of its record; empty while there is none.
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
    receipt: str = ""
    apart: bool = False

    @property
    def who(self) -> dict[str, str]:
        """What a policy's scopes ask for."""
        return whose(self.subject, self.model, self.dialect)

    @property
    def prompt(self) -> str:
        """What the reply answers: the last thing the user said; empty where the user said nothing."""
        return next((p.text for p in reversed(self.request) if p.kind is Kind.TEXT and p.role == "user"), "")

    @property
    def system(self) -> str:
        """What the operator told the model: the system and developer messages, one per line."""
        told = [p.text for p in self.request if p.kind is Kind.TEXT and p.role in ("system", "developer")]
        return "\n".join(told)

    def answered(self) -> Iterator[str]:
        """Yield for each part of the request what it answers: the assistant's, the last thing the user said before it.

        Empty where that is nothing, for what others say, and where the texts are `apart`.
        """
        last = ""
        for part in self.request:
            yield last if part.role == "assistant" and not self.apart else ""
            if part.kind is Kind.TEXT and part.role == "user":
                last = part.text

    def before(self, part: int) -> tuple[tuple[str, str], ...]:
        """Return what the user and the assistant said before a part of the request, oldest first, each with its role.

        Whole texts, and without a gap: the oldest are left out where there are more than `MOST_TURNS`, or where they
        are longer than `MOST_TEXT` together. Nothing where the texts are `apart`.
        """
        if self.apart:
            return ()
        found: list[tuple[str, str]] = []
        room = MOST_TEXT
        for at in range(part - 1, -1, -1):
            one = self.request[at]
            if one.kind is Kind.TEXT and one.role in SPEAKERS:
                room -= len(one.text)
                if room < 0 or len(found) == MOST_TURNS:
                    break
                found.append((one.role, one.text))
        return tuple(reversed(found))
