"""OpenAI's Moderations: requests to exchanges, decisions to results.

Follows the API reference as the `openai` Python package types it (`types/moderation.py`). Our own categories stand
beside its thirteen as further keys, and so does the policy's verdict: what is flagged is flagged for some category.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ringfence.guard.exchange import Exchange, Judged, Kind, Part, compose, image_part
from ringfence.guard.guard import Guard
from ringfence.guard.guesses import guessed
from ringfence.guard.images import address_of
from ringfence.policies.decide import alone, decide, sorted_by_part
from ringfence.policies.types import Action, Finding, Policy, Stage
from ringfence.policies.words import covers
from ringfence.proxy.wire.body import BadRequest

DIALECT = "openai.moderations"
CATEGORY_FROM = 0.5
"""A category is said to be present from this probability on; `flagged` is the policy's own verdict."""

VERDICT = "ringfence"
"""The category of what the policy would block, whatever for: also below that probability, and where a check failed."""

Groups = list[list[int]]

SOURCES: Mapping[str, tuple[str, ...]] = {
    "harassment": ("toxicity",),
    "harassment/threatening": (),
    "hate": ("harm.S10",),
    "hate/threatening": (),
    "illicit": ("harm.S2",),
    "illicit/violent": ("harm.S9",),
    "self-harm": ("harm.S11",),
    "self-harm/intent": (),
    "self-harm/instructions": (),
    "sexual": ("harm.S12", "harm.S3"),
    "sexual/minors": ("harm.S4",),
    "violence": ("harm.S1",),
    "violence/graphic": (),
}
"""OpenAI's categories and the findings that speak for each, by MLCommons code; the highest score counts.

The guard does not tell the empty ones from their parents. They are at 0 unless a rule in force has a tag that says that
it is for one of them, as rules of the pack `moderation` have; `ringfence/…` keys hold all that was found.
"""

TAG = "OpenAI-Moderation:"
"""What a rule's tag begins with that says for which of OpenAI's categories the rule is."""


def read_request(body: dict[str, Any]) -> tuple[Exchange, Groups]:
    """Return the exchange, and for each result the indices of the parts that it is about.

    Raises:
        BadRequest: `input` is missing or of the wrong type.
    """
    given = body.get("input")
    wrong = BadRequest("input must be a string, a list of strings, or a list of content parts", param="input")
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not items or len({isinstance(item, str) for item in items}) > 1:
        raise wrong
    whole = isinstance(given, str)
    parts: list[Part] = []
    for index, item in enumerate(items):
        path = ("input",) if whole else ("input", index)
        if isinstance(item, str):
            parts.append(Part(Kind.TEXT, "user", path, item))
        elif isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str):
            parts.append(Part(Kind.TEXT, "user", (*path, "text"), item["text"]))
            if item.keys() - {"type", "text"}:
                parts.append(Part(Kind.UNKNOWN, "user", path))
        elif isinstance(item, dict) and item.get("type") == "image_url":
            parts.append(image_part("user", path, address_of(item)))
        else:
            raise wrong
    if not any(part.text.strip() for part in parts):
        raise BadRequest("input holds no text: there is nothing to judge", param="input")
    model = body.get("model", "ringfence")
    if not isinstance(model, str):
        raise BadRequest("model must be a string", param="model")
    apart = isinstance(items[0], str)
    parts = parts if apart else _together(parts)
    results = [[i] for i in range(len(parts))] if apart else [list(range(len(parts)))]
    return Exchange(dialect=DIALECT, model=model, request=parts, apart=apart), results


def _together(parts: Sequence[Part]) -> list[Part]:
    """Put texts that belong together into one, as in a chat: whoever cut a word in two must not get past."""
    texts = [(part.path, part.text) for part in parts if part.kind is Kind.TEXT]
    others = [part for part in parts if part.kind is not Kind.TEXT]
    return [compose(Kind.TEXT, "user", ("input",), texts, seam=""), *others] if texts else others


def judge(guard: Guard, exchange: Exchange, groups: Groups) -> dict[str, Any]:
    """Judge the texts and return the answer.

    Raises:
        TooLong: nothing was judged.
    """
    decision = guard.judge_request(exchange)
    return write_results(exchange, guard.pipeline_of(exchange).policy, decision.findings, groups)


def write_results(exchange: Exchange, policy: Policy, findings: Sequence[Finding], groups: Groups) -> dict[str, Any]:
    """Return the answer: one result for each group of parts, flagged where the policy would block that group.

    Args:
        policy: as the overlays that are about the exchange have it.
    """
    everywhere, by_part = sorted_by_part(findings)
    return {
        "id": f"modr-{exchange.id}",
        "model": exchange.model,
        "results": [
            _result(exchange, policy, [*everywhere, *(f for part in group for f in by_part[part])], group)
            for group in groups
        ],
    }


def _result(exchange: Exchange, policy: Policy, own: Sequence[Finding], group: Sequence[int]) -> dict[str, Any]:
    scores = {name: max(_told(policy, name, own), default=0.0) for name in SOURCES}
    guesses = guessed(own)
    told = [finding for finding in own if finding.spans and finding not in guesses]
    scores |= {f"ringfence/{category}": _score(told, category) for category in {f.category for f in told}}
    flagged = decide(policy, Stage.INPUT, own).action is Action.BLOCK
    scores[VERDICT] = float(flagged)
    judged = [exchange.request[i] for i in group if exchange.coverage[i].status is Judged.JUDGED]
    read = ["text"] if any(part.kind is Kind.TEXT for part in judged) else []
    if any(part.image for part in judged):
        read.append("image")
    return {
        "flagged": flagged,
        "categories": {name: score >= CATEGORY_FROM for name, score in scores.items()},
        "category_scores": scores,
        "category_applied_input_types": dict.fromkeys(scores, read),
    }


def _told(policy: Policy, name: str, own: Sequence[Finding]) -> Iterator[float]:
    """Yield what speaks for one of OpenAI's categories: the guard's scores, and those of the rules that are for it."""
    yield from (_score(own, source) for source in SOURCES[name])
    for rule in policy.rules:
        if f"{TAG}{name}" in rule.tags:
            # From 0 on it fires wherever its condition holds, so that what is below its threshold is told as well.
            alike = alone(replace(rule, threshold=0.0, escalate=None), Stage.INPUT, own)
            if alike.rules or alike.logged:
                yield max(f.score for f in own if covers(rule.category, f.category))


def _score(findings: Iterable[Finding], category: str) -> float:
    return max((f.score for f in findings if f.category == category), default=0.0)
