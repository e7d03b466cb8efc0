"""Runs the checks of a policy over passages and has the policy decide. Knows nothing of exchanges, HTTP or storage."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import TimeoutError as Overrun
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain
from time import monotonic
from typing import Literal

from ringfence.guard.budget import Escalations
from ringfence.guard.check import (
    VOICES,
    CannotAnswer,
    Check,
    Distant,
    Finding,
    Form,
    Passage,
    Span,
    UnknownCheck,
    Versioned,
    Warm,
    can_read,
    is_replaced,
    reads_of,
    taken_by,
)
from ringfence.guard.classifier.language import language
from ringfence.guard.exceptions import Exceptions, Who
from ringfence.guard.known import refuse_unknown
from ringfence.guard.reading import Share, Threads
from ringfence.guard.seams import home, parted
from ringfence.policies.decide import by_text, decide, decide_apart, escalations, is_about
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.overlay import about, as_any_overlay_has_them, effective
from ringfence.policies.own import revision_as_written
from ringfence.policies.types import Action, Decision, Degrade, Escalate, Policy, Rule, Stage
from ringfence.policies.words import Voice, covers, root

BUILT_IN = frozenset({"unjudged", "count"})
"""Roots that no check answers for: whoever lists the parts of an exchange finds what nobody can read, and a history
what was counted."""


State = Literal["ok", "unasked", "failing", "away"]
"""How a check stands: it answered the last time; was not asked yet; failed the last time; has nobody to ask."""

SPENT = "no more texts may be asked about in this minute (escalate.per_minute)"


class Pipeline:
    """One policy with the checks that it needs.

    Args:
        policy: what to decide by.
        checks: every check there is, by name; only those behind a rule of the stage are run.
        threads: that checks run on; of its own where None.
        may_ask: whether a rule may ask another check about one text more; it counts those that it says yes to.
        answered: by name, whether a check answered the last time that it was asked; kept here.

    Raises:
        UnknownCheck: a rule looks at a category that no check answers for, or two checks answer for one.
        PolicyError: a threshold was fitted to the scores of another revision of its check; a rule escalates to a check
            that does not read what its own reads; an exception's pattern is none, or the policy's patterns take too
            much room together.
    """

    def __init__(
        self,
        policy: Policy,
        checks: Mapping[str, Check],
        threads: Threads | None = None,
        may_ask: Callable[[Rule], bool] | None = None,
        answered: MutableMapping[str, bool] | None = None,
    ) -> None:
        self.policy = policy
        owners = self._owners = _owners(policy, checks.values())
        refuse_unknown(policy, checks.values())
        if problems := [*self._unfitted(), *_blind(policy.rules, owners)]:
            raise PolicyError(problems)
        self._exceptions = Exceptions(policy, taken_by(checks.values()))
        self._speaks_several = any(isinstance(m, Mapping) for m in (policy.message, *(r.message for r in policy.rules)))
        self._orders = {stage: tuple(_orders(policy, stage, checks.values(), owners)) for stage in Stage}
        # By stage, who is asked only where a rule is not sure.
        self._second = {stage: dict(_second(policy, stage, self._orders[stage], owners)) for stage in Stage}
        self.threads = threads or Threads()
        self.may_ask = may_ask or Escalations().take
        self.answered: MutableMapping[str, bool] = {} if answered is None else answered

    @property
    def checks(self) -> list[Check]:
        """The checks behind at least one rule."""
        first = [order.check for stage in self._orders.values() for order in stage]
        second = [check for stage in self._second.values() for check in stage.values()]
        return list({check.name: check for check in (*first, *second)}.values())

    @property
    def revisions(self) -> Mapping[str, str]:
        """Which version of a check looks, by its name, where it has versions."""
        return {check.name: check.revision for check in self.checks if isinstance(check, Versioned)}

    def check_of(self, category: str) -> Check | None:
        """Return the check that answers for a category; None for what no check reads."""
        return self._owners.get(root(category))

    def revision_behind(self, category: str) -> str | None:
        """Return the revision of what finds a category, of the policy's own words, say; None where it has none."""
        own = (revision_as_written(one) for one in self.policy.checks if one.category == root(category))
        return revision_of(self.check_of(category)) or next(own, None)

    def reads(self, stage: Stage, form: Form = "text", voice: str = "") -> bool:
        """Whether any check reads texts, or images, of this stage: where no rule asks for one, none is judged.

        Args:
            voice: whose they are; empty for anybody's.
        """
        return any(form in order.reads and is_about(order.roles, voice) for order in self._orders[stage])

    def acts_on(self, stage: Stage, voice: str, without: frozenset[str] = frozenset()) -> bool:
        """Whether rules that are not in shadow have somebody's texts read, and need none of these checks for that.

        Args:
            without: names of checks that failed; those count too that are to settle what such a rule is not sure of.
        """
        live = [rule for rule in self.policy.rules if stage in rule.stages and not rule.shadow]
        looked_for = [one for rule in live for one in _looked_for(rule)]
        doubted = [(rule.escalate.to, rule.roles) for rule in live if rule.escalate]
        first, second = (
            [check for category, roles in some if is_about(roles, voice) and (check := self.check_of(category))]
            for some in (looked_for, doubted)
        )
        needed = {one.name for one in (*first, *second)}
        return any("text" in reads_of(one) for one in first) and needed.isdisjoint(without)

    def roles(self, stage: Stage, category: str) -> frozenset[Voice]:
        """Return whose text is shown at a stage to the check of a category; everybody's where that names nobody."""
        check = self.check_of(category)
        return next((order.roles for order in self._orders[stage] if order.check is check), frozenset())

    def stops_without(self, checks: Collection[str]) -> bool:
        """Whether nothing would pass one of the stages where these checks, by name, fail."""

        def failed(stage: Stage) -> Iterator[Finding]:
            ordinary = [Passage(stage, VOICES[stage], "")]
            for order in self._orders[stage]:
                if order.check.name in checks and is_about(order.roles, VOICES[stage]):
                    yield from _failed(order, "", ordinary)

        return any(self.decide(stage, (), [*failed(stage)]).action is Action.BLOCK for stage in Stage)

    def judge(
        self,
        stage: Stage,
        passages: Sequence[Passage],
        known: Sequence[Finding] = (),
        who: Who | None = None,
        apart: bool = False,
    ) -> Decision:
        """Run the stage's checks over the passages and decide; see `find` and `decide`."""
        return self.decide(stage, passages, self.find(stage, passages, known, who, apart), apart)

    def find(
        self,
        stage: Stage,
        passages: Sequence[Passage],
        known: Sequence[Finding] = (),
        who: Who | None = None,
        apart: bool = False,
    ) -> list[Finding]:
        """Run the stage's checks over the passages, then ask others about those that a rule is not sure of.

        Args:
            known: findings made elsewhere (parts that nobody can read), which come first.
            who: whose exchange it is, for exceptions that are about some.
            apart: the passages have nothing to do with each other: what a `when` says of one is nothing to the next.

        Returns:
            the findings; their spans carry the part index of their passage. Where a check raises or overruns its time,
            there is one finding with an error for each category asked of it and each role, about the passages that it
            could not read. What was asked about a passage is always among them: with score 0 where that was not found.
        """
        now = monotonic()
        readings = parted(passages)
        shown = [*passages, *(reading.passage for reading in readings)]
        running = [(order, self._start(order, shown, now + order.seconds)) for order in self._orders[stage]]
        findings = list(known)
        for order, shares in running:
            findings.extend(self._settle(order, shares, now + order.seconds, len(shown)))
        findings = home(findings, readings)
        findings = self.mark(findings, passages, who or {}, datetime.now(UTC).date())
        if not self._second[stage]:
            return findings
        each = by_text(findings, [one.part for one in passages]) if apart else [findings]
        doubted = [escalations(self.policy, stage, some) for some in each]
        return [*findings, *self._ask(stage, passages, chain.from_iterable(doubted))]

    def _unfitted(self) -> Iterator[Problem]:
        for rule in self.policy.rules:
            for name, then in rule.fitted.revisions.items() if rule.fitted else ():
                if (now := self.revision_behind(name)) != then:
                    what = f"the threshold of rule '{rule.id}' was fitted to scores of revision {_brief(then)} of the"
                    hint = "fit anew with `ringfence policy fit`"
                    yield Problem(
                        rule.origin, f"{what} check behind '{name}', and revision {_brief(now)} is in use; {hint}"
                    )

    def _ask(
        self, stage: Stage, passages: Sequence[Passage], doubts: Iterable[tuple[Rule, Escalate, Finding]]
    ) -> Iterator[Finding]:
        """Ask about each passage that rules are not sure of, once and alone, side by side; yield what that comes to."""
        asking: dict[tuple[str, int], dict[str, tuple[Rule, str]]] = {}
        for rule, escalate, finding in doubts:
            if (name := root(escalate.to)) in self._second[stage]:
                of_its_roles = [one for one in passages if is_about(rule.roles, one.voice)]
                all_it_reads = {one.part for one in of_its_roles if can_read(self._second[stage][name], one)}
                for part in sorted({span.part for span in finding.spans} or all_it_reads):
                    asking.setdefault((name, part), {})[rule.id] = (rule, escalate.to)
        of, now = {passage.part: passage for passage in passages}, monotonic()
        running: list[tuple[_Order, Passage, Sequence[Share]]] = []
        for (name, part), rules in asking.items():
            seconds = _seconds(self.policy, [rule for rule, _ in rules.values()])
            check = self._second[stage][name]
            order = _Order.of(check, (to for _, to in rules.values()), seconds)
            may = any(self.may_ask(rule) for rule, _ in rules.values())  # one of them pays
            running.append((order, of[part], self._start(order, [of[part]], now + seconds) if may else ()))
        for order, passage, shares in running:
            told = self._settle(order, shares, now + order.seconds) if shares else _failed(order, SPENT, [passage])
            yield from _about(passage, order, list(told))

    def _start(self, order: "_Order", passages: Sequence[Passage], until: float) -> Sequence[Share]:
        """Have a check read what is for it: texts and images apart, so that failing of one it has read the other."""
        shown = [replace(one, until=until) for one in passages if is_about(order.roles, one.voice)]
        groups = ([one for one in shown if one.form == form] for form in sorted(order.reads))
        return [share for group in groups for share in self.threads.start(order.check, group, asks=order.asks)]

    def _settle(self, order: "_Order", shares: Sequence[Share], deadline: float, of: int = 0) -> Iterator[Finding]:
        """Yield what a check found, and for each category why it could not answer; note whether it did."""
        failed: dict[str, list[Passage]] = {}
        for share, future in shares:
            try:
                found, unread = future.result(timeout=max(0.0, deadline - monotonic()))
            except Overrun as overrun:
                future.cancel()
                found, unread = [], [(passage, overrun) for passage in share]
            yield from found
            for passage, failure in unread:
                failed.setdefault(_told(order, failure), []).append(passage)
        if shares:
            self.answered[order.check.name] = not failed
        for error, missed in failed.items():
            yield from _failed(order, error, missed, of)

    def mark(self, findings: Sequence[Finding], passages: Sequence[Passage], who: Who, today: date) -> list[Finding]:
        """Return the findings, each with the ids of the policy's exceptions that apply to it."""
        return self._exceptions.mark(findings, passages, who, today)

    def decide(
        self, stage: Stage, passages: Sequence[Passage], findings: Sequence[Finding], apart: bool = False
    ) -> Decision:
        """Have the policy decide on what was found in the passages, and tell the caller in the user's language."""
        said = partial(decide_apart, texts=[one.part for one in passages]) if apart else decide
        decision = said(self.policy, stage, findings, self._language(stage, passages))
        unheard = dict(_unheard(self._orders[stage], passages))
        return replace(decision, unheard=unheard) if unheard else decision

    def _language(self, stage: Stage, passages: Sequence[Passage]) -> str:
        """Return the language of what the user said, where that matters; empty where it cannot be told."""
        if not (self._speaks_several and passages):
            return ""
        said = [passages[-1].prompt]
        if stage is Stage.INPUT:
            said = [passage.text for passage in passages if passage.role == "user" and passage.image is None]
        return (language(said[-1]) if said else None) or ""


