"""OpenAI's Chat Completions: requests to exchanges, replies to events and back.

Follows the API reference as the `openai` Python package types it (`types/chat`). Fields that it does not know pass
through to the upstream untouched; the coverage of the exchange says that nobody judged them.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ringfence.guard.exchange import Exchange, Kind, Part, Path, Subject, dotted
from ringfence.proxy.reply import About, Event, Finish, Released, Stopped, Text, ToolCall, Withheld
from ringfence.proxy.wire.body import BadRequest, is_identifier, leaves, readable

DIALECT = "openai.chat"

REPLY_TEXT = {
    "content": Kind.TEXT,
    "reasoning_content": Kind.REASONING,
    "reasoning": Kind.REASONING,
    "refusal": Kind.REFUSAL,
}
"""The fields of a reply's message that hold text; `reasoning*` are what open-weight servers add."""

PLAIN_ABOUT = frozenset({"id", "object", "model", "system_fingerprint", "service_tier"})
"""Fields of a reply whose strings are names, not text."""

UNTOUCHED = frozenset({"model", "user", "stop", "tool_choice", "reasoning_effort", "service_tier", "modalities"})
"""Documented request fields whose strings are settings, not text to judge."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _ContentPart(_Open):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Function(_Open):
    name: str = ""
    arguments: str = ""


class _ToolCall(_Open):
    function: _Function | None = None


class _Message(_Open):
    role: Annotated[str, MinLen(1)]
    content: str | list[_ContentPart] | None = None
    tool_calls: list[_ToolCall] | None = None


class _StreamOptions(_Open):
    include_usage: bool = False


class ChatRequest(_Open):
    """The part of a request that ringfence itself reads; everything else is passed on as it came."""

    model: Annotated[str, MinLen(1)]
    messages: Annotated[list[_Message], MinLen(1)]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None


def read_request(body: dict[str, Any], subject: Subject) -> tuple[Exchange, ChatRequest]:
    """Return the exchange that a request body opens.

    Raises:
        BadRequest: naming the field.
    """
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = dotted(tuple(step for step in first["loc"] if step not in ("str", "list[_ContentPart]")))
        raise BadRequest(f"{where}: {first['msg']}", param=where) from None
    parts = list(_request_parts(body))
    if not any(part.text.strip() or part.kind is Kind.MEDIA for part in parts if part.path[0] == "messages"):
        raise BadRequest("messages hold no text: there is nothing to answer", param="messages")
    return Exchange(dialect=DIALECT, model=request.model, request=parts, body=body, subject=subject), request


def _request_parts(body: Mapping[str, Any]) -> Iterator[Part]:
    """Yield every part of a request. INVARIANT: no string is lost but names and settings: what is not a known text
    lies below a part that says so."""
    known = list(_known_parts(body))
    yield from known
    covered = {part.path for part in known}
    fields = {
        path[: 3 if path[0] == "messages" else 1]: None
        for path, text in leaves(body)
        if path[0] not in UNTOUCHED
        and not is_identifier(text)
        and not any(path[:length] in covered for length in range(1, len(path) + 1))
    }
    yield from (Part(Kind.UNKNOWN, "user", path) for path in fields)


def _known_parts(body: Mapping[str, Any]) -> Iterator[Part]:
    for index, message in enumerate(body["messages"]):
        yield from _message_parts(message, ("messages", index))
    for key in ("tools", "functions", "response_format"):
        yield from _words_below(body.get(key), Kind.TOOL_DEFINITION, "system", (key,))
    prediction = body.get("prediction")
    if isinstance(prediction, Mapping):
        yield from _content_parts(prediction.get("content"), "assistant", ("prediction", "content"))


def _message_parts(message: Mapping[str, Any], path: Path) -> Iterator[Part]:
    role = str(message["role"])
    yield from _content_parts(message.get("content"), role, (*path, "content"))
    for field, kind in REPLY_TEXT.items():
        if field != "content" and isinstance(message.get(field), str):
            yield Part(kind, role, (*path, field), message[field])
    yield from _words_below(message.get("name"), Kind.TEXT, role, (*path, "name"))
    for key in ("tool_calls", "function_call"):
        yield from _words_below(message.get(key), Kind.TOOL_CALL, role, (*path, key))
    if message.get("audio"):
        yield Part(Kind.MEDIA, role, (*path, "audio"))


def _content_parts(content: object, role: str, path: Path) -> Iterator[Part]:
    if isinstance(content, str):
        yield Part(Kind.TEXT, role, path, content)
    elif isinstance(content, list):
        for index, item in enumerate(content):
            field = item.get("type") if isinstance(item, Mapping) else None
            if field in ("text", "refusal") and isinstance(item.get(field), str):
                kind = Kind.TEXT if field == "text" else Kind.REFUSAL
                yield Part(kind, role, (*path, index, field), item[field])
            else:
                yield Part(Kind.MEDIA, role, (*path, index))


def _words_below(value: object, kind: Kind, role: str, path: Path) -> Iterator[Part]:
    """Yield the strings below a value that are more than names."""
    return (Part(kind, role, where, text) for where, text in leaves(value, path) if not is_identifier(text))


def read_reply(body: Mapping[str, Any]) -> Iterator[Event]:
    """Yield the events of a whole reply, as an upstream sends it where no stream was asked for.

    Raises:
        ValueError: it is not a chat completion.
    """
    reader = ChunkReader()
    if not isinstance(body.get("choices"), list):
        raise ValueError("the reply has no list of choices")
    yield from reader.read(
        {**body, "choices": [{**choice, "delta": choice.get("message") or {}} for choice in body["choices"]]}
    )
    yield from reader.end()


class ChunkReader:
    """Reads the chunks of one streamed reply; tool calls are put together and come out whole."""

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], dict[str, Any]] = {}
        self._finished: list[Finish] = []

    @property
    def ended(self) -> bool:
        """Whether any choice has ended."""
        return bool(self._finished)

    def read(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the events in one chunk.

        Raises:
            ValueError: it is not a chunk of a chat completion.
        """
        if not isinstance(chunk.get("choices"), list):
            raise ValueError("the chunk has no list of choices")
        about, withheld = _sift({k: v for k, v in chunk.items() if k != "choices"}, PLAIN_ABOUT, "")
        yield About(about)
        yield from withheld
        for choice in chunk["choices"]:
            yield from self._choice(choice)

    def end(self) -> Iterator[Event]:
        """Yield what had to wait for the end: tool calls, then the ends of the choices."""
        for (choice, index), call in self._calls.items():
            yield ToolCall(choice, index, call)
        yield from self._finished

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        index = choice.get("index", 0)
        delta = choice.get("delta") or {}
        if not isinstance(index, int) or not isinstance(delta, Mapping):
            raise ValueError("a choice has no whole-number index or no delta")
        for field, kind in REPLY_TEXT.items():
            if isinstance(delta.get(field), str) and delta[field]:
                yield Text(index, field, readable(delta[field]), kind)
        for position, call in enumerate(delta.get("tool_calls") or []):
            self._gather(index, call, call.get("index", position))
        known = {"role", "tool_calls", *REPLY_TEXT}
        yield from _sift({k: v for k, v in delta.items() if k not in known}, frozenset(), f"choices[{index}].message.")[
            1
        ]
        rest = {k: v for k, v in choice.items() if k not in ("index", "delta", "message", "finish_reason")}
        yield from _sift(rest, frozenset(), f"choices[{index}].")[1]
        if isinstance(choice.get("finish_reason"), str):
            self._finished.append(Finish(index, choice["finish_reason"]))

    def _gather(self, choice: int, fragment: Mapping[str, Any], index: int) -> None:
        whole = self._calls.setdefault((choice, index), {"id": "", "type": "function", "function": {}})
        for key, value in fragment.items():
            if key == "function" and isinstance(value, Mapping):
                for name, text in value.items():
                    if isinstance(text, str):
                        whole["function"][name] = whole["function"].get(name, "") + readable(text)
            elif key in ("id", "type") and isinstance(value, str) and value:
                whole[key] = value


