"""The record of one exchange: what it holds, which bytes stand for it, and the hash that chains it to the one before.

Pure: values in, values out. Knows no file, no clock and no database.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import cache
from typing import Any, Literal

import rfc8785
from pydantic import TypeAdapter

from ringfence.guard.exchange import Exchange, Judged, Kind, Part, Subject, whose
from ringfence.policies.decide import reasons
from ringfence.policies.types import Decision, Finding, Span, Stage
from ringfence.policies.words import Route

Body = dict[str, Any]
"""One record as JSON values, before its place in the chain is known."""

Keep = Literal["masked", "full", "none"]
"""How much text a record keeps; `AuditSettings.text` says what each means."""

VERSION = 1
GENESIS = "0" * 64
"""What the first record names as the hash before it."""

AT_ONCE: frozenset[Route] = frozenset({"fms.detectors"})
"""Ways that replies come by whole, and are judged whole."""

SENSITIVE = frozenset({"pii", "secret"})
"""Category roots that a masked record never shows, also where the policy only logs them."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of one record, for whoever caused it: its number in the chain, from 1, and its hash in hexadecimal."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record in its place: `hash` is the sha256 of `canonical`, which holds the version, `seq` and `prev`."""

    seq: int
    prev: str
    hash: str
    canonical: bytes


def record_of(exchange: Exchange, *, text: Keep) -> Body:
    """Say what happened in one exchange, with as much of its text as `text` allows.

    The wire body, its headers and its credentials are not looked at: a record is made of parts and decisions only.

    INVARIANT: spans of INPUT decisions count over `exchange.request`, spans of OUTPUT decisions over `exchange.reply`,
    both as they were judged, before any rewriting; `rewrites` then say what was let through instead.
    """
    strongest = max((d.action for d in exchange.decisions), key=lambda action: action.strength, default=None)
    return {
        "id": exchange.id,
        "at": exchange.received_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "dialect": exchange.dialect,
        "model": exchange.model,
        "subject": {"tenant": exchange.subject.tenant, "key": exchange.subject.key},
        "action": strongest,  # null where nothing was judged; "allow" would claim that something was
        "rules": list(dict.fromkeys(why for d in exchange.decisions if d.action is strongest for why in reasons(d))),
        "text": text,
        **({"apart": True} if exchange.apart else {}),
        "request": list(_parts(exchange, Stage.INPUT, exchange.request, text)),
        "reply": list(_parts(exchange, Stage.OUTPUT, exchange.reply, text)),
        "coverage": [{"where": c.where, "status": c.status, "why": c.why} for c in exchange.coverage],
        "decisions": [_decision(decision) for decision in exchange.decisions],
        "timings": {step: round(seconds, 6) for step, seconds in exchange.timings.items()},
        "revisions": dict(exchange.revisions),
        "error": exchange.error,
    }


def seal(body: Body, seq: int, prev: str) -> Sealed:
    """Give a record its place after the record whose hash is `prev`; `GENESIS` for the first.

    Source: the bytes are canonical JSON as in RFC 8785.

    Raises:
        ValueError: the body holds what JSON cannot: an integer beyond 2^53, or a type of Python's own.
    """
    canonical = rfc8785.dumps(_clean({**body, "version": VERSION, "seq": seq, "prev": prev}))
    return Sealed(seq, prev, hashlib.sha256(canonical).hexdigest(), canonical)


def decisions_of(body: Body) -> tuple[Decision, ...]:
    """Read the decisions of a record back, with their findings; a score that was not a number is none again."""
    decisions = [
        {
            **one,
            "shadow": {rule: would.removeprefix("would_") for rule, would in one["shadow"].items()},
            "findings": [f if f["score"] is not None else {**f, "score": math.nan} for f in one["findings"]],
        }
        for one in body["decisions"]
    ]
    return _decisions().validate_python(decisions)


def who_in(body: Body) -> Mapping[str, str]:
    """Return what a policy's scopes ask for, of the exchange that a record is about."""
    subject = body["subject"]
    return whose(Subject(subject["tenant"], subject["key"]), body["model"], body["dialect"])


def lengths_of(body: Body) -> tuple[int, ...]:
    """Return of each decision in a record how long the text is that was judged in windows; 0 of what was judged whole.

    Where the record does not tell which reply a decision is about, each counts as the longest of them.
    """
    lengths = [0 if _came_whole(body, part) else int(part["length"]) for part in body["reply"]]
    stages = [decision["stage"] for decision in body["decisions"]]
    if len(lengths) != stages.count(Stage.OUTPUT):
        lengths = [max(lengths, default=0)] * len(stages)
    of_replies = iter(lengths)
    return tuple(next(of_replies) if stage == Stage.OUTPUT else 0 for stage in stages)


def _came_whole(body: Body, part: Body) -> bool:
    return part["kind"] == Kind.TOOL_CALL or "length" not in part or body["dialect"] in AT_ONCE


@cache
def _decisions() -> TypeAdapter[tuple[Decision, ...]]:
    return TypeAdapter(tuple[Decision, ...])


