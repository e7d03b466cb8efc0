"""What a check is: it reads a passage and says what it found. It decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, cast, runtime_checkable

from ringfence.policies.types import Finding, Span, Stage

__all__ = ["Check", "Finding", "Passage", "Span", "UnknownCheck", "Versioned", "Warm", "load_checks"]

ENTRY_POINTS = "ringfence.checks"


@dataclass(frozen=True, slots=True)
class Passage:
    """One text to judge, with what is needed to understand it.

    Attributes:
        role: who said it (`user`, `system`, `assistant`, `tool` …).
        text: what is judged; spans of findings count its code points.
        prompt: on the output stage, what the text answers: the last thing the user said.
        part: index of the text within its exchange; a finding's spans carry it on.
        until: when nobody waits for the findings any more, in seconds of `time.monotonic`; None where somebody always
            will. A check that may be slow stops then.
        rewritable: the stretches `[start, end)` that can be rewritten, each by itself; None where all of it can.
    """

    stage: Stage
    role: str
    text: str
    prompt: str = ""
    part: int = 0
    rewritable: tuple[tuple[int, int], ...] | None = None
    until: float | None = None

    def can_rewrite(self, span: Span) -> bool:
        """Whether a span lies within one stretch that can be rewritten."""
        return self.rewritable is None or any(start <= span.start and span.end <= end for start, end in self.rewritable)


class Check(Protocol):
    """Finds. One call reads one passage; it may be slow, and may raise: the pipeline settles both.

    A rule over a category that no check answers for is refused when the policy is put to use.
    """

    @property
    def name(self) -> str:
        """As in findings and error messages."""
        ...

    @property
    def categories(self) -> frozenset[str]:
        """The roots of every category it may report: `pii` stands for `pii.*`. No two checks share a root."""
        ...

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return what stands in the passage. Thread-safe."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A check whose answers depend on more than its code: the record says which version gave them."""

    @property
    def revision(self) -> str:
        """The sha256 of what it runs on, hexadecimal."""
        ...


@runtime_checkable
class Warm(Protocol):
    """A check with something to load: done before the first exchange, so that none has to wait for it."""

    def warm(self) -> object:
        """Load it."""
        ...


class UnknownCheck(LookupError):
    """No check answers for a category; the message lists those that do."""


def load_checks() -> Mapping[str, Check]:
    """Instantiate every installed check: `ringfence.checks` entry points name zero-argument factories."""
    return {point.name: cast(Check, point.load()()) for point in entry_points(group=ENTRY_POINTS)}
