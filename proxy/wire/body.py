"""Bytes to JSON and back, strictly: what cannot be judged as Unicode text is refused here, for every API alike."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from ringfence.guard.exchange import Path, dotted
from ringfence.guard.unicode import readable, whole

Form = TypeVar("Form", bound=BaseModel)

DEEPEST = 64
"""Levels of nesting in a body; no API needs a third of it."""

_IDENTIFIER = re.compile(r"[\w./:-]{0,64}\Z", re.ASCII)


class BadRequest(ValueError):
    """A request that its API does not allow.

    Attributes:
        message: what is wrong and where, for the caller.
        param: the field, as `messages[0].content`; None where no one field is to blame.
        code: the API's word for it.
        status: HTTP status.
        headers: for the answer: where the failed exchange is on record.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status
        self.headers: dict[str, str] = {}


def read_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a request body.

    Raises:
        BadRequest: not UTF-8, not JSON (RFC 8259: no NaN or Infinity), not an object, nested too deeply, or with a
            string that is not valid Unicode text (a lone surrogate, a null character).
    """
    try:
        body = parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:  # NaN, or a number that is too large
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, got {type(body).__name__}")
    for path, text in leaves(body):
        _refuse_unreadable(path, text)
    return body


def validated(form: type[Form], body: Mapping[str, Any], *, status: int = 400) -> Form:
    """Return a body as its form has it.

    Raises:
        BadRequest: with this status, naming the first field that is wrong.
    """
    try:
        return form.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, *below = first["loc"]
        # Among the steps below a field stand the types that it was tried as.
        below = [step for step in below if isinstance(step, int) or (step.isidentifier() and step != "str")]
        where = dotted((field, *below))
        raise BadRequest(f"{where}: {first['msg']}", param=where, status=status) from None


def parse(text: str, *, once: bool = False) -> Any:
    """Return a JSON value as RFC 8259 has it.

    Args:
        once: refuse an object that has a name twice, of which otherwise the last counts.

    Raises:
        ValueError: it is not JSON; NaN, Infinity, floats beyond their range and integers beyond 4,300 digits are not.
        RecursionError: it is nested too deeply.
    """
    pairs = _each_once if once else None
    return json.loads(
        text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=pairs
    )


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield every string in a JSON value with its path, names of fields too, under the path of what they name.

    Raises:
        BadRequest: the value is nested more than `DEEPEST` levels.
    """
    if len(path) > DEEPEST:
        raise BadRequest("the body is nested too deeply")
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield (*path, key), key
            yield from leaves(item, (*path, key))
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))


def is_identifier(text: str) -> bool:
    """Whether a string can be a name, an id or a keyword: one short ASCII word."""
    return _IDENTIFIER.match(text) is not None


def _each_once(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        _refuse_constant(digits)
    return number


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # more digits than Python reads; its words for that are no caller's business
        _refuse_constant(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name[:40]} is not a JSON number")


def _refuse_unreadable(path: Path, text: str) -> None:
    where = readable(dotted(path))
    if whole(text) != text:
        raise BadRequest(f"{where} holds a lone surrogate: it is not Unicode text", param=where)
    if "\0" in text:
        raise BadRequest(f"{where} holds a null character", param=where)
