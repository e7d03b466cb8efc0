"""Anthropic's Messages: requests to exchanges, replies to events and back.

Follows the API reference as the `anthropic` Python package types it (`types/message*.py`, `types/raw_*.py`). The text
of a reply is judged as one text, however many blocks it came in, and so is its thinking; it is told in one block each,
calls come last. What no check reads (citations, results of Anthropic's own tools) is withheld.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field

from ringfence.guard.exchange import Exchange, Kind, Part, Path, Subject, compose
from ringfence.guard.unicode import readable
from ringfence.proxy.reply import About, Event, Finish, Released, Stopped, Text, ToolCall
from ringfence.proxy.wire.body import BadRequest, is_identifier, leaves, parse, validated
from ringfence.proxy.wire.parts import Unread, gathered, is_plain, media, mended, with_unread

DIALECT = "anthropic.messages"

END = b""
"""A stream that is complete ends with `message_stop`, a chunk like any other."""

NAMES_OF_REPLY = frozenset({"id", "type", "role", "model", "service_tier", "inference_geo", "speed"})
"""Fields of a reply that hold a name each."""

STOP_REASONS = frozenset(
    {
        "end_turn",
        "max_tokens",
        "model_context_window_exceeded",
        "pause_turn",
        "refusal",
        "stop_sequence",
        "tool_use",
    }
)

SETTINGS = frozenset({"cache_control", "messages.content", "model", "service_tier", "speed", "thinking", "tool_choice"})
"""Documented request fields that hold keywords; of what stands in a message `_blocks` sees to the rest."""

OF_MESSAGES = frozenset({"role", "content"})
"""Documented fields of a message."""

OF_BLOCKS = frozenset({"cache_control", "caller", "citations", "id", "is_error", "signature", "tool_use_id", "type"})
"""Documented fields of a block that hold keywords; a signature tells nobody else anything."""

GRAMMAR = frozenset(
    {
        "additionalProperties",
        "array",
        "boolean",
        "cache_control",
        "default",
        "description",
        "enum",
        "ephemeral",
        "format",
        "id",
        "input",
        "input_schema",
        "integer",
        "items",
        "json_schema",
        "name",
        "null",
        "number",
        "object",
        "properties",
        "required",
        "schema",
        "strict",
        "string",
        "tool_use",
        "type",
    }
)
"""Words of tool definitions and calls that are the API's own."""

API_ERRORS = frozenset({"server_error", "upstream_error"})
"""Kinds of errors that this API has one word for; others are its own, or its server's."""

FIELDS: Mapping[str, tuple[str, str, Kind]] = {
    "content": ("text", "text_delta", Kind.TEXT),
    "reasoning": ("thinking", "thinking_delta", Kind.REASONING),
}
"""Texts of a reply by the name that they have on record: the block, which is its field too, the delta, and the kind."""

SEALED = re.compile(r"[A-Za-z0-9+/=_-]{1,100000}\Z")
"""A signature of thinking: one word in base64, which goes back to where it came from and tells nobody else anything."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Message(_Open):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class _Metadata(_Open):
    user_id: str | None = None


class MessagesRequest(_Open):
    """The part of a request that ringfence itself reads; everything else is passed on as it came."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:@+-]+$", max_length=256)]
    messages: Annotated[list[_Message], MinLen(1)]
    system: str | list[dict[str, Any]] | None = None
    stream: bool | None = False
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    metadata: _Metadata | None = None


def read_request(body: dict[str, Any]) -> tuple[Exchange, MessagesRequest]:
    """Return the exchange that a request body opens.

    Raises:
        BadRequest: naming the field.
    """
    request = validated(MessagesRequest, body)
    parts = list(with_unread(body, _known_parts(body), SETTINGS, OF_MESSAGES))
    if not any(part.text.strip() or part.kind is Kind.MEDIA for part in parts if part.path[0] == "messages"):
        raise BadRequest("messages hold no text: there is nothing to answer", param="messages")
    subject = Subject(user=(request.metadata and request.metadata.user_id) or "")
    return Exchange(dialect=DIALECT, model=request.model, request=parts, body=body, subject=subject), request


