"""What the bodies of every API have in common: words put together, fields that nobody reads. Knows no API."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ringfence.guard.exchange import Kind, Part, Path, compose, image_part, name_of, words
from ringfence.guard.images import address_of
from ringfence.guard.unicode import readable
from ringfence.proxy.reply import Withheld
from ringfence.proxy.wire.body import is_identifier, leaves

OF_IMAGES = frozenset({"cache_control", "data", "detail", "image_url", "media_type", "source", "ttl", "type", "url"})
"""Fields that the APIs have beside an image and in it."""

_NAME = re.compile(r"[a-z0-9_]{1,40}\Z")


def with_unread(
    body: Mapping[str, Any], known: Iterable[Part], settings: frozenset[str], of_messages: frozenset[str]
) -> Iterator[Part]:
    """Yield the known parts of a request, then one for each field that says something and is none of them.

    INVARIANT: no string is lost but single keywords, of a message in documented fields only: what is not a known text
    lies below a part that says so.

    Args:
        settings: fields that hold keywords, any number of them; `messages.x` for those of messages.
        of_messages: fields of a message that the API documents.
    """
    covered = set()
    for part in known:
        yield part
        covered.add(part.path)
    unread: dict[Path, list[str]] = {}
    for path, text in leaves(body):
        if not any(path[:length] in covered for length in range(1, len(path) + 1)):
            unread.setdefault(path[: 3 if path[0] == "messages" else 1], []).append(text)
    for path, found in unread.items():
        # A field with its name and one keyword says nothing; words in a row may, one by one as keywords or not.
        field = ".".join(step for step in path if isinstance(step, str))
        plain = all(map(is_identifier, found)) and (len(found) <= 2 or field in settings)
        # Messages there are as many as a caller likes, and a word in each may say something.
        if not plain or (field.startswith("messages.") and field.removeprefix("messages.") not in of_messages):
            yield Part(Kind.UNKNOWN, "user", path)


def gathered(value: Any, kind: Kind, role: str, path: Path, grammar: frozenset[str]) -> Iterator[Part]:
    """Yield all the words below a value as one part, so that nothing can be spelled out in pieces.

    Args:
        grammar: words that are the API's own.
    """
    found = [(where, text) for where, text in words(value, path) if text and text not in grammar]
    if found:
        yield compose(kind, role, path, found)


def media(item: Any, role: str, path: Path) -> Iterator[Part]:
    """Yield what is no text among the content of a message; what stands in it beside an image, as a field unread.

    INVARIANT: of an image that is read, every other word is a keyword, or is said to be unread.
    """
    url = address_of(item) or ""
    part = image_part(role, path, url or None)
    yield part
    said = list(leaves(item)) if part.image else ()
    strange = {name for path, name in said if path[-1] == name} - OF_IMAGES
    if strange or not all(is_identifier(text) or url.endswith(text) for _, text in said):
        yield Part(Kind.UNKNOWN, role, path)


def is_plain(key: str, value: Any, names: frozenset[str]) -> bool:
    """Whether a field of a reply holds no words: numbers by name, or one name where a name belongs.

    Args:
        names: the fields that hold a name.
    """
    if not _NAME.match(key):
        return False
    if isinstance(value, Mapping):
        return all(is_plain(name, item, names) for name, item in value.items())
    if isinstance(value, str):
        return key in names and is_identifier(value)
    return value is None or isinstance(value, bool | int | float)


def mended(value: Any) -> Any:
    """Return a JSON value with `readable` strings and names."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, Mapping):
        return {readable(key): mended(item) for key, item in value.items()}
    return [mended(item) for item in value] if isinstance(value, list) else value


class Unread:
    """Says of each field of one reply that nobody reads, once, that it was withheld."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def withhold(self, prefix: str, names: Iterable[str]) -> Iterator[Withheld]:
        """Yield what has to be said of these fields."""
        for where in sorted(f"{prefix}{name_of(name)}" for name in names):
            if where not in self._said:
                self._said.add(where)
                yield Withheld(where, "no check reads this field of a reply; it was withheld")
