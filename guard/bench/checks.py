"""Measures the checks that are no models: what they find in our own corpora, and what they cost. Prints nothing.

A mark of the corpus is *met* where a finding of its category touches it, and *whole* where such findings hold all its
letters and digits, as taking it out needs. A finding is *right* where it touches a mark of its category. Precision is
the share of findings that are right, recall the share of marks that are met; the rule is the same for every tool.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ringfence.guard.bench.peers import Peer, Scored
from ringfence.guard.bench.spans import LabelledSpan, LabelledText, load_corpus_of
from ringfence.guard.check import Check, Passage, Versioned, load_checks
from ringfence.guard.checks.pii import PiiCheck
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.guard.classifier.rows import read_rows
from ringfence.guard.normalise.readings import spellings, variants
from ringfence.policies.types import Stage

THRESHOLD = 0.5
"""At and above it a finding counts; that of the rules in the packs `pii` and `secrets`."""

PII = ("email", "phone", "card", "iban", "ip", "ssn", "national_id", "passport", "birth_date")
"""Categories of the corpus that the check answers for; it looks for no names and no postal addresses."""

SECRET = "secret"  # noqa: S105 - a category
"""What every mark of the secrets' corpus is, as each tool has categories of its own."""

LIVE = (
    *((".example", ".systems"), ("192.0.2.", "192.3.2."), ("198.51.100.", "198.53.100."), ("203.0.113.", "203.1.113.")),
    *(("2001:db8", "2001:470"), ("2001:DB8", "2001:470"), ("7700 900", "7911 123"), ("7700900", "7911123")),
    *(("555-01", "638-41"), ("555 01", "638 41"), ("555.01", "638.41")),
)
"""Stand-ins of documentation, and what is in use in their place; of one length, so that spans stay."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of marks and findings, see above; findings are None where a category has none of its own."""

    marks: int
    met: int
    whole: int
    findings: int | None
    right: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the counts, and the shares that can be said."""
        recall, precision = _share(self.met, self.marks), _share(self.right, self.findings)
        both = recall is not None and precision is not None
        return {
            "marks": self.marks,
            "findings": self.findings,
            "precision": precision,
            "recall": recall,
            "whole": _share(self.whole, self.marks),
            "f1": (2 * recall * precision / ((recall + precision) or 1)) if both else None,  # type: ignore[operator]
        }


class Result(NamedTuple):
    """What one tool found in one corpus: by category, and all those together that are compared."""

    tool: str
    note: str
    by_category: Mapping[str, Tally]
    overall: Tally

    def to_json(self) -> dict[str, Any]:
        """Return one object."""
        rows = {name: tally.to_json() for name, tally in self.by_category.items()}
        return {"tool": self.tool, "note": self.note, "overall": self.overall.to_json(), "by_category": rows}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of several tools on one corpus.

    Attributes:
        compared: the categories that `overall` sums up: those that every tool of the run looks for.
        left_out: what the others look for and the corpus does not mark, or marks and only some look for.
    """

    corpus: str
    texts: int
    compared: tuple[str, ...]
    left_out: tuple[str, ...]
    results: Sequence[Result]

    def to_json(self) -> dict[str, Any]:
        """Return one object, as `ringfence bench checks --json` prints it."""
        return {
            "corpus": self.corpus,
            "texts": self.texts,
            "compared": list(self.compared),
            "left_out": list(self.left_out),
            "results": [result.to_json() for result in self.results],
        }


def compare_pii(texts: Sequence[LabelledText], peers: Sequence[Peer] = (), corpus: str = "pii") -> Comparison:
    """Compare what the PII check finds with what others find."""
    tools = [_ours(PiiCheck(), lambda category: category.removeprefix("pii."), PII), *peers]
    marked = {span.category for text in texts for span in text.spans}
    compared = tuple(c for c in PII if c in marked and all(c in tool.categories for tool in tools))
    alone = [f"{tool.name}: {', '.join(tool.unmapped)}" for tool in tools if tool.unmapped]
    only = sorted(c for c in marked.difference(compared))
    results = []
    for tool in tools:
        found = [tool.find(text.text) for text in texts]
        for threshold, note in _thresholds(tool, texts, found, compared):
            kept = _at_least(threshold, found)
            rows = {c: tally(texts, kept, c) for c in sorted(marked) if c in tool.categories}
            results.append(Result(tool.name, note, rows, total(rows[c] for c in compared)))
    return Comparison(corpus, len(texts), compared, (*only, *alone), results)


