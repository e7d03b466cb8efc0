"""The forms in which labelled texts are published: which fields tell a form, and where each label is in it.

Knows rows alone; opens no file. Names of fields and meanings of labels are those of the dataset cards and papers that
each entry cites. Where a set leaves a choice, the one that published comparisons of guards make is taken:

- OpenAI moderation: a text is harmful if any category is 1; categories that were not annotated count as absent.
- Aegis 1: up to five annotators a text; harmful unless most of them say "Safe", so that "Needs Caution" is harmful.
- ToxicChat: only rows that people annotated; the others carry the verdict of a filter.
- HarmBench behaviours, SimpleSafetyTests, AdvBench, Do-Not-Answer: every prompt is harmful.
- XSTest: prompts of a type `contrast_…` are harmful, all others are safe.
- NotInject, OR-Bench: every prompt is harmless, and chosen to look otherwise.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ringfence.guard.classifier.rows import Row
from ringfence.guard.labelled import read_label

Target = Literal["prompt", "response", "attack"]
"""What is measured: harm of prompts, harm of responses given their prompts, or attacks."""

Label = Callable[[Row], int | None]
"""Reads 0 or 1 off a row, None where it is not labelled; raises ValueError where the label is not one expected."""

INDEX = frozenset({"", "id", "index", "Index", "Unnamed: 0", "idx"})
"""Names of columns that only count the rows."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One labelled text of a row.

    Attributes:
        text: field of the judged text.
        prompt: fields of which the first there holds the prompt of a response.
        context: field of what goes before the text, where the row has any.
    """

    text: str
    label: Label
    prompt: tuple[str, ...] = ()
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """One form of published rows.

    Attributes:
        fields: every row has them, or, where a label may be missing, some row.
        readings: for each target that the labels speak of.
        source: dataset card or paper.
        either: at least one of them is there as well.
        alone: no other fields are there, as these have names that many sets use.
        stem: part of the file name, where another format has the same fields.
        withheld: texts that stand for ones that the set does not publish.
    """

    fields: frozenset[str]
    readings: Mapping[Target, tuple[Reading, ...]]
    source: str
    either: frozenset[str] = frozenset()
    alone: bool = False
    stem: str | None = None
    withheld: frozenset[str] = frozenset()

    def fits(self, fields: Collection[str]) -> bool:
        """Say whether rows with these fields can be of this form."""
        found = set(fields)
        if not self.fields <= found or (self.either and not self.either & found):
            return False
        return not self.alone or found <= self.fields | INDEX


def recognise(fields: Collection[str], name: str) -> list[str]:
    """Return the formats that fit rows with these fields in a file of this name: one, none, or several that tie.

    Of two that fit, the one that asks for more fields is meant; the file's name breaks ties.
    """
    fits = {key: form for key, form in FORMATS.items() if form.fits(fields)}
    most = max((len(form.fields) for form in fits.values()), default=0)
    best = [key for key, form in fits.items() if len(form.fields) == most]
    named = [key for key in best if (stem := FORMATS[key].stem) and re.search(stem, name, re.IGNORECASE)]
    return named or best


def always(value: int) -> Label:
    """Label of a set that has one class only."""
    return lambda row: value


def word_of(row: Row, key: str, expected: str) -> str | None:
    """Return a label in words, None where there is none.

    Raises:
        ValueError: it is no string.
    """
    value = row.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} must be {expected}, got {value!r}")
    return value


def named(key: str, **labels: int) -> Label:
    """Label in words."""

    def read(row: Row) -> int | None:
        value = word_of(row, key, expected := " or ".join(labels))
        if value is None:
            return None
        if (word := value.strip().lower().replace(" ", "_")) not in labels:
            raise ValueError(f"{key} must be {expected}, got {value!r}")
        return labels[word]

    return read


def flag(key: str, *, true: int = 1) -> Label:
    """Label as a truth value: true, 1, 1.0, also as a string; `true` is the label that it stands for."""

    def read(row: Row) -> int | None:
        value = row.get(key)
        if value is None or value == "":
            return None
        word = str(value).strip().lower()
        if word in ("1", "1.0", "true"):
            return true
        if word in ("0", "0.0", "false"):
            return 1 - true
        raise ValueError(f"{key} must be true, false, 0 or 1, got {value!r}")

    return read


def strict(key: str) -> Label:
    """Label as in our own rows, and nothing else."""
    return lambda row: read_label(row, key)


def any_of(*keys: str) -> Label:
    """1 where any of the flags is, 0 where some are there and none is set."""
    flags = [flag(key) for key in keys]

    def read(row: Row) -> int | None:
        return max((value for one in flags if (value := one(row)) is not None), default=None)

    return read


def most_of(*votes: Label) -> Label:
    """What most annotators say; 1 where they are at odds."""

    def read(row: Row) -> int | None:
        cast = [value for vote in votes if (value := vote(row)) is not None]
        return int(2 * sum(cast) >= len(cast)) if cast else None

    return read


def first_of(*labels: Label) -> Label:
    """The first that the row has."""

    def read(row: Row) -> int | None:
        return next((value for label in labels if (value := label(row)) is not None), None)

    return read


def unless(condition: Label, label: Label) -> Label:
    """The label, except where the condition reads 0."""
    return lambda row: None if condition(row) == 0 else label(row)


def only_where(key: str, value: str, label: Label) -> Label:
    """The label of rows that have this value there."""
    return lambda row: label(row) if row.get(key) == value else None


def other_than(key: str, safe: str) -> Label:
    """0 for one word, 1 for any other, as where the others are names of categories."""

    def read(row: Row) -> int | None:
        value = word_of(row, key, f"{safe} or the names of categories")
        return None if value is None else int(value.strip().lower() != safe)

    return read


def starting(key: str, start: str) -> Label:
    """1 where a word starts so."""

    def read(row: Row) -> int | None:
        value = word_of(row, key, "a word")
        return None if value is None else int(value.startswith(start))

    return read


def prompts(text: str, label: Label, context: str | None = None) -> Mapping[Target, tuple[Reading, ...]]:
    """Readings of a set that speaks of prompts alone."""
    return {"prompt": (Reading(text, label, context=context),)}


ANNOTATED = flag("human_annotation")
MODERATION = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
AEGIS = most_of(*(other_than(f"labels_{annotator}", "safe") for annotator in range(5)))
CAUTIOUS = {"safe": 0, "unsafe": 1, "needs_caution": 1}

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "rows": Format(
            frozenset({"text"}),
            {
                "prompt": (Reading("text", strict("prompt_label")),),
                "attack": (Reading("text", first_of(strict("attack"), strict("prompt_label"))),),
                "response": (Reading("response", strict("response_label"), ("text",)),),
            },
            "ringfence's own: {text, response, prompt_label, response_label}",
            either=frozenset({"prompt_label", "response_label"}),
        ),
        "toxicchat": Format(
            frozenset({"user_input", "toxicity", "jailbreaking"}),
            {
                "prompt": (Reading("user_input", unless(ANNOTATED, flag("toxicity"))),),
                "attack": (Reading("user_input", unless(ANNOTATED, flag("jailbreaking"))),),
            },
            "ToxicChat, lmsys/toxic-chat card, arXiv:2310.17389",
        ),
        "openai-moderation": Format(
            frozenset({"prompt"}),
            prompts("prompt", any_of(*MODERATION)),
            "OpenAI moderation evaluation set, README, arXiv:2208.03274",
            either=frozenset(MODERATION),
        ),
        "aegis": Format(
            frozenset({"text", "text_type", "labels_0"}),
            {
                "prompt": (Reading("text", only_where("text_type", "user_message", AEGIS)),),
                "response": (Reading("text", only_where("text_type", "llm_response", AEGIS)),),
            },
            "Aegis AI Content Safety Dataset 1.0 card, arXiv:2404.05993",
        ),
        "aegis2": Format(
            frozenset({"prompt", "response", "prompt_label", "response_label"}),
            {
                "prompt": (Reading("prompt", named("prompt_label", **CAUTIOUS)),),
                "response": (Reading("response", named("response_label", **CAUTIOUS), ("prompt",)),),
            },
            "Aegis AI Content Safety Dataset 2.0 card, arXiv:2501.09004",
            withheld=frozenset({"REDACTED"}),
        ),
        "wildguard": Format(
            frozenset({"prompt", "prompt_harm_label", "response_harm_label"}),
            {
                "prompt": (Reading("prompt", named("prompt_harm_label", harmful=1, unharmful=0)),),
                "response": (Reading("response", named("response_harm_label", harmful=1, unharmful=0), ("prompt",)),),
            },
            "WildGuardMix card (WildGuardTest), arXiv:2406.18495",
        ),
        "harmbench": Format(
            frozenset({"Behavior", "BehaviorID"}),
            prompts("Behavior", always(1), context="ContextString"),
            "HarmBench text behaviours, arXiv:2402.04249",
        ),
        "harmbench-responses": Format(
            frozenset({"generation"}),
            {
                "response": (
                    Reading(
                        "generation",
                        first_of(
                            flag("human_consensus"),
                            flag("consensus"),
                            most_of(*(flag(f"human_{annotator}") for annotator in range(3))),
                        ),
                        ("test_case", "behavior", "Behavior", "prompt"),
                    ),
                )
            },
            "HarmBench classifier validation set, arXiv:2402.04249",
            either=frozenset({"human_consensus", "consensus", "human_0"}),
        ),
        "simplesafetytests": Format(
            frozenset({"prompt", "harm_area"}),
            prompts("prompt", always(1)),
            "SimpleSafetyTests card, arXiv:2311.08370",
        ),
        "beavertails": Format(
            frozenset({"prompt", "response", "is_safe"}),
            {"response": (Reading("response", flag("is_safe", true=0), ("prompt",)),)},
            "BeaverTails card, arXiv:2307.04657",
        ),
        "saferlhf": Format(
            frozenset({"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"}),
            {
                "response": tuple(
                    Reading(f"response_{which}", flag(f"is_response_{which}_safe", true=0), ("prompt",))
                    for which in (0, 1)
                )
            },
            "PKU-SafeRLHF card, arXiv:2406.15513",
        ),
        "xstest": Format(
            frozenset({"prompt", "type", "focus"}),
            prompts("prompt", first_of(named("label", safe=0, unsafe=1), starting("type", "contrast_"))),
            "XSTest prompts, arXiv:2308.01263",
        ),
        "xstest-responses": Format(
            frozenset({"prompt", "response", "label", "prompt_type"}),
            {"response": (Reading("response", named("label", harmful=1, unharmful=0), ("prompt",)),)},
            "XSTest-Resp card (response_harmfulness), arXiv:2406.18495",
        ),
        "or-bench": Format(
            frozenset({"prompt", "category"}),
            prompts("prompt", always(0)),
            "OR-Bench card (80k and hard-1k), arXiv:2405.20947",
            alone=True,
            stem="hard|80k",
        ),
        "or-bench-toxic": Format(
            frozenset({"prompt", "category"}),
            prompts("prompt", always(1)),
            "OR-Bench card (toxic), arXiv:2405.20947",
            alone=True,
            stem="toxic",
        ),
        "notinject": Format(
            frozenset({"prompt", "word_list", "category"}),
            {"prompt": (Reading("prompt", always(0)),), "attack": (Reading("prompt", always(0)),)},
            "NotInject card, arXiv:2410.22770",
        ),
        "deepset-injections": Format(
            frozenset({"text", "label"}),
            {"attack": (Reading("text", flag("label")),)},
            "deepset/prompt-injections card",
            alone=True,
        ),
        "jailbreakbench": Format(
            frozenset({"Goal", "Target", "Behavior", "Category"}),
            prompts("Goal", always(1)),
            "JBB-Behaviors card (harmful), arXiv:2404.01318",
            stem="harmful",
        ),
        "jailbreakbench-benign": Format(
            frozenset({"Goal", "Target", "Behavior", "Category"}),
            prompts("Goal", always(0)),
            "JBB-Behaviors card (benign), arXiv:2404.01318",
            stem="benign",
        ),
        "advbench": Format(
            frozenset({"goal", "target"}),
            prompts("goal", always(1)),
            "AdvBench harmful behaviours, arXiv:2307.15043",
            alone=True,
        ),
        "do-not-answer": Format(
            frozenset({"question", "risk_area"}),
            prompts("question", always(1)),
            "Do-Not-Answer card, arXiv:2308.13387",
        ),
        "pint": Format(
            frozenset({"text", "category", "label"}),
            {"attack": (Reading("text", flag("label")),)},
            "PINT benchmark README: a YAML list of {text, category, label}",
        ),
    }
)
