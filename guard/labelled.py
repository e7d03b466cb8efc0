"""Turns labelled rows into the scores that thresholds are fitted to. Knows rows and checks, and no statistics."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf, isnan
from pathlib import Path
from types import MappingProxyType

from ringfence.guard.check import VOICES, Finding, Passage
from ringfence.guard.classifier.files import read_path
from ringfence.guard.classifier.rows import Row, RowError, exchange_of, zero_or_one
from ringfence.policies.decide import alone
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.fit import Scored
from ringfence.policies.types import Rule, Stage
from ringfence.policies.words import covers

FIELDS: Mapping[tuple[str, Stage], str] = MappingProxyType(
    {
        ("harm", Stage.INPUT): "prompt_label",
        ("harm", Stage.OUTPUT): "response_label",
        ("refusal", Stage.OUTPUT): "refusal",
    }
)
"""Which field says whether a text is of a category. Else the field called like the category, `response_` before it for
the response; `harm.S9` is what `category` or `categories` say of a text that is harmful."""

WORDS: Mapping[str, int] = MappingProxyType({"none": 0, "jailbreak": 1, "injection": 1})
"""What `attack` may be called in place of 0 and 1."""

Find = Callable[[Passage], Sequence[Finding]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and what it is, 0 or 1, by the ids of the rules that it has a label for."""

    passage: Passage
    labels: Mapping[str, int]


def field_of(category: str, stage: Stage) -> str:
    """Name the field of a row that says whether its text is of a category."""
    root = "harm" if covers("harm", category) else category
    return FIELDS.get((root, stage), category if stage is Stage.INPUT else f"response_{category}")


def read_labelled(path: Path, rules: Sequence[Rule]) -> list[Labelled]:
    """Read from a file or folder of rows every text that is labelled for a rule; a text that comes again counts once.

    Raises:
        RowError: a row is not as expected, a text is labelled both ways, or there is no row; the message begins with
            `FILE:line`.
    """
    found: dict[tuple[Stage, str, str], Labelled] = {}
    where = ""
    for where, row in read_path(path):
        for passage in _passages(row, where):
            try:
                read = {rule.id: label_of(row, rule.category, passage.stage) for rule in rules if _reads(rule, passage)}
            except ValueError as error:
                raise RowError(f"{where}: {error}") from error
            labels = {rule: label for rule, label in read.items() if label is not None}
            key = (passage.stage, passage.text, passage.prompt)
            known = found[key].labels if key in found else {}
            labels = merged(known, labels, where, "rule '{}'".format)
            if labels:
                found[key] = Labelled(passage, labels)
    if not where:
        raise RowError(f"{path}: there is no row in it")
    return list(found.values())


def merged(
    known: Mapping[str, int], labels: Mapping[str, int], where: str, called: Callable[[str], str]
) -> dict[str, int]:
    """Return what a text is labelled with, here and before.

    Args:
        called: says in words what a label is of.

    Raises:
        RowError: it is labelled both ways.
    """
    if torn := [name for name, label in labels.items() if known.get(name, label) != label]:
        raise RowError(f"{where}: the same text is labelled otherwise before, for {called(torn[0])}")
    return {**known, **labels}


def refuse_unlabelled(rules: Iterable[Rule], texts: Iterable[Labelled], path: Path) -> None:
    """Refuse rows of which none has a label for a rule at one of its stages.

    Raises:
        RowError: with a line for each such stage, which names the field that was looked for.
    """
    labelled = {(rule, text.passage.stage) for text in texts for rule in text.labels}
    missing = [(rule, stage) for rule in rules for stage in rule.stages if (rule.id, stage) not in labelled]
    if missing:
        hint = "label the rows, narrow 'stages', or write a 'threshold'"
        what = (
            (_wanted(one.category, stage), f"rule '{one.id}' goes by on the {stage} stage") for one, stage in missing
        )
        raise RowError("\n".join(f"{path}: no row has {field}, which {who}; {hint}" for field, who in what))


