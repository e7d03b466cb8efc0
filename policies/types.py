"""The words a policy is made of, and what judging hands to it and gets back. Values only; no behaviour beyond order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Annotated, Literal, NoReturn

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, ConfigDict, StringConstraints
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

STRICT_KEYS = ConfigDict(extra="forbid")
DEFAULT_MESSAGE = "This exchange was stopped by the safety policy of this service."

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A rule's or a policy's name: fit for a header, a metric label, a file name."""

Category = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9][A-Za-z0-9_-]*)*$")]
"""A dotted category, most general first."""

Text = Annotated[str, MinLen(1)]


class Stage(StrEnum):
    """When a text is judged."""

    INPUT = "input"
    OUTPUT = "output"


class Action(StrEnum):
    """What a rule asks for, weakest first; where several rules fire the strongest wins."""

    ALLOW = "allow"
    LOG = "log"
    REWRITE = "rewrite"
    BLOCK = "block"

    @property
    def strength(self) -> int:
        """Rank for comparison: 0 for ALLOW up to 3 for BLOCK."""
        return list(Action).index(self)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one part of an exchange: `[start, end)` in Unicode code points."""

    part: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw.

    Attributes:
        check: the name of the check.
        category: dotted, most general first (`pii.email`, `harm.S9`); a rule over `pii` meets every `pii.*`.
        score: calibrated probability, 0 to 1, that the text belongs to the category; 0 where `error` is set.
        spans: where; empty only where `error` is set.
        detail: a few words for a person to read, never the matched text itself.
        error: why the check could not answer for this category; None where it could.
        rewritable: whether its spans can be replaced; a rule that asks for that blocks where they cannot.
    """

    check: str
    category: str
    score: float
    spans: tuple[Span, ...] = ()
    detail: str = ""
    error: str | None = None
    rewritable: bool = True


@dataclass(frozen=True, slots=True)
class Origin:
    """The line of a policy file that a value came from; line and column count from 1."""

    file: str = "<memory>"
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


def _not_written(value: object) -> NoReturn:
    raise PydanticCustomError("unexpected_keyword_argument", "Unexpected keyword argument")


