"""What a reply is held to: JSON of a schema, any JSON object, a regular expression, a Lark grammar.

llguidance does the work: from a grammar and what a sequence has said so far, it tells which tokens may come next. Knows
the tokenizer; knows no network and no HTTP.
"""

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ringfence.model.sampler import SamplingError

SOURCE = 1 << 16
"""Characters that a schema or grammar may have."""

STACK = 256 << 20
"""Bytes of stack to read one with. llguidance follows definitions that name each other by calling itself, and where the
stack ends the process does: with a thread's usual 8 MiB after 500 definitions, with this much never within `SOURCE`."""

PART = 1 << 12
"""Characters up to which a part of a refused schema is tried by itself, so that looking for the fault takes no longer
than reading the whole."""

GAP = r"[ \n\t]{1,64}"
"""White space between the parts of JSON. Without an end to it, a small model sometimes finds none."""


class Grammars:
    """Reads grammars for one checkpoint. Thread-safe; making one takes some tenths of a second."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int], vocabulary: int) -> None:
        """Prepare a tokenizer.

        Args:
            ends: the tokens that end a reply.
            vocabulary: how many logits the network gives; not less than the tokenizer has tokens.

        Raises:
            ValueError: there is no end token, so that no reply could ever be complete.
        """
        if not ends:
            raise ValueError("a reply cannot be held to a grammar: the checkpoint has no end token")
        self._ends = frozenset(ends)
        self._tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=sorted(ends))
        self._turn = threading.Lock()

    def json_object(self) -> "Grammar":
        """Hold a reply to any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> "Grammar":
        """Hold a reply to JSON that a JSON Schema allows. Properties come in the order in which the schema has them.

        Raises:
            ValueError: it is no schema, or says what no reply can be held to; the message says what and where.
        """
        source = of_schema(schema)
        try:
            return self._read(source)
        except ValueError as error:
            raise ValueError(f"the JSON schema is refused at {fault(schema, str(error))}: {error}") from error

    def regex(self, pattern: str) -> "Grammar":
        """Hold a reply to a regular expression, which it matches as a whole (syntax of Rust's regex, no look-around).

        Raises:
            ValueError: it is none; the message says what is wrong.
        """
        return self._named("regular expression", pattern, LLMatcher.grammar_from_regex)

    def lark(self, grammar: str) -> "Grammar":
        """Hold a reply to a context-free grammar, written as for Lark; it begins at `start`.

        Raises:
            ValueError: it is none; the message says what is wrong, and in which line.
        """
        return self._named("Lark grammar", grammar, LLMatcher.grammar_from_lark)

    def _named(self, kind: str, text: str, form: Callable[[str], str]) -> "Grammar":
        try:
            return self._read(form(sized(text)))
        except ValueError as error:
            raise ValueError(f"the {kind} is refused: {error}") from error

    def _read(self, source: str) -> "Grammar":
        # One at a time: a thread's stack is set for the whole process, and reading may take all of a core for seconds.
        with self._turn, ThreadPoolExecutor(1) as own:
            usual = threading.stack_size(STACK)
            try:
                reading = own.submit(self._begin, source)
            finally:
                threading.stack_size(usual)
            return reading.result()

    def _begin(self, source: str) -> "Grammar":
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        matcher.compute_bitmask()  # what is too large often shows only here
        if matcher.is_error():
            raise ValueError(explained(matcher.get_error()))
        return Grammar(matcher, self._ends)


class Grammar:
    """How far one sequence has come in a grammar; a `sampler.Constraint`. Not thread-safe."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._done = False

    @property
    def done(self) -> bool:
        """Whether an end token was said, which is only allowed where the reply is complete."""
        return self._done

    def mask(self) -> NDArray[np.bool_]:
        """Return which tokens may come next (V,); the end tokens alone where the reply can only end.

        Raises:
            SamplingError: the grammar takes too much to follow from here.
        """
        allowed: NDArray[np.bool_] = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
        if self._matcher.is_error():  # it would allow the end here, whatever the reply lacks
            raise self._failed()
        return allowed

    def advance(self, token: int) -> None:
        """Go on by a token that the mask allows.

        Raises:
            SamplingError: it does not, or the grammar takes too much to follow from there.
        """
        # The end stays outside: the matcher counts it among its tokens, to be undone, in some states and not in others.
        if token in self._ends:
            self._done = True
        elif not self._matcher.consume_token(token):
            raise self._failed()

    def rewind(self, count: int) -> None:
        """Undo the last tokens.

        Raises:
            SamplingError: there are not as many.
        """
        if count and self._done:
            self._done = False
            count -= 1
        if not self._matcher.rollback(count):
            raise self._failed()

    def copy(self) -> "Grammar":
        """Return another that has come as far."""
        other = Grammar(self._matcher.deep_copy(), self._ends)
        other._done = self._done
        return other

    def _failed(self) -> SamplingError:
        return SamplingError(f"the grammar cannot be followed: {explained(self._matcher.get_error())}")


def of_schema(schema: object) -> str:
    """Return llguidance's form of a JSON schema.

    Raises:
        ValueError: it is no JSON object, or too long.
    """
    try:
        # Overrides, because a schema may carry options itself: with `lenient` it would allow what it says it forbids.
        return LLMatcher.grammar_from_json_schema(
            sized(json.dumps(schema, allow_nan=False)), overrides={"whitespace_pattern": GAP, "lenient": False}
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the JSON schema cannot be read: {error}") from error


def sized(text: str) -> str:
    """Return a text that is not too long to be read."""
    if len(text) > SOURCE:
        raise ValueError(f"it has {len(text)} characters, {SOURCE} are allowed")
    return text


def explained(error: str) -> str:
    """Return what went wrong, without the parser's state or the definitions that led there."""
    message = error.partition("\n<")[0].partition("\n  while processing")[0].strip()
    return "no text could ever match it" if message == "NoExtensionBias" else message


def fault(schema: object, message: str) -> str:
    """Return where in a refused schema the fault is, as a JSON pointer: the deepest part refused in the same words."""
    parts: list[tuple[str, object]] = [("#", schema)]
    for path, part in parts:  # grows meanwhile
        parts += inside(path, part)
    return next((path for path, part in reversed(parts) if complaint(part) == message), "#")


def complaint(part: object) -> str | None:
    """Return what is wrong with a part of a schema by itself; None for nothing."""
    if not isinstance(part, dict) or len(source := of_schema(part)) > PART:
        return None
    _, messages = LLMatcher.validate_grammar_with_warnings(source)
    return explained(messages[0]) if messages else None


NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords under which schemas have names of their own."""

DATA = frozenset({"const", "enum", "default", "examples", "required", "x-guidance"})
"""Keywords under which there are none."""


def inside(path: str, part: object) -> Iterator[tuple[str, object]]:
    """Yield the schemas right inside a schema, each after its path."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if key in DATA:
            continue
        if key in NAMED and isinstance(value, dict):
            yield from ((f"{path}/{key}/{escaped(name)}", one) for name, one in value.items())
        elif isinstance(value, list):
            yield from ((f"{path}/{key}/{index}", one) for index, one in enumerate(value))
        else:
            yield f"{path}/{escaped(key)}", value


def escaped(name: str) -> str:
    """Spell a name as a JSON pointer does."""
    return name.replace("~", "~0").replace("/", "~1")
