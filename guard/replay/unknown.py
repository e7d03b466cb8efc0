"""What a policy would have had to know of an exchange and nobody had looked for. Judges no text.

What nobody looked for is put to `decide` as a check that failed, for it knows which rules that leaves open.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ringfence.guard.replay.groups import Source
from ringfence.policies.decide import about_the_same, escalations
from ringfence.policies.findable import sought
from ringfence.policies.types import Action, Decision, Finding, Policy, Rule, Stage
from ringfence.policies.words import root

UNFINISHED = "it was stopped then: there is no reply on record, or not all of it"
NOBODY = "nobody"
"""In place of a check's name, where none had looked."""

Saying = Callable[[Policy, Stage, Sequence[Finding]], Decision]
"""Decides: on texts together, or on each by itself."""

Lacking = Mapping[str, Source]
"""Who is to look, by first word of categories."""


@dataclass(frozen=True, slots=True)
class Open:
    """A rule of which nobody can say whether it would have fired: for want of whose findings, and in words why.

    Attributes:
        by: what else that goes by, under the policy that has the rule: where that is not alike, two policies are not.
    """

    stage: Stage
    rule: Rule
    missing: tuple[Source, ...]
    why: str
    by: Hashable


@dataclass(frozen=True, slots=True)
class Known:
    """Who had looked at what a decision is about, of those whose findings a policy goes by.

    Sources are by first word of the categories that they find; `count.ID` of counters.

    Attributes:
        first: who finds what the policy's rules look at.
        second: who is asked only where a rule is not sure.
        stale: of both, of whom another version had looked.
        missing: of the first, who had not looked, or not everywhere.
        unasked: of the second, who need not have been asked wherever a rule of this policy is not sure.
        strangers: of those, who had not been asked at all.
        unheard: roles whose text somebody was not shown then, and would be.
        unseen: what is not known of images.
        unread: roles of which some text was exempt then, and would be judged.
    """

    first: Mapping[str, Source]
    second: Mapping[str, Source]
    stale: Mapping[str, Source]
    missing: Mapping[str, Source]
    unasked: Mapping[str, Source]
    strangers: Mapping[str, Source]
    unheard: Mapping[str, Sequence[str]]
    unseen: Mapping[str, Source]
    unread: frozenset[str]

    @property
    def absent(self) -> Mapping[str, Source]:
        """Whose findings count for nothing, where there are some."""
        return {**self.missing, **self.strangers}

    def gaps(self, policy: Policy, recorded: Decision, found: Sequence[Finding]) -> tuple[list[Finding], Lacking]:
        """Return what nobody looked for, as failures, and who is to look for the decision to be known.

        Args:
            policy: its rules may be unsure of what was found.
        """
        unasked = list(_unasked(policy, recorded, found, self.unasked))
        silent = [Finding(NOBODY, name, 0.0, error="did not look") for name in (*self.missing, *self.unseen)]
        exempt = _about(dict.fromkeys(self.first, sorted(self.unread)))
        gaps = [*silent, *exempt, *_about(self.unheard), *unasked]
        looking = {**self.missing, **{name: self.first[name] for name in self.unheard if name in self.first}}
        asking = {root(one.category) for one in unasked} | _seconds(policy, recorded.stage, looking)
        return gaps, {**looking, **{name: source for name, source in self.unasked.items() if name in asking}}

    def opened(self, stage: Stage, rule: Rule, lacking: Lacking, by: Hashable) -> Open:
        """Say of a rule, as it is written, why it is open."""
        looked_at = {root(one.category) for one in sought(rule)}
        absent = {name: source for name, source in {**lacking, **self.unseen}.items() if root(name) in looked_at}
        if not absent:
            roles = ", ".join(sorted(self.unread))
            return Open(stage, bare(rule), (), f"text of the role {roles} was exempt then", by)
        names = ", ".join(f"'{name}'" for name in sorted(absent))
        why = f"nobody looked for {names} then, in the same way"
        if absent.keys() <= self.stale.keys():
            why = f"another version of the check, with other weights or settings, looked for {names} then"
        return Open(stage, bare(rule), tuple(absent.values()), why, by)


def decided(
    said: Saying, policy: Policy, stage: Stage, found: Sequence[Finding], gaps: Sequence[Finding]
) -> tuple[Decision, list[Rule]]:
    """Decide as though rules that gaps leave open did not fire, and return those."""
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


def bare(rule: Rule) -> Rule:
    """Return the rule without what decides nothing."""
    return replace(rule, message=None, why="", owner="", tags=(), maturity="stable")


def _about(unheard: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
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