Written = Annotated[SkipJsonSchema[Origin], BeforeValidator(_not_written)]
"""An origin: the reader of a file sets it; it is not a key that a file may have."""

Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule promises in place of a threshold, one of the two; `ringfence policy fit` finds the threshold.

    Attributes:
        max_false_positive_rate: of texts that are not of the category, at most this share may make the rule fire.
        min_recall: of texts that are, at least this share must.
    """

    __pydantic_config__ = STRICT_KEYS

    max_false_positive_rate: Share | None = None
    min_recall: Share | None = None

    def __post_init__(self) -> None:
        if (self.max_false_positive_rate is None) == (self.min_recall is None):
            raise PydanticCustomError("target", "give one of 'max_false_positive_rate' and 'min_recall'")

    def __str__(self) -> str:
        if self.min_recall is None:
            return f"max_false_positive_rate {self.max_false_positive_rate:g}"
        return f"min_recall {self.min_recall:g}"


@dataclass(frozen=True, slots=True)
class Sample:
    """The texts of one stage that a threshold was fitted to, and how it does on them.

    Attributes:
        rows: distinct texts with a label, and an answer of the check.
        positives: those that are of the category.
        unanswered: texts with a label that are not among the rows, as the check could not answer.
        false_positive_rate: share of the negatives that fire; None where there are none.
        recall: share of the positives that do; None where there are none.
        bound: of the promised figure, what it keeps to with 95 % confidence.
    """

    __pydantic_config__ = STRICT_KEYS

    rows: int
    positives: int
    unanswered: int
    false_positive_rate: float | None
    recall: float | None
    bound: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The threshold that keeps a rule's promise, and what that rests on.

    Attributes:
        target: the promise.
        category: what the rule looked at.
        samples: by stage of the rule; the promise holds at each.
        data: sha256 of the labelled rows.
        guard: revision of the check that gave the scores; None for a check that has none.
        fitted: the day.
    """

    __pydantic_config__ = STRICT_KEYS

    threshold: Annotated[float, Ge(0), Le(1)]
    target: Target
    category: Category
    samples: Annotated[Mapping[Stage, Sample], MinLen(1)]
    data: str
    guard: str | None
    fitted: date


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the argument: what, when, how sure, and what then.

    Attributes:
        id: unique within the policy, also across its packs.
        category: the findings it looks at; a dotted prefix meets everything below it.
        stages: when it applies.
        threshold: it fires on a finding whose score is at or above this.
        target: what to fit the threshold to, in place of naming one.
        action: what it asks for when it fires.
        message: what a blocked caller is told; None for the policy's default message.
        replacement: what a rewritten span becomes; `{category}` is filled in, upper-cased, dots as underscores.
        on_error: what it asks for when the check behind its category could not answer; there is no rewriting
            what nobody read.
        shadow: record that it would have fired, change nothing.
        why: the reason, for the reader and the auditor.
        origin: where it was written.
        fitted: where the threshold comes from if there is a target; the lock file has it, not the policy's.
    """

    __pydantic_config__ = STRICT_KEYS

    id: Name
    category: Category
    action: Action
    stages: Annotated[tuple[Stage, ...], MinLen(1)] = (Stage.INPUT, Stage.OUTPUT)
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    message: Text | None = None
    replacement: str = "[{category}]"
    on_error: Literal[Action.ALLOW, Action.LOG, Action.BLOCK] = Action.BLOCK
    shadow: bool = False
    why: str = ""
    # What decides is the threshold that a target came to; two policies that decide alike are one.
    target: Target | None = field(default=None, compare=False)
    origin: Written = field(default_factory=Origin, compare=False)
    fitted: Annotated[SkipJsonSchema[Fitted | None], BeforeValidator(_not_written)] = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Exemption:
    """Text that the operator chose not to have judged; the coverage of every exchange says so.

    Attributes:
        role: the message role whose text is left alone (`system`, `developer`, `tool` …).
        why: the reason, shown in the coverage.
    """

    __pydantic_config__ = STRICT_KEYS

    role: Text
    why: Text
    origin: Written = field(default_factory=Origin, compare=False)


@dataclass(frozen=True, slots=True)
class UpstreamChoice:
    """Who answers: `embedded`, `fake`, or an OpenAI-compatible base URL (`http://host/v1`).

    Attributes:
        use: `embedded`, `fake`, or the base URL.
        api_key_env: environment variable that holds the upstream's key; unset, the caller's own
            Authorization header is passed on.
        timeout_s: seconds without a byte from the upstream before the exchange fails.
    """

    __pydantic_config__ = STRICT_KEYS

    use: Text = "embedded"
    api_key_env: str | None = None
    timeout_s: Annotated[float, Gt(0)] = 60.0


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How far output is held back, in code points.

    Attributes:
        window: text is judged each time about this much more has come.
        context: how much of the reply before the window is judged again with it.
        reach: a span of this length that starts in released text is never missed by a rewrite.
    """

    __pydantic_config__ = STRICT_KEYS

    window: Annotated[int, Ge(16), Le(10_000)] = 80
    context: Annotated[int, Ge(0), Le(100_000)] = 800
    reach: Annotated[int, Ge(0), Le(10_000)] = 64


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """What is remembered.

    Attributes:
        path: the SQLite file, relative to the working directory.
        text: `masked` keeps texts with every rewritten span replaced, `full` keeps them as they came,
            `none` keeps digests only.
        required: refuse to answer when the record cannot be kept.
    """

    __pydantic_config__ = STRICT_KEYS

    path: Text = "ringfence.db"
    text: Literal["masked", "full", "none"] = "masked"
    required: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request.

    Attributes:
        body_bytes: larger bodies are refused with 413.
        text: code points of text in one request; more is refused with 400, unjudged.
        check_seconds: a check that takes longer on one stage counts as failed; its rules' `on_error` settles it.
    """

    __pydantic_config__ = STRICT_KEYS

    body_bytes: Annotated[int, Gt(0)] = 4_194_304
    text: Annotated[int, Gt(0)] = 200_000
    check_seconds: Annotated[float, Gt(0)] = 30.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a deployment decided, frozen.

    What no check can read is a finding too, so that rules settle it: `unjudged.media` for images, audio and files,
    `unjudged.field` for text in request fields that the API does not document.

    Attributes:
        message: what a blocked caller is told where the rule says nothing.
        revision: sha256 over the canonical form of everything else, hexadecimal.
    """

    name: str
    rules: tuple[Rule, ...]
    message: str = DEFAULT_MESSAGE
    exempt: tuple[Exemption, ...] = ()
    upstream: UpstreamChoice = field(default_factory=UpstreamChoice)
    stream: StreamSettings = field(default_factory=StreamSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    limits: Limits = field(default_factory=Limits)
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One replacement to make: the span, what stands there afterwards, and the rule that asked for it."""

    span: Span
    replacement: str
    rule: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says about one stage of one exchange.

    Attributes:
        rules: ids of the rules that fired and asked for `action`, in policy order; none where only a failed check did.
        logged: ids of weaker rules that fired beside them.
        unanswered: ids of rules whose check could not answer, with what their `on_error` asked for.
        shadow: ids of shadow rules that would have fired, with the action they would have asked for.
        rewrites: disjoint, in order of part and start. Made when `action` is REWRITE; a BLOCK carries them too,
            so that the record of a blocked text can be kept masked.
        errors: one line for each check that could not answer.
        message: what the caller is told; empty unless `action` is BLOCK.
        revision: of the policy that decided.
    """

    stage: Stage
    action: Action
    rules: tuple[str, ...] = ()
    logged: tuple[str, ...] = ()
    unanswered: Mapping[str, Action] = field(default_factory=dict)
    shadow: Mapping[str, Action] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    errors: tuple[str, ...] = ()
    message: str = ""
    revision: str = ""
