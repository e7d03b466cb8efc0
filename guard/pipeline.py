"""Runs the checks of a policy over passages and has the policy decide. Knows nothing of exchanges, HTTP or storage."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overrun
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from time import monotonic
from typing import Literal

from ringfence.guard.budget import Escalations
from ringfence.guard.check import (
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
    refuse_nan,
    taken_by,
)
from ringfence.guard.classifier.language import language
from ringfence.guard.exceptions import Exceptions, Who
from ringfence.guard.known import refuse_unknown
from ringfence.policies.decide import decide, escalations
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.overlay import about, as_any_overlay_has_them, effective
from ringfence.policies.types import Action, Decision, Degrade, Policy, Rule, Stage
from ringfence.policies.words import covers, root

log = logging.getLogger(__name__)

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
        pool: the threads that checks run on; of its own where None.
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
        pool: ThreadPoolExecutor | None = None,
        may_ask: Callable[[Rule], bool] | None = None,
        answered: MutableMapping[str, bool] | None = None,
    ) -> None:
        self.policy = policy
        owners = self._owners = _owners(policy, checks.values())
        refuse_unknown(policy, checks.values())
        if problems := [*_unfitted(policy.rules, owners), *_blind(policy.rules, owners)]:
            raise PolicyError(problems)
        self._exceptions = Exceptions(policy, taken_by(checks.values()))
        self._speaks_several = any(isinstance(m, Mapping) for m in (policy.message, *(r.message for r in policy.rules)))
        self._orders = {stage: tuple(_orders(policy, stage, checks.values(), owners)) for stage in Stage}
        # By stage, who is asked only where a rule is not sure.
        self._second = {stage: dict(_second(policy, stage, self._orders[stage], owners)) for stage in Stage}
        self.pool = pool or new_pool()
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

    def reads(self, stage: Stage, form: Form = "text") -> bool:
        """Whether any check reads texts, or images, of this stage: where no rule asks for one, none is judged."""
        return any(form in order.reads for order in self._orders[stage])

    def stops_without(self, checks: Collection[str]) -> bool:
        """Whether nothing would pass one of the stages where these checks, by name, fail."""
        without = {
            stage: [order for order in orders if order.check.name in checks] for stage, orders in self._orders.items()
        }
        return any(
            self.decide(stage, (), [finding for order in orders for finding in _failed(order, "")]).action
            is Action.BLOCK
            for stage, orders in without.items()
        )

    def judge(
        self, stage: Stage, passages: Sequence[Passage], known: Sequence[Finding] = (), who: Who | None = None
    ) -> Decision:
        """Run the stage's checks over the passages and decide; see `find` and `decide`."""
        return self.decide(stage, passages, self.find(stage, passages, known, who))

    def find(
        self, stage: Stage, passages: Sequence[Passage], known: Sequence[Finding] = (), who: Who | None = None
    ) -> list[Finding]:
        """Run the stage's checks over the passages, then ask others about those that a rule is not sure of.

        Args:
            known: findings made elsewhere (parts that nobody can read), which come first.
            who: whose exchange it is, for exceptions that are about some.

        Returns:
            the findings; their spans carry the part index of their passage. A check that raises or overruns its time
            becomes one finding with an error for each category asked of it. What was asked about a passage is always
            among them: with score 0 where that was not found.
        """
        now = monotonic()
        running = [
            (order, group, self.pool.submit(_read, order.check, [replace(p, until=now + order.seconds) for p in group]))
            for order in self._orders[stage]
            for group in _groups(order, passages)
        ]
        findings = list(known)
        for order, group, future in running:
            # A failure is about what the check was given; where that was all there is, it has no place.
            about = group if len(group) < len(passages) else ()
            findings.extend(self._settle(order, future, now + order.seconds, about))
        findings = self.mark(findings, passages, who or {}, datetime.now(UTC).date())
        return [*findings, *self._ask(stage, passages, findings)] if self._second[stage] else findings

    def _ask(self, stage: Stage, passages: Sequence[Passage], found: Sequence[Finding]) -> Iterator[Finding]:
        """Ask about each passage that rules are not sure of, once and alone, side by side; yield what that comes to."""
        asking: dict[tuple[str, int], dict[str, tuple[Rule, str]]] = {}
        for rule, escalate, finding in escalations(self.policy, stage, found):
            if (name := root(escalate.to)) in self._second[stage]:
                all_it_reads = {one.part for one in passages if can_read(self._second[stage][name], one)}
                for part in sorted({span.part for span in finding.spans} or all_it_reads):
                    asking.setdefault((name, part), {})[rule.id] = (rule, escalate.to)
        of, now = {passage.part: passage for passage in passages}, monotonic()
        running: list[tuple[_Order, Passage, Future[list[Finding]] | None]] = []
        for (name, part), rules in asking.items():
            budgets = [rule.seconds for rule, _ in rules.values() if rule.seconds is not None]
            seconds = min([*budgets, self.policy.limits.check_seconds])
            check = self._second[stage][name]
            order = _Order(check, tuple(dict.fromkeys(to for _, to in rules.values())), seconds, reads_of(check))
            passage = replace(of[part], until=now + seconds)
            may = any(self.may_ask(rule) for rule, _ in rules.values())  # one of them pays
            running.append((order, passage, self.pool.submit(_read, order.check, [passage]) if may else None))
        for order, passage, future in running:
            told = self._settle(order, future, now + order.seconds) if future else _failed(order, SPENT)
            yield from _about(passage, order, list(told))

    def _settle(
        self, order: "_Order", future: Future[list[Finding]], deadline: float, about: Sequence[Passage] = ()
    ) -> Iterator[Finding]:
        """Yield what a check found, or for each category why it could not answer; note whether it did."""
        name = order.check.name
        try:
            found = future.result(timeout=max(0.0, deadline - monotonic()))
            self.answered[name] = True
            yield from found
            return
        except Overrun as overrun:
            future.cancel()
            error = (
                str(overrun) or f"took longer than its {order.seconds:g} s (limits.check_seconds, or a rule's seconds)"
            )
        except CannotAnswer as failure:
            error = str(failure)
        except Exception as failure:
            # Its words may quote the text; the record must not, and the server's log is the operator's own.
            log.exception("check '%s' failed", name)
            error = f"failed with {type(failure).__name__}"
        self.answered[name] = False
        yield from _failed(order, error, about)

    def mark(self, findings: Sequence[Finding], passages: Sequence[Passage], who: Who, today: date) -> list[Finding]:
        """Return the findings, each with the ids of the policy's exceptions that apply to it."""
        return self._exceptions.mark(findings, passages, who, today)

    def decide(self, stage: Stage, passages: Sequence[Passage], findings: Sequence[Finding]) -> Decision:
        """Have the policy decide on what was found in the passages, and tell the caller in the user's language."""
        return decide(self.policy, stage, findings, self._language(stage, passages))

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
        self._shared = self.base.pool, self.base.may_ask, self.base.answered
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
    """One check to run at a stage, the categories that rules ask of it, how long it may take, and what it reads."""

    check: Check
    categories: tuple[str, ...]
    seconds: float
    reads: frozenset[Form]