def parse_receipt(text: str) -> Receipt:
    """Read a receipt as it is written in a response header: `seq:hash`.

    Raises:
        ValueError: it is not one; the message says what one looks like.
    """
    seq, _, digest = text.strip().partition(":")
    if not (seq.isascii() and seq.isdecimal() and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
        raise ValueError(f"{text!r} is not a receipt: it should be SEQ:HASH, a number and 64 hexadecimal digits")
    return Receipt(int(seq), digest)


def _parts(exchange: Exchange, stage: Stage, parts: Sequence[Part], keep: Keep) -> Iterator[Body]:
    decisions = [decision for decision in exchange.decisions if decision.stage is stage]
    # By what was read, not by what was not: where judging was cut off, the coverage may say nothing of a part.
    read = {c.where for c in exchange.coverage} - {c.where for c in exchange.coverage if c.status is Judged.UNJUDGED}
    masks = _masks(decisions)
    for index, part in enumerate(parts):
        body: Body = {"kind": part.kind, "role": part.role, "where": part.where}
        if part.image is not None:
            # Never the bytes, whatever the policy keeps of texts: by the digest, who has the image knows it again.
            size = len(part.image.data)
            body |= {"media_type": part.image.media_type, "digest": part.image.digest, "bytes": size}
        if part.kind.is_text:
            shown = _clean(part.text if keep == "full" else _masked(part.text, masks.get(index, [])))
            # Over the text as masked: beside a masked text, the digest of the original would let anyone
            # find a telephone number by trying them all.
            body |= {"digest": hashlib.sha256(shown.encode()).hexdigest(), "length": len(part.text)}
            # Where a check failed or the text went on unread, nobody can say that what is left shows no personal data.
            if keep == "masked" and part.where not in read:
                body["withheld"] = "not every check read it"
            elif keep != "none":
                body["text"] = shown
        yield body


def _masks(decisions: Iterable[Decision]) -> Mapping[int, Sequence[tuple[Span, str]]]:
    """Return by part the stretches that a masked record hides, rewrites first, with what stands there instead."""
    masks: dict[int, list[tuple[Span, str]]] = defaultdict(list)
    for decision in decisions:
        for rewrite in decision.rewrites:
            masks[rewrite.span.part].append((rewrite.span, rewrite.replacement))
    for finding in (finding for decision in decisions for finding in decision.findings if _sensitive(finding)):
        label = f"[{finding.category.upper().replace('.', '_')}]"
        for span in finding.spans:
            masks[span.part].append((span, label))
    return masks


def _masked(text: str, masks: Iterable[tuple[Span, str]]) -> str:
    """Replace the masked stretches; those that overlap become one, under the replacement of the first."""
    stretches: list[tuple[int, int, str]] = []
    for span, replacement in sorted(masks, key=lambda mask: mask[0].start):  # stable: a rewrite stays before a finding
        if stretches and span.start < stretches[-1][1]:
            start, end, first = stretches[-1]
            stretches[-1] = (start, max(end, span.end), first)
        elif span.start < span.end:
            stretches.append((span.start, span.end, replacement))
    pieces, done = [], 0
    for start, end, replacement in stretches:
        pieces += [text[done:start], replacement]
        done = end
    return "".join([*pieces, text[done:]])


def _sensitive(finding: Finding) -> bool:
    # A score of 0 is an answer to a question: it was looked for in all of the text, and not found.
    return finding.category.partition(".")[0] in SENSITIVE and finding.score != 0


def _decision(decision: Decision) -> Body:
    return {
        "stage": decision.stage,
        "action": decision.action,
        "rules": list(decision.rules),
        "logged": list(decision.logged),
        **({"unanswered": dict(decision.unanswered)} if decision.unanswered else {}),
        **({"escalated": dict(decision.escalated)} if decision.escalated else {}),
        "shadow": dict(decision.would),
        **({"excepted": {rule: list(ids) for rule, ids in decision.excepted.items()}} if decision.excepted else {}),
        **({"overlays": list(decision.overlays)} if decision.overlays else {}),
        **({"unheard": {check: list(roles) for check, roles in decision.unheard.items()}} if decision.unheard else {}),
        "findings": [
            {
                "check": finding.check,
                "category": finding.category,
                "score": float(finding.score),
                "spans": [_span(span) for span in finding.spans],
                "detail": finding.detail,
                "error": finding.error,
                **({} if finding.rewritable else {"rewritable": False}),
                **({"role": finding.role} if finding.role else {}),
                **({"excepted": list(finding.excepted)} if finding.excepted else {}),
            }
            for finding in decision.findings
        ],
        "rewrites": [
            {"span": _span(rewrite.span), "replacement": rewrite.replacement, "rule": rewrite.rule}
            for rewrite in decision.rewrites
        ],
        "errors": list(decision.errors),
        "message": decision.message,
        "revision": decision.revision,
    }


def _span(span: Span) -> Body:
    return {"part": span.part, "start": span.start, "end": span.end}


def _clean(value: Any) -> Any:
    """Return the value as canonical JSON can hold it: no lone surrogate, no infinity, enums as their values."""
    match value:
        case str():
            # JSON text may escape half a surrogate pair; UTF-8 has no bytes for it, and a record must not fail on it.
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {_clean(key): _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case _:
            return value
