"""Between a conversation and token ids: the checkpoint's own chat template one way, text as it grows the other way.

Knows the tokenizer, not the engine. What a message says can never become a control token.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ringfence.model.weights import WeightsDamaged, WeightsMissing

Turn = tuple[str, str]
"""Who speaks (`system`, `user`, `assistant`, `tool`) and what they say."""

ESCAPED = re.compile("\ufdd0([0-9]+)\ufdd1")
"""How a control token's spelling inside a message survives the template: its number between two noncharacters, which
Unicode sets aside for use inside a program."""


class TemplateRefused(ValueError):
    """The checkpoint's template does not accept this conversation; the message says why."""


class Chat:
    """A checkpoint's tokenizer and chat template. Thread-safe.

    Attributes:
        tokenizer: for who needs to know its tokens.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, variables: Mapping[str, str]) -> None:
        self.tokenizer = tokenizer
        self._template = compile_template(template)
        self._variables = variables
        control = sorted(
            (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special),
            key=len,
            reverse=True,
        )
        self._spellings = ["\ufdd0", *control]
        self._numbers = {spelling: number for number, spelling in enumerate(self._spellings)}
        self._spelling = re.compile("|".join(map(re.escape, self._spellings)))
        # Cut after its first character, a spelling is ordinary text to the tokenizer.
        self._spelled_ids = [self.encode(s[:1]) + self.encode(s[1:]) for s in self._spellings]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read tokenizer.json and the chat template of a checkpoint folder.

        Raises:
            WeightsMissing: there is no tokenizer.
            WeightsDamaged: it cannot be read, or its words are more than the network has.
            TemplateRefused: the checkpoint has no chat template.
        """
        tokenizer = read_tokenizer(path)
        check_vocabulary(path, tokenizer)
        named = read_json(path / "tokenizer_config.json")
        return cls(tokenizer, find_template(path, named), special_variables(named))

    def render(self, messages: Sequence[Turn]) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's next words belong.

        A control token's spelling inside a message (`<|im_end|>`) stays the characters it is made of. Half a surrogate
        pair, which no tokenizer reads, becomes U+FFFD.

        Raises:
            TemplateRefused: a role is no plain word, or the template does not accept the roles or their order.
        """
        for role, _ in messages:
            if not role.isidentifier():
                raise TemplateRefused(f"the role {role!r} is not a plain word such as user, assistant or system")
        try:
            text = self._template.render(
                messages=[{"role": role, "content": self._escape(content)} for role, content in messages],
                add_generation_prompt=True,
                **self._variables,
            )
        except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise TemplateRefused(f"the chat template does not accept this conversation: {error}") from error
        ids: list[int] = []
        for index, piece in enumerate(ESCAPED.split(text)):  # text, number, text, number, …, text
            ids += self._spelled_ids[int(piece)] if index % 2 else self.encode(piece)
        return ids

    def detokenizer(self) -> "Detokenizer":
        """Start turning the ids of one reply into text."""
        return Detokenizer(self.tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without control tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that is trusted: control tokens spelled in it are control tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _escape(self, content: str) -> str:
        whole = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._spelling.sub(lambda found: f"\ufdd0{self._numbers[found[0]]}\ufdd1", whole)


class Detokenizer:
    """The text of one reply as its token ids come. Never half a character; the pieces add up to the full decode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []  # since the last piece: ids whose bytes do not yet make whole characters

    def feed(self, id: int) -> str:
        """Return what the next id adds; empty while a character is incomplete."""
        self._held.append(id)
        piece = self._stream.step(self._tokenizer, id)
        if piece is None:
            return ""
        self._held.clear()
        return piece

    def close(self) -> str:
        """Return what was held back: U+FFFD for a character that the reply's end cut."""
        held, self._held = self._held, []
        return self._tokenizer.decode(held, skip_special_tokens=True)


def compile_template(source: str) -> Template:
    """Compile a chat template as the model hub's checkpoints expect it: sandboxed, with the globals they call."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson  # jinja's own escapes for HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().astimezone().strftime(pattern)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise TemplateRefused(f"the checkpoint's chat template cannot be read: {error}") from error


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        WeightsMissing: there is none.
        WeightsDamaged: it cannot be read.
    """
    if not (file := path / "tokenizer.json").is_file():
        raise WeightsMissing(f"no tokenizer at {path}; run `ringfence engine pull`")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own
        raise WeightsDamaged(f"{file} cannot be read: {error}") from error


def check_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose words go beyond what config.json says the network has.

    Tokens that were added to it may: a checkpoint can do without them, and the engine refuses a prompt that has one.
    """
    config = read_json(path / "config.json")
    match config.get("text_config", config):
        case {"vocab_size": int(size)} if (last := max(tokenizer.get_vocab(with_added_tokens=False).values())) >= size:
            raise WeightsDamaged(
                f"{path}: the tokenizer has token ids up to {last}, the network a vocabulary of {size}"
            )


def find_template(path: Path, named: Mapping[str, Any]) -> str:
    """Return a checkpoint's chat template: a file of its own, or an entry of tokenizer_config.json."""
    if (file := path / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    match named.get("chat_template"):
        case str(template):
            return template
        case [*several]:  # older checkpoints name more than one
            for one in several:
                match one:
                    case {"name": "default", "template": str(template)}:
                        return template
    raise TemplateRefused(f"{path} has no chat template; pull an instruction-tuned checkpoint")


def special_variables(named: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens that templates write by name (`bos_token` …).

    Raises:
        WeightsDamaged: one is no token.
    """
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        match named.get(name):
            case None | "":
                continue
            case str(token) | {"content": str(token)}:
                tokens[name] = token
            case _:
                raise WeightsDamaged(f"tokenizer_config.json: {name} is no token")
    return tokens


def read_json(file: Path) -> Mapping[str, Any]:
    """Return a JSON object from disk; empty where there is no file.

    Raises:
        WeightsDamaged: it is something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (RecursionError, ValueError) as error:
        raise WeightsDamaged(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsDamaged(f"{file} is no JSON object")
    return content
