"""Has checks read passages, on threads. Decides nothing, and waits for nobody."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias

from ringfence.guard.check import CannotAnswer, Check, Finding, Passage, refuse_nan

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Texts of one call that somebody is asked about at the same time."""

Read: TypeAlias = tuple[list[Finding], list[tuple[Passage, Exception]]]
"""What was found, and which passages could not be read."""

Share: TypeAlias = tuple[Sequence[Passage], Future[Read]]
"""Passages that are read one after the other, and what comes of it."""


class Threads:
    """Threads to run checks on.

    A check that hangs keeps its thread; there are so many that it takes many to stop the others, and when they are all
    gone every check overruns, which fails closed. Checks that ask somebody have threads of their own, so that a server
    that hangs does not stop those that ask nobody.
    """

    def __init__(self) -> None:
        self._here = ThreadPoolExecutor(max_workers=32, thread_name_prefix="check")
        self._asking = ThreadPoolExecutor(max_workers=64, thread_name_prefix="asking")

    def start(self, check: Check, passages: Sequence[Passage], *, asks: bool) -> Sequence[Share]:
        """Have a check read passages, in order.

        Args:
            asks: whether it asks somebody: then several are read at the same time.
        """
        pool = self._asking if asks else self._here
        size = -(-len(passages) // AT_ONCE) if asks else len(passages)
        parts = [passages[start : start + size] for start in range(0, len(passages), size or 1)]
        return [(part, pool.submit(read, check, part)) for part in parts]

    def close(self) -> None:
        """Let them go; what runs, runs on."""
        self._here.shutdown(wait=False)
        self._asking.shutdown(wait=False)


def read(check: Check, passages: Sequence[Passage]) -> Read:
    """Return what a check finds, its spans with the part of their passage; what fails of one concerns no other."""
    found: list[Finding] = []
    unread: list[tuple[Passage, Exception]] = []
    for passage in passages:
        try:
            found += _read_one(check, passage)
        except (CannotAnswer, TimeoutError) as failure:
            unread.append((passage, failure))
        except Exception as failure:
            # Its words may quote the text; the record must not, and the server's log is the operator's own.
            if not unread:
                log.exception("check '%s' failed", check.name)
            unread.append((passage, failure))
    return found, unread


def _read_one(check: Check, passage: Passage) -> list[Finding]:
    found = [
        replace(
            finding,
            spans=tuple(replace(span, part=passage.part) for span in finding.spans),
            rewritable=all(map(passage.can_rewrite, finding.spans)),
            role=passage.voice,
        )
        for finding in check.find(passage)
    ]
    refuse_nan((finding.score for finding in found), f"the check '{check.name}'")
    return found
