"""One policy's view of recorded exchanges: what it decides, and what it would have had to know. Judges no text.

What nobody looked for is put to `decide` as a check that failed, for it knows which rules that leaves open.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ringfence.guard.check import Check, Versioned, own_checks
from ringfence.guard.pipeline import Pipeline, Pipelines, categories_of
from ringfence.guard.replay.groups import Looked, Past, Source
from ringfence.guard.stream import hold_back
from ringfence.policies.decide import about_the_same, alone, decide, decide_apart, escalations, is_about, strongest
from ringfence.policies.findable import sought
from ringfence.policies.overlay import about, as_any_overlay_has_them, effective, meets
from ringfence.policies.types import Action, Decision, Finding, Policy, Rule, RuleException, Span, Stage
from ringfence.policies.windows import NEVER, by_window, settled
from ringfence.policies.words import covers, root

UNFINISHED = "it was stopped then: there is no reply on record, or not all of it"
NOBODY = "nobody"
"""In place of a check's name, where none had looked."""


@dataclass(frozen=True, slots=True)
class Open:
    """A rule of which nobody can say whether it would have fired: for want of whose findings, and in words why.

    Attributes:
        by: what else that goes by, under the policy that has the rule.
    """

    stage: Stage
    rule: Rule
    missing: tuple[Source, ...]
    why: str
    by: Hashable = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy makes of an exchange.

    Attributes:
        seen: what was recorded, as far as it was looked at.
        decisions: by what is known; none after a request that is blocked. The span of a finding in them, and of a
            rewrite, has for its start the finding's place among those recorded: overlaps do not matter here.
        action: the strongest of them.
        most: the strongest that it could be.
        open: the rules that could make one of them stronger; none where it is blocked anyway.
        lacking: by decision, who is to look for `most` and `action` to be the same.
        unread: roles whose text they are to look at, too.
        excepted: exceptions that may or may not have spared something; `action` has it that they did.
        up_to: by decision, the strongest that it could be by such exceptions, and by what stood together in a window of
            a reply; None where neither matters.
        windows: by decision, whether its reply has to be judged again, window by window.
    """

    seen: tuple[Decision, ...]
    decisions: tuple[Decision, ...]
    action: Action
    most: Action
    open: tuple[Open, ...]
    lacking: tuple[Mapping[str, Source], ...]
    unread: frozenset[str]
    excepted: tuple[str, ...]
    up_to: tuple[Action | None, ...]
    windows: tuple[bool, ...]

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
        self._pipelines = Pipelines(policy, self.checks, may_ask=_always)
        self._others: dict[tuple[Rule, ...], Pipeline] = {}
        self._sources: dict[tuple[tuple[str, ...], Stage], tuple[Mapping[str, Source], Mapping[str, Source]]] = {}

    def pipeline(self, who: Mapping[str, str]) -> Pipeline:
        """Return the policy as its overlays have it for somebody, with its checks."""
        return self._pipelines.of(who)

    def with_rules(self, rules: tuple[Rule, ...]) -> Pipeline:
        """Return other rules with the checks behind this policy."""
        if rules not in self._others:
            self._others[rules] = Pipeline(
                replace(self.policy, rules=rules, overlays=()), self.checks, self._pipelines.base.pool, _always
            )
        return self._others[rules]

    def close(self) -> None:
        """Let its threads go."""
        self._pipelines.base.pool.shutdown(wait=False)

    def sources(self, who: Mapping[str, str], stage: Stage) -> Mapping[str, Source]:
        """Return who finds what the rules of a stage look at, by first word of categories; `count.ID` of counters."""
        return self._looking(who, stage)[0]

    def second(self, who: Mapping[str, str], stage: Stage) -> Mapping[str, Source]:
        """Return who is asked only where a rule of a stage is not sure."""
        return self._looking(who, stage)[1]

    def looked(self, who: Mapping[str, str], stage: Stage) -> Looked:
        """Return who had looked at what this policy decided."""
        first, second = (frozenset(found.values()) for found in self._looking(who, stage))
        return Looked(first, second, self.policy.revision)

    def decide(self, past: Past, ran: Sequence[Looked], then: Sequence[Policy | None]) -> Outcome:
        """Decide an exchange.

        Args:
            ran: by decision, who had looked.
            then: by decision, the policy that had decided, where that is known: its exceptions are marked.
        """
        policy = self.pipeline(past.who).policy
        exempt = {one.role for one in policy.exempt}
        decisions, most, left_open = [], [], []
        lacking, excepted, windows = [], [], []
        up_to: list[Action | None] = []
        for recorded, length, had_looked, decider in zip(past.decisions, past.lengths, ran, then, strict=True):
            sources, second = self.sources(past.who, recorded.stage), self.second(past.who, recorded.stage)
            both = {**sources, **second}
            stale = {
                name: source
                for name, source in both.items()
                if source in had_looked.everywhere | had_looked.where_unsure and self._was_another(past, name)
            }
            looked = had_looked.without(frozenset(stale.values()))
            missing = {name: source for name, source in sources.items() if source not in looked.everywhere}
            unheard = self._unheard(past, recorded.stage, recorded.unheard, both)
            unread = past.exempt - exempt if recorded.stage is Stage.INPUT else frozenset()
            asked = {*second.values()} - {*stale.values()} if looked.by == self.policy.revision else looked.everywhere
            asked = asked - {second[name] for name in unheard if name in second}
            strange = {name: one for name, one in second.items() if one not in {*asked, *looked.where_unsure}}
            found, unsure = self._standing(past, recorded, missing | strange, decider)
            parted = not policy.stream.at_once(length) and any(map(by_window, policy.rules))
            alike = self._alike(policy, recorded, decider, {**missing, **strange}) if parted else frozenset()
            here, torn = _in_windows(policy, recorded, found, alike) if parted else (policy, {})
            unasked = list(_unasked(here, recorded, found, {n for n, one in second.items() if one not in asked}))
            gaps = [*_gaps(missing, sources, unread), *_gaps_for(unheard), *unasked]
            missing |= {name: sources[name] for name in unheard if name in sources}
            unseen = self._sees_otherwise(past, recorded)
            if unseen:
                found = [one for one in found if one.category != "unjudged.media"]
                gaps += _gaps(unseen, sources, frozenset())
            waiting = {root(one.category) for one in unasked} | _seconds(here, recorded.stage, missing)
            missing |= {name: source for name, source in second.items() if name in waiting and source not in asked}
            said = decide_apart if past.apart and recorded.stage is Stage.INPUT else decide
            decision, opened = _decide(said, here, recorded.stage, [_spared(one, unsure) for one in found], gaps)
            without, unspared = _decide(said, here, recorded.stage, found, gaps) if unsure else (decision, opened)
            opened += [rule for rule in unspared if rule not in opened]
            torn = {rule: asks for rule, asks in torn.items() if _adds(asks, decision.action)}
            could = list(torn.values())
            if (without.action, without.rewrites) != (decision.action, decision.rewrites):
                excepted += sorted({one for ids in decision.excepted.values() for one in ids}.intersection(unsure))
                could.append(without.action)
            opened = [rule for rule in opened if _adds(rule.action, decision.action)]
            decisions.append(decision)
            up_to.append(strongest([decision.action, *could]) if could else None)
            windows.append(bool(torn or (parted and missing)))
            most += [decision.action, *could, *(one.action for one in opened)]
            left_open += [Open(recorded.stage, rule, (), _torn(rule), self._cut(policy, rule)) for rule in torn]
            left_open += [_opened(recorded.stage, rule, {**missing, **unseen}, unread, stale) for rule in opened]
            lacking.append(both if unread else missing)
            if recorded.stage is Stage.INPUT and decision.action is Action.BLOCK:
                break
        action = strongest(one.action for one in decisions)
        if action is not Action.BLOCK and past.stopped:
            rules = [rule for rule in policy.rules if Stage.OUTPUT in rule.stages and not rule.shadow]
            rules = [rule for rule in rules if rule.action.strength > action.strength]
            most += [rule.action for rule in rules]
            left_open += [Open(Stage.OUTPUT, bare(rule), (), UNFINISHED) for rule in rules]
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
            up_to=tuple(up_to),
            windows=tuple(windows),
        )

    def _alike(
        self, policy: Policy, recorded: Decision, decider: Policy | None, missing: Collection[str]
    ) -> frozenset[str]:
        """Return the rules that were asked then as they would be now: what they made of each window is on record."""
        if decider is None or hold_back(decider) != hold_back(self.policy):
            return frozenset()
        then = {bare(rule) for rule in effective(decider, recorded.overlays).rules}
        unknown = {*map(root, missing)}
        return frozenset(
            rule.id
            for rule in policy.rules
            if bare(rule) in then
            and _sparing(rule, decider) == _sparing(rule, policy)
            and unknown.isdisjoint(root(one.category) for one in sought(rule))
        )

    def _cut(self, policy: Policy, rule: Rule) -> Hashable:
        """Return what a rule goes by that looks at a reply window by window, beside what is found in each."""
        return hold_back(self.policy), frozenset(_sparing(rule, policy))

    def _was_another(self, past: Past, category: str) -> bool:
        """Whether another version looked for a category then than would now, other weights say, or nobody knows."""
        check = self.pipeline(past.who).check_of(category)
        return isinstance(check, Versioned) and past.revisions.get(check.name) != check.revision

    def _unheard(
        self, past: Past, stage: Stage, then: Mapping[str, Sequence[str]], names: Iterable[str]
    ) -> Mapping[str, Sequence[str]]:
        """Return by first word of categories the roles whose text a check was not shown then, and would be now."""
        pipeline = self.pipeline(past.who)
        checks = {name: check.name for name in names if (check := pipeline.check_of(name))}
        shown = {
            name: [role for role in then.get(check, ()) if is_about(pipeline.roles(stage, name), role)]
            for name, check in checks.items()
        }
        return {name: roles for name, roles in shown.items() if roles}

    def _sees_otherwise(self, past: Past, recorded: Decision) -> Mapping[str, Source]:
        """Return what is not known, where an image was read then and would not be now, or the other way round."""
        if recorded.stage is not Stage.INPUT or not past.images:
            return {}
        pipeline = self.pipeline(past.who)
        otherwise = any(pipeline.reads(Stage.INPUT, "image", role) is not read for role, read in past.images)
        return {"unjudged.media": NOBODY} if otherwise else {}

    def _looking(self, who: Mapping[str, str], stage: Stage) -> tuple[Mapping[str, Source], Mapping[str, Source]]:
        place = (about(self.policy, who), stage)
        if place not in self._sources:
            pipeline = self.pipeline(who)
            rules = [rule for rule in pipeline.policy.rules if stage in rule.stages]
            first = dict(self._finders(pipeline, (one for rule in rules for one in categories_of(rule))))
            escalated = dict(self._finders(pipeline, (rule.escalate.to for rule in rules if rule.escalate)))
            second = {name: source for name, source in escalated.items() if name not in first}
            self._sources[place] = (first, second)
        return self._sources[place]

    def _finders(self, pipeline: Pipeline, categories: Iterable[str]) -> Iterator[tuple[str, Source]]:
        own = {one.category: one for one in self.policy.checks}
        for category in categories:
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
        marked = {
            one.id
            for one in current
            if decider and one in decider.exceptions and _over(one, decider) == _over(one, self.policy)
        }
        wide = [one.id for one in current if one.id not in marked and not (one.fingerprint or one.pattern)]
        unsure = [one.id for one in current if one.id not in marked and (one.fingerprint or one.pattern)]
        found = []
        for place, one in enumerate(recorded.findings):
            by_input = recorded.stage is Stage.INPUT and bool(one.spans)
            if _source(one) in missing or (by_input and past.roles[one.spans[0].part] in exempt):
                continue
            spans = tuple(Span(part, place, place + 1) for part in dict.fromkeys(span.part for span in one.spans))
            kept = tuple(name for name in one.excepted if name in marked)
            found.append(replace(one, spans=spans, excepted=(*kept, *wide) if one.error is None else ()))
        return found, unsure


def _in_windows(
    policy: Policy, recorded: Decision, found: Sequence[Finding], alike: Collection[str]
) -> tuple[Policy, dict[Rule, Action]]:
    """Return a policy to put to all that was found in a reply, and the rules it lacks, with what each asks for at most.

    Args:
        alike: the rules of which the record says what they made of each window.
    """
    rules, torn = [], {}
    for rule in policy.rules:
        known = settled(rule, found, policy.exceptions, recorded if rule.id in alike else None)
        if known is None and not rule.shadow:
            # At most: what it doubts is so.
            most = replace(rule, when=None, escalate=None, threshold=rule.least)
            torn[bare(rule)] = alone(most, recorded.stage, found, policy.exceptions).action
        rules.append(known or replace(rule, when=NEVER))
    return replace(policy, rules=tuple(rules)), torn


def _adds(asked: Action, action: Action) -> bool:
    """Whether a rule makes another decision of one: a stronger one, or one that rewrites more."""
    return asked.strength > action.strength or asked is action is Action.REWRITE


def _torn(rule: Rule) -> str:
    return f"what was found together in one window of the reply, as rule '{rule.id}' goes by, is not on record"


def _over(exception: RuleException, policy: Policy) -> set[tuple[str, str]]:
    """Return what the rules that an exception is from look at: nothing else is marked."""
    rules = as_any_overlay_has_them(policy)
    return {(rule.id, one.category) for rule in rules if rule.id in exception.rules for one in sought(rule)}


def _sparing(rule: Rule, policy: Policy) -> set[RuleException]:
    return {one for one in policy.exceptions if rule.id in one.rules}


def same(old: Outcome, new: Outcome) -> bool:
    """Whether what is not known makes no difference between two policies."""
    if old.excepted or new.excepted:
        return False
    before, after = ([(one.stage, one.rule, one.missing, one.by) for one in outcome.open] for outcome in (old, new))
    return before == after and (not before or old.action is new.action)


def _decide(
    said: Callable[[Policy, Stage, Sequence[Finding]], Decision],
    policy: Policy,
    stage: Stage,
    found: Sequence[Finding],
    gaps: Sequence[Finding],
) -> tuple[Decision, list[Rule]]:
    """Decide as though rules that gaps leave open did not fire, and return those.

    Args:
        said: decides.
    """
    decision = said(policy, stage, found)
    if not gaps:
        return decision, []
    # A rule may be open already, and ask for something else for want of what was to stand in.
    unanswered = dict(said(policy, stage, [*found, *gaps]).unanswered.items() - decision.unanswered.items())
    opened = [rule for rule in policy.rules if rule.id in unanswered]
    if not opened:
        return decision, []
    rules = [replace(rule, on_error=Action.ALLOW) if rule.id in unanswered else rule for rule in policy.rules]
    return said(replace(policy, rules=tuple(rules)), stage, [*found, *gaps]), opened


def _gaps(missing: Mapping[str, Source], sources: Mapping[str, Source], unread: frozenset[str]) -> Iterator[Finding]:
    for name in missing:
        yield Finding(NOBODY, name, 0.0, error="did not look")
    yield from _gaps_for(dict.fromkeys(sources, sorted(unread)))


def _gaps_for(unheard: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for name, roles in unheard.items():
        for role in roles:
            yield Finding(NOBODY, name, 0.0, error="did not look", role=role)


def _unasked(
    policy: Policy, recorded: Decision, found: Sequence[Finding], unknown: Collection[str]
) -> Iterator[Finding]:
    """Yield a failure for each thing that a rule is not sure of, and that nobody was asked about."""
    for _, escalate, doubtful in escalations(policy, recorded.stage, found) if unknown else ():
        if root(escalate.to) in unknown:
            told = (one for one in found if root(one.category) == root(escalate.to))
            if not any(_within_reach(recorded, doubtful, one) for one in told):
                yield Finding(NOBODY, escalate.to, 0.0, doubtful.spans, error="did not look")


def _within_reach(recorded: Decision, doubtful: Finding, told: Finding) -> bool:
    """Whether what was told is about the text that something doubtful stands in: of a reply, about the same window."""
    if recorded.stage is Stage.INPUT or not (doubtful.spans and told.spans):
        return about_the_same(doubtful, told)
    one, other = (recorded.findings[finding.spans[0].start].spans for finding in (doubtful, told))
    return any(a.part == b.part and a.start < b.end and b.start < a.end for a in one for b in other)


def _seconds(policy: Policy, stage: Stage, missing: Collection[str]) -> set[str]:
    """Return whom rules may have to ask once those have looked who are missing."""
    rules = [rule for rule in policy.rules if stage in rule.stages and root(rule.category) in missing]
    return {root(rule.escalate.to) for rule in rules if rule.escalate}


def _always(_: Rule) -> bool:
    return True  # what a minute's budget was then is not on record


def _opened(
    stage: Stage, rule: Rule, missing: Mapping[str, Source], unread: frozenset[str], stale: Mapping[str, Source]
) -> Open:
    looked_at = {root(one.category) for one in sought(rule)}
    absent = {name: source for name, source in missing.items() if root(name) in looked_at}
    if absent:
        names = ", ".join(f"'{name}'" for name in sorted(absent))
        why = f"nobody looked for {names} then, in the same way"
        if absent.keys() <= stale.keys():
            why = f"another version of the check, with other weights or settings, looked for {names} then"
        return Open(stage, bare(rule), tuple(absent.values()), why)
    roles = ", ".join(sorted(unread))
    return Open(stage, bare(rule), (), f"text of the role {roles} was exempt then")


def bare(rule: Rule) -> Rule:
    """Return the rule without what decides nothing."""
    return replace(rule, message=None, why="", owner="", tags=(), maturity="stable")


def _spared(finding: Finding, exceptions: Sequence[str]) -> Finding:
    if not exceptions or finding.error is not None:
        return finding
    return replace(finding, excepted=(*finding.excepted, *exceptions))


def _source(finding: Finding) -> str:
    return finding.category if root(finding.category) == "count" else root(finding.category)