def compare_secrets(texts: Sequence[LabelledText], peers: Sequence[Peer] = ()) -> Comparison:
    """Compare what the secrets check finds with what others find; a finding of any kind will do for a secret."""
    tools = [_ours(SecretsCheck(), lambda _: SECRET, (SECRET,)), *peers]
    plain = [replace(t, spans=tuple(replace(s, category=SECRET) for s in t.spans)) for t in texts]
    kinds = sorted({span.category for text in texts for span in text.spans})
    results = []
    for tool in tools:
        found = _at_least(THRESHOLD, [tool.find(text.text) for text in texts])
        rows = {kind: replace(tally(texts, found, kind, SECRET), findings=None, right=None) for kind in kinds}
        results.append(Result(tool.name, tool.about, rows, tally(plain, found, SECRET)))
    left_out = tuple(f"{tool.name}: {', '.join(tool.unmapped)}" for tool in tools if tool.unmapped)
    return Comparison("secrets", len(texts), (SECRET,), left_out, results)


def tally(
    texts: Sequence[LabelledText], found: Sequence[Sequence[Scored]], category: str, named: str | None = None
) -> Tally:
    """Count one category.

    Args:
        found: of each text, what a tool found.
        named: what findings of it are called, where that is not the name of the category.
    """
    marks = met = whole = findings = right = 0
    for text, all_found in zip(texts, found, strict=True):
        spans = [span for span in text.spans if span.category == category]
        of_it = [one for one in all_found if one.category == (named or category)]
        findings += len(of_it)
        right += sum(any(_touch(one, span) for span in spans) for one in of_it)
        marks += len(spans)
        met += sum(any(_touch(one, span) for one in of_it) for span in spans)
        whole += sum(_holds(of_it, text.text, span) for span in spans)
    return Tally(marks, met, whole, findings, right)


def total(tallies: Iterable[Tally]) -> Tally:
    """Add up tallies that have findings."""
    rows = [(t.marks, t.met, t.whole, t.findings or 0, t.right or 0) for t in tallies]
    return Tally(*(sum(column) for column in zip(*rows, strict=True))) if rows else Tally(0, 0, 0, 0, 0)


def with_live_values(texts: Iterable[LabelledText]) -> list[LabelledText]:
    """Put values that are in use in place of those kept for documentation, which some tools pass over on purpose."""
    live = []
    for one in texts:
        text = one.text
        for stand_in, value in LIVE:
            text = text.replace(stand_in, value)
        live.append(replace(one, text=text))
    return live


def _ours(check: Check, name: Callable[[str], str], categories: tuple[str, ...]) -> Peer:
    def find(text: str) -> list[Scored]:
        findings = check.find(Passage(Stage.OUTPUT, "assistant", text))
        return [Scored(s.start, s.end, name(f.category), f.score) for f in findings for s in f.spans]

    return Peer("ringfence", "", frozenset(categories), find, THRESHOLD)


def _thresholds(
    tool: Peer, texts: Sequence[LabelledText], found: Sequence[Sequence[Scored]], compared: Sequence[str]
) -> Sequence[tuple[float, str]]:
    """Return what a tool is measured at: its own threshold, and for others the one that is best for them here."""
    own = (tool.threshold, f"{tool.about}; its default threshold, {tool.threshold:g}" if tool.about else "")
    if not tool.about:
        return [own]

    def f1(threshold: float) -> float:
        kept = _at_least(threshold, found)
        return total(tally(texts, kept, category) for category in compared).to_json()["f1"] or 0.0

    best = max(sorted({one.score for row in found for one in row} | {tool.threshold}), key=f1)
    return [own] if best == tool.threshold else [own, (best, f"the threshold that is best for it here, {best:g}")]


def _at_least(threshold: float, found: Sequence[Sequence[Scored]]) -> list[list[Scored]]:
    return [[one for one in row if one.score >= threshold] for row in found]


