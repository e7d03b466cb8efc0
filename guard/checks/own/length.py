"""Finds texts that are longer than a policy wants them. Knows nothing of what they say."""

from collections.abc import Sequence

from ringfence.guard.check import Finding, Passage, Span
from ringfence.policies.own import Length


class LengthCheck:
    """Reports its category, with score 1.0, for what goes beyond so many code points."""

    def __init__(self, spec: Length) -> None:
        self.name = spec.category
        self.categories = frozenset({spec.category})
        self._more_than = spec.more_than

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return one finding whose span is the text from the first code point too many to its end."""
        length = passage.before + len(passage.text)
        if length <= self._more_than:
            return ()
        span = Span(passage.part, max(0, self._more_than - passage.before), len(passage.text))
        return (Finding(self.name, self.name, 1.0, (span,), f"{length:,} characters"),)
