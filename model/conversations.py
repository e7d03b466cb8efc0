"""Conversations to learn from: where they come from, which are held out, and which of their tokens are learnt.

Knows the chat template by way of `Chat`, and nothing of a network.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Self

from ringfence.model.chat import Chat, TemplateRefused, Turn

OWN = Path(__file__).parent / "data"
"""The project's own conversations: JSON lines in any folder below."""

OWN_TIMES = 2
"""How often an epoch has each of the project's own: they are few, and what the model is to do in earnest."""

HELD = 10
"""One conversation in so many is held out."""

ROLES = ("system", "user", "assistant")


class ConversationsUnusable(ValueError):
    """There are none, or a line is no conversation; the message names the place."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the pool, `chat/NAME.jsonl.gz`. Only those are named whose licence allows commercial use.

    Attributes:
        most: conversations taken of it, so that none rules the rest.
    """

    name: str
    licence: str
    most: int


SOURCES = (
    Source("dolly_3k_plus", "CC-BY-SA-3.0", 4000),
    Source("gsm8k_train", "MIT", 700),
    Source("oasst_en_100", "Apache-2.0", 100),
    Source("self_instruct_human", "Apache-2.0", 500),
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation.

    Attributes:
        source: of the pool, or `own/` and what kind of ours it is.
        times: how often an epoch has it.
    """

    source: str
    turns: tuple[Turn, ...]
    times: int = 1

    @property
    def order(self) -> int:
        """A number that only depends on how it opens: what asks the same is on the same side of every cut."""
        opening = next(said for role, said in self.turns if role == "user")
        plain = "".join(letter for letter in opening.lower() if letter.isalnum())
        return int.from_bytes(hashlib.sha256(plain.encode("utf-8", "replace")).digest()[:8])


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as the network reads it.

    Attributes:
        ids: tokens (T,).
        spoken: which of them the assistant said (T,), what ends its turn included; these are learnt.
        usual: how many of the first tokens another example begins with as well, above all a template's own opening:
            no expert should be kept busy by what is always the same.
    """

    source: str
    ids: tuple[int, ...]
    spoken: tuple[bool, ...]
    times: int = 1
    usual: int = 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is learnt, and what is only measured."""

    train: Sequence[Example]
    held: Sequence[Example]

    @classmethod
    def load(cls, pool: Path, own: Path, chat: Chat, ends: Collection[int], length: int) -> Self:
        """Read the pool and the project's own, and hold out a tenth of every source, always the same.

        Args:
            pool: folder with `chat/NAME.jsonl.gz` for each of `SOURCES`.
            own: folder with `*.jsonl` at any depth.
            ends: ids that end a turn.
            length: tokens after which a conversation is cut off.

        Raises:
            ConversationsUnusable: a file of the pool is missing, or a line is no conversation.
        """
        conversations = (*read_pool(pool), *read_own(own))
        examples = compare([encode(one, chat, ends, length) for one in conversations])
        sides: tuple[list[Example], list[Example]] = [], []
        for conversation, example in zip(conversations, examples, strict=True):
            if any(example.spoken):
                sides[conversation.order % HELD == 0].append(example)
        return cls(*sides)


def read_pool(pool: Path) -> Iterator[Conversation]:
    """Yield what each source gives, in an order that its own words decide."""
    for source in SOURCES:
        found = read_file(pool / "chat" / f"{source.name}.jsonl.gz", source.name)
        yield from sorted(found, key=lambda one: one.order)[: source.most]


def read_file(file: Path, source: str) -> list[Conversation]:
    """Read a file with a conversation a line, packed by gzip where its name ends in `.gz`.

    Raises:
        ConversationsUnusable: it cannot be read, or a line is no conversation.
    """
    return [Conversation(source, turns) for _, turns in read_lines(file)]


def read_own(folder: Path) -> Iterator[Conversation]:
    """Yield the project's own conversations."""
    if not folder.is_dir():
        raise ConversationsUnusable(f"there is no folder {folder} to read conversations from")
    for file in sorted(folder.rglob("*.jsonl")):
        for kind, turns in read_lines(file):
            yield Conversation(f"own/{kind or file.stem}", turns, OWN_TIMES)


def read_lines(file: Path) -> Iterator[tuple[str | None, tuple[Turn, ...]]]:
    """Yield of each line what kind it says it is of, and its turns; raises ConversationsUnusable."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            for at, line in enumerate(lines, 1):
                yield read_turns(line, f"{file}:{at}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConversationsUnusable(f"{file} cannot be read: {error}") from error


def read_turns(line: str, place: str) -> tuple[str | None, tuple[Turn, ...]]:
    """Read `{"messages": [{"role": …, "content": …}, …], "kind": …}`; raises ConversationsUnusable with the place."""
    try:
        row: Mapping[str, Any] = json.loads(line)
        turns = tuple((str(one["role"]), one["content"]) for one in row["messages"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConversationsUnusable(f"{place}: no conversation: {error!r}") from error
    if strange := [type(content).__name__ for _, content in turns if not isinstance(content, str)]:
        raise ConversationsUnusable(f"{place}: what is said must be a string, got {strange[0]}")
    turns = tuple((role, content.strip()) for role, content in turns)
    if not {role for role, _ in turns} <= {*ROLES} or "user" not in dict(turns):
        raise ConversationsUnusable(f"{place}: roles are {', '.join(ROLES)}, and a user must speak")
    return row.get("kind"), turns


def encode(conversation: Conversation, chat: Chat, ends: Collection[int], length: int) -> Example:
    """Write a conversation as the chat template does, up to where the assistant last stops speaking.

    Each reply is rendered as if the next turn were to come: what stands behind the opening of its turn is the reply,
    and the first control token after that which ends a turn is its own.

    Raises:
        ConversationsUnusable: the template writes the past anew as a conversation goes on, or ends no turn.
    """
    ids: list[int] = []
    spoken: list[bool] = []
    turns = conversation.turns
    for at in (at for at, (role, _) in enumerate(turns) if role == "assistant"):
        try:
            before, after = chat.render(turns[:at]), chat.render(turns[: at + 1])
        except TemplateRefused as error:
            raise ConversationsUnusable(f"a conversation of {conversation.source}: {error}") from error
        stop = next((place for place in range(len(before), len(after)) if after[place] in ends), None)
        if after[: len(before)] != before or before[: len(ids)] != ids or stop is None:
            raise ConversationsUnusable("the checkpoint's chat template does not show where a reply begins and ends")
        spoken += [False] * (len(before) - len(ids)) + [True] * (stop + 1 - len(before))
        ids = after[: stop + 1]
    return Example(conversation.source, tuple(ids[:length]), tuple(spoken[:length]), conversation.times)


def compare(examples: Sequence[Example]) -> list[Example]:
    """Find how many tokens each begins with as another does; in the order of their tokens that is a neighbour."""
    order = sorted(range(len(examples)), key=lambda at: examples[at].ids)
    alike = [0] * len(examples)
    for one, next in pairwise(order):
        pairs = zip(examples[one].ids, examples[next].ids, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        alike[one], alike[next] = max(alike[one], common), common
    return [replace(example, usual=usual) for example, usual in zip(examples, alike, strict=True)]
