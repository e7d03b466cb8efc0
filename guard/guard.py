"""One policy in force: judges both ends of an exchange and remembers it. Knows nothing of HTTP.

The path of an exchange is `judge_request`, then whatever answers, its text fed through a `ReplyGuard`, then `record`.
The proxy and the decorator both walk it; so does anything else that wants to.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Protocol

from ringfence.guard.actions import rewrite_body
from ringfence.guard.audit.record import Body, Receipt, record_of
from ringfence.guard.audit.store import StoreError
from ringfence.guard.check import VOICES, Check, Finding, Form, Passage, Span, load_checks, own_checks, said
from ringfence.guard.exchange import SPEAKERS, Coverage, Exchange, Judged, Kind, Part, Path, Subject, unread, whose
from ringfence.guard.history import History
from ringfence.guard.images import why_unreadable
from ringfence.guard.pipeline import Pipeline, Pipelines, State
from ringfence.guard.placeholders import Originals, Restorer, about_others, numbered, originals, restored
from ringfence.guard.seams import seams
from ringfence.guard.stream import StreamGuard, hold_back
from ringfence.policies.decide import errors_of, sorted_by_part
from ringfence.policies.load import load_policy
from ringfence.policies.types import Action, Decision, Exemption, Policy, Stage

log = logging.getLogger(__name__)

UNJUDGED = {Kind.MEDIA: "unjudged.media", Kind.UNKNOWN: "unjudged.field"}
NOBODY = Subject()

MOST_IMAGES = 10
"""Looked into in one request; what a check makes of more would be long in coming."""


class Memory(Protocol):
    """Where records go."""

    def append(self, body: Body) -> Receipt:
        """Keep one record, or raise `StoreError`."""
        ...


class TooLong(ValueError):
    """The text of a request is longer than `limits.text`."""


class Blocked(Exception):
    """The policy stopped an exchange.

    Attributes:
        decision: why; `decision.message` is what the policy tells the caller.
        exchange: the id under which the audit log keeps it.
    """

    def __init__(self, decision: Decision, exchange: str) -> None:
        super().__init__(decision.message)
        self.decision = decision
        self.exchange = exchange


class Guard:
    """A policy put to use.

    Args:
        policy: a policy, the path of one, or None for the one that ships.
        checks: by name; None for every installed one.
        store: where the record of each exchange goes; None keeps none.
        history: what was counted so far, where another guard did so before.

    Raises:
        PolicyError: the policy file is wrong.
        UnknownCheck: a rule looks at a category that no check answers for.
    """

    def __init__(
        self,
        policy: Policy | FilePath | str | None = None,
        *,
        checks: Mapping[str, Check] | None = None,
        store: Memory | None = None,
        history: History | None = None,
    ) -> None:
        self.policy = policy if isinstance(policy, Policy) else load_policy(FilePath(policy) if policy else None)
        installed = load_checks() if checks is None else checks
        self._pipelines = Pipelines(self.policy, {**installed, **own_checks(self.policy.checks)})
        self.pipeline = self._pipelines.base
        self.stream = hold_back(self.policy)
        self.history = history or History()
        self.store = store

    def warm(self) -> None:
        """Load what the checks need, so that the first exchange does not wait for it."""
        self._pipelines.warm()

    def states(self) -> Mapping[str, tuple[State, str]]:
        """Return by name how each check stands, and why where it has nobody to ask."""
        return self._pipelines.states()

    def replaced(self) -> tuple[str, ...]:
        """Return the names of the checks that run on files which others have taken the place of; see `Replaceable`."""
        return self._pipelines.replaced()

    def pipeline_of(self, exchange: Exchange) -> Pipeline:
        """Return what judges an exchange: the policy with the overlays that are about it."""
        return self._pipelines.of(exchange.who)

    def check(
        self,
        text: str,
        stage: Stage = Stage.INPUT,
        prompt: str = "",
        *,
        role: str = "",
        system: str = "",
        subject: Subject = NOBODY,
        model: str = "",
        route: str = "cli",
    ) -> Decision:
        """Judge one text by itself; no record is kept.

        Args:
            prompt: on the output stage, what the text answers.
            role: whose text it is, or `tool_call`; left out, the user's on the input stage, else the assistant's.
            system: on the output stage, what the operator told the model.
            subject, model, route: whose it is, whom it goes to and how it came, for overlays and exceptions that are
                about some.

        Raises:
            TypeError: the text is none.
        """
        if not isinstance(text, str):
            raise TypeError(f"'text' must be a string, got {type(text).__name__}")
        who = whose(subject, model, route)
        passage = said(stage, role or VOICES[stage], text, prompt, system)
        return self._pipelines.of(who).judge(stage, [passage], who=who)

    def judge_request(self, exchange: Exchange) -> Decision:
        """Judge every part of the request; write coverage and decision into the exchange and rewrites into its body.

        Raises:
            TooLong: nothing was judged, and the coverage says so.
        """
        parts = exchange.request
        exempt: dict[str, Exemption] = {e.role: e for e in self.policy.exempt}
        # Until judging ends, however it does, nothing counts as judged.
        exchange.coverage = [Coverage(part.where, Judged.UNJUDGED, "judging did not end") for part in parts]
        length = sum(len(part.text) for part in parts)
        if length > self.policy.limits.text:
            raise TooLong(
                f"the request holds {length:,} characters of text; this service takes {self.policy.limits.text:,}"
            )
        pipeline = self.pipeline_of(exchange)
        missed = _unread(parts, pipeline)
        judged = [(i, p) for i, p in enumerate(parts) if i not in missed and p.role not in exempt]
        # Without a span: nothing in it can be rewritten, so a rule that asks for that blocks.
        nobodys = [Finding("guard", UNJUDGED[parts[i].kind], 1.0, detail=parts[i].where) for i in missed]
        answered = list(exchange.answered())
        decision = pipeline.judge(
            Stage.INPUT,
            [_passage(exchange, i, answered[i]) for i, _ in judged],
            known=[*nobodys, *self.history.findings(self.policy.counters, exchange.subject)],
            who=exchange.who,
            apart=exchange.apart,
        )
        decision = numbered(decision, exchange, dict(judged), pipeline.policy.rules)
        exchange.decisions.append(decision)
        exchange.revisions |= pipeline.revisions
        everywhere, failed = sorted_by_part([one for one in decision.findings if one.error is not None])
        exchange.coverage = [
            _coverage_of(
                part,
                missed.get(index),
                exempt.get(part.role),
                replace(decision, errors=errors_of([*everywhere, *failed[index]])),
                pipeline,
            )
            for index, part in enumerate(parts)
        ]
        if decision.action is Action.REWRITE and exchange.body:
            exchange.body = rewrite_body(exchange.body, parts, decision)
        return decision

    def open_reply(self, exchange: Exchange) -> "ReplyGuard":
        """Return the guard for the reply to this exchange."""
        return ReplyGuard(self, exchange)

    def record(self, exchange: Exchange) -> Receipt | None:
        """Count what its rules did, and remember the exchange; None where nothing is remembered.

        Raises:
            StoreError: the record could not be written, and the policy requires that it is.
        """
        fired = {rule for d in exchange.decisions for rule in (*d.rules, *d.logged, *d.shadow)}
        self.history.note(self.policy.counters, exchange.subject, fired)
        exchange.revisions["policy"] = self.policy.revision  # also where nothing came to be decided
        if self.store is None:
            return None
        try:
            receipt = self.store.append(record_of(exchange, text=self.policy.audit.text))
        except StoreError as error:
            log.error("exchange %s cannot be put on record: %s", exchange.id, error)
            if self.policy.audit.required:
                raise
            return None
        exchange.receipt = str(receipt)
        return receipt


class ReplyGuard:
    """Guards every text of one reply, each in its own hold-back window; the first block stops them all.

    Attributes:
        stopped: the decision that ended the reply; None while it may go on.
    """

    def __init__(self, guard: Guard, exchange: Exchange) -> None:
        self._guard = guard
        self._exchange = exchange
        self._pipeline = guard.pipeline_of(exchange)
        self._asked = Passage(
            Stage.OUTPUT,
            "assistant",
            "",
            exchange.prompt,
            exchange.system,
            earlier=exchange.before(len(exchange.request)),
        )
        self._who = exchange.who
        self._streams: dict[Path, tuple[Kind, StreamGuard]] = {}
        self._restorers: dict[Path, Restorer] = {}
        self._wholes: list[tuple[Part, Decision]] = []
        self.stopped: Decision | None = None

    def feed(self, path: Path, text: str, kind: Kind = Kind.TEXT) -> None:
        """Take more of the text at `path` of the reply."""
        if path not in self._streams:
            self._streams[path] = (kind, StreamGuard(self._guard.stream))
            self._restorers[path] = Restorer(self._originals)
        self._streams[path][1].feed(text)

    def due(self, path: Path) -> bool:
        """Whether there is something to judge at `path`; cheap."""
        return self.stopped is None and self._streams[path][1].window() is not None

    def release(self, path: Path, *, last: bool = False) -> str:
        """Judge what is due at `path` and return the text that may leave; nothing once the reply is stopped.

        Args:
            last: no more text will come at this path.
        """
        if last:
            self.close(path)
        released = []
        while self.due(path):
            released.append(self.release_next(path))
        return "".join(released)

    def close(self, path: Path) -> None:
        """Say that no more text will come at `path`: what is left of it becomes due."""
        self._streams[path][1].close()

    def release_next(self, path: Path) -> str:
        """Judge one window, where one is due, and return what may leave of it."""
        stream = self._streams[path][1]
        window = stream.window()
        if window is None:
            return ""
        passage = replace(self._asked, text=window.text, before=window.start)
        released = stream.settle(window, self._judge(passage))
        self.stopped = stream.stopped
        return "" if self.stopped else self._restorers[path].feed(released, last=window.last)

    def release_whole(self, part: Part, body: Any) -> Any:
        """Judge a part that is complete and return the body that it stands in, rewritten where that is asked for.

        Args:
            body: what the paths of the part's pieces lead into. It may leave only while `stopped` is None.
        """
        passage = replace(self._asked, text=part.text, rewritable=_rewritable(part), role=part.role, voice=part.voice)
        decision = self._judge(passage)
        self._wholes.append((part, decision))
        if decision.action is Action.BLOCK:
            self.stopped = decision
        body = rewrite_body(body, [part], decision) if decision.action is Action.REWRITE else body
        return restored(body, self._originals) if self._originals else body

    @cached_property
    def _originals(self) -> Originals:
        # Not before the request was judged: a reply is opened earlier than that.
        return originals(self._exchange, self._pipeline.policy.rules)

    def _judge(self, passage: Passage) -> Decision:
        """Judge what the model wrote: its placeholders as they are, what they stand for being the caller's own."""
        findings = self._pipeline.find(Stage.OUTPUT, [passage], who=self._who)
        return self._pipeline.decide(
            Stage.OUTPUT, [passage], about_others(tuple(findings), passage.text, self._originals)
        )

    def finish(self) -> None:
        """Write parts, coverage and decisions of the reply into the exchange; once, when nothing more will come."""
        for path, (kind, stream) in self._streams.items():
            part = Part(kind, "assistant", path, stream.text[: stream.judged] or stream.text)
            if not part.text:
                continue
            if stream.decision is None:
                why = "it came, but was neither judged nor released"
                self._remember(part, None, Coverage(part.where, Judged.UNJUDGED, why))
                continue
            coverage = _coverage(part, stream.decision, self._pipeline)
            if more := len(stream.text) - stream.judged:
                coverage = replace(coverage, why=f"{more} more characters came, neither judged nor released")
            self._remember(part, stream.decision, coverage)
        for part, decision in self._wholes:
            self._remember(part, decision, _coverage(part, decision, self._pipeline))
        if any(one.stage is Stage.OUTPUT for one in self._exchange.decisions):
            self._exchange.revisions |= self._pipeline.revisions

    def _remember(self, part: Part, decision: Decision | None, coverage: Coverage) -> None:
        if decision is not None:
            self._exchange.decisions.append(_at_part(decision, len(self._exchange.reply)))
        self._exchange.reply.append(part)
        self._exchange.coverage.append(coverage)


