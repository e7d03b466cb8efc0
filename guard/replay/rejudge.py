"""Judges the kept text of a record by those who did not look at it then. Knows how records keep text; decides nothing.

Of text that is kept `masked`, what nothing was hidden in is as it came.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ringfence.guard.audit.record import SENSITIVE, Body
from ringfence.guard.check import Finding, Passage, Span, reads_of
from ringfence.guard.exchange import SPEAKERS, Exchange, Kind, Part
from ringfence.guard.pipeline import Pipeline
from ringfence.guard.replay.groups import Past
from ringfence.guard.replay.sides import Outcome, Side
from ringfence.guard.replay.unknown import bare
from ringfence.guard.stream import StreamGuard, hold_back
from ringfence.policies.types import Action, Counter, Decision, Policy, Rule, Stage
from ringfence.policies.windows import by_window
from ringfence.policies.words import root


class CannotJudge(Exception):
    """A text is not there as it came; the message says why not."""


def rejudge(side: Side, past: Past, outcome: Outcome, body: Body) -> Past:
    """Return an exchange with the findings that a policy lacks, and all marked by its exceptions.

    What a rewritable stretch is, a record does not say: all of a text counts as one.

    Args:
        outcome: what the policy makes of it so far.
        body: its record.

    Raises:
        CannotJudge: a text that would have to be read is not kept, or not as it came.
    """
    decisions: list[Decision] = []
    output = 0
    revisions = dict(past.revisions)
    # There is nothing of what came after a blocked request.
    for recorded, length, single in zip(past.decisions, past.lengths, outcome.each, strict=False):
        names = frozenset(name for name, source in single.lacking.items() if not isinstance(source, Counter))
        windows = single.windows
        passages: Sequence[Passage] = ()
        if names or windows or outcome.excepted:
            by_input = recorded.stage is Stage.INPUT
            passages = list(_of_request(body, side.policy)) if by_input else [_of_reply(body, output)]
        found = [one for one in recorded.findings if root(one.category) not in names]
        unheard = recorded.unheard
        if names:
            looking = _looking_for(side, names, past, recorded.stage)
            if recorded.stage is Stage.INPUT and any("image" in reads_of(check) for check in looking.checks):
                _refuse_images(body, side.policy)
            found += [one for one in _look(looking, passages, past, length) if root(one.category) in names]
            revisions |= looking.revisions
            heard = {check.name for check in map(looking.check_of, names) if check}
            unheard = {check: roles for check, roles in unheard.items() if check not in heard}
        if names or windows or outcome.excepted:
            pipeline = side.pipeline(past.who)
            found = pipeline.mark(found, passages, past.who, past.day)
            if windows and (judged := _in_windows(_going_by_windows(side, past), passages[0], past)):
                recorded, second = judged, side.second(past.who, recorded.stage).keys() - names
                found += [one for one in _at(passages[0], judged.findings) if root(one.category) in second]
            recorded = replace(recorded, revision=pipeline.policy.revision, overlays=pipeline.policy.applied)
        decisions.append(replace(recorded, findings=tuple(found), unheard=unheard))
        output += recorded.stage is Stage.OUTPUT
    rest = past.decisions[len(decisions) :]
    return replace(past, decisions=(*decisions, *rest), exempt=past.exempt - outcome.unread, revisions=revisions)


def _looking_for(side: Side, names: frozenset[str], past: Past, stage: Stage) -> Pipeline:
    """Return the checks that look for some categories, where the policy has them look; nothing found changes a text.

    Who is asked only where a rule is not sure is asked there, as that rule would have, whatever its condition.
    """
    second = names.intersection(side.second(past.who, stage))
    pipeline = side.pipeline(past.who)
    shown = {name: tuple(sorted(pipeline.roles(stage, name))) for name in names - second}
    looking = [
        Rule(f"look-{name}", name, Action.LOG, roles=roles, on_error=Action.LOG, shadow=True)
        for name, roles in shown.items()
    ]
    asking = [
        replace(bare(rule), when=None, on_error=Action.LOG, shadow=True)
        for rule in pipeline.policy.rules
        if stage in rule.stages and rule.escalate and root(rule.escalate.to) in second
    ]
    return side.with_rules(tuple(sorted((*looking, *asking), key=lambda rule: rule.id)))


def _going_by_windows(side: Side, past: Past) -> Pipeline:
    """Return the rules that go by windows, and those that rewrite, which moves where windows begin."""
    rules = (rule for rule in side.pipeline(past.who).policy.rules if Stage.OUTPUT in rule.stages and not rule.shadow)
    return side.with_rules(tuple(bare(rule) for rule in rules if by_window(rule) or rule.action is Action.REWRITE))


def _look(pipeline: Pipeline, passages: Sequence[Passage], past: Past, length: int) -> Iterator[Finding]:
    if not length:
        yield from pipeline.judge(passages[0].stage, passages).findings if passages else ()
        return
    for whole in passages:
        decision = _in_windows(pipeline, whole, past)
        yield from _at(whole, decision.findings if decision else ())


def _at(whole: Passage, found: Sequence[Finding]) -> Iterator[Finding]:
    for one in found:
        yield replace(one, spans=tuple(Span(whole.part, span.start, span.end) for span in one.spans))


def _in_windows(pipeline: Pipeline, whole: Passage, past: Past) -> Decision | None:
    """Judge a reply as it was when it passed: window by window, on the day on which it came."""
    stream = StreamGuard(hold_back(pipeline.policy))
    stream.feed(whole.text)
    stream.close()
    while window := stream.window():
        passage = replace(whole, text=window.text, part=0, before=window.start)
        found = pipeline.find(Stage.OUTPUT, [passage], who=past.who)
        found = pipeline.mark(found, [passage], past.who, past.day)
        stream.settle(window, pipeline.decide(Stage.OUTPUT, [passage], found))
    return stream.decision


def _of_request(body: Body, policy: Policy) -> Iterator[Passage]:
    exempt = {one.role for one in policy.exempt}
    exchange = _exchange(body)
    for index, (part, prompt) in enumerate(zip(exchange.request, exchange.answered(), strict=True)):
        if part.kind.is_text and part.role not in exempt:
            text = _as_it_came(body, Stage.INPUT, index)
            earlier = exchange.before(index) if part.role in SPEAKERS else ()
            yield Passage(Stage.INPUT, part.role, text, prompt, part=index, voice=part.voice, earlier=earlier)


def _refuse_images(body: Body, policy: Policy) -> None:
    exempt = {one.role for one in policy.exempt}
    if any("media_type" in part and part["role"] not in exempt for part in body["request"]):
        raise CannotJudge("its image is not kept")


def _of_reply(body: Body, output: int) -> Passage:
    if len(body["reply"]) != sum(one["stage"] == Stage.OUTPUT for one in body["decisions"]):
        raise CannotJudge("which of its replies were judged is not on record")
    part = _part(body, Stage.OUTPUT, output)
    exchange = _exchange(body)
    for index, one in enumerate(exchange.request):
        if one.kind is Kind.TEXT and one.role in (*SPEAKERS, "system", "developer"):
            _as_it_came(body, Stage.INPUT, index)
    text = _as_it_came(body, Stage.OUTPUT, output)
    return Passage(
        Stage.OUTPUT,
        "assistant",
        text,
        exchange.prompt,
        exchange.system,
        output,
        voice=part.voice,
        earlier=exchange.before(len(exchange.request)),
    )


def _exchange(body: Body) -> Exchange:
    parts = [_part(body, Stage.INPUT, index) for index in range(len(body["request"]))]
    return Exchange(body["dialect"], body["model"], parts, apart=body.get("apart", False))


def _part(body: Body, stage: Stage, index: int) -> Part:
    one = body["request" if stage is Stage.INPUT else "reply"][index]
    return Part(Kind(one["kind"]), one["role"], (one["where"],), one.get("text", ""))


def _as_it_came(body: Body, stage: Stage, index: int) -> str:
    part = body["request" if stage is Stage.INPUT else "reply"][index]
    if "text" not in part:
        raise CannotJudge("its text is not kept")
    if body["text"] != "full" and index in set(_hidden_in(body, stage)):
        raise CannotJudge("its text is kept masked")
    return str(part["text"])


def _hidden_in(body: Body, stage: Stage) -> Iterator[int]:
    """Yield the parts that something was masked in."""
    for decision in body["decisions"]:
        if decision["stage"] == stage:
            yield from (one["span"]["part"] for one in decision["rewrites"])
            for one in decision["findings"]:
                if root(one["category"]) in SENSITIVE and one["score"] != 0:
                    yield from (span["part"] for span in one["spans"])
