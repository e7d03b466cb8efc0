"""OpenAI's Chat Completions: requests to exchanges, replies to events and back.

Follows the API reference as the `openai` Python package types it (`types/chat`). Fields that it does not know pass
through to the upstream untouched; the coverage of the exchange says that nobody judged them.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field

from ringfence.guard.exchange import Exchange, Kind, Part, Path, Subject, compose
from ringfence.guard.unicode import readable
from ringfence.policies.words import Role
from ringfence.proxy.reply import About, Event, Finish, Likelihoods, Released, Stopped, Text, ToolCall
from ringfence.proxy.wire.body import BadRequest, validated
from ringfence.proxy.wire.parts import Unread, gathered, is_plain, media, with_unread

DIALECT = "openai.chat"

END = b"data: [DONE]\n\n"
"""What a stream that is complete ends with."""

REPLY_TEXT = {
    "content": Kind.TEXT,
    "reasoning_content": Kind.REASONING,
    "reasoning": Kind.REASONING,
    "refusal": Kind.REFUSAL,
}
"""The fields of a reply's message that hold text; `reasoning*` are what open-weight servers add."""

NAMES_OF_REPLY = frozenset({"id", "object", "model", "system_fingerprint", "service_tier"})
"""Fields of a reply that hold a name each; every other string in a reply is text, or is withheld."""

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})

SETTINGS = frozenset(
    {
        "audio",
        "logit_bias",
        "modalities",
        "model",
        "reasoning_effort",
        "service_tier",
        "stream_options",
        "tool_choice",
        "verbosity",
    }
)
"""Documented request fields that hold keywords; where one holds more than that, nobody knows what it is."""

OF_MESSAGES = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "function_call", "annotations", "audio", *REPLY_TEXT}
)
"""Documented fields of a message."""

TEXTS = frozenset({"user", "safety_identifier", "prompt_cache_key", "stop", "metadata"})
"""Documented request fields that hold a caller's own words."""

GRAMMAR = frozenset(
    {
        "additionalProperties",
        "arguments",
        "array",
        "boolean",
        "default",
        "description",
        "enum",
        "function",
        "id",
        "integer",
        "items",
        "json_object",
        "json_schema",
        "name",
        "null",
        "number",
        "object",
        "parameters",
        "properties",
        "required",
        "schema",
        "strict",
        "string",
        "type",
    }
)
"""Words of tool definitions and calls that are the API's own."""


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


class Message(_Open):
    """A message, as far as it is read to be judged."""

    role: Annotated[str, MinLen(1)]
    content: str | list[_ContentPart] | None = None
    tool_calls: list[_ToolCall] | None = None


class _StreamOptions(_Open):
    include_usage: bool = False


