"""Who calls: keys that a file lists, each with an id and a tenant. The file holds digests, so nobody can call by it.

Knows no HTTP. What overlays, exceptions and counters ask of an exchange, its tenant and its key, comes from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from ringfence.guard.exchange import Subject
from ringfence.policies.document import PolicyError, Problem, read_document
from ringfence.policies.words import STRICT_KEYS, Name, Origin, Written


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        id: what policies and records call it.
        sha256: of the key itself, hexadecimal: `printf %s KEY | sha256sum`.
        tenant: whose it is.
    """

    __pydantic_config__ = STRICT_KEYS

    id: Name
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tenant: Name = "default"
    origin: Written = field(default_factory=Origin, compare=False)


Keys = Mapping[str, Key]
"""By digest."""


def read_keys(path: Path) -> Keys:
    """Read a file of keys: a list of `{id, tenant, sha256}`.

    Raises:
        PolicyError: with every problem of the file; it names no key.
    """
    document = read_document(path, tuple[Key, ...])
    keys = [replace(key, origin=document.at(index)) for index, key in enumerate(document.value)]
    ids: dict[str, Key] = {}
    digests: dict[str, Key] = {}
    problems = [
        Problem(key.origin, f"{what} of '{key.id}' is already used at {first.origin}")
        for key in keys
        for what, first in (("the id", ids.setdefault(key.id, key)), ("the key", digests.setdefault(key.sha256, key)))
        if first is not key
    ]
    if problems:
        raise PolicyError(problems)
    return digests


def caller(keys: Keys, shown: str) -> Subject | None:
    """Return who shows a key; None where no such key is listed."""
    key = keys.get(sha256(shown.encode(errors="replace")).hexdigest())
    return Subject(key.tenant, key.id) if key else None