def _unread(parts: Sequence[Part], pipeline: Pipeline) -> Mapping[int, str]:
    """Return by index why no check reads a part, of those that are no text and that none does."""
    found: dict[int, str] = {}
    shown = 0
    for index, part in enumerate(parts):
        if part.kind.is_text:
            continue
        why = part.why
        if part.image is not None and pipeline.reads(Stage.INPUT, "image", part.voice):
            shown += 1
            too_many = f"of one request, {MOST_IMAGES} images are looked into"
            why = why_unreadable(part.image) if shown <= MOST_IMAGES else too_many
            if not why:
                continue
        found[index] = unread(part.kind, why)
    return found


def _passage(exchange: Exchange, index: int, prompt: str) -> Passage:
    part = exchange.request[index]
    if part.image is not None:
        return _shown(exchange, index, part)
    return Passage(
        Stage.INPUT,
        part.role,
        part.text,
        prompt=prompt,
        part=index,
        rewritable=_rewritable(part),
        voice=part.voice,
        earlier=exchange.before(index) if part.role in SPEAKERS else (),
        seams=seams(part),
    )


def _shown(exchange: Exchange, index: int, part: Part) -> Passage:
    """Return an image with the text of the same message, and what was said before that."""
    beside = next((i for i, p in enumerate(exchange.request) if p.kind is Kind.TEXT and p.path == part.path[:-1]), None)
    return Passage(
        Stage.INPUT,
        part.role,
        "",
        prompt="" if beside is None else exchange.request[beside].text,
        part=index,
        rewritable=(),
        voice=part.voice,
        earlier=exchange.before(index if beside is None else beside) if part.role in SPEAKERS else (),
        image=part.image,
    )


