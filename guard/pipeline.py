"""Runs the checks of a policy over passages and has the policy decide. Knows nothing of exchanges, HTTP or storage."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overrun
from dataclasses import replace
from time import monotonic

from ringfence.guard.check import Check, Finding, Passage, UnknownCheck, Versioned
from ringfence.policies.decide import decide
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.types import Decision, Policy, Rule, Stage

log = logging.getLogger(__name__)

BUILT_IN = frozenset({"unjudged"})
"""Roots that no check answers for: what nobody can read is found by whoever lists the parts of an exchange."""


class Pipeline:
    """One policy with the checks that it needs.

    Args:
        policy: what to decide by.
        checks: every check there is, by name; only those behind a rule of the stage are run.

    Raises:
        UnknownCheck: a rule looks at a category that no check answers for, or two checks answer for one.
        PolicyError: a threshold was fitted to the scores of another revision of its check.
    """

    def __init__(self, policy: Policy, checks: Mapping[str, Check]) -> None:
        self.policy = policy
        owners = self._owners = _owners(checks.values())
        for rule in policy.rules:
            if _root(rule.category) not in owners.keys() | BUILT_IN:
                known = ", ".join(sorted(owners.keys() | BUILT_IN))
                raise UnknownCheck(
                    f"{rule.origin}: rule '{rule.id}' looks at category '{rule.category}', "
                    f"which no check answers for; known categories: {known}"
                )
        if problems := list(_unfitted(policy.rules, owners)):
            raise PolicyError(problems)
        self._checks: dict[Stage, list[tuple[Check, tuple[str, ...]]]] = {}
        for stage in Stage:
            wanted: dict[str, list[str]] = {}
            for rule in policy.rules:
                if stage in rule.stages and (owner := owners.get(_root(rule.category))):
                    wanted.setdefault(owner.name, []).append(rule.category)
            self._checks[stage] = [
                (check, tuple(dict.fromkeys(wanted[check.name]))) for check in checks.values() if check.name in wanted
            ]
        # A check that hangs keeps its thread; the pool is wide so that it takes many to stop the others,
        # and when they are all gone every check overruns, which fails closed.
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="check")

    @property
    def checks(self) -> list[Check]:
        """The checks behind at least one rule."""
        return list({check.name: check for stage in self._checks.values() for check, _ in stage}.values())

    def check_of(self, category: str) -> Check | None:
        """Return the check that answers for a category; None for what no check reads."""
        return self._owners.get(_root(category))

    def reads(self, stage: Stage) -> bool:
        """Whether any check reads texts of this stage: where no rule asks for one, nothing is judged."""
        return bool(self._checks[stage])

    def judge(self, stage: Stage, passages: Sequence[Passage], known: Sequence[Finding] = ()) -> Decision:
        """Run the stage's checks over the passages and decide.

        Args:
            known: findings made elsewhere (parts that nobody can read), decided together with the rest.

        Returns:
            the decision; spans of its findings and rewrites carry the part index of their passage. A check that
            raises or overruns `limits.check_seconds` becomes one finding with an error for each category asked of it.
        """
        deadline = monotonic() + self.policy.limits.check_seconds
        passages = [replace(passage, until=deadline) for passage in passages]
        running = [
            (check, categories, self._pool.submit(_read, check, passages))
            for check, categories in self._checks[stage]
            if passages
        ]
        findings = list(known)
        for check, categories, future in running:
            findings.extend(_settle(check, categories, future, deadline))
        return decide(self.policy, stage, findings)


def _owners(checks: Iterable[Check]) -> dict[str, Check]:
    owners: dict[str, Check] = {}
    for check in checks:
        for root in check.categories:
            if other := owners.get(root):
                raise UnknownCheck(
                    f"the checks '{other.name}' and '{check.name}' both answer for category '{root}'; uninstall one"
                )
            owners[root] = check
    return owners


def revision_of(check: Check | None) -> str | None:
    """Return the revision of what a check runs on; None for one that has none."""
    return check.revision if isinstance(check, Versioned) else None


def _unfitted(rules: Iterable[Rule], owners: Mapping[str, Check]) -> Iterator[Problem]:
    for rule in rules:
        if rule.fitted and (now := revision_of(owners.get(_root(rule.category)))) != (then := rule.fitted.guard):
            what = f"the threshold of rule '{rule.id}' was fitted to scores of revision {_brief(then)} of its check"
            hint = "fit anew with `ringfence policy fit`"
            yield Problem(rule.origin, f"{what}, and revision {_brief(now)} is in use; {hint}")


def _brief(revision: str | None) -> str:
    return revision[:16] if revision else "none"


def _root(category: str) -> str:
    return category.split(".", 1)[0]


def _read(check: Check, passages: Sequence[Passage]) -> list[Finding]:
    return [
        replace(
            finding,
            spans=tuple(replace(span, part=passage.part) for span in finding.spans),
            rewritable=all(map(passage.can_rewrite, finding.spans)),
        )
        for passage in passages
        for finding in check.find(passage)
    ]


def _settle(
    check: Check, categories: Sequence[str], future: Future[list[Finding]], deadline: float
) -> Iterator[Finding]:
    try:
        yield from future.result(timeout=max(0.0, deadline - monotonic()))
        return
    except Overrun as overrun:
        future.cancel()
        error = str(overrun) or "took longer than limits.check_seconds"
    except Exception as failure:
        # Its words may quote the text; the record must not, and the server's log is the operator's own.
        log.exception("check '%s' failed", check.name)
        error = f"failed with {type(failure).__name__}"
    for category in categories:
        yield Finding(check=check.name, category=category, score=0.0, error=error)