class ChatRequest(_Open):
    """The part of a request that ringfence itself reads; everything else is passed on as it came."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:@+-]+$", max_length=256)]
    messages: Annotated[list[Message], MinLen(1)]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None
    user: str | None = None
    safety_identifier: str | None = None


def read_request(body: dict[str, Any]) -> tuple[Exchange, ChatRequest]:
    """Return the exchange that a request body opens.

    Raises:
        BadRequest: naming the field.
    """
    request = validated(ChatRequest, body)
    parts = list(request_parts(body))
    if not any(part.text.strip() or part.kind is Kind.MEDIA for part in parts if part.path[0] == "messages"):
        raise BadRequest("messages hold no text: there is nothing to answer", param="messages")
    subject = Subject(
        user=request.safety_identifier or request.user or "", conversation=_conversation(body.get("metadata"))
    )
    return Exchange(dialect=DIALECT, model=request.model, request=parts, body=body, subject=subject), request


def _conversation(metadata: object) -> str:
    """Return what `metadata` says under the name that telemetry has for it, `conversation_id`; empty where nothing."""
    found = metadata.get("conversation_id") if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else ""


def request_parts(body: Mapping[str, Any]) -> Iterator[Part]:
    """Yield every part of a request whose messages have the form of `Message`; `with_unread` says which those are."""
    yield from with_unread(body, _known_parts(body), SETTINGS, OF_MESSAGES)


def _known_parts(body: Mapping[str, Any]) -> Iterator[Part]:
    for index, message in enumerate(body["messages"]):
        yield from _message_parts(message, ("messages", index))
    for key in ("tools", "functions"):
        for index, tool in enumerate(body.get(key) or []):
            yield from composed(tool, Kind.TOOL_DEFINITION, "system", (key, index))
    yield from composed(body.get("response_format"), Kind.TOOL_DEFINITION, "system", ("response_format",))
    prediction = body.get("prediction")
    if isinstance(prediction, Mapping):
        yield from _content_parts(prediction.get("content"), "assistant", ("prediction", "content"))
    for key in TEXTS & body.keys():
        yield from composed(body[key], Kind.TEXT, "setting", (key,))


def _message_parts(message: Mapping[str, Any], path: Path) -> Iterator[Part]:
    role = str(message["role"])
    if role not in get_args(Role):  # templates print it
        yield Part(Kind.TEXT, "setting", (*path, "role"), role)
    yield from composed(message.get("name"), Kind.TEXT, role, (*path, "name"))
    yield from _content_parts(message.get("content"), role, (*path, "content"))
    for field, kind in REPLY_TEXT.items():
        if field != "content" and isinstance(message.get(field), str):
            yield Part(kind, role, (*path, field), message[field])
    for index, call in enumerate(message.get("tool_calls") or []):
        yield from composed(call, Kind.TOOL_CALL, role, (*path, "tool_calls", index))
    yield from composed(message.get("function_call"), Kind.TOOL_CALL, role, (*path, "function_call"))
    if message.get("audio"):
        yield Part(Kind.MEDIA, role, (*path, "audio"))


def _content_parts(content: object, role: str, path: Path) -> Iterator[Part]:
    if isinstance(content, str):
        yield Part(Kind.TEXT, role, path, content)
    elif isinstance(content, list):
        texts: list[tuple[Path | None, str]] = []
        others: list[Part] = []
        for index, item in enumerate(content):
            field = item.get("type") if isinstance(item, Mapping) else None
            if field in ("text", "refusal") and isinstance(item.get(field), str):
                texts.append(((*path, index, field), item[field]))
                if item.keys() - {"type", field}:
                    others.append(Part(Kind.UNKNOWN, role, (*path, index)))
            else:
                others.extend(media(item, role, (*path, index)))
        if texts:
            # Judged as one text: an upstream puts them together again, and so would whoever cut a word in two.
            yield compose(Kind.TEXT, role, path, texts, seam="")
        yield from others


def composed(value: Any, kind: Kind, role: str, path: Path) -> Iterator[Part]:
    """Yield all the words below a value as one part, so that nothing can be spelled out in pieces."""
    yield from gathered(value, kind, role, path, GRAMMAR)


def read_reply(body: Any) -> Iterator[Event]:
    """Yield the events of a whole reply, as an upstream sends it where no stream was asked for.

    Raises:
        ValueError: it is not a chat completion.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("choices"), list):
        raise ValueError("the reply has no list of choices")
    if not all(isinstance(choice, Mapping) for choice in body["choices"]):
        raise ValueError("a choice is not an object")
    reader = ChunkReader()
    choices = [
        {**{k: v for k, v in choice.items() if k != "message"}, "delta": choice.get("message")}
        for choice in body["choices"]
    ]
    yield from reader.read({**body, "choices": choices})
    yield from reader.end()