def _known_parts(body: Mapping[str, Any]) -> Iterator[Part]:
    if body.get("system"):
        yield from _blocks(body["system"], "system", ("system",))
    for index, message in enumerate(body["messages"]):
        yield from _blocks(message["content"], message["role"], ("messages", index, "content"))
    for index, tool in enumerate(body.get("tools") or []):
        yield from gathered(tool, Kind.TOOL_DEFINITION, "system", ("tools", index), GRAMMAR)
    yield from gathered(body.get("output_config"), Kind.TOOL_DEFINITION, "system", ("output_config",), GRAMMAR)
    for key in ("stop_sequences", "metadata"):
        yield from gathered(body.get(key), Kind.TEXT, "setting", (key,), GRAMMAR)


def _blocks(content: str | list[Any], role: str, path: Path) -> Iterator[Part]:
    """Yield the parts of a message, of the system prompt, or of what a tool gave back."""
    if isinstance(content, str):
        yield Part(Kind.TEXT, role, path, content)
        return
    texts: list[tuple[Path | None, str]] = []
    others: list[Part] = []
    for index, block in enumerate(content):
        at = (*path, index)
        block = block if isinstance(block, Mapping) else {}
        read: set[str] = set()
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(((*at, "text"), text))
                read = {"text"}
            case {"type": "thinking", "thinking": str(thinking)}:
                others.append(Part(Kind.REASONING, "assistant", (*at, "thinking"), thinking))
                read = {"thinking"}
            case {"type": "tool_use"}:
                others.extend(gathered(block, Kind.TOOL_CALL, "assistant", at, GRAMMAR))
                read = set(block)
            case {"type": "tool_result", "content": str() | list()}:
                others.extend(_blocks(block["content"], "tool", (*at, "content")))
                read = {"content"}
            case {"type": "tool_result"}:
                pass
            case {"type": "redacted_thinking"}:
                others.append(Part(Kind.UNKNOWN, "assistant", at))
                continue
            case _:
                others.extend(media(block, role, at))
                continue
        rest = {key: value for key, value in block.items() if key not in read}
        if rest.keys() - OF_BLOCKS or not all(is_identifier(text) for _, text in leaves(rest)):
            others.append(Part(Kind.UNKNOWN, role, at))
    if texts:
        # Judged as one text: whoever cut a word in two must not get past.
        yield compose(Kind.TEXT, role, path, texts, seam="")
    yield from others


