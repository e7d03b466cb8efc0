"""Tells which of a policy's exceptions apply to a finding. Knows texts and days; what follows from it `decide` says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from typing import Any

import re2

from ringfence.guard.check import Finding, Passage
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.overlay import meets
from ringfence.policies.types import Policy, RuleException
from ringfence.policies.words import covers

Who = Mapping[str, str]
"""Of an exchange its tenant, key, model and route; see `policies.types.Scope`."""


@dataclass(frozen=True, slots=True)
class _Ready:
    exception: RuleException
    pattern: Any
    categories: tuple[str, ...]


class Exceptions:
    """The exceptions of one policy, ready to be asked.

    Raises:
        PolicyError: a pattern is none.
    """

    def __init__(self, policy: Policy) -> None:
        looks_at = {rule.id: rule.category for rule in policy.rules}
        self._ready = [
            _Ready(one, _compiled(one), tuple(looks_at[rule] for rule in one.rules if rule in looks_at))
            for one in policy.exceptions
        ]

    def mark(self, findings: Iterable[Finding], passages: Sequence[Passage], who: Who, today: date) -> list[Finding]:
        """Return the findings, each with the ids of the exceptions that apply to it.

        A check that failed is no finding to make an exception of.
        """
        about = [
            one
            for one in self._ready
            if today <= one.exception.until and (one.exception.scope is None or meets(one.exception.scope, who))
        ]
        if not about:
            return list(findings)
        texts = {passage.part: passage.text for passage in passages}
        asked = texts if any(one.exception.fingerprint for one in about) else {}
        prints = {part: sha256(text.encode(errors="replace")).hexdigest() for part, text in asked.items()}
        return [
            replace(finding, excepted=tuple(one.exception.id for one in about if _applies(one, finding, texts, prints)))
            if finding.error is None
            else finding
            for finding in findings
        ]


def _applies(one: _Ready, finding: Finding, texts: Mapping[int, str], prints: Mapping[int, str]) -> bool:
    if not any(covers(category, finding.category) for category in one.categories):
        return False
    narrow = one.exception.fingerprint is not None or one.pattern is not None
    if narrow and not finding.spans:
        return False  # nobody can say which text it is about
    alike = one.exception.fingerprint in (None, *{prints.get(span.part) for span in finding.spans})
    return alike and (
        one.pattern is None
        or all(one.pattern.fullmatch(texts.get(span.part, "")[span.start : span.end]) for span in finding.spans)
    )


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def _compiled(one: RuleException) -> Any:
    if one.pattern is None:
        return None
    try:
        options = re2.Options()
        options.log_errors = False
        return re2.compile(one.pattern, options)
    except re2.error as error:
        what = f"the pattern of exception '{one.id}' is not one that RE2 reads: {_words(error)}"
        raise PolicyError([Problem(one.origin, what)]) from None