class Pipelines:
    """A policy as its overlays have it for each exchange: a pipeline for each set of them that applies together.

    Args:
        policy, checks, may_ask: as of `Pipeline`, which says what it raises, of overlays too.

    Attributes:
        base: the policy without overlays.
    """

    def __init__(
        self, policy: Policy, checks: Mapping[str, Check], may_ask: Callable[[Rule], bool] | None = None
    ) -> None:
        self.base = Pipeline(policy, checks, may_ask=may_ask)
        self._shared = self.base.threads, self.base.may_ask, self.base.answered
        self._checks = checks
        self._made: dict[tuple[str, ...], Pipeline] = {(): self.base}
        # What is wrong with an overlay is said now, not at its first exchange.
        widest = replace(policy, rules=tuple(as_any_overlay_has_them(policy)))
        self._widest = Pipeline(widest, checks, *self._shared)

    def of(self, who: Who) -> Pipeline:
        """Return what judges somebody's exchanges."""
        return self._of(about(self.base.policy, who))

    def warm(self) -> None:
        """Load what the checks need, so that the first exchange does not wait for it."""
        for check in self._widest.checks:
            if isinstance(check, Warm):
                try:
                    check.warm()
                except Exception as error:
                    error.add_note(f"while the check '{check.name}' was made ready")
                    raise

    def states(self) -> Mapping[str, tuple[State, str]]:
        """Return by name how each check stands, and why where it has nobody to ask; one that answered is believed."""
        found: dict[str, tuple[State, str]] = {}
        for check in self._widest.checks:
            answered = self.base.answered.get(check.name)
            why = check.away() if not answered and isinstance(check, Distant) else None
            state: State = "away" if why else "unasked" if answered is None else "ok" if answered else "failing"
            found[check.name] = state, why or ""
        return found

    def replaced(self) -> tuple[str, ...]:
        """Return the names of the checks that run on files which others have taken the place of."""
        return tuple(check.name for check in self._widest.checks if is_replaced(check))

    def _of(self, applied: tuple[str, ...]) -> Pipeline:
        if applied not in self._made:  # two threads may both make it; they make the same
            policy = effective(self.base.policy, applied)
            self._made[applied] = Pipeline(policy, self._checks, *self._shared)
        return self._made[applied]