def read_reply(body: Any) -> Iterator[Event]:
    """Yield the events of a whole reply, as an upstream sends it where no stream was asked for.

    Raises:
        ValueError: it is not a message.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("content"), list):
        raise ValueError("the reply has no list of content")
    reader = ChunkReader()
    ending = ("stop_reason", "stop_sequence", "stop_details", "container")
    message = {key: value for key, value in body.items() if key not in ("content", *ending)}
    yield from reader.read({"type": "message_start", "message": message})
    for index, block in enumerate(body["content"]):
        yield from reader.read({"type": "content_block_start", "index": index, "content_block": block})
    delta = {key: body[key] for key in ending if body.get(key) is not None}
    yield from reader.read({"type": "message_delta", "delta": delta})
    yield from reader.end()


class ChunkReader:
    """Reads the events of one streamed reply; tool calls are put together and come out whole."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}
        self._written: dict[int, str] = {}
        self._signed = False
        self._finish: Finish | None = None
        self._unread = Unread()

    @property
    def ended(self) -> bool:
        """Whether it was said why the reply ended."""
        return self._finish is not None

    def read(self, chunk: Any) -> Iterator[Event]:
        """Yield the events in one chunk.

        Raises:
            ValueError: it is not one of a message.
        """
        match chunk:
            case {"type": "ping" | "content_block_stop" | "message_stop"}:
                pass
            case {"type": "message_start", "message": Mapping() as message}:
                rest = {key: value for key, value in message.items() if key not in ("type", "role") and value}
                yield from self._about("", rest)
            case {"type": "content_block_start", "index": int(index), "content_block": Mapping() as block}:
                yield from self._block(index, block)
            case {"type": "content_block_delta", "index": int(index), "delta": Mapping() as delta}:
                yield from self._delta(index, delta)
            case {"type": "message_delta", "delta": Mapping() as delta}:
                yield from self._ending(delta)
                if isinstance(chunk.get("usage"), Mapping):
                    yield from self._about("", {"usage": chunk["usage"]})
            case {"type": str(kind)} if kind not in ("message_start", "message_delta") and "_block_" not in kind:
                yield from self._unread.withhold("event ", [kind])
            case _:
                raise ValueError("the event is none of a message")

    def end(self) -> Iterator[Event]:
        """Yield what had to wait for the end: tool calls, then the end."""
        for number, (index, call) in enumerate(self._calls.items()):
            try:
                given = parse(self._written[index]) if self._written[index] else call["input"]
            except (ValueError, RecursionError):
                given = None
            if isinstance(given, Mapping):
                yield ToolCall(0, number, {**call, "input": mended(given)})
            else:  # cut off by max_tokens, say
                yield from self._unread.withhold(f"content[{index}].", ["input"])
        if self._finish:
            yield self._finish

    def _block(self, index: int, block: Mapping[str, Any]) -> Iterator[Event]:
        kind, read = block.get("type"), {"type"}
        if kind == "tool_use":
            call = {name: readable(block[name]) for name in ("id", "name") if isinstance(block.get(name), str)}
            given = block.get("input")
            self._calls[index] = {"type": kind, "id": "", "name": "", **call, "input": given or {}}
            self._written[index] = ""
            read |= {"id", "name", "input"}
        for field, (name, _, sort) in FIELDS.items():
            if kind == name and isinstance(block.get(name), str):
                read.add(name)
                yield Text(0, field, readable(block[name]), sort)
        if kind == "thinking":
            read.add("signature")
            yield from self._signature(index, block.get("signature"))
        unread = [name for name, value in block.items() if name not in read and value]
        if kind not in ("tool_use", *(name for name, _, _ in FIELDS.values())):
            yield from self._unread.withhold(f"content[{index}].content_block ", [str(kind)])
            return
        yield from self._unread.withhold(f"content[{index}].", unread)

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Iterator[Event]:
        kind = delta.get("type")
        for field, (name, own, sort) in FIELDS.items():
            if kind == own and isinstance(delta.get(name), str):
                yield Text(0, field, readable(delta[name]), sort)
                return
        if kind == "input_json_delta" and index in self._calls and isinstance(delta.get("partial_json"), str):
            self._written[index] += readable(delta["partial_json"])
        elif kind == "signature_delta":
            yield from self._signature(index, delta.get("signature"))
        else:
            yield from self._unread.withhold(f"content[{index}].", [str(kind)])

    def _signature(self, index: int, signature: object) -> Iterator[Event]:
        """Pass on the first signature: thinking is told as one block, which has room for one."""
        if not signature:
            return
        if isinstance(signature, str) and SEALED.match(signature) and not self._signed:
            self._signed = True
            yield About({"signature": signature})
        else:
            yield from self._unread.withhold(f"content[{index}].", ["signature"])

    def _ending(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        reason = delta.get("stop_reason")
        unread = {name for name, value in delta.items() if value and name not in ("stop_reason", "stop_sequence")}
        if isinstance(reason, str):
            self._finish = Finish(0, reason if reason in STOP_REASONS else "end_turn")
            unread |= set() if reason in STOP_REASONS else {"stop_reason"}
        if isinstance(delta.get("stop_sequence"), str):
            yield About({"stop_sequence": delta["stop_sequence"]})
        yield from self._unread.withhold("", unread)

    def _about(self, where: str, fields: Mapping[str, Any]) -> Iterator[Event]:
        plain = {key: value for key, value in fields.items() if is_plain(key, value, NAMES_OF_REPLY)}
        usage = fields.get("usage")
        if not isinstance(usage, Mapping):
            plain.pop("usage", None)
        elif "usage" not in plain:  # what of it is numbers; clients cannot do without
            plain["usage"] = {key: value for key, value in usage.items() if is_plain(key, value, NAMES_OF_REPLY)}
            yield from self._unread.withhold("usage.", usage.keys() - plain["usage"].keys())
        yield About(plain)
        yield from self._unread.withhold(where, fields.keys() - plain.keys())


class Renderer:
    """Writes a reply in the API's own words: chunk by chunk, or collected.

    Args:
        exchange: the exchange answered; its id stands in for the reply's where the upstream gave none.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._about: dict[str, Any] = {"id": f"msg_{exchange.id}", "model": exchange.model}
        self._usage: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0}
        self._sequences = exchange.body.get("stop_sequences") or []
        self._signature = ""
        self._ending: dict[str, Any] = {"stop_reason": "end_turn", "stop_sequence": None}
        self._texts: dict[str, str] = {}
        self._calls: list[dict[str, Any]] = []
        self._started = False

    def chunks(self, event: Released) -> Iterator[dict[str, Any]]:
        """Yield the chunks that tell a streaming client of one event."""
        self._take(event)
        match event:
            case Text(_, field, text):
                yield from self._text(field, text)
            case Stopped(decision):
                yield from self._text("content", ("\n\n" if self._texts.get("content") else "") + decision.message)
            case ToolCall() | Finish():
                yield from self._start()

    def last_chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the end of every block, the calls, and the end of the message."""
        yield from self._start()
        for index, field in enumerate(self._texts):
            if field == "reasoning" and self._signature:
                yield _delta(index, {"type": "signature_delta", "signature": self._signature})
            yield {"type": "content_block_stop", "index": index}
        for index, call in enumerate(self._calls, len(self._texts)):
            written = json.dumps(call["input"], ensure_ascii=False)
            yield {"type": "content_block_start", "index": index, "content_block": {**call, "input": {}}}
            yield _delta(index, {"type": "input_json_delta", "partial_json": written})
            yield {"type": "content_block_stop", "index": index}
        yield {"type": "message_delta", "delta": self._ending, "usage": self._usage}
        yield {"type": "message_stop"}

    def collect(self, event: Released) -> None:
        """Take one event of a reply that is sent whole."""
        self._take(event)
        match event:
            case Text(_, field, text):
                self._texts[field] = self._texts.get(field, "") + text
            case Stopped(decision):
                # What was judged before the stop is dropped: half an answer helps nobody who waited for the whole.
                self._texts = {"content": decision.message}

    def body(self) -> dict[str, Any]:
        """Return the collected reply."""
        content = [
            {**self._opened(field), FIELDS[field][0]: self._texts[field]}
            for field in ("reasoning", "content")
            if field in self._texts
        ]
        return self._message([*content, *self._calls]) | self._ending

    def _take(self, event: Released) -> None:
        match event:
            case About(fields):
                for name, value in fields.items():
                    if name == "usage":
                        self._usage |= {key: count for key, count in value.items() if count is not None}
                    elif name == "signature":
                        self._signature = value
                    elif name != "stop_sequence":
                        self._about[name] = value
                    elif value in self._sequences:  # the caller's own word, or nothing
                        self._ending["stop_sequence"] = value
            case ToolCall(_, _, call):
                self._calls.append(dict(call))
            case Finish(_, reason):
                self._ending["stop_reason"] = reason
            case Stopped(decision):
                self._calls = []
                details = {"type": "refusal", "category": None, "explanation": decision.message}
                self._ending = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}

    def _start(self) -> Iterator[dict[str, Any]]:
        if not self._started:
            self._started = True
            message = self._message([]) | {"stop_reason": None, "stop_sequence": None}
            yield {"type": "message_start", "message": message}

    def _text(self, field: str, text: str) -> Iterator[dict[str, Any]]:
        yield from self._start()
        if field not in self._texts:
            index = len(self._texts)
            yield {"type": "content_block_start", "index": index, "content_block": self._opened(field)}
            self._texts[field] = ""
        self._texts[field] += text
        name, delta, _ = FIELDS[field]
        yield _delta(list(self._texts).index(field), {"type": delta, name: text})

    def _opened(self, field: str) -> dict[str, Any]:
        name = FIELDS[field][0]
        rest = {"signature": "" if self._started else self._signature} if name == "thinking" else {"citations": None}
        return {"type": name, name: "", **rest}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._about, "type": "message", "role": "assistant", "content": content, "usage": self._usage}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def frame(chunk: Mapping[str, Any]) -> bytes:
    """Return one chunk as a server-sent event, which carries the chunk's type as its name."""
    data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return f"event: {chunk['type']}\ndata: {data}\n\n".encode()


def error_body(message: str, *, kind: str, code: str | int | None, param: str | None = None) -> dict[str, Any]:
    """Return an error in the API's shape, which has a kind and no code; the field at fault goes into the message."""
    known = "api_error" if kind in API_ERRORS else kind
    told = f"{param}: {message}" if param and param not in message and code != "content_filter" else message
    return {"type": "error", "error": {"type": known, "message": told}}
