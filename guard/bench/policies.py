"""How fast policies load, decide and replay on this machine, beside what the project promises. Runs no check."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ringfence.guard.check import Check
from ringfence.guard.replay.replay import replay
from ringfence.policies.decide import decide
from ringfence.policies.load import loads_policy
from ringfence.policies.types import Finding, Policy, Span, Stage

LOADED = (1, 100, 1_000, 10_000)
"""Rules of the policies that are loaded."""

DECIDED = (10, 100, 1_000)
"""Rules of the policies that decide."""

FINDINGS = 20

BARS: Mapping[tuple[str, int], float] = {("load", 1_000): 100.0, ("decide", 100): 0.05, ("replay", 1_000_000): 60_000.0}
"""Milliseconds that are promised."""

ROOTS = ("harm", "attack", "toxicity", "pii", "secret", "hidden", "exfiltration", "refusal")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one thing takes.

    Attributes:
        what: `load`: from text to a policy with its revision; `decide`: on `FINDINGS` findings; `replay`: a log under
            two policies that differ in thresholds.
        size: rules of the policy, or records of the log.
        rounds: how often it was timed.
        median_ms: milliseconds of half of the rounds, at most.
        least_ms: milliseconds of the fastest.
        bar_ms: milliseconds that are promised; None where nothing is.
    """

    what: str
    size: int
    rounds: int
    median_ms: float
    least_ms: float
    bar_ms: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return asdict(self)


def measure_policies(seconds: float = 1.0) -> list[Pace]:
    """Time loading and deciding, at least thrice and for so many seconds each."""
    texts = {rules: policy_text(rules) for rules in sorted({*LOADED, *DECIDED})}
    paces = [pace("load", rules, partial(loads_policy, texts[rules]), seconds) for rules in LOADED]
    found = findings()
    for rules in DECIDED:
        policy = loads_policy(texts[rules])
        paces.append(pace("decide", rules, partial(decide, policy, Stage.OUTPUT, found), seconds))
    return paces


def measure_replay(log: Path, policy: Policy, checks: Mapping[str, Check]) -> Pace:
    """Time once what becomes of a log where every threshold is a tenth lower."""
    lower = tuple(replace(rule, threshold=round(rule.threshold * 0.9, 4)) for rule in policy.rules)
    started = time.perf_counter()
    found = replay(log, policy, replace(policy, rules=lower, revision="lower"), checks)
    took = (time.perf_counter() - started) * 1_000
    return Pace("replay", found.exchanges, 1, took, took, BARS.get(("replay", found.exchanges)))


def pace(what: str, size: int, call: Callable[[], object], seconds: float) -> Pace:
    """Time one thing over and over."""
    call()  # what is made once, such as pydantic's validators, is no part of it
    took: list[float] = []
    until = time.perf_counter() + seconds
    while len(took) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        took.append((time.perf_counter() - started) * 1_000)
    return Pace(what, size, len(took), statistics.median(took), min(took), BARS.get((what, size)))


def policy_text(rules: int) -> str:
    """Write a policy with so many rules, over all sorts of categories and with most of the keys that rules have."""
    lines = ["version: 1", "name: bench", "rules:"]
    for i in range(rules):
        lines += [
            f"  - id: rule-{i}",
            f"    category: {ROOTS[i % len(ROOTS)]}.c{i // len(ROOTS) % 50}",
            f"    action: {('log', 'rewrite', 'block')[i % 3]}",
            f"    stages: [{('input', 'output', 'input, output')[i % 3]}]",
            f"    threshold: 0.{i % 90 + 10}",
            f"    message: This is not done here, by rule {i}.",
            f"    why: The reason for rule {i}.",
        ]
    return "\n".join(lines) + "\n"


def findings() -> list[Finding]:
    """Return findings of all sorts of categories, half of them sure."""
    return [
        Finding("bench", f"{ROOTS[i % len(ROOTS)]}.c{i % 12}", 0.99 if i % 2 else 0.05, (Span(0, 10 * i, 10 * i + 12),))
        for i in range(FINDINGS)
    ]