class ChunkReader:
    """Reads the chunks of one streamed reply; tool calls are put together and come out whole."""

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], dict[str, Any]] = {}
        self._finished: list[Finish] = []
        self._unread = Unread()

    @property
    def ended(self) -> bool:
        """Whether any choice has ended."""
        return bool(self._finished)

    def read(self, chunk: Any) -> Iterator[Event]:
        """Yield the events in one chunk.

        Raises:
            ValueError: it is not a chunk of a chat completion.
        """
        if not isinstance(chunk, Mapping) or not isinstance(chunk.get("choices"), list):
            raise ValueError("the chunk has no list of choices")
        rest = {key: value for key, value in chunk.items() if key != "choices"}
        about = {key: value for key, value in rest.items() if is_plain(key, value, NAMES_OF_REPLY)}
        yield About(about)
        yield from self._unread.withhold("", rest.keys() - about.keys())
        for choice in chunk["choices"]:
            yield from self._choice(choice)

    def end(self) -> Iterator[Event]:
        """Yield what had to wait for the end: tool calls, then the ends of the choices."""
        for (choice, index), call in self._calls.items():
            yield ToolCall(choice, index, call)
        yield from self._finished

    def _choice(self, choice: Any) -> Iterator[Event]:
        index, delta = (choice.get("index", 0), choice.get("delta") or {}) if isinstance(choice, Mapping) else ("", "")
        if not isinstance(index, int) or not isinstance(delta, Mapping):
            raise ValueError("a choice has no whole-number index or no delta")
        where = f"choices[{index}]."
        unread = {key for key, value in choice.items() if key not in ("index", "delta", "finish_reason") and value}
        unread |= {f"message.{key}" for key, value in delta.items() if key not in ("role", *REPLY_TEXT) and value}
        for field, kind in REPLY_TEXT.items():
            if isinstance(delta.get(field), str):
                yield Text(index, field, readable(delta[field]), kind)
            elif delta.get(field):
                unread.add(f"message.{field}")
        if isinstance(delta.get("tool_calls"), list) and all(isinstance(c, Mapping) for c in delta["tool_calls"]):
            unread.discard("message.tool_calls")
            for position, call in enumerate(delta["tool_calls"]):
                unread |= {f"message.tool_calls.{key}" for key in self._gather(index, call, position)}
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self._finished.append(Finish(index, reason if reason in FINISH_REASONS else "stop"))
            unread |= set() if reason in FINISH_REASONS else {"finish_reason"}
        yield from self._unread.withhold(where, unread)

    def _gather(self, choice: int, fragment: Mapping[str, Any], position: int) -> set[str]:
        """Add a fragment to its call; return the names of what is not part of a call as the API knows it."""
        index = fragment.get("index", position)
        if not isinstance(index, int):
            raise ValueError("a tool call has no whole-number index")
        call = self._calls.setdefault(
            (choice, index), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = fragment.get("function")
        known = function if isinstance(function, Mapping) else {}
        for key in ("name", "arguments"):
            if isinstance(known.get(key), str):
                call["function"][key] += readable(known[key])
        if isinstance(fragment.get("id"), str):
            call["id"] = readable(fragment["id"]) or call["id"]
        left = {key for key, value in fragment.items() if key not in ("index", "id", "type", "function") and value}
        left |= {
            f"function.{k}" for k, v in known.items() if v and not (k in ("name", "arguments") and isinstance(v, str))
        }
        if fragment.get("type") not in (None, "function"):
            left.add("type")
        return left


class Renderer:
    """Writes a reply in the API's own words: chunk by chunk, or collected.

    Args:
        exchange: the exchange answered; its id stands in for the reply's where the upstream gave none.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._about: dict[str, Any] = {
            "id": f"chatcmpl-{exchange.id}",
            "created": int(time.time()),
            "model": exchange.model,
        }
        self._with_usage = bool((exchange.body.get("stream_options") or {}).get("include_usage"))
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
            case Likelihoods():
                yield from self._delta(event.choice, {})
                yield self._chunk([_stream_choice(event.choice, {}, None) | {"logprobs": _logprobs(event)}])
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
            case Likelihoods():
                self._choice(event.choice)["logprobs"] = _logprobs(event)
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
            message = {"role": "assistant", "content": None, "refusal": None} | fields
            reason, logprobs = message.pop("finish_reason", "stop"), message.pop("logprobs", None)
            choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs})
        body = {**self._about, "object": "chat.completion", "choices": choices}
        return body if self._usage is None else body | {"usage": self._usage}

    def _note(self, fields: Mapping[str, Any]) -> None:
        self._about |= {k: v for k, v in fields.items() if k not in ("object", "usage")}
        self._usage = fields.get("usage") or self._usage

    def _choice(self, index: int) -> dict[str, Any]:
        return self._choices.setdefault(index, {})

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None = None) -> Iterator[dict[str, Any]]:
        if index not in self._choices:
            opened = {"role": "assistant", "content": "" if "content" in delta else None}
            yield self._chunk([_stream_choice(index, opened, None)])
        self._choice(index).update(dict.fromkeys(delta, True))
        if delta:
            yield self._chunk([_stream_choice(index, delta, None)])
        if reason:
            yield self._chunk([_stream_choice(index, {}, reason)])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._about, "object": "chat.completion.chunk", "choices": choices}


def _stream_choice(index: int, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}


def _logprobs(event: Likelihoods) -> dict[str, Any]:
    """Return tokens as the API tells them, without any that were not said."""
    return {
        "content": [
            {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, logprob in event.tokens
        ]
    }


def frame(chunk: Mapping[str, Any]) -> bytes:
    """Return one chunk as a server-sent event."""
    return b"data: %s\n\n" % json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()


def error_body(message: str, *, kind: str, code: str | int | None, param: str | None = None) -> dict[str, Any]:
    """Return an error in the API's shape; `message` is a string, as its clients expect."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return models as `GET /v1/models` does."""
    return {"object": "list", "data": models}
