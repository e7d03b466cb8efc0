"""Runs the checks of a policy over passages and has the policy decide. Knows nothing of exchanges, HTTP or storage."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overrun
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from time import monotonic

from ringfence.guard.check import CannotAnswer, Check, Finding, Passage, UnknownCheck, Versioned, Warm, taken_by
from ringfence.guard.classifier.language import language
from ringfence.guard.exceptions import Exceptions, Who
from ringfence.guard.known import refuse_unknown
from ringfence.policies.decide import decide
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.overlay import about, as_any_overlay_has_them, effective
from ringfence.policies.types import Decision, Degrade, Policy, Rule, Stage
from ringfence.policies.words import root

log = logging.getLogger(__name__)

BUILT_IN = frozenset({"unjudged", "count"})
"""Roots that no check answers for: whoever lists the parts of an exchange finds what nobody can read, and a history
what was counted."""


class Pipeline:
    """One policy with the checks that it needs.

    Args:
        policy: what to decide by.
        checks: every check there is, by name; only those behind a rule of the stage are run.
        pool: the threads that checks run on; of its own where None.

    Raises:
        UnknownCheck: a rule looks at a category that no check answers for, or two checks answer for one.
        PolicyError: a threshold was fitted to the scores of another revision of its check; an exception's pattern is
            none, or the policy's patterns take too much room together.
    """

    def __init__(self, policy: Policy, checks: Mapping[str, Check], pool: ThreadPoolExecutor | None = None) -> None:
        self.policy = policy
        owners = self._owners = _owners(policy, checks.values())
        refuse_unknown(policy, checks.values())
        if problems := list(_unfitted(policy.rules, owners)):
            raise PolicyError(problems)
        self._exceptions = Exceptions(policy, taken_by(checks.values()))
        self._speaks_several = any(isinstance(m, Mapping) for m in (policy.message, *(r.message for r in policy.rules)))
        self._orders = {stage: tuple(_orders(policy, stage, checks.values(), owners)) for stage in Stage}
        self.pool = pool or new_pool()

    @property
    def checks(self) -> list[Check]:
        """The checks behind at least one rule."""
        return list({order.check.name: order.check for stage in self._orders.values() for order in stage}.values())

    def check_of(self, category: str) -> Check | None:
        """Return the check that answers for a category; None for what no check reads."""
        return self._owners.get(root(category))

    def reads(self, stage: Stage) -> bool:
        """Whether any check reads texts of this stage: where no rule asks for one, nothing is judged."""
        return bool(self._orders[stage])

    def judge(
        self, stage: Stage, passages: Sequence[Passage], known: Sequence[Finding] = (), who: Who | None = None
    ) -> Decision:
        """Run the stage's checks over the passages and decide; see `find` and `decide`."""
        return self.decide(stage, passages, self.find(stage, passages, known, who))

    def find(
        self, stage: Stage, passages: Sequence[Passage], known: Sequence[Finding] = (), who: Who | None = None
    ) -> list[Finding]:
        """Run the stage's checks over the passages.

        Args:
            known: findings made elsewhere (parts that nobody can read), which come first.
            who: whose exchange it is, for exceptions that are about some.

        Returns:
            the findings; their spans carry the part index of their passage. A check that raises or overruns its time
            becomes one finding with an error for each category asked of it.
        """
        now = monotonic()
        running = [
            (order, self.pool.submit(_read, order.check, [replace(p, until=now + order.seconds) for p in passages]))
            for order in self._orders[stage]
            if passages
        ]
        findings = list(known)
        for order, future in running:
            findings.extend(_settle(order, future, now + order.seconds))
        return self.mark(findings, passages, who or {}, datetime.now(UTC).date())

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
        said = [p.text for p in passages if p.role == "user"] if stage is Stage.INPUT else [passages[-1].prompt]
        return (language(said[-1]) if said else None) or ""


class Pipelines:
    """A policy as its overlays have it for each exchange: a pipeline for each set of them that applies together.

    Args:
        policy, checks: as of `Pipeline`, which says what it raises, of overlays too.

    Attributes:
        base: the policy without overlays.
    """

    def __init__(self, policy: Policy, checks: Mapping[str, Check]) -> None:
        self.base = Pipeline(policy, checks)
        self._checks = checks
        self._made: dict[tuple[str, ...], Pipeline] = {(): self.base}
        # What is wrong with an overlay is said now, not at its first exchange.
        self._widest = Pipeline(replace(policy, rules=tuple(as_any_overlay_has_them(policy))), checks, self.base.pool)

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

    def _of(self, applied: tuple[str, ...]) -> Pipeline:
        if applied not in self._made:  # two threads may both make it; they make the same
            policy = effective(self.base.policy, applied)
            self._made[applied] = Pipeline(policy, self._checks, self.base.pool)
        return self._made[applied]


@dataclass(frozen=True, slots=True)
class _Order:
    """One check to run at a stage, the categories that rules ask of it, and how long it may take."""

    check: Check
    categories: tuple[str, ...]
    seconds: float


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
            categories = tuple(dict.fromkeys(category for _, category in mine))
            yield _Order(check, categories, min([*budgets, policy.limits.check_seconds]))


def categories_of(rule: Rule) -> Iterator[str]:
    """Yield every category that has to be looked for so that the rule can be decided."""
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
        if rule.fitted and (now := revision_of(owners.get(root(rule.category)))) != (then := rule.fitted.guard):
            what = f"the threshold of rule '{rule.id}' was fitted to scores of revision {_brief(then)} of its check"
            hint = "fit anew with `ringfence policy fit`"
            yield Problem(rule.origin, f"{what}, and revision {_brief(now)} is in use; {hint}")


def _brief(revision: str | None) -> str:
    return revision[:16] if revision else "none"


def _read(check: Check, passages: Sequence[Passage]) -> list[Finding]:
    return [
        replace(
            finding,
            spans=tuple(replace(span, part=passage.part) for span in finding.spans),
            rewritable=all(map(passage.can_rewrite, finding.spans)),
            role=passage.voice,
        )
        for passage in passages
        for finding in check.find(passage)
    ]


def _settle(order: _Order, future: Future[list[Finding]], deadline: float) -> Iterator[Finding]:
    try:
        yield from future.result(timeout=max(0.0, deadline - monotonic()))
        return
    except Overrun as overrun:
        future.cancel()
        error = str(overrun) or f"took longer than its {order.seconds:g} s (limits.check_seconds, or a rule's seconds)"
    except CannotAnswer as failure:
        error = str(failure)
    except Exception as failure:
        # Its words may quote the text; the record must not, and the server's log is the operator's own.
        log.exception("check '%s' failed", order.check.name)
        error = f"failed with {type(failure).__name__}"
    for category in order.categories:
        yield Finding(check=order.check.name, category=category, score=0.0, error=error)
