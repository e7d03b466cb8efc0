"""LiteLLM's generic guardrail: what its proxy asks about one end of an exchange, and what it is told.

Follows LiteLLM's "Generic Guardrail API" (beta) as its proxy sends and reads it
(`proxy/guardrails/guardrail_hooks/generic_guardrail_api`). Of a request there are `structured_messages`, the messages
with their roles, and `texts`, the strings in them. Those alone can be handed back rewritten: where anything else would
have to be, the exchange is blocked.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part, Piece, Subject, image_part, unread
from ringfence.guard.guard import UNJUDGED, Guard
from ringfence.policies.types import Action, Decision, Finding, Stage
from ringfence.proxy.wire.body import BadRequest, validated
from ringfence.proxy.wire.openai_chat import Message, composed, request_parts
from ringfence.proxy.wire.parts import with_unread

DIALECT = "litellm.guardrail"

ABOUT = frozenset(
    {
        "additional_provider_specific_params",
        "input_type",
        "litellm_call_id",
        "litellm_trace_id",
        "litellm_version",
        "model",
        "request_data",
        "request_headers",
    }
)
"""Fields that say something about the exchange; every other holds some of it."""


class Asked(BaseModel):
    """The part of a request that is read; fields that a later version adds are `unjudged.field` to the policy."""

    model_config = ConfigDict(extra="allow", strict=True)

    input_type: Literal["request", "response"]
    texts: list[str] | None = None
    images: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    structured_messages: list[Message] | None = None
    model: str | None = None
    litellm_trace_id: str | None = None
    request_data: dict[str, Any] = Field(default_factory=dict)


def read_request(body: dict[str, Any]) -> tuple[Exchange, list[Part]]:
    """Return the exchange, and the parts of the reply where it is a reply that is asked about.

    Raises:
        BadRequest: naming the field; or there is nothing to judge.
    """
    asked = validated(Asked, body)
    parts = list(_parts(body, "user" if asked.input_type == "request" else "assistant"))
    if not parts:
        raise BadRequest("there is nothing to judge: no texts, messages, tools, tool calls or images")
    who = asked.request_data
    user = next((str(who[key]) for key in ("user_api_key_end_user_id", "user_api_key_user_id") if who.get(key)), "")
    exchange = Exchange(
        dialect=DIALECT,
        model=asked.model or "",
        request=parts if asked.input_type == "request" else [],
        body=body,
        subject=Subject(user=user, conversation=asked.litellm_trace_id or ""),
    )
    return exchange, [] if exchange.request else parts


def judge(guard: Guard, exchange: Exchange, reply: list[Part]) -> dict[str, Any]:
    """Judge one end of the exchange and return the answer.

    Raises:
        TooLong: of a request.
    """
    if reply:
        return _reply(guard, exchange, reply)
    return _answer(guard.judge_request(exchange), exchange.body.get("texts"))


def _reply(guard: Guard, exchange: Exchange, parts: list[Part]) -> dict[str, Any]:
    texts: list[str] = list(exchange.body.get("texts") or [])
    held = [0] * len(texts)
    judging = guard.open_reply(exchange)
    missed = [part for part in parts if not part.kind.is_text]
    try:
        for part in (part for part in parts if part.text):
            if part.kind is Kind.TEXT:
                # In windows, as a reply that passes through; what it ends with would be held back, had it not ended.
                judging.feed(part.path, part.text)
                released = judging.release(part.path)
                last = judging.release(part.path, last=True)
                texts[int(part.path[1])], held[int(part.path[1])] = released + last, len(last)
            else:
                judging.release_whole(part, exchange.body)
    finally:
        judging.finish()
    if missed:
        exchange.decisions.append(_about(missed, guard, exchange))
    strongest = max(exchange.decisions, key=lambda decision: decision.action.strength, default=None)
    return _answer(strongest, texts) | {"stream_holdback_chars": held}


def _about(missed: list[Part], guard: Guard, exchange: Exchange) -> Decision:
    """Have the policy settle what nobody can read, as it does in a request."""
    exchange.reply += missed
    exchange.coverage += [Coverage(part.where, Judged.UNJUDGED, unread(part.kind, part.why)) for part in missed]
    known = [Finding("guard", UNJUDGED[part.kind], 1.0, detail=part.where) for part in missed]
    return guard.pipeline_of(exchange).judge(Stage.OUTPUT, [], known=known, who=exchange.who)


def _answer(decision: Decision | None, texts: list[str] | None) -> dict[str, Any]:
    if decision is not None and decision.action is Action.BLOCK:
        return {"action": "BLOCKED", "blocked_reason": decision.message}
    if decision is not None and decision.action is Action.REWRITE:
        return {"action": "GUARDRAIL_INTERVENED", "texts": texts}
    return {"action": "NONE"}


def _parts(body: Mapping[str, Any], role: str) -> Iterator[Part]:
    """Yield every part of what is asked about.

    INVARIANT: only strings of `texts` have a path to be rewritten at, and every string of `texts` is in a part.
    """
    fields = {key: value for key, value in body.items() if value and key not in ABOUT}
    texts, calls, images = (fields.pop(key, []) for key in ("texts", "tool_calls", "images"))
    chat: dict[str, Any] = {"messages": []}
    if role == "user":  # of a reply these would be fields that nobody knows
        chat = {"messages": fields.pop("structured_messages", []), "tools": fields.pop("tools", [])}
    places: defaultdict[str, deque[int]] = defaultdict(deque)
    for index, text in enumerate(texts):
        places[text].append(index)
    found = [_at_its_place(part, places) for part in request_parts(chat)]
    yield from found
    for index in sorted(index for left in places.values() for index in left):
        yield Part(Kind.TEXT, role, ("texts", index), texts[index])
    for index, call in enumerate(calls):
        for part in composed(call, Kind.TOOL_CALL, "assistant", ("tool_calls", index)):
            yield _at_its_place(part, {})
    if not any(part.kind is Kind.MEDIA for part in found):  # else the messages hold the same images
        yield from (image_part(role, ("images", index), url) for index, url in enumerate(images))
    yield from with_unread(fields, (), frozenset(), frozenset())


def _at_its_place(part: Part, places: Mapping[str, deque[int]]) -> Part:
    """Return a part with each string that stands in `texts` too to be rewritten there, and no other."""
    if not part.kind.is_text:
        return part
    content = part.path[2:] == ("content",)

    def place(piece: Piece) -> Piece:
        left = places.get(part.text[piece.start : piece.end]) if content else None
        return replace(piece, path=("texts", left.popleft()) if left else None)

    return replace(part, pieces=tuple(map(place, part.pieces or (Piece(0, len(part.text), part.path),))))