def _touch(one: Scored, span: LabelledSpan) -> bool:
    return one.start < span.end and span.start < one.end


def _holds(found: Sequence[Scored], text: str, span: LabelledSpan) -> bool:
    places = (at for at in range(span.start, span.end) if text[at].isalnum())
    return all(any(one.start <= at < one.end for one in found) for at in places)


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


# ---- speed

TEXTS = Path(__file__).parent / "texts"

KILOBYTE = 1000
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
BAR_MS = 1.0
"""What all checks together may cost on a kilobyte of ordinary text that they never read before, as a median."""

GROWS = 2.0
"""By this much may a kilobyte of the longest text cost more than one of a tenth of it, before it counts as not linear.

Not more than one alone: what a short text does not hold spares it work once (a table's rows whose hint is missing, a
second reading where nothing is disguised), and a long mixture holds everything.
"""

NEW, AGAIN, NOTHING = "ordinary", "ordinary, read again", "ordinary, under a new system message"
"""Replies that the checks never read, ones that they have just read, ones with all around them that they never read."""

Timed = Callable[[Passage], object]


@dataclass(frozen=True, slots=True)
class Speed:
    """What the checks cost.

    Attributes:
        per_text: by kind of text, then by check, milliseconds for a kilobyte: the median over the texts of each one's
            median; `all` is that of the sums.
        texts: how many texts there were of each kind.
        per_kilobyte: by check, milliseconds a kilobyte at each length in bytes, of a mixture of all kinds of text.
        over_one: of these, a kilobyte of the longest text over one alone.
        over_tenth: a kilobyte of the longest text over one of the next shorter, a tenth of it.
    """

    per_text: Mapping[str, Mapping[str, float]]
    texts: Mapping[str, int]
    per_kilobyte: Mapping[str, Mapping[int, float]]
    over_one: Mapping[str, float]
    over_tenth: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return one object, as `ringfence bench checks --json` prints it."""
        return {
            "per_text_ms": {kind: _rounded(row) for kind, row in self.per_text.items()},
            "texts": dict(self.texts),
            "promised": {"kind": NEW, "median_ms": round(self.per_text[NEW]["all"], 4), "bar_ms": BAR_MS},
            "per_kilobyte_ms": {name: _rounded(row) for name, row in self.per_kilobyte.items()},
            "longest_over_1_kB": _rounded(self.over_one),
            "longest_over_a_tenth": _rounded(self.over_tenth),
            "not_linear": [name for name, factor in self.over_tenth.items() if factor > GROWS],
        }


def timed_checks(checks: Mapping[str, Check] | None = None) -> dict[str, Timed]:
    """Return what is timed: every installed check without weights, and the reading of disguises before the one with.

    In this order, as checks share what they read: who asks first pays for it.
    """
    ours = {name: check for name, check in (checks or load_checks()).items() if not isinstance(check, Versioned)}
    undone: dict[str, Timed] = {
        "normalise": lambda passage: variants(passage.text),
        "spellings": lambda passage: spellings(passage.text),
    }
    return {**undone, **{name: check.find for name, check in ours.items()}}


def measure_speed(sides: Mapping[str, Timed], sizes: Sequence[int] = SIZES, rounds: int = 5) -> Speed:
    """Time each side; seconds are those that the processor worked for it, so that other programs do not count.

    Texts are replies, each to its prompt, under a system message of a kilobyte, as in use.
    """
    replies = [Passage(Stage.OUTPUT, "assistant", *texts, system_message()) for texts in replies_and_prompts()]
    corpora = {name: [text.text for text in load_corpus_of(name)] for name in ("pii", "secrets")}
    found = {kind: [replace(replies[0], text=block) for block in blocks_of(texts)] for kind, texts in corpora.items()}
    kinds: dict[str, tuple[Sequence[Passage], Renewed]] = {
        NEW: (replies, _new_text),
        AGAIN: (replies, lambda passage: passage),
        NOTHING: (replies, _new_everything),
        **{kind: (passages, _new_text) for kind, passages in found.items()},
    }
    per_text = {kind: _per_text(sides, *texts, rounds) for kind, texts in kinds.items()}
    mixed = [text for three in zip(cycle(reply.text for reply in replies), *corpora.values()) for text in three]
    per_kilobyte: dict[str, dict[int, float]] = {name: {} for name in sides}
    for size in sizes:
        often = max(1, min(50, 100_000 // size))  # the longest once, the shortest on many stretches
        blocks = [replace(replies[0], text=block) for block in blocks_of(mixed, size, often)]
        costs = [_least(sides, block, 1 if size >= 1_000_000 else rounds) for block in blocks]
        for name in sides:
            per_kilobyte[name][size] = sum(cost[name] for cost in costs) / len(costs) / (size / KILOBYTE)
    over_one, over_tenth = (
        {name: row[sizes[-1]] / row[size] for name, row in per_kilobyte.items()} for size in (sizes[0], sizes[-2])
    )
    return Speed(per_text, {kind: len(texts) for kind, (texts, _) in kinds.items()}, per_kilobyte, over_one, over_tenth)


def replies_and_prompts() -> list[tuple[str, str]]:
    """Return the first kilobyte of ordinary replies, prose and chat, and what each answers."""
    rows = [row for _, row in read_rows(TEXTS / "replies.jsonl")]
    return [(blocks_of([row["response"]])[0], row["text"]) for row in rows]


def system_message() -> str:
    """Return a kilobyte of what operators tell a model."""
    return blocks_of([row["text"] for _, row in read_rows(TEXTS / "operators.jsonl") if not row["prompt_label"]])[0]


def blocks_of(texts: Sequence[str], size: int = KILOBYTE, most: int | None = None) -> list[str]:
    """Join texts, from the first again where they do not do, and cut them into blocks of so many bytes."""
    once = "\n".join(texts).encode() + b"\n"
    needed = size * (most or max(1, len(once) // size))
    data = once * (needed // len(once) + 1)
    return [data[at : at + size].decode(errors="ignore") for at in range(0, needed, size)]


Renewed = Callable[[Passage], Passage]
"""Makes of a passage one that costs the same and has, or has not, been read before."""


def _per_text(
    sides: Mapping[str, Timed], passages: Sequence[Passage], renewed: Renewed, rounds: int
) -> Mapping[str, float]:
    medians: dict[str, list[float]] = {name: [] for name in (*sides, "all")}
    for passage in passages:
        _costs(sides, passage)  # untimed: what is loaded once, and what is remembered of this text and those around it
        costs = [_costs(sides, renewed(passage)) for _ in range(rounds)]
        for name in sides:
            medians[name].append(median(cost[name] for cost in costs))
        medians["all"].append(median(sum(cost.values()) for cost in costs))
    return {name: median(row) for name, row in medians.items()}


def _costs(sides: Mapping[str, Timed], passage: Passage) -> dict[str, float]:
    """Return milliseconds of each side, which read one passage one after the other."""
    costs = {}
    for name, side in sides.items():
        start = time.thread_time()
        side(passage)
        costs[name] = 1000 * (time.thread_time() - start)
    return costs


def _least(sides: Mapping[str, Timed], passage: Passage, rounds: int) -> dict[str, float]:
    """Return milliseconds for a new text; of several rounds the least, as only the machine can make one take longer."""
    costs = [_costs(sides, _new_text(passage)) for _ in range(rounds)]
    return {name: min(cost[name] for cost in costs) for name in sides}


def _new_text(passage: Passage) -> Passage:
    return replace(passage, text=_never_read(passage.text))


def _new_everything(passage: Passage) -> Passage:
    prompt, system = _never_read(passage.prompt), _never_read(passage.system)
    return replace(_new_text(passage), prompt=prompt, system=system)


NUMBERS = count()


def _never_read(text: str) -> str:
    """Return a text with another word of four letters at its end, so that nothing can be remembered of it."""
    number = next(NUMBERS)
    word = "".join(chr(ord("a") + number // 26**digit % 26) for digit in range(4))
    return f"{text[:-5]} {word}"


def _rounded(row: Mapping[Any, float]) -> dict[str, float]:
    return {str(key): round(value, 4) for key, value in row.items()}