@dataclass(frozen=True, slots=True)
class _Order:
    """One check to run at a stage, the categories that rules ask of it, how long it may take, and what it is shown.

    Attributes:
        reads: in which form.
        roles: by whom; everybody's where none is named.
        asks: whether it asks somebody.
    """

    check: Check
    categories: tuple[str, ...]
    seconds: float
    reads: frozenset[Form]
    roles: frozenset[Voice]
    asks: bool

    @classmethod
    def of(
        cls, check: Check, categories: Iterable[str], seconds: float, roles: frozenset[Voice] = frozenset()
    ) -> "_Order":
        """Return the order for a check to look for some categories."""
        named = tuple(dict.fromkeys(categories))
        return cls(check, named, seconds, reads_of(check), roles, isinstance(check, Distant))


def _orders(policy: Policy, stage: Stage, checks: Iterable[Check], owners: Mapping[str, Check]) -> Iterator[_Order]:
    rules = [rule for rule in policy.rules if stage in rule.stages]
    asking = [(rule, category, roles) for rule in rules for category, roles in _looked_for(rule)]
    # Who looks anyway has looked at what a rule doubts; where it fails, that rule must hear of it as well.
    doubting = [(rule, rule.escalate.to, rule.roles) for rule in rules if rule.escalate]
    for check in checks:
        mine, more = ([one for one in some if owners.get(root(one[1])) is check] for some in (asking, doubting))
        if mine:
            named = [roles for _, _, roles in (*mine, *more)]
            roles = frozenset(role for some in named for role in some) if all(named) else frozenset()
            # Rules that doubt have a say only where all that look are in shadow: without those, these alone would ask.
            timed = mine if any(not rule.shadow for rule, _, _ in mine) else [*mine, *more]
            seconds = _seconds(policy, [rule for rule, _, _ in timed])
            yield _Order.of(check, (category for _, category, _ in (*mine, *more)), seconds, roles)


