"""Counts what rules did over several exchanges, for a policy's counters. In memory only; knows no text."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock
from time import monotonic

from ringfence.guard.exchange import Subject
from ringfence.policies.types import Counter, Finding
from ringfence.policies.words import seconds

MOST = 100_000
"""Of a counter's subjects so many are remembered; then the one that was longest without a hit is forgotten."""


@dataclass(slots=True)
class _Tally:
    """When the hits of one subject were, in seconds of the clock, and until when the counter is full."""

    hits: deque[float] = field(default_factory=deque)
    full_until: float = float("-inf")


class History:
    """What counters have seen. Thread-safe.

    A process counts by itself, and from nothing when it starts; when the policy changes, what was counted stays.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._tallies: defaultdict[str, OrderedDict[tuple[str, ...], _Tally]] = defaultdict(OrderedDict)

    def findings(self, counters: Iterable[Counter], subject: Subject) -> list[Finding]:
        """Return `count.ID` for each counter that is full for the subject; without a span, since it is of no text."""
        now = self._clock()
        with self._lock:
            full = [
                counter
                for counter in counters
                if (whose := _whose(counter, subject))
                and (tally := self._tallies[counter.id].get(whose))
                and now < tally.full_until
            ]
        return [
            Finding("history", f"count.{one.id}", 1.0, detail=f"{one.at_least} within {one.within}, held {one.hold}")
            for one in full
        ]

    def note(self, counters: Iterable[Counter], subject: Subject, fired: Set[str]) -> None:
        """Count one exchange, in which the rules of these ids fired."""
        now = self._clock()
        for counter in counters:
            if fired.isdisjoint(counter.rules) or (whose := _whose(counter, subject)) is None:
                continue
            with self._lock:
                tallies = self._tallies[counter.id]
                tally = tallies.setdefault(whose, _Tally())
                tallies.move_to_end(whose)
                tally.hits.append(now)
                while tally.hits[0] <= now - seconds(counter.within) or len(tally.hits) > counter.at_least:
                    tally.hits.popleft()
                if len(tally.hits) == counter.at_least:
                    tally.full_until = now + seconds(counter.hold)
                while len(tallies) > MOST:
                    tallies.popitem(last=False)


def _whose(counter: Counter, subject: Subject) -> tuple[str, ...] | None:
    """Return who is counted together; None for what has no name, which would be everybody's without one."""
    match counter.per:
        case "tenant":
            return (subject.tenant,)
        case "key":
            return (subject.tenant, subject.key)
        case "user":
            name = subject.user
        case "conversation":
            name = subject.conversation
    # A caller's own word: its digest has a length, and is all that needs to be remembered.
    return (subject.tenant, subject.key, sha256(name.encode(errors="replace")).hexdigest()) if name else None