def read_label(row: Row, name: str) -> int | None:
    """Read a label of our own rows: 0, 1 or null, `attack` also by its words.

    Raises:
        ValueError: it is something else.
    """
    word = row.get(name)
    if name != "attack" or not isinstance(word, str) or word in ("", "0", "1"):
        return zero_or_one(row, name)
    if word not in WORDS:
        raise ValueError(f"attack must be 0, 1, null or one of {', '.join(WORDS)}, got {word!r}")
    return WORDS[word]


def label_of(row: Row, category: str, stage: Stage) -> int | None:
    """Return whether the text of a stage is of a category, 1 or 0; None where the row does not say.

    Raises:
        ValueError: a label is neither 0, 1 nor null.
    """
    label = read_label(row, field_of(category, stage))
    if not category.startswith("harm.") or label != 1:
        return label
    one, several = row.get("category"), row.get("categories")
    hazards = [*(several if isinstance(several, list) else []), *([one] if one else [])]
    return int(category.removeprefix("harm.") in hazards) if hazards else None


def refuse_unread(rules: Iterable[Rule]) -> None:
    """Refuse targets of rules that read no text of any row, whatever the rows.

    Raises:
        PolicyError: with every stage of a rule at which its roles leave no text.
    """
    problems = []
    for rule in rules:
        for stage in rule.stages:
            if rule.roles and VOICES[stage] not in rule.roles:
                what = (
                    f"rule '{rule.id}' has a 'target', and on the {stage} stage rows have text of {VOICES[stage]} only"
                )
                hint = "which its roles leave out; narrow 'stages', or write a 'threshold'"
                problems.append(Problem(rule.written_at("roles"), f"{what}, {hint}"))
    if problems:
        raise PolicyError(problems)


def score(rules: Sequence[Rule], texts: Iterable[Labelled], find: Find) -> Mapping[str, Mapping[Stage, Scored]]:
    """Return the scores of the labelled texts by rule and stage; a stage without any is there all the same.

    Where a rule's condition does not hold, it has found nothing in the text, however high its category scores there.
    """
    kept: dict[tuple[str, Stage], tuple[list[float], list[float]]] = {
        (rule.id, stage): ([], []) for rule in rules for stage in rule.stages
    }
    unanswered = dict.fromkeys(kept, 0)
    by_id = {rule.id: rule for rule in rules}
    for text in texts:
        findings = find(text.passage)
        for name, label in text.labels.items():
            where = (name, text.passage.stage)
            highest = _highest(by_id[name], text.passage.stage, findings)
            if highest is None:
                unanswered[where] += 1
            else:
                kept[where][label].append(highest)
    return {
        rule.id: {
            stage: Scored(tuple(kept[rule.id, stage][0]), tuple(kept[rule.id, stage][1]), unanswered[rule.id, stage])
            for stage in rule.stages
        }
        for rule in rules
    }


def digest(path: Path) -> str:
    """Return the sha256 of a file; of a folder, that of what `sha256sum` prints of its files in order of name."""
    if not path.is_dir():
        return sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.iterdir() if file.is_file())
    return sha256("".join(f"{digest(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def _wanted(category: str, stage: Stage) -> str:
    hazard = category.startswith("harm.")
    return f"'{field_of(category, stage)}'" + (" with 'category' or 'categories' where it is 1" if hazard else "")


def _passages(row: Row, where: str) -> Iterator[Passage]:
    text, response = exchange_of(row, where)
    yield Passage(Stage.INPUT, VOICES[Stage.INPUT], text)
    if response is not None:
        yield Passage(Stage.OUTPUT, VOICES[Stage.OUTPUT], response, text)


def _reads(rule: Rule, passage: Passage) -> bool:
    return passage.stage in rule.stages and (not rule.roles or passage.voice in rule.roles)


def _highest(rule: Rule, stage: Stage, findings: Sequence[Finding]) -> float | None:
    """Return the highest threshold at which the rule would fire; None where a check behind it could not answer.

    Minus infinity where it would at none.
    """
    at_any = alone(replace(rule, threshold=0.0), stage, findings)
    if at_any.unanswered:
        return None
    scores = [finding.score for finding in findings if at_any.rules and covers(rule.category, finding.category)]
    return max((inf if isnan(one) else one for one in scores), default=-inf)