def new_pool() -> ThreadPoolExecutor:
    """Return threads to run checks on.

    A check that hangs keeps its thread; the pool is wide so that it takes many to stop the others, and when they are
    all gone every check overruns, which fails closed.
    """
    return ThreadPoolExecutor(max_workers=32, thread_name_prefix="check")


def _orders(policy: Policy, stage: Stage, checks: Iterable[Check], owners: Mapping[str, Check]) -> Iterator[_Order]:
    asking = [(rule, category) for rule in policy.rules if stage in rule.stages for category in categories_of(rule)]
    for check in checks:
        mine = [(rule, category) for rule, category in asking if owners.get(root(category)) is check]
        if mine:
            budgets = [rule.seconds for rule, _ in mine if rule.seconds is not None]
            # Where it fails, rules that would have asked it about what they doubt must hear of that as well.
            doubts = [rule.escalate.to for rule in policy.rules if rule.escalate and stage in rule.stages]
            asked = [*(category for _, category in mine), *(to for to in doubts if owners.get(root(to)) is check)]
            categories = tuple(dict.fromkeys(asked))
            yield _Order(check, categories, min([*budgets, policy.limits.check_seconds]), reads_of(check))


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
    """Yield every category that is looked for in every text so that the rule can be decided."""
    yield rule.category
    if isinstance(rule.on_error, Degrade):
        yield rule.on_error.degrade
    if rule.when:
        yield from (category for category, _ in rule.when.leaves())


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


def _unfitted(rules: Iterable[Rule], owners: Mapping[str, Check]) -> Iterator[Problem]:
    for rule in rules:
        for name, then in rule.fitted.revisions.items() if rule.fitted else ():
            if (now := revision_of(owners.get(name))) != then:
                what = f"the threshold of rule '{rule.id}' was fitted to scores of revision {_brief(then)} of the check"
                hint = "fit anew with `ringfence policy fit`"
                yield Problem(rule.origin, f"{what} behind '{name}', and revision {_brief(now)} is in use; {hint}")


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


def _read(check: Check, passages: Sequence[Passage]) -> list[Finding]:
    found = [
        replace(
            finding,
            spans=tuple(replace(span, part=passage.part) for span in finding.spans),
            rewritable=all(map(passage.can_rewrite, finding.spans)),
            role=passage.voice,
        )
        for passage in passages
        for finding in check.find(passage)
    ]
    refuse_nan((finding.score for finding in found), f"the check '{check.name}'")
    return found


def _groups(order: _Order, passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
    """Yield what a check is given: texts and images apart, so that failing of one it has still read the other."""
    for form in sorted(order.reads):
        if group := [passage for passage in passages if passage.form == form]:
            yield group


def _failed(order: _Order, error: str, about: Sequence[Passage] = ()) -> Iterator[Finding]:
    spans = tuple(Span(passage.part, 0, len(passage.text)) for passage in about)
    for category in order.categories:
        yield Finding(check=order.check.name, category=category, score=0.0, spans=spans, error=error)


def _about(passage: Passage, order: _Order, told: Sequence[Finding]) -> Iterator[Finding]:
    """Yield what was told of one passage: a failure with its place, and what was not found with a score of 0."""
    whole = (Span(passage.part, 0, len(passage.text)),)
    for finding in told:
        yield finding if finding.error is None else replace(finding, spans=whole, role=passage.voice)
    for category in order.categories:
        if not any(covers(category, finding.category) for finding in told):
            yield Finding(order.check.name, category, 0.0, whole, "asked, and not found", role=passage.voice)
