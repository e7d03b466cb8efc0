"""What a policy may look for by itself, beside what the installed checks find: words, patterns, lengths, examples, and
what a language model or somebody else's guard makes of a text. Values only: who looks is in `guard/checks/own/`."""

from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import rfc8785
from annotated_types import Ge, Gt, Le, Len, MinLen
from pydantic import Discriminator, TypeAdapter

from ringfence.policies.words import STRICT_KEYS, WHOLE, Category, Name, Origin, Origins, Root, Text, Written

FAMILIES = "ringfence.guards"
"""Entry points, ours and other packages': the families of guards that a policy may name."""

if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(sorted({point.name for point in entry_points(group=FAMILIES)}))]


@dataclass(frozen=True, slots=True)
class Keywords:
    """Words and phrases, found in one pass however many there are.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called; rules look at them under this name.
        words: what to look for; a space in one meets any white space.
        case_sensitive: whether `May` is something else than `may`.
        whole_words: whether `cat` is not found in `concatenate`.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["keywords"]
    category: Root
    words: Annotated[tuple[Text, ...], MinLen(1)]
    case_sensitive: bool = False
    whole_words: bool = True
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Regex:
    """Regular expressions in RE2's syntax, which are matched in time linear in the text, whatever they say.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called; rules look at them under this name.
        patterns: what to look for; `(?i)` at the beginning of one makes it blind to case.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["regex"]
    category: Root
    patterns: Annotated[tuple[Text, ...], MinLen(1)]
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Length:
    """Texts of more than so many characters; the finding's span is what goes beyond.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called; rules look at them under this name.
        more_than: the longest that is not found, in Unicode code points.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["length"]
    category: Root
    more_than: Annotated[int, Ge(0)]
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Examples:
    """A category of one's own, learnt from a handful of examples when the policy is loaded.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called; rules look at them under this name.
        description: what the category is, in a sentence or two.
        match: texts that belong to it.
        leave: texts that do not; those that nearly do teach most.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["examples"]
    category: Root
    description: Text
    match: Annotated[tuple[Text, ...], Len(5, 200)]
    leave: Annotated[tuple[Text, ...], Len(5, 200)]
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class LlmJudge:
    """A policy in words, put to a language model with the text; its verdict is the finding.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called; rules look at them under this name.
        policy: what is a violation and what is not, as one would tell a new colleague.
        use: who is asked: `embedded`, `fake`, or an OpenAI-compatible base URL.
        model: which of its models.
        api_key_env: environment variable that holds its key; None where it needs none.
        timeout_s: seconds until the verdict counts as failed.
        per_minute: verdicts asked for in a minute at most; beyond them the check fails, and `on_error` settles it.
        remember: verdicts kept, so that the same text is not asked about twice.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["judge"]
    category: Root
    policy: Text
    use: Text
    model: Text = "default"
    api_key_env: Name | None = None
    timeout_s: Annotated[float, Gt(0), Le(600)] = 10.0
    per_minute: Annotated[int, Gt(0)] = 60
    remember: Annotated[int, Ge(0), Le(1_000_000)] = 10_000
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class GuardCategory:
    """What a guard model is asked about.

    Attributes:
        code: the model's own name of a category (`S6`, `violence`), or a new one, which is no S-code.
        text: what a new category is, as the model is told; for one of the model's own, left out.
    """

    __pydantic_config__ = STRICT_KEYS

    code: Text
    text: Text | None = None


@dataclass(frozen=True, slots=True)
class GuardModel:
    """A guard model of somebody else's that answers in words, as Llama Guard does; its verdict is the finding.

    Attributes:
        kind: whose guard it is; a family that is installed.
        category: what its findings are called: the verdict by this name, the model's categories below it.
        use: `local`, or the base URL of an OpenAI-compatible server (`http://host/v1`).
        model: a folder of weights, where it begins with `./` or `../` relative to this file's folder, or their name on
            the hub; for a server, which of its models.
        categories: what the model is asked about; all that it was made for where none are given.
        api: of a server, `chat`, where the prompt is the server's own, or `completions`, where it is ours.
        images: whether it is shown images too, each with the text of its message; for llama-guard-4.
        bits: of local weights, 8 or 4 a number in place of those they come with.
        api_key_env: environment variable that holds the server's key; None where it needs none.
        timeout_s: seconds until a verdict counts as failed.
        per_minute: verdicts asked of a server in a minute at most; beyond them the check fails.
        remember: a server's verdicts kept, so that the same text is not asked about twice.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Family
    category: Root
    use: Text
    model: Text
    categories: tuple[GuardCategory, ...] = ()
    api: Literal["chat", "completions"] = "chat"
    images: bool = False
    bits: Annotated[Literal[4, 8], WHOLE] | None = None
    api_key_env: Name | None = None
    timeout_s: Annotated[float, Gt(0), Le(600)] = 10.0
    per_minute: Annotated[int, Gt(0)] = 600
    remember: Annotated[int, Ge(0), Le(1_000_000)] = 10_000
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Moderations:
    """OpenAI's moderation endpoint, or any server that has one like it; what it scores is the finding.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called: the highest score by this name, the endpoint's categories below it.
        use: the base URL of the server (`https://api.openai.com/v1`).
        model: which of its models.
        api_key_env: environment variable that holds its key; None where it needs none.
        timeout_s: seconds until an answer counts as failed.
        per_minute: texts asked about in a minute at most; beyond them the check fails.
        remember: answers kept, so that the same text is not asked about twice.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["openai-moderation"]
    category: Root
    use: Text
    model: Text = "omni-moderation-latest"
    api_key_env: Name | None = None
    timeout_s: Annotated[float, Gt(0), Le(600)] = 10.0
    per_minute: Annotated[int, Gt(0)] = 600
    remember: Annotated[int, Ge(0), Le(1_000_000)] = 10_000
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Label:
    """What one label of a classifier, or of a pipeline, means.

    Attributes:
        label: as the model's `config.json` has it under `id2label`; a pipeline's, as its `meta.json` has it.
        category: what its findings are called, below the check's category; None for that itself.
    """

    __pydantic_config__ = STRICT_KEYS

    label: Text
    category: Category | None = None


@dataclass(frozen=True, slots=True)
class ClassifierModel:
    """A classifier of texts, or of images, of somebody else's, run here; the probability of its labels is the finding.

    Attributes:
        kind: `classifier-model` for any, or a model whose labels are known.
        category: what its findings are called.
        model: a folder of weights, where it begins with `./` or `../` relative to this file's folder, or their name on
            the hub.
        labels: those that speak for the category.
        multi_label: whether a text may have several labels; None for what the model's `config.json` says.
        bits: 8 or 4 a number in place of those the weights come with.
        timeout_s: seconds until a verdict counts as failed.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["classifier-model", "prompt-guard-2", "shieldgemma-2"]
    category: Root
    model: Text
    labels: tuple[Label, ...] = ()
    multi_label: bool | None = None
    bits: Annotated[Literal[4, 8], WHOLE] | None = None
    timeout_s: Annotated[float, Gt(0), Le(600)] = 10.0
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Entities:
    """Names of people, places and organisations, as a spaCy pipeline of somebody else's recognises them.

    Attributes:
        kind: what sort of check this is.
        category: what its findings are called: `name`, `place`, `organisation` below it, unless `labels` say otherwise.
        model: an installed package (`en_core_web_sm`), or a folder of a pipeline, where it begins with `./` or `../`
            relative to this file's folder.
        labels: those that count; where none are given, those of people, places and organisations.
        timeout_s: seconds until a text counts as not read.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["entities"]
    category: Root
    model: Text
    labels: tuple[Label, ...] = ()
    timeout_s: Annotated[float, Gt(0), Le(600)] = 10.0
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)


OwnCheck = Annotated[
    Keywords | Regex | Length | Examples | LlmJudge | GuardModel | Moderations | ClassifierModel | Entities,
    Discriminator("kind"),
]


def revision_as_written(check: OwnCheck) -> str:
    """Return the sha256 of what a check says, hexadecimal: with any of it another, so may be what it finds."""
    said = _written().dump_python(check, mode="json", exclude={"origin", "origins", "why"})
    return sha256(rfc8785.dumps(said)).hexdigest()


@cache
def _written() -> TypeAdapter[OwnCheck]:
    return TypeAdapter(OwnCheck)


def written_at(check: OwnCheck, key: str, index: int | None = None) -> Origin:
    """Return where a value of a check was written, or one item of a list, counted from 0; else where the check was."""
    return check.origins.get(key if index is None else f"{key}.{index}", check.origin)


def located(check: OwnCheck) -> OwnCheck:
    """Return a check whose weights are found from anywhere: `./` and `../` begin at the file that it is written in."""
    match check:
        case ClassifierModel() | Entities() | GuardModel(use="local") if check.model.startswith(("./", "../")):
            return replace(check, model=str(Path(check.origin.file).parent.resolve() / check.model))
    return check
