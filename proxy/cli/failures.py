"""What checks raised while a command ran them, for people who wait at a terminal: a line each in place of a traceback.

Knows the log of those who have checks read, where a server leaves the traceback; decides nothing.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ringfence.guard import reading
from ringfence.policies.types import Action, Decision, Policy
from ringfence.proxy.review.visible import visible

MOST = 300
"""Characters of what an error says."""


class _Keeping(logging.Handler):
    """Keeps, by the name of the check that failed, what it raised."""

    def __init__(self) -> None:
        super().__init__()
        self.raised: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None and isinstance(record.args, tuple) and record.args:
            self.raised[str(record.args[0])] = said(record.exc_info[1])


@contextmanager
def kept() -> Iterator[Mapping[str, str]]:
    """Keep what checks raise off standard error; by the name of the check, in words."""
    keeping = _Keeping()
    log = logging.getLogger(reading.__name__)
    log.addHandler(keeping)
    try:
        yield keeping.raised
    finally:
        log.removeHandler(keeping)


def lines(decision: Decision, raised: Mapping[str, str], policy: Policy) -> list[str]:
    """Return a line for each check that could not answer: which, why, and what to do about it."""
    written = {own.category: own.origin for own in policy.checks}
    # Where a rule says so itself already, it needs no hint.
    unsaid = any(rule.on_error is Action.BLOCK for rule in policy.rules if rule.id in decision.unanswered)
    hint = ", or say with 'on_error' what its rules do without it" if unsaid else ""
    found = []
    for check, error in dict.fromkeys((one.check, one.error) for one in decision.findings if one.error is not None):
        what = f"what {written[check]} asks for" if check in written else "what it needs"
        told = f"the check '{check}' could not answer: {raised.get(check, error)}"
        found.append(visible(f"{told}; mend {what}{hint}"))
    return found


def said(error: BaseException) -> str:
    """Return an error in one line: its kind, its words, and what was added to them."""
    notes = (f"({note})" for note in getattr(error, "__notes__", ()))
    words = " ".join(" ".join([str(error), *notes]).split())
    short = f"{words[:MOST]}…" if len(words) > MOST else words
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
