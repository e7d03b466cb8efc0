"""Tells which of a policy's exceptions apply to a finding. Knows texts and days; what follows from it `decide` says.

However many exceptions there are, a finding is put to few: they are looked up by the text's fingerprint, and by what
sets of patterns say of a stretch in one pass each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cache, lru_cache
from hashlib import sha256
from typing import cast

import re2

from ringfence.guard.check import Finding, Passage
from ringfence.guard.expressions import Alternatives, compiled, encoded, has_room, options, refuse_beyond_room, room
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.overlay import meets
from ringfence.policies.types import Policy, RuleException
from ringfence.policies.words import lineage

Who = Mapping[str, str]
"""Of an exchange its tenant, key, model and route; see `policies.types.Scope`."""

TOGETHER = 500
"""Patterns in one set: in a larger one what is alike about them is found less often."""

READING = 4 << 20
"""Bytes that a set may take beside its patterns, for what it remembers of texts."""

Numbers = frozenset[int]
"""Exceptions, by their places in the policy."""


class Exceptions:
    """The exceptions of one policy, ready to be asked.

    Args:
        taken: bytes that other patterns of the policy take.

    Raises:
        PolicyError: patterns are none, or the policy's patterns take too much room together.
    """

    def __init__(self, policy: Policy, taken: int = 0) -> None:
        looks_at = {rule.id: rule.category for rule in policy.rules}
        self._all = policy.exceptions
        self._categories = [{looks_at[rule] for rule in one.rules if rule in looks_at} for one in policy.exceptions]
        self._sets = _sets(policy.exceptions, taken)
        self._by_print: dict[str, set[int]] = {}
        for number, one in enumerate(policy.exceptions):
            if one.fingerprint:
                self._by_print.setdefault(one.fingerprint, set()).add(number)
        self._wide = [n for n, one in enumerate(policy.exceptions) if not (one.fingerprint or one.pattern)]

    def mark(self, findings: Iterable[Finding], passages: Sequence[Passage], who: Who, today: date) -> list[Finding]:
        """Return the findings, each with the ids of the exceptions that apply to it.

        A check that failed is no finding to make an exception of.
        """
        if not self._all:
            return list(findings)
        texts = {passage.part: passage.text for passage in passages}

        @cache
        def alike(part: int) -> Numbers:
            text = texts.get(part)
            known = self._by_print and text is not None and sha256(text.encode(errors="replace")).hexdigest()
            return frozenset(self._by_print.get(known or "", ()))

        @cache
        def matching(stretch: str) -> Numbers:
            return frozenset(self._matching(encoded(stretch)))

        @cache
        def holds(number: int) -> bool:
            one = self._all[number]
            return today <= one.until and (one.scope is None or meets(one.scope, who))

        @cache
        def wide(category: str) -> Numbers:
            return frozenset(self._over(category, filter(holds, self._wide)))

        def applying(finding: Finding) -> Iterator[str]:
            narrow = self._narrow(finding, texts, alike, matching) if finding.spans else ()
            numbers = wide(finding.category).union(self._over(finding.category, filter(holds, narrow)))
            return (self._all[number].id for number in sorted(numbers))

        return [one if one.error is not None else replace(one, excepted=tuple(applying(one))) for one in findings]

    def _over(self, category: str, numbers: Iterable[int]) -> Iterator[int]:
        """Yield those of some exceptions that spare a rule over a category."""
        above = set(lineage(category))
        return (number for number in numbers if not self._categories[number].isdisjoint(above))

    def _narrow(
        self,
        finding: Finding,
        texts: Mapping[int, str],
        alike: Callable[[int], Numbers],
        matching: Callable[[str], Numbers],
    ) -> Iterator[int]:
        """Yield the exceptions for a text or a stretch that a finding is about."""
        prints = frozenset[int]().union(*(alike(span.part) for span in finding.spans))
        stretches = (texts.get(span.part, "")[span.start : span.end] for span in finding.spans)
        patterns = frozenset.intersection(*map(matching, stretches))
        for number in prints | patterns:
            one = self._all[number]
            if (number in prints or not one.fingerprint) and (number in patterns or not one.pattern):
                yield number

    def _matching(self, stretch: bytes) -> Iterator[int]:
        for numbers, patterns in self._sets:
            # Where memory runs out nothing is said to match: then the rules fire.
            yield from (numbers[place] for place in patterns.Match(stretch) or ())


# Kept for the pipelines that the overlays of one policy make of it; a diff has two policies.
@lru_cache(maxsize=2)
def _sets(exceptions: tuple[RuleException, ...], taken: int) -> Sequence[tuple[Sequence[int], Alternatives]]:
    """Return sets of the exceptions' patterns, each of which matches a stretch as a whole, and whose they are."""
    sizes: list[tuple[int, int]] = []
    problems: list[Problem] = []
    for number, one in enumerate(exceptions):
        if one.pattern and has_room(taken):
            try:
                what = f"the pattern of exception '{one.id}' is not one that RE2 reads"
                sizes.append((number, room(compiled(one.pattern, one.origin, what))))
                taken += sizes[-1][1]
                refuse_beyond_room(taken, one.origin)
            except PolicyError as error:
                problems += error.problems
    if problems:
        raise PolicyError(problems)
    groups = [sizes[start : start + TOGETHER] for start in range(0, len(sizes), TOGETHER)]
    return [([number for number, _ in group], _set(exceptions, group)) for group in groups]


def _set(exceptions: Sequence[RuleException], group: Sequence[tuple[int, int]]) -> Alternatives:
    # RE2 counts an instruction four times, to be on the safe side.
    together = re2.Set.FullMatchSet(options(READING + 4 * sum(size for _, size in group)))
    for number, _ in group:
        together.Add(encoded(exceptions[number].pattern or ""))
    together.Compile()
    return cast(Alternatives, together)