def _sift(fields: Mapping[str, Any], plain: frozenset[str], prefix: str) -> tuple[dict[str, Any], list[Withheld]]:
    """Part fields that hold no text from those that do: the second kind is not passed on."""
    kept, withheld = {}, []
    for key, value in fields.items():
        if all((key in plain and is_identifier(text)) or not text for _, text in leaves(value)):
            kept[key] = value
        else:
            withheld.append(Withheld(f"{prefix}{key}", "no check reads this field of a reply; it was withheld"))
    return kept, withheld


class Renderer:
    """Writes a reply in the API's own words: chunk by chunk, or collected.

    Args:
        exchange: the exchange answered; its id stands in for the reply's where the upstream gave none.
        usage: whether a stream reports token usage (`stream_options.include_usage`).
    """

    def __init__(self, exchange: Exchange, *, usage: bool = True) -> None:
        self._about: dict[str, Any] = {
            "id": f"chatcmpl-{exchange.id}",
            "created": int(time.time()),
            "model": exchange.model,
        }
        self._with_usage = usage
        self._usage: Any = None
        self._choices: dict[int, dict[str, Any]] = {}

    def chunks(self, event: Released) -> Iterator[dict[str, Any]]:
        """Yield the chunks that tell a streaming client of one event."""
        match event:
            case About(fields):
                self._note(fields)
            case Text(choice, field, text):
                yield from self._delta(choice, {field: text})
            case ToolCall(choice, index, call):
                yield from self._delta(choice, {"tool_calls": [{"index": index, **call}]})
            case Finish(choice, reason):
                yield from self._delta(choice, {}, reason)
            case Stopped(decision):
                for choice in self._choices or {0: {}}:
                    said = "\n\n" if self._choices.get(choice, {}).get("content") else ""
                    delta = {"content": said + decision.message, "refusal": decision.message}
                    yield from self._delta(choice, delta, "content_filter")

    def last_chunks(self) -> Iterator[dict[str, Any]]:
        """Yield what comes after every choice has ended: the usage, where it was asked for."""
        if self._with_usage and self._usage is not None:
            yield self._chunk([]) | {"usage": self._usage}

    def collect(self, event: Released) -> None:
        """Take one event of a reply that is sent whole."""
        match event:
            case About(fields):
                self._note(fields)
            case Text(choice, field, text):
                message = self._choice(choice)
                message[field] = message.get(field, "") + text
            case ToolCall(choice, _, call):
                self._choice(choice).setdefault("tool_calls", []).append(dict(call))
            case Finish(choice, reason):
                self._choice(choice)["finish_reason"] = reason
            case Stopped(decision):
                # What was judged before the stop is dropped: half an answer helps nobody who waited for the whole.
                for choice in self._choices or {0: {}}:
                    self._choices[choice] = {
                        "content": decision.message,
                        "refusal": decision.message,
                        "finish_reason": "content_filter",
                    }

    def body(self) -> dict[str, Any]:
        """Return the collected reply."""
        choices = []
        for index, fields in sorted(self._choices.items()):
            reason = fields.get("finish_reason", "stop")
            message = {"role": "assistant", "content": None, "refusal": None} | fields
            message.pop("finish_reason", None)
            choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": None})
        body = {**self._about, "object": "chat.completion", "choices": choices}
        return body if self._usage is None else body | {"usage": self._usage}

    def _note(self, fields: Mapping[str, Any]) -> None:
        self._about |= {k: v for k, v in fields.items() if k not in ("object", "usage")}
        self._usage = fields.get("usage") or self._usage

    def _choice(self, index: int) -> dict[str, Any]:
        return self._choices.setdefault(index, {})

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> Iterator[dict[str, Any]]:
        if index not in self._choices:
            yield self._chunk([_stream_choice(index, {"role": "assistant", "content": ""}, None)])
        self._choice(index).update(dict.fromkeys(delta, True))
        if delta:
            yield self._chunk([_stream_choice(index, delta, None)])
        if reason:
            yield self._chunk([_stream_choice(index, {}, reason)])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._about, "object": "chat.completion.chunk", "choices": choices}


def _stream_choice(index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}


def error_body(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """Return an error in the API's shape; `message` is a string, as its clients expect."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return models as `GET /v1/models` does."""
    return {"object": "list", "data": models}
