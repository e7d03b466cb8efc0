"""One policy's view of recorded exchanges: what it decides, and what it would have had to know. Judges no text.

What nobody looked for is put to `decide` as a check that failed, for it knows which rules that leaves open.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ringfence.guard.check import Check, own_checks
from ringfence.guard.pipeline import Pipeline, Pipelines, categories_of
from ringfence.guard.replay.groups import Past
from ringfence.policies.decide import decide, strongest
from ringfence.policies.overlay import about, meets
from ringfence.policies.own import OwnCheck
from ringfence.policies.types import Action, Counter, Decision, Finding, Policy, Rule, Span, Stage
from ringfence.policies.words import covers, root

UNFINISHED = "it was stopped then: there is no reply on record, or not all of it"
NOBODY = "nobody"
"""In place of a check's name, where none had looked."""

Source = str | OwnCheck | Counter
"""Who finds: an installed check, by its name; an own check or a counter, by what the policy says of it."""


@dataclass(frozen=True, slots=True)
class Open:
    """A rule of which nobody can say whether it would have fired: for want of whose findings, and in words why."""

    stage: Stage
    rule: Rule
    missing: tuple[Source, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy makes of an exchange.

    Attributes:
        seen: what was recorded, as far as it was looked at.
        decisions: by what is known; none after a request that is blocked. The span of a finding in them, and of a
            rewrite, names in place of a part the finding's place among those recorded: overlaps do not matter here.
        action: the strongest of them.
        most: the strongest that it could be.
        open: the rules that could make one of them stronger; none where it is blocked anyway.
        lacking: by decision, who is to look for `most` and `action` to be the same.
        unread: roles whose text they are to look at, too.
        excepted: exceptions that may or may not have spared something; `action` has it that they did.
    """

    seen: tuple[Decision, ...]
    decisions: tuple[Decision, ...]
    action: Action
    most: Action
    open: tuple[Open, ...]
    lacking: tuple[Mapping[str, Source], ...]
    unread: frozenset[str]
    excepted: tuple[str, ...]

    @property
    def reasons(self) -> set[str]:
        """What is not known, and matters."""
        return {one.why for one in self.open} | {f"exception '{one}' goes by the text" for one in self.excepted}


class Side:
    """A policy with the checks behind it.

    Raises:
        UnknownCheck: a rule looks at a category that no check answers for.
        PolicyError: an own check cannot be made, or a threshold is not for the check in use.
    """

    def __init__(self, policy: Policy, checks: Mapping[str, Check]) -> None:
        self.policy = policy
        self.checks = {**checks, **own_checks(policy.checks)}
        self._pipelines = Pipelines(policy, self.checks)
        self._others: dict[tuple[Rule, ...], Pipeline] = {}
        self._sources: dict[tuple[tuple[str, ...], Stage], Mapping[str, Source]] = {}

    def pipeline(self, who: Mapping[str, str]) -> Pipeline:
        """Return the policy as its overlays have it for somebody, with its checks."""
        return self._pipelines.of(who)

    def with_rules(self, rules: tuple[Rule, ...]) -> Pipeline:
        """Return other rules with the checks behind this policy."""
        if rules not in self._others:
            bare = replace(self.policy, rules=rules, overlays=(), counters=(), exceptions=())
            self._others[rules] = Pipeline(bare, self.checks, self._pipelines.base.pool)
        return self._others[rules]

    def close(self) -> None:
        """Let its threads go."""
        self._pipelines.base.pool.shutdown(wait=False)

    def sources(self, who: Mapping[str, str], stage: Stage) -> Mapping[str, Source]:
        """Return who finds what the rules of a stage look at, by first word of categories; `count.ID` of counters."""
        place = (about(self.policy, who), stage)
        if place not in self._sources:
            self._sources[place] = dict(self._looking(self.pipeline(who), stage))
        return self._sources[place]

    def decide(self, past: Past, ran: Sequence[frozenset[Source]], then: Sequence[Policy | None]) -> Outcome:
        """Decide an exchange.

        Args:
            ran: by decision, who had looked.
            then: by decision, the policy that had decided, where that is known: its exceptions are marked.
        """
        policy = self.pipeline(past.who).policy
        exempt = {one.role for one in policy.exempt}
        decisions, most, left_open = [], [], []
        lacking, excepted = [], []
        for recorded, looked, decider in zip(past.decisions, ran, then, strict=True):
            sources = self.sources(past.who, recorded.stage)
            missing = {name: source for name, source in sources.items() if source not in looked}
            unread = past.exempt - exempt if recorded.stage is Stage.INPUT else frozenset()
            found, unsure = self._standing(past, recorded, missing, decider)
            gaps = list(_gaps(missing, sources, unread))
            decision, opened = _decide(policy, recorded.stage, [_spared(one, unsure) for one in found], gaps)
            without = _decide(policy, recorded.stage, found, gaps)[0] if unsure else decision
            if (without.action, without.rewrites) != (decision.action, decision.rewrites):
                excepted += sorted({one for ids in decision.excepted.values() for one in ids}.intersection(unsure))
            opened = [rule for rule in opened if rule.action.strength > decision.action.strength]
            decisions.append(decision)
            most += [decision.action, without.action, *(one.action for one in opened)]
            left_open += [_opened(recorded.stage, rule, missing, unread) for rule in opened]
            lacking.append(dict(sources) if unread else missing)
            if recorded.stage is Stage.INPUT and decision.action is Action.BLOCK:
                break
        action = strongest(one.action for one in decisions)
        if action is not Action.BLOCK and any(one.action is Action.BLOCK for one in past.decisions):
            rules = [rule for rule in policy.rules if Stage.OUTPUT in rule.stages and not rule.shadow]
            rules = [rule for rule in rules if rule.action.strength > action.strength]
            most += [rule.action for rule in rules]
            left_open += [Open(Stage.OUTPUT, _bare(rule), (), UNFINISHED) for rule in rules]
        settled = action is Action.BLOCK  # and nobody has to know what else it would have come to
        return Outcome(
            seen=past.decisions,
            decisions=tuple(decisions),
            action=action,
            most=strongest([action, *most]),
            open=() if settled else tuple(left_open),
            lacking=tuple(lacking),
            unread=past.exempt - exempt,
            excepted=() if settled else tuple(dict.fromkeys(excepted)),
        )

    def _looking(self, pipeline: Pipeline, stage: Stage) -> Iterator[tuple[str, Source]]:
        own = {one.category: one for one in self.policy.checks}
        for rule in pipeline.policy.rules:
            for category in categories_of(rule) if stage in rule.stages else ():
                if root(category) == "count":
                    counters = [one for one in self.policy.counters if covers(category, f"count.{one.id}")]
                    yield from ((f"count.{one.id}", one) for one in counters)
                elif root(category) in own:
                    yield root(category), own[root(category)]
                elif check := pipeline.check_of(category):
                    yield root(category), check.name

    def _standing(
        self, past: Past, recorded: Decision, missing: Mapping[str, Source], decider: Policy | None
    ) -> tuple[list[Finding], list[str]]:
        """Return the recorded findings that the policy would have made, and the exceptions that may apply to them."""
        exempt = {one.role for one in self.policy.exempt}
        current = [
            one
            for one in self.policy.exceptions
            if past.day <= one.until and (one.scope is None or meets(one.scope, past.who))
        ]
        marked = {one.id for one in current if decider and one in decider.exceptions}
        wide = [one.id for one in current if one.id not in marked and not (one.fingerprint or one.pattern)]
        unsure = [one.id for one in current if one.id not in marked and (one.fingerprint or one.pattern)]
        found = []
        for place, one in enumerate(recorded.findings):
            by_input = recorded.stage is Stage.INPUT and bool(one.spans)
            if _source(one) in missing or (by_input and past.roles[one.spans[0].part] in exempt):
                continue
            spans = (Span(place, 0, 1),) if one.spans else ()
            kept = tuple(name for name in one.excepted if name in marked)
            found.append(replace(one, spans=spans, excepted=(*kept, *wide) if one.error is None else ()))
        return found, unsure


def same(old: Outcome, new: Outcome) -> bool:
    """Whether what is not known makes no difference between two policies."""
    if old.excepted or new.excepted:
        return False
    before, after = ([(one.stage, one.rule, one.missing) for one in outcome.open] for outcome in (old, new))
    return before == after and (not before or old.action is new.action)


def _decide(
    policy: Policy, stage: Stage, found: Sequence[Finding], gaps: Sequence[Finding]
) -> tuple[Decision, list[Rule]]:
    """Decide as though rules that gaps leave open did not fire, and return those."""
    decision = decide(policy, stage, found)
    if not gaps:
        return decision, []
    unanswered = decide(policy, stage, [*found, *gaps]).unanswered.keys() - decision.unanswered.keys()
    opened = [rule for rule in policy.rules if rule.id in unanswered]
    if not opened:
        return decision, []
    rules = [replace(rule, on_error=Action.ALLOW) if rule.id in unanswered else rule for rule in policy.rules]
    return decide(replace(policy, rules=tuple(rules)), stage, [*found, *gaps]), opened


def _gaps(missing: Mapping[str, Source], sources: Mapping[str, Source], unread: frozenset[str]) -> Iterator[Finding]:
    for name in missing:
        yield Finding(NOBODY, name, 0.0, error="did not look")
    for role in sorted(unread):
        for name in sources:
            yield Finding(NOBODY, name, 0.0, error="did not look", role=role)


def _opened(stage: Stage, rule: Rule, missing: Mapping[str, Source], unread: frozenset[str]) -> Open:
    looked_at = {root(category) for category in categories_of(rule)}
    absent = {name: source for name, source in missing.items() if root(name) in looked_at}
    if absent:
        names = ", ".join(f"'{name}'" for name in sorted(absent))
        return Open(stage, _bare(rule), tuple(absent.values()), f"nobody looked for {names} then, in the same way")
    roles = ", ".join(sorted(unread))
    return Open(stage, _bare(rule), (), f"text of the role {roles} was exempt then")


def _bare(rule: Rule) -> Rule:
    """Return the rule without what decides nothing."""
    return replace(rule, message=None, why="", owner="", tags=(), maturity="stable")


def _spared(finding: Finding, exceptions: Sequence[str]) -> Finding:
    if not exceptions or finding.error is not None:
        return finding
    return replace(finding, excepted=(*finding.excepted, *exceptions))


def _source(finding: Finding) -> str:
    return finding.category if root(finding.category) == "count" else root(finding.category)
