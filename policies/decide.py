"""Says what a policy makes of findings. Pure: precedence, defaults and error rules live here and nowhere else."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ringfence.policies.types import Action, Decision, Finding, Policy, Rewrite, Rule, Span, Stage


def decide(policy: Policy, stage: Stage, findings: Iterable[Finding]) -> Decision:
    """Return what the policy says about one stage, given what the checks found.

    A rule looks at findings of its own category and of those below it, and fires where a score reaches its
    threshold. Where the check behind its category could not answer, it asks for its `on_error`, and has not fired. The
    strongest action asked for wins, whatever the order of the rules; shadow rules are recorded and change nothing.
    """
    found = tuple(findings)
    looking = [rule for rule in policy.rules if stage in rule.stages]
    fired = [(rule, strongest(asks)) for rule in looking if (asks := list(_asks(rule, found)))]
    left_open = [(rule, rule.on_error) for rule in looking if any(_leaves_open(rule, finding) for finding in found)]
    live = [(rule, action) for rule, action in fired if not rule.shadow]
    unanswered = {rule.id: action for rule, action in left_open if not rule.shadow}
    winner = strongest([Action.ALLOW, *(action for _, action in live), *unanswered.values()])
    deciding = [rule for rule, action in live if action is winner]
    rewriting = [rule for rule, _ in live if rule.action is Action.REWRITE]
    weakest_first = sorted((*fired, *left_open), key=lambda one: one[1].strength)
    blocked = winner is Action.BLOCK
    return Decision(
        stage=stage,
        action=winner,
        rules=tuple(rule.id for rule in deciding),
        logged=tuple(rule.id for rule, action in live if action is not winner),
        unanswered=unanswered,
        shadow={rule.id: action for rule, action in weakest_first if rule.shadow},
        findings=found,
        rewrites=tuple(_disjoint(_rewrites(rewriting, found))),
        errors=tuple(dict.fromkeys(f"{f.check}: {f.error}" for f in found if f.error is not None)),
        message=next((rule.message for rule in deciding if rule.message), policy.message) if blocked else "",
        revision=policy.revision,
    )


def alone(rule: Rule, stage: Stage, findings: Iterable[Finding]) -> Decision:
    """Return what one rule by itself says, in shadow or not."""
    return decide(Policy(rule.id, (replace(rule, shadow=False),)), stage, findings)


def reasons(decision: Decision) -> tuple[str, ...]:
    """Name what asked for a decision's action: rules that fired, and `failed:CHECK`, which no rule can be called."""
    asked = decision.action in decision.unanswered.values()
    failed = [f"failed:{finding.check}" for finding in decision.findings if asked and finding.error is not None]
    return tuple(dict.fromkeys([*decision.rules, *failed]))


def strongest(actions: Iterable[Action]) -> Action:
    """Return the strongest of some actions, of which there is at least one."""
    return max(actions, key=lambda action: action.strength)


def covers(category: str, other: str) -> bool:
    """Whether the other category is this one or lies below it: `pii` covers `pii.email`, and not `piiish`."""
    return other == category or other.startswith(f"{category}.")


def _asks(rule: Rule, findings: Iterable[Finding]) -> Iterator[Action]:
    for finding in findings:
        if _fires(rule, finding):
            # A finding that leaves nothing to rewrite may not pass for a rewritten one.
            possible = bool(finding.spans) and finding.rewritable
            yield rule.action if possible or rule.action is not Action.REWRITE else Action.BLOCK


def _leaves_open(rule: Rule, finding: Finding) -> bool:
    # A check that failed as `pii` has failed for a rule over `pii.email` too, and the other way round.
    related = covers(rule.category, finding.category) or covers(finding.category, rule.category)
    return finding.error is not None and related


def _fires(rule: Rule, finding: Finding) -> bool:
    # Written as "not below", so that a score that is not a number fires: fail closed.
    return finding.error is None and covers(rule.category, finding.category) and not finding.score < rule.threshold


def _rewrites(rules: Sequence[Rule], findings: Iterable[Finding]) -> Iterator[Rewrite]:
    for finding in findings:
        for rule in rules:
            if _fires(rule, finding):
                name = finding.category.upper().replace(".", "_")
                text = rule.replacement.replace("{category}", name)
                yield from (Rewrite(span, text, rule.id) for span in finding.spans)


def _disjoint(rewrites: Iterable[Rewrite]) -> Iterator[Rewrite]:
    """Join overlapping spans, so that nothing of either stays readable; the first to start, then the longest, names."""
    current: Rewrite | None = None
    for item in sorted(rewrites, key=lambda r: (r.span.part, r.span.start, -r.span.end, r.rule, r.replacement)):
        if current and item.span.part == current.span.part and item.span.start < current.span.end:
            end = max(current.span.end, item.span.end)
            current = Rewrite(Span(item.span.part, current.span.start, end), current.replacement, current.rule)
        else:
            if current:
                yield current
            current = item
    if current:
        yield current
