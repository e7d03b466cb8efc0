"""One policy's view of recorded exchanges: what it decides of what is known. Judges no text."""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from ringfence.guard.check import Check, Versioned, own_checks
from ringfence.guard.pipeline import Pipeline, Pipelines, categories_of
from ringfence.guard.replay.groups import Looked, Past, Source
from ringfence.guard.replay.unknown import NOBODY, UNFINISHED, Known, Lacking, Open, bare, decided
from ringfence.guard.stream import hold_back
from ringfence.policies.decide import decide, decide_apart, is_about, strongest
from ringfence.policies.findable import sought
from ringfence.policies.overlay import about, as_any_overlay_has_them, effective, meets
from ringfence.policies.types import Action, Decision, Finding, Policy, Rule, RuleException, Span, Stage
from ringfence.policies.windows import NEVER, at_most, by_window, settled
from ringfence.policies.words import covers, root


@dataclass(frozen=True, slots=True)
class Single:
    """What a policy makes of what one decision was about.

    Attributes:
        decision: by what is known. The span of a finding in it, and of a rewrite, has for its start the finding's place
            among those recorded: overlaps do not matter here.
        most: the strongest action that it could be.
        up_to: the same by exceptions that may or may not apply, and by what stood together in a window of a reply; None
            where neither matters.
        open: the rules that could make it stronger.
        excepted: exceptions that may or may not have spared something; `decision` has it that they did.
        lacking: who is to look for `most` and its action to be the same.
        windows: whether the reply has to be judged again, window by window.
    """

    decision: Decision
    most: Action
    up_to: Action | None
    open: tuple[Open, ...]
    excepted: tuple[str, ...]
    lacking: Lacking
    windows: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy makes of an exchange.

    Attributes:
        seen: what was recorded, as far as it was looked at.
        each: by decision; none after a request that is blocked.
        action: the strongest of theirs.
        most: the strongest that it could be.
        open: the rules that could make one of them stronger; none where it is blocked anyway.
        excepted: exceptions that may or may not have spared something; none where it is blocked anyway.
        unread: roles whose text those who lack are to look at, too.
    """

    seen: tuple[Decision, ...]
    each: tuple[Single, ...]
    action: Action
    most: Action
    open: tuple[Open, ...]
    excepted: tuple[str, ...]
    unread: frozenset[str]

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
        self._exempt = frozenset(one.role for one in policy.exempt)
        self._sources: dict[tuple[tuple[str, ...], Stage], tuple[Mapping[str, Source], Mapping[str, Source]]] = {}

    def pipeline(self, who: Mapping[str, str]) -> Pipeline:
        """Return the policy as its overlays have it for somebody, with its checks."""
        return self._pipelines.of(who)

    def with_rules(self, rules: tuple[Rule, ...]) -> Pipeline:
        """Return other rules with the checks behind this policy."""
        if rules not in self._others:
            self._others[rules] = Pipeline(
                replace(self.policy, rules=rules, overlays=()), self.checks, self._pipelines.base.threads, _always
            )
        return self._others[rules]

    def close(self) -> None:
        """Let its threads go."""
        self._pipelines.base.threads.close()

    def looked(self, who: Mapping[str, str], stage: Stage) -> Looked:
        """Return who had looked at what this policy decided."""
        first, second = (frozenset(found.values()) for found in self._looking(who, stage))
        return Looked(first, second, self.policy.revision)

    def second(self, who: Mapping[str, str], stage: Stage) -> Mapping[str, Source]:
        """Return who is asked only where a rule of a stage is not sure, by first word of categories."""
        return self._looking(who, stage)[1]

    def decide(self, past: Past, ran: Sequence[Looked], then: Sequence[Policy | None]) -> Outcome:
        """Decide an exchange.

        Args:
            ran: by decision, who had looked.
            then: by decision, the policy that had decided, where that is known: its exceptions are marked.
        """
        each: list[Single] = []
        for recorded, length, looked, decider in zip(past.decisions, past.lengths, ran, then, strict=True):
            each.append(self._single(past, recorded, length, looked, decider))
            if recorded.stage is Stage.INPUT and each[-1].decision.action is Action.BLOCK:
                break
        action = strongest(one.decision.action for one in each)
        unfinished = [*self._unfinished(past, action)]
        settled = action is Action.BLOCK  # and nobody has to know what else it would have come to
        return Outcome(
            seen=past.decisions,
            each=tuple(each),
            action=action,
            most=strongest([action, *(one.most for one in each), *(one.rule.action for one in unfinished)]),
            open=() if settled else (*chain.from_iterable(one.open for one in each), *unfinished),
            excepted=() if settled else tuple(dict.fromkeys(chain.from_iterable(one.excepted for one in each))),
            unread=past.exempt - self._exempt,
        )

    def _single(self, past: Past, recorded: Decision, length: int, looked: Looked, decider: Policy | None) -> Single:
        policy, stage = self.pipeline(past.who).policy, recorded.stage
        known = self._known(past, recorded, looked)
        found, unsure = self._standing(past, recorded, known, decider)
        parted = not policy.stream.at_once(length) and any(map(by_window, policy.rules))
        alike = self._alike(past, recorded, decider, known.absent) if parted else frozenset()
        here, torn = _in_windows(policy, recorded, found, alike) if parted else (policy, {})
        gaps, lacking = known.gaps(here, recorded, found)
        texts = [part for part, role in enumerate(past.roles) if role not in self._exempt]
        said = partial(decide_apart, texts=texts) if past.apart and stage is Stage.INPUT else decide
        decision, opened = decided(said, here, stage, [_spared(one, unsure) for one in found], gaps)
        without, unspared = decided(said, here, stage, found, gaps) if unsure else (decision, opened)
        unanswered = {rule.id for rule in (*opened, *unspared)}
        # As they are written: what stands in for one of them in a reply of windows lacks some of it.
        left = [rule for rule in policy.rules if rule.id in unanswered and _adds(rule.action, decision.action)]
        torn = {rule: asks for rule, asks in torn.items() if _adds(asks, decision.action)}
        could, excepted = [*torn.values()], set[str]()
        if (without.action, without.rewrites) != (decision.action, decision.rewrites):
            excepted = {*chain.from_iterable(decision.excepted.values())}.intersection(unsure)
            could.append(without.action)
        by = partial(self._goes_by, past, stage)
        in_windows = [Open(stage, rule, (), _torn(rule), by(rule)) for rule in torn]
        return Single(
            decision=decision,
            most=strongest([decision.action, *could, *(one.action for one in left)]),
            up_to=strongest([decision.action, *could]) if could else None,
            open=(*in_windows, *(known.opened(stage, rule, lacking, by(rule)) for rule in left)),
            excepted=tuple(sorted(excepted)),
            lacking={**known.first, **known.second} if known.unread else lacking,
            windows=bool(torn or (parted and lacking)),
        )

    def _unfinished(self, past: Past, action: Action) -> Iterator[Open]:
        """Yield the rules about a reply that would do more than what is known, where there is none on record."""
        if past.stopped and action is not Action.BLOCK:
            for rule in self.pipeline(past.who).policy.rules:
                if Stage.OUTPUT in rule.stages and not rule.shadow and _adds(rule.action, action):
                    yield Open(Stage.OUTPUT, bare(rule), (), UNFINISHED, self._goes_by(past, Stage.OUTPUT, rule))

    def _known(self, past: Past, recorded: Decision, ran: Looked) -> Known:
        first, second = self._looking(past.who, recorded.stage)
        both = {**first, **second}
        had = ran.everywhere | ran.where_unsure
        stale = {name: source for name, source in both.items() if source in had and self._was_another(past, name)}
        looked = ran.without(frozenset(stale.values()))
        unheard = self._unheard(past, recorded.stage, recorded.unheard, both)
        # The same policy was unsure of the same: whoever it had to ask was asked.
        same_rules = looked.by == self.policy.revision
        asked = frozenset(second.values()) - {*stale.values()} if same_rules else looked.everywhere
        asked -= {second[name] for name in unheard if name in second}
        unasked = {name: source for name, source in second.items() if source not in asked}
        return Known(
            first=first,
            second=second,
            stale=stale,
            missing={name: source for name, source in first.items() if source not in looked.everywhere},
            unasked=unasked,
            strangers={name: source for name, source in unasked.items() if source not in looked.where_unsure},
            unheard=unheard,
            unseen=self._sees_otherwise(past, recorded),
            unread=past.exempt - self._exempt if recorded.stage is Stage.INPUT else frozenset(),
        )

    def _alike(
        self, past: Past, recorded: Decision, decider: Policy | None, missing: Collection[str]
    ) -> frozenset[str]:
        """Return the rules that were asked then as they would be now: what they made of each window is on record."""
        if decider is None or hold_back(decider) != hold_back(self.policy):
            return frozenset()
        then = {bare(rule) for rule in effective(decider, recorded.overlays).rules}
        unknown = {*map(root, missing)}
        return frozenset(
            rule.id
            for rule in self.pipeline(past.who).policy.rules
            if bare(rule) in then
            and _sparing(rule, decider, past) == _sparing(rule, self.policy, past)
            and unknown.isdisjoint(root(one.category) for one in sought(rule))
        )

    def _goes_by(self, past: Past, stage: Stage, rule: Rule) -> Hashable:
        """Return what decides about a rule beside what it says: who looks, at which texts, and what it is spared."""
        pipeline = self.pipeline(past.who)
        looking = frozenset(self._finders(pipeline, (one.category for one in sought(rule))))
        images = frozenset(role for role, _ in past.images if pipeline.reads(stage, "image", role))
        texts = (self._exempt.intersection(past.roles), images) if stage is Stage.INPUT else hold_back(self.policy)
        return looking, texts, _sparing(rule, self.policy, past)

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
        self, past: Past, recorded: Decision, known: Known, decider: Policy | None
    ) -> tuple[list[Finding], list[str]]:
        """Return the recorded findings that the policy would have made, and the exceptions that may apply to them."""
        current = [*_current(self.policy, past)]
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
            # A counter counts as it stood, also where another policy counts otherwise.
            if root(one.category) in known.absent or one.category in known.unseen:
                continue
            if by_input and past.roles[one.spans[0].part] in self._exempt:
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
            torn[bare(rule)] = at_most(rule, found, policy.exceptions)
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


def _current(policy: Policy, past: Past) -> Iterator[RuleException]:
    """Yield the exceptions that are about an exchange."""
    for one in policy.exceptions:
        if past.day <= one.until and (one.scope is None or meets(one.scope, past.who)):
            yield one


def _sparing(rule: Rule, policy: Policy, past: Past) -> frozenset[tuple[str | None, str | None]]:
    """Return the texts and the stretches, None for any, that a rule is not to fire on in an exchange."""
    return frozenset((one.fingerprint, one.pattern) for one in _current(policy, past) if rule.id in one.rules)


def same(old: Outcome, new: Outcome) -> bool:
    """Whether what is not known makes no difference between two policies."""
    if old.excepted or new.excepted:
        return False
    before, after = ([(one.stage, one.rule, one.missing, one.by) for one in outcome.open] for outcome in (old, new))
    return before == after and (not before or old.action is new.action)


def _always(_: Rule) -> bool:
    return True  # what a minute's budget was then is not on record


def _spared(finding: Finding, exceptions: Sequence[str]) -> Finding:
    if not exceptions or finding.error is not None:
        return finding
    return replace(finding, excepted=(*finding.excepted, *exceptions))
