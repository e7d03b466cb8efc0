"""From the record of an exchange to rows for a person to label. Knows what a record holds, and no store."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ringfence.guard.audit.record import Body
from ringfence.guard.exchange import Kind

LABELS = ("prompt_label", "response_label", "refusal", "attack", "toxicity")
"""What a person fills in: 1 or 0; null says nothing."""


def distinct(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each pair of text and response once, as it comes first, with `times`: how often it came."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row["text"], row["response"]), {**row, "times": 0})["times"] += 1
    return list(found.values())


def rows_of(body: Body) -> Iterator[dict[str, Any]]:
    """Yield a row for each text that an assistant answered with, or one without a response.

    None where the last thing a user said is not kept: an answer without its question could not be judged. Of texts
    that came together and are apart, each has a row. `record`, `action` and `scores` (the highest of each category)
    are for whoever labels, not for training.
    """
    said = [(at, part) for at, part in enumerate(body["request"]) if _is_said(part)]
    spoken = [part for part in body["reply"] if part["kind"] in (Kind.TEXT, Kind.REFUSAL)]
    answers = [part["text"] for part in spoken if part["role"] == "assistant" and part.get("text")]
    apart = body.get("apart", False)
    for at, part in said if apart else said[-1:]:
        about = {"record": body["seq"], "action": body["action"], "scores": scores_of(body, at if apart else None)}
        for answer in answers or [None]:
            if part.get("text"):
                yield {"text": part["text"], "response": answer, **dict.fromkeys(LABELS), **about}


def _is_said(part: Mapping[str, Any]) -> bool:
    return bool(part["role"] == "user" and part["kind"] == Kind.TEXT)


def scores_of(body: Body, part: int | None = None) -> Mapping[str, float]:
    """Return the highest score of each category that anything was found in, by stage.

    Args:
        part: of the request; only what was found in it, or in no place in particular.
    """
    found: dict[str, float] = {}
    for decision in body["decisions"]:
        for finding in decision["findings"]:
            places = {span["part"] for span in finding["spans"]}
            if finding["error"] is None and (part is None or not places or part in places):
                name = f"{decision['stage']}:{finding['category']}"
                found[name] = max(found.get(name, 0.0), finding["score"])
    return found
