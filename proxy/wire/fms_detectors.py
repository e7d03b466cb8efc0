"""The detector API of the FMS guardrails orchestrator: texts to exchanges, what acting rules found to detections.

Follows `docs/api/openapi_detector_api.yaml` of foundation-model-stack/fms-guardrails-orchestrator, and what its client
reads. A detection is a finding on which a rule of the policy fired that rewrites or blocks; a text of which nobody can
say that is an error, since an empty list means that nothing was found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, Field

from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part
from ringfence.guard.guard import Guard
from ringfence.guard.guesses import guessed
from ringfence.policies.decide import decide, fires_on, sorted_by_part
from ringfence.policies.types import Action, Finding, Policy, Rule, Span, Stage
from ringfence.policies.words import root
from ringfence.proxy.wire.body import BadRequest, is_identifier, validated
from ringfence.proxy.wire.openai_chat import Message, request_parts

DIALECT = "fms.detectors"
PREFIX = "/api/v1/text/"
DETECTOR = "detector-id"
"""Header in which the orchestrator says which detector it means; overlays know it as the model."""

UNPROCESSABLE = 422
"""Status of a request that is not as the API has it."""


class Unjudged(Exception):
    """Some text could not be judged; says which and why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about.

    Attributes:
        reply: the parts to judge as a model's, the request being what they answer; none where it is the request.
        each: whether every text has a list of detections of its own, with their places.
    """

    reply: tuple[Part, ...] = ()
    each: bool = False


class _Form(BaseModel):
    # Nothing that is sent goes unread: a parameter that we do not have is refused.
    model_config = ConfigDict(extra="forbid", strict=True)


class _Nothing(_Form):
    pass


class _Params(_Form):
    stage: Literal["input", "output"] = "input"


class _Contents(_Form):
    contents: Annotated[list[str], MinLen(1)]
    detector_params: _Params = Field(default_factory=_Params)


class _Chat(_Form):
    messages: Annotated[list[Message], MinLen(1)]
    tools: list[dict[str, Any]] | None = None
    detector_params: _Params = Field(default_factory=_Params)


class _Generation(_Form):
    prompt: str
    generated_text: str
    detector_params: _Nothing = Field(default_factory=_Nothing)


def read_contents(body: dict[str, Any], detector: str | None) -> tuple[Exchange, Asked]:
    """Return the exchange of some texts by themselves: a user's, or a model's where `detector_params` say so.

    Raises:
        BadRequest: naming the field or the header.
    """
    asked = validated(_Contents, body, status=UNPROCESSABLE)
    output = asked.detector_params.stage == "output"
    role = "assistant" if output else "user"
    parts = [Part(Kind.TEXT, role, ("contents", index), text) for index, text in enumerate(asked.contents)]
    exchange = _exchange(body, _named(detector), [] if output else parts)
    exchange.apart = True
    return exchange, Asked(tuple(parts) if output else (), each=True)


def read_chat(body: dict[str, Any], detector: str | None) -> tuple[Exchange, Asked]:
    """Return the exchange of a conversation: all of it as a request, or the last message as the reply to the others.

    Raises:
        BadRequest: naming the field or the header; something in it is not text.
    """
    asked = validated(_Chat, body, status=UNPROCESSABLE)
    parts = list(request_parts({"messages": body["messages"], "tools": body.get("tools") or []}))
    for part in parts:
        if not part.kind.is_text:
            what = f"{part.where} is {part.kind}, which no check reads"
            raise BadRequest(what, param=part.where, status=UNPROCESSABLE)
    last = len(asked.messages) - 1
    output = asked.detector_params.stage == "output"
    reply = tuple(part for part in parts if output and part.path[:2] == ("messages", last))
    if output and not (reply and asked.messages[last].role == "assistant"):
        what = "where detector_params.stage is output, the last message must be the assistant's, and say something"
        raise BadRequest(what, param=f"messages[{last}]", status=UNPROCESSABLE)
    exchange = _exchange(body, detector and _named(detector), [part for part in parts if part not in reply])
    return exchange, Asked(reply)


def read_generation(body: dict[str, Any], detector: str | None) -> tuple[Exchange, Asked]:
    """Return the exchange of a prompt and what a model made of it, which is what is judged.

    Raises:
        BadRequest: naming the field or the header.
    """
    asked = validated(_Generation, body, status=UNPROCESSABLE)
    prompt = Part(Kind.TEXT, "user", ("prompt",), asked.prompt)
    reply = Part(Kind.TEXT, "assistant", ("generated_text",), asked.generated_text)
    return _exchange(body, _named(detector), [prompt]), Asked((reply,))


def judge(guard: Guard, exchange: Exchange, asked: Asked) -> list[Any]:
    """Judge what is asked about and return the answer: detections, or a list of them for each text.

    Raises:
        TooLong: of a request.
        Unjudged: a check failed, or no rule has any check read such texts; where there are others, text of roles that
            no rule is about is left out. What is missing to rules in shadow alone is no such failure.
    """
    if asked.reply:
        judging = guard.open_reply(exchange)
        for part in asked.reply:
            judging.release_whole(part, exchange.body)
        judging.finish()
    else:
        guard.judge_request(exchange)
    stage = Stage.OUTPUT if asked.reply else Stage.INPUT
    pipeline = guard.pipeline_of(exchange)
    parts = asked.reply or exchange.request
    findings = [finding for decision in exchange.decisions for finding in decision.findings]
    everywhere, by_part = sorted_by_part(findings)
    acted_on = cache(partial(pipeline.acts_on, stage))
    # Text that the policy's rules are not about is none that could not be judged, unless there is nothing else; those
    # in shadow count where there are no others.
    live = [not part.kind.is_text or acted_on(part.voice) for part in parts]
    meant = live if any(live) else [pipeline.reads(stage, "text", part.voice) for part in parts]
    for index, (part, judged) in enumerate(zip(parts, exchange.coverage, strict=True)):
        if judged.status is not Judged.UNJUDGED or (any(meant) and not meant[index]):
            continue
        failed = frozenset(one.check for one in (*everywhere, *by_part[index]) if one.error is not None)
        if not (failed and acted_on(part.voice, failed)):  # by rules in shadow alone
            raise Unjudged(f"{judged.where} could not be judged: {judged.why}")
    if asked.reply:
        why = "it was read as what the reply answers, and not judged by itself"
        exchange.coverage = [
            *(Coverage(part.where, Judged.UNJUDGED, why) for part in exchange.request),
            *exchange.coverage,
        ]
    policy = pipeline.policy
    if not asked.each:
        return [_detection(finding, rules) for finding, rules in _acted_on(policy, stage, findings)]
    return [
        [
            {"start": span.start, "end": span.end, "text": part.text[span.start : span.end]}
            | _detection(finding, rules)
            for finding, rules in _acted_on(policy, stage, [*everywhere, *by_part[index]])
            for span in finding.spans or (Span(index, 0, len(part.text)),)
            if span.part == index
        ]
        for index, part in enumerate(parts)
    ]


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return an error in the API's shape."""
    return {"code": status, "message": message}