def _seconds(policy: Policy, rules: Sequence[Rule]) -> float:
    """Return how long a check may take for some rules; those in shadow have a say only where there are no others."""
    counting = [rule for rule in rules if not rule.shadow] or rules
    return min([policy.limits.check_seconds, *(rule.seconds for rule in counting if rule.seconds is not None)])


def _second(
    policy: Policy, stage: Stage, orders: Iterable[_Order], owners: Mapping[str, Check]
) -> Iterator[tuple[str, Check]]:
    """Yield who is asked where a rule is not sure, and does not read every text anyway, by first word of categories."""
    running = {order.check.name for order in orders}
    for rule in policy.rules:
        if rule.escalate and stage in rule.stages:
            check = owners.get(name := root(rule.escalate.to))
            if check and check.name not in running:
                yield name, check


def categories_of(rule: Rule) -> Iterator[str]:
    """Yield every category that is looked for without asking so that the rule can be decided."""
    yield from (category for category, _ in _looked_for(rule))


def _looked_for(rule: Rule) -> Iterator[tuple[str, tuple[Voice, ...]]]:
    """Yield `categories_of` a rule, each with the roles in whose text; none for everybody's."""
    yield rule.category, rule.roles
    if isinstance(rule.on_error, Degrade):
        yield rule.on_error.degrade, rule.roles
    if rule.when:
        yield from ((category, ()) for category, _ in rule.when.leaves())  # whoever says it


