"""Made-up exchanges with the shape of real ones, to measure what reads audit logs. Nothing in them was ever said."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from ringfence.guard.audit.record import GENESIS, record_of, seal
from ringfence.guard.audit.store import Store
from ringfence.guard.exchange import Coverage, Exchange, Judged, Kind, Part, Subject
from ringfence.policies.decide import decide
from ringfence.policies.types import Action, Finding, Policy, Span, Stage

TALK = "please tell me how the garden bridge over our river was built and who paid for all of that stone"
HAZARDS = ("harm.S1", "harm.S2", "harm.S9", "harm.S10")
FORMS = (
    ("pii", "pii.email"),
    ("pii", "pii.phone"),
    ("secrets", "secret.api_key"),
    ("hidden", "hidden.invisible"),
)
START = datetime(2026, 11, 1, tzinfo=UTC)


def exchanges(policy: Policy, number: int, seed: int = 0, revision: str = "0" * 64) -> Iterator[Exchange]:
    """Yield chats of a system message, a question and an answer, decided by the policy: one every second.

    As in real traffic most score low, a few in between and fewer high, and one text in twenty has a form in it.

    Args:
        revision: which version of the classifier the record has as theirs.
    """
    random = Random(seed)  # noqa: S311
    for index in range(number):
        at = START + timedelta(seconds=index)
        request = [
            Part(Kind.TEXT, "system", ("messages", 0, "content"), _text(random, 40)),
            Part(Kind.TEXT, "user", ("messages", 1, "content"), _text(random, random.randint(5, 60))),
        ]
        exchange = Exchange("openai.chat", "made-up", request, subject=Subject("t", f"k{index % 7}"), received_at=at)
        found = [finding for part, one in enumerate(request) for finding in _findings(random, part, one)]
        exchange.decisions.append(decide(policy, Stage.INPUT, found))
        if exchange.decisions[0].action is not Action.BLOCK:
            reply = Part(Kind.TEXT, "assistant", ("choices", 0, "message", "content"), _text(random, 80))
            exchange.reply.append(reply)
            refusal = Finding("classifier", "refusal", _score(random), (Span(0, 0, 10),), role="assistant")
            exchange.decisions.append(decide(policy, Stage.OUTPUT, [*_findings(random, 0, reply), refusal]))
        exchange.coverage += [Coverage(one.where, Judged.JUDGED) for one in (*request, *exchange.reply)]
        exchange.timings |= {"input_s": 0.02, "upstream_first_s": 0.3, "output_s": 0.1, "total_s": 1.2}
        exchange.revisions["classifier"] = revision
        yield exchange


def write_log(path: Path, policy: Policy, number: int, revision: str = "0" * 64) -> Iterator[int]:
    """Write an audit log of so many made-up exchanges, and yield each one's number.

    In one transaction: `Store.append` makes sure of each record by itself, which takes twice as long.
    """
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as log, log:
        prev = GENESIS
        for seq, exchange in enumerate(exchanges(policy, number, revision=revision), 1):
            sealed = seal(record_of(exchange, text="masked"), seq, prev)
            row = (seq, sealed.hash, sealed.canonical.decode())
            log.execute("INSERT INTO records (seq, hash, body) VALUES (?, ?, ?)", row)
            prev = sealed.hash
            yield seq


def _findings(random: Random, index: int, part: Part) -> Iterator[Finding]:
    length = len(part.text)
    whole = (Span(index, 0, length),)
    for category in ("harm", "attack", "toxicity"):
        yield Finding("classifier", category, _score(random), whole, role=part.role)
    for hazard in HAZARDS[: random.randint(0, 4)]:
        yield Finding("classifier", hazard, max(0.05, _score(random)), whole, "A hazard", role=part.role)
    if random.random() < 0.05:
        (check, category), start = random.choice(FORMS), random.randint(0, length - 5)
        span = Span(index, start, start + 5)
        yield Finding(check, category, random.choice((0.3, 0.9, 0.95)), (span,), "a form", role=part.role)


def _score(random: Random) -> float:
    return round(random.betavariate(0.15, 3), 4)


def _text(random: Random, words: int) -> str:
    return " ".join(random.choices(TALK.split(), k=words))