def _rewritable(part: Part) -> tuple[tuple[int, int], ...] | None:
    return tuple((piece.start, piece.end) for piece in part.pieces if piece.path is not None) if part.pieces else None


def _coverage_of(
    part: Part, missed: str | None, exemption: Exemption | None, decision: Decision, pipeline: Pipeline
) -> Coverage:
    if missed is not None:
        return Coverage(part.where, Judged.UNJUDGED, missed)
    if exemption:
        return Coverage(part.where, Judged.EXEMPT, f"{exemption.origin}: {exemption.why}")
    return _coverage(part, decision, pipeline)


def _coverage(part: Part, decision: Decision, pipeline: Pipeline) -> Coverage:
    """Say of one text, or image, that a decision is about whether it was judged."""
    if decision.errors:
        return Coverage(part.where, Judged.UNJUDGED, "; ".join(decision.errors))
    form: Form = "text" if part.image is None else "image"
    if pipeline.reads(decision.stage, form, part.voice):
        return Coverage(part.where, Judged.JUDGED)
    whose = f" of the role {part.voice}" if pipeline.reads(decision.stage, form) else ""
    return Coverage(part.where, Judged.UNJUDGED, f"no rule of the policy has a check read the {decision.stage}{whose}")


def _at_part(decision: Decision, part: int) -> Decision:
    def move(span: Span) -> Span:
        return replace(span, part=part)

    return replace(
        decision,
        findings=tuple(replace(f, spans=tuple(map(move, f.spans))) for f in decision.findings),
        rewrites=tuple(replace(r, span=move(r.span)) for r in decision.rewrites),
    )
