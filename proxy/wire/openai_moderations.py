"""OpenAI's Moderations: requests to exchanges, decisions to results.

Follows the API reference as the `openai` Python package types it (`types/moderation.py`). Our own categories stand
beside its thirteen as further keys.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ringfence.guard.exchange import Exchange, Kind, Part
from ringfence.policies.decide import decide
from ringfence.policies.types import Action, Finding, Policy, Stage
from ringfence.proxy.wire.body import BadRequest

DIALECT = "openai.moderations"
CATEGORY_FROM = 0.5
"""A category is said to be present from this probability on; `flagged` is the policy's own verdict."""

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

The guard does not tell the empty ones from their parents: they stay at 0, and `ringfence/…` keys hold what it does say.
"""


def read_request(body: dict[str, Any]) -> tuple[Exchange, Groups]:
    """Return the exchange, and for each result the indices of the parts that it is about.

    Raises:
        BadRequest: `input` is missing or of the wrong type.
    """
    given = body.get("input")
    wrong = BadRequest("input must be a string, a list of strings, or a list of content parts", param="input")
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise wrong
    whole = isinstance(given, str)
    parts: list[Part] = []
    for index, item in enumerate(items):
        path = ("input",) if whole else ("input", index)
        if isinstance(item, str):
            parts.append(Part(Kind.TEXT, "user", path, item))
        elif isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str):
            parts.append(Part(Kind.TEXT, "user", (*path, "text"), item["text"]))
        elif isinstance(item, dict) and item.get("type") == "image_url":
            parts.append(Part(Kind.MEDIA, "user", path))
        else:
            raise wrong
    if not any(part.text.strip() for part in parts):
        raise BadRequest("input holds no text: there is nothing to judge", param="input")
    model = body.get("model", "ringfence")
    if not isinstance(model, str):
        raise BadRequest("model must be a string", param="model")
    results = [[i] for i in range(len(parts))] if isinstance(items[0], str) else [list(range(len(parts)))]
    return Exchange(dialect=DIALECT, model=model, request=parts), results


def write_results(exchange: Exchange, policy: Policy, findings: Sequence[Finding], groups: Groups) -> dict[str, Any]:
    """Return the answer: one result for each group of parts, flagged where the policy would block that group.

    Args:
        policy: as the overlays that are about the exchange have it.
    """
    by_part: dict[int, list[Finding]] = defaultdict(list)
    everywhere = [f for f in findings if not f.spans]  # a check that could not answer speaks of every part
    for finding in findings:
        for part in {span.part for span in finding.spans}:
            by_part[part].append(finding)
    return {
        "id": f"modr-{exchange.id}",
        "model": exchange.model,
        "results": [
            _result(exchange, policy, [*everywhere, *(f for part in group for f in by_part[part])], group)
            for group in groups
        ],
    }


def _result(exchange: Exchange, policy: Policy, own: Sequence[Finding], group: Sequence[int]) -> dict[str, Any]:
    scores = {name: max((_score(own, source) for source in sources), default=0.0) for name, sources in SOURCES.items()}
    scores |= {f"ringfence/{category}": _score(own, category) for category in {f.category for f in own if f.spans}}
    read = ["text"] if any(exchange.request[i].kind is Kind.TEXT for i in group) else []
    return {
        "flagged": decide(policy, Stage.INPUT, own).action is Action.BLOCK,
        "categories": {name: score >= CATEGORY_FROM for name, score in scores.items()},
        "category_scores": scores,
        "category_applied_input_types": dict.fromkeys(scores, read),
    }


def _score(findings: Iterable[Finding], category: str) -> float:
    return max((f.score for f in findings if f.category == category), default=0.0)