def _exchange(body: dict[str, Any], detector: str | None, request: list[Part]) -> Exchange:
    return Exchange(dialect=DIALECT, model=detector or "", request=request, body=body)


def _named(detector: str | None) -> str:
    if not detector or not is_identifier(detector):
        what = f"the header {DETECTOR} must be there, and one word of at most 64 characters"
        raise BadRequest(what, param=DETECTOR, status=UNPROCESSABLE)
    return detector


def _acted_on(policy: Policy, stage: Stage, own: Sequence[Finding]) -> Iterator[tuple[Finding, list[Rule]]]:
    """Yield each finding with the rules that fired on it and rewrite or block.

    A category that a guard's answer does not name is left out where the verdict that it is guessed from has its rules.
    """
    decision = decide(policy, stage, own)
    fired = {*decision.rules, *decision.logged}
    acting = [one for one in policy.rules if one.id in fired and one.action in (Action.REWRITE, Action.BLOCK)]
    verdicts = guessed(own)
    for finding in own:
        rules = [rule for rule in acting if fires_on(rule, finding, stage, own, policy)]
        told = verdicts.get(finding)
        if rules and not (told and all(fires_on(rule, told, stage, own, policy) for rule in rules)):
            yield finding, rules


def _detection(finding: Finding, rules: Sequence[Rule]) -> dict[str, Any]:
    return {
        "detection": finding.category,
        "detection_type": root(finding.category),
        "score": finding.score,
        "evidence": [
            {"name": "rule", "value": rule.id, "evidence": [{"name": "action", "value": rule.action}]} for rule in rules
        ],
    }