def _owners(policy: Policy, checks: Iterable[Check]) -> dict[str, Check]:
    written = {own.category: own.origin for own in policy.checks}
    owners: dict[str, Check] = {}
    for check in checks:
        for category in check.categories:
            if other := owners.get(category):
                what = f"the checks '{other.name}' and '{check.name}' both answer for category '{category}'"
                if origin := written.get(category):
                    what = f"{origin}: {what}, of which one is installed; choose another category here"
                else:
                    what += "; uninstall one"
                raise UnknownCheck(what)
            owners[category] = check
    return owners


def revision_of(check: Check | None) -> str | None:
    """Return the revision of what a check runs on; None for one that has none."""
    return check.revision if isinstance(check, Versioned) else None


def _blind(rules: Iterable[Rule], owners: Mapping[str, Check]) -> Iterator[Problem]:
    # Asked about an image that it is not shown, a check would be taken to have found nothing.
    for rule in rules:
        if rule.escalate:
            first, second = owners.get(root(rule.category)), owners.get(root(rule.escalate.to))
            for form in sorted(reads_of(first) - reads_of(second)) if first and second else ():
                what = f"rule '{rule.id}' escalates to '{rule.escalate.to}', whose check reads no {form}s"
                yield Problem(
                    rule.written_at("escalate"), f"{what}, as that of '{rule.category}' does; choose another for `to`"
                )


def _brief(revision: str | None) -> str:
    return revision[:16] if revision else "none"


def _told(order: _Order, failure: Exception) -> str:
    if isinstance(failure, Overrun):
        return str(failure) or f"took longer than its {order.seconds:g} s (limits.check_seconds, or a rule's seconds)"
    return str(failure) if isinstance(failure, CannotAnswer) else f"failed with {type(failure).__name__}"


def _unheard(orders: Iterable[_Order], passages: Sequence[Passage]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the checks that are not shown all that they could read, each with the roles of what is kept from them."""
    for order in orders:
        kept = {one.voice for one in passages if one.form in order.reads and not is_about(order.roles, one.voice)}
        if kept:
            yield order.check.name, tuple(sorted(kept))


def _failed(order: _Order, error: str, about: Sequence[Passage], of: int = 0) -> Iterator[Finding]:
    """Yield for each category, and whoever said something, that the check could not look.

    Args:
        of: so many passages there are; a failure about all of them, by one and the same, has no place.
    """
    places: dict[str, list[Span]] = {}
    for passage in about:
        places.setdefault(passage.voice, []).append(_whole(passage))
    for voice, spans in places.items():
        where = () if len(spans) == of else tuple(spans)
        for category in order.categories:
            yield Finding(order.check.name, category, 0.0, where, error=error, role=voice)


def _whole(passage: Passage) -> Span:
    return Span(passage.part, 0, len(passage.text))


def _about(passage: Passage, order: _Order, told: Sequence[Finding]) -> Iterator[Finding]:
    """Yield what was told of one passage, and what was not found with a score of 0."""
    yield from told
    for category in order.categories:
        if not any(covers(category, finding.category) for finding in told):
            detail = "asked, and not found"
            yield Finding(order.check.name, category, 0.0, (_whole(passage),), detail, role=passage.voice)
