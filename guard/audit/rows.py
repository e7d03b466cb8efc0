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

    None where the last thing a user said is not kept: an answer without its question could not be judged. `record`,
    `action` and `scores` (the highest of each category) are for whoever labels, not for training.
    """
    said = [part for part in body["request"] if part["role"] == "user" and part["kind"] == Kind.TEXT]
    if not said or not said[-1].get("text"):
        return
    spoken = [part for part in body["reply"] if part["kind"] in (Kind.TEXT, Kind.REFUSAL)]
    answers = [part["text"] for part in spoken if part["role"] == "assistant" and part.get("text")]
    about = {"record": body["seq"], "action": body["action"], "scores": scores_of(body)}
    for answer in answers or [None]:
        yield {"text": said[-1]["text"], "response": answer, **dict.fromkeys(LABELS), **about}


def scores_of(body: Body) -> Mapping[str, float]:
    """Return the highest score of each category that anything was found in, by stage."""
    found: dict[str, float] = {}
    for decision in body["decisions"]:
        for finding in decision["findings"]:
            if finding["error"] is None:
                name = f"{decision['stage']}:{finding['category']}"
                found[name] = max(found.get(name, 0.0), finding["score"])
    return found
