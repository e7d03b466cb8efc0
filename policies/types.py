"""The words a policy is made of, and what judging hands to it and gets back. Values only; no behaviour beyond order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, MinLen
from pydantic import Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from ringfence.policies.own import OwnCheck
from ringfence.policies.words import (
    NOT_WRITTEN,
    STRICT_KEYS,
    Category,
    Duration,
    Language,
    Name,
    Origin,
    Origins,
    Role,
    Root,
    Route,
    Share,
    Tag,
    Text,
    Voice,
    Written,
)

DEFAULT_MESSAGE = "This exchange was stopped by the safety policy of this service."

Message = Text | Annotated[Mapping[Language, Text], MinLen(1)]
"""What a caller is told, in one language or by language; the first stands in for those that there are not."""


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
        return _STRENGTH[self]


_STRENGTH = {action: rank for rank, action in enumerate(Action)}


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
        spans: where; empty only where `error` is set. Of an error, the text that it is about, if not every one.
        detail: a few words for a person to read, never the matched text itself.
        error: why the check could not answer for this category; None where it could.
        rewritable: whether its spans can be replaced; a rule that asks for that blocks where they cannot.
        role: who said the text: a message's role, or `tool_call` for what a model hands to a tool; empty where that
            is not known, which meets the rules of every role. Of an error, whose text could not be looked at.
        excepted: ids of the policy's exceptions that apply to it.
    """

    check: str
    category: str
    score: float
    spans: tuple[Span, ...] = ()
    detail: str = ""
    error: str | None = None
    rewritable: bool = True
    role: str = ""
    excepted: tuple[str, ...] = ()


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
        false_positive_interval: what its true value lies between, at each end with 95 % confidence.
        recall: share of the positives that do; None where there are none.
        recall_interval: of the recall, in the same way.
        bound: of the promised figure, what it keeps to with 95 % confidence: one end of its interval.
    """

    __pydantic_config__ = STRICT_KEYS

    rows: int
    positives: int
    unanswered: int
    false_positive_rate: float | None
    false_positive_interval: tuple[float, float] | None
    recall: float | None
    recall_interval: tuple[float, float] | None
    bound: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The threshold that keeps a rule's promise, and what that rests on.

    Attributes:
        target: the promise.
        category: what the rule looked at.
        samples: by stage of the rule; the promise holds at each.
        data: sha256 of the labelled rows.
        revisions: of the checks that it looked at, by the first word of what they find; None for one that has none.
        fitted: the day.
        roles: in whose text the rule looked.
        when: what else had to be found for it to fire.
    """

    __pydantic_config__ = STRICT_KEYS

    threshold: Annotated[float, Ge(0), Le(1)]
    target: Target
    category: Category
    samples: Annotated[Mapping[Stage, Sample], MinLen(1)]
    data: str
    revisions: Mapping[Root, str | None]
    fitted: date
    roles: tuple[Voice, ...]
    when: "Condition | None"


@dataclass(frozen=True, slots=True)
class Condition:
    """What else must be found for a rule to fire; one of four forms.

    Attributes:
        category: something of the category, or below it, is found at the same stage.
        threshold: how sure that must be; goes with `category`.
        any: at least one of these holds.
        all: each of these holds.
        not_: written `not`: this does not hold.
    """

    __pydantic_config__ = STRICT_KEYS

    category: Category | None = None
    threshold: Annotated[float, Ge(0), Le(1)] | None = None
    any: Annotated[tuple["Condition", ...], MinLen(1)] | None = None
    all: Annotated[tuple["Condition", ...], MinLen(1)] | None = None
    not_: Annotated["Condition | None", Field(alias="not")] = None

    def __post_init__(self) -> None:
        if sum(form is not None for form in (self.category, self.any, self.all, self.not_)) != 1:
            raise PydanticCustomError("condition", "give one of 'category', 'any', 'all' and 'not'")
        if self.threshold is not None and self.category is None:
            raise PydanticCustomError("condition", "a 'threshold' goes with a 'category'")

    @property
    def least(self) -> float:
        """The score from which on its category counts as found."""
        return 0.5 if self.threshold is None else self.threshold

    def leaves(self) -> Iterator[tuple[str, float]]:
        """Yield every category that it asks for, with the score from which on that is found."""
        if self.category is not None:
            yield self.category, self.least
        for inner in (*(self.any or ()), *(self.all or ()), *([self.not_] if self.not_ else ())):
            yield from inner.leaves()


@dataclass(frozen=True, slots=True)
class Degrade:
    """What stands in for a check that could not answer.

    Attributes:
        degrade: the rule looks at this category instead, with the same threshold; where that fails too, it blocks.
    """

    __pydantic_config__ = STRICT_KEYS

    degrade: Category


@dataclass(frozen=True, slots=True)
class Escalate:
    """Who settles what the rule's own check is not sure of, text by text.

    Attributes:
        to: a category that another check finds; that check is asked only about texts that are left to it.
        between: the band, [low, high): a score below it is as good as none, from its end on the rule fires by itself.
        threshold: from which score of `to` in the same text on the rule fires within the band.
        per_minute: texts asked about in a minute at most, by each process; beyond them the other check counts as
            failed. None for no limit but that check's own.
    """

    __pydantic_config__ = STRICT_KEYS

    to: Category
    between: Annotated[tuple[Annotated[float, Ge(0), Le(1)], ...], Len(2, 2)]
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    per_minute: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        low, high = self.between
        if not low < high:
            what = "'between' is [LOW, HIGH], the lower score first, got [{low}, {high}]"
            raise PydanticCustomError("escalate", what, {"low": f"{low:g}", "high": f"{high:g}"})

    def __str__(self) -> str:
        low, high = self.between
        return f"to {self.to} between {low:g} and {high:g}, from {self.threshold:g}"


OnError = Literal[Action.ALLOW, Action.LOG, Action.BLOCK] | Degrade
Maturity = Literal["experimental", "beta", "stable"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the argument: what, when, how sure, and what then.

    Attributes:
        id: unique within the policy, also across its packs.
        category: the findings it looks at; a dotted prefix meets everything below it.
        stages: when it applies.
        threshold: it fires on a finding whose score is at or above this.
        escalate: who is asked where its check is not sure. The threshold then counts only where `on_error` degrades to
            the rule's own category: so the rule does without the other check.
        target: what to fit the threshold to, in place of naming one.
        action: what it asks for when it fires.
        roles: whose text it applies to: roles of messages, and `tool_call` for what a model hands to a tool; all, where
            none is named.
        when: what else must be found for it to fire.
        message: what a blocked caller is told, in one language or by language; None for the policy's default message.
        replacement: what a rewritten span becomes; `{category}` is filled in, upper-cased, dots as underscores.
        restore: give the caller back in the reply what was replaced in the request; the model sees placeholders only.
        on_error: what it asks for when the check behind its category, or the one that it escalates to, could not
            answer; there is no rewriting what nobody read. `degrade: CATEGORY` has the rule look at that instead.
        seconds: how long each check behind it may take on one stage, where that is less than `limits.check_seconds`; of
            several rules over one check the shortest counts, and that of one in shadow only where all are.
        shadow: record that it would have fired, change nothing.
        maturity: how far it has proved itself.
        why: the reason, for the reader and the auditor.
        owner: who answers for it.
        tags: what it is filed under elsewhere, taxonomy first: `MLCommons:S9`, `OWASP-LLM-2025:LLM01`.
        origin: where it was written.
        origins: where its values were written, by key; those left out are missing.
        fitted: where the threshold comes from if there is a target; the lock file has it, not the policy's.
    """

    __pydantic_config__ = STRICT_KEYS

    id: Name
    category: Category
    action: Action
    stages: Annotated[tuple[Stage, ...], MinLen(1)] = (Stage.INPUT, Stage.OUTPUT)
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    escalate: Escalate | None = None
    roles: tuple[Voice, ...] = ()
    when: Condition | None = None
    message: Message | None = None
    replacement: str = "[{category}]"
    restore: bool = False
    on_error: OnError = Action.BLOCK
    seconds: Annotated[float, Gt(0)] | None = None
    shadow: bool = False
    maturity: Maturity = "stable"
    why: str = ""
    owner: str = ""
    tags: tuple[Tag, ...] = ()
    # What decides is the threshold that a target came to; two policies that decide alike are one.
    target: Target | None = field(default=None, compare=False)
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)
    fitted: Annotated[SkipJsonSchema[Fitted | None], NOT_WRITTEN] = field(default=None, compare=False)

    @property
    def least(self) -> float:
        """The score from which on a finding matters to it."""
        return self.threshold if self.escalate is None else self.escalate.between[0]

    def written_at(self, key: str) -> Origin:
        """Return where one of its values was written: with the rule, or where something changes it."""
        return self.origins.get(key, self.origin)


MAY_BE_ABSENT = ("escalate", "when", "message", "seconds")
"""Keys that a rule may do without: in a change, null takes them out of it."""

Kept = SkipJsonSchema[None]
"""What stands for a key that a change leaves as it is, where null cannot be written."""


@dataclass(frozen=True, slots=True)
class Override:
    """What is changed about one rule; everything left out stays as it is.

    Attributes:
        action: what it asks for when it fires.
        threshold: it fires on a finding whose score is at or above this.
        escalate: who is asked where its check is not sure; `null` for nobody any more.
        target: what to fit the threshold to, in place of naming one.
        stages: when it applies.
        roles: whose text it applies to.
        when: what else must be found for it to fire; `null` for nothing any more.
        message: what a blocked caller is told; `null` for the policy's message again.
        replacement: what a rewritten span becomes; `{category}` is filled in.
        restore: give the original back in the reply.
        on_error: what it asks for when the check behind its category could not answer.
        seconds: how long the check behind it may take on one stage; `null` for `limits.check_seconds` again.
        shadow: record that it would have fired, change nothing.
        maturity: how far it has proved itself.
        why: the reason, for the reader and the auditor.
        owner: who answers for it.
        tags: what it is filed under elsewhere.
        without: keys that are null, and so taken out; of `MAY_BE_ABSENT`.
    """

    __pydantic_config__ = STRICT_KEYS

    action: Action | Kept = None
    threshold: Annotated[float, Ge(0), Le(1)] | Kept = None
    escalate: Escalate | None = None
    target: Target | Kept = None
    stages: Annotated[tuple[Stage, ...], MinLen(1)] | Kept = None
    roles: tuple[Voice, ...] | Kept = None
    when: Condition | None = None
    message: Message | None = None
    replacement: str | Kept = None
    restore: bool | Kept = None
    on_error: OnError | Kept = None
    seconds: Annotated[float, Gt(0)] | None = None
    shadow: bool | Kept = None
    maturity: Maturity | Kept = None
    why: Text | Kept = None
    owner: Text | Kept = None
    tags: tuple[Tag, ...] | Kept = None
    without: Annotated[SkipJsonSchema[frozenset[str]], NOT_WRITTEN] = frozenset()

    @property
    def given(self) -> Mapping[str, Any]:
        """What it says, by key of the rule: None for what it takes out."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "without"}
        return {key: value for key, value in said.items() if value is not None or key in self.without}


@dataclass(frozen=True, slots=True)
class Scope:
    """Which exchanges something is about: each list that is given must meet, by name or by pattern (`clinic-*`).

    At least one list is given.

    Attributes:
        tenant: whose exchange it is.
        key: by which key the caller came; the key's id, never the key.
        model: the model that the caller asks for.
        route: how the exchange came.
    """

    __pydantic_config__ = STRICT_KEYS

    tenant: Annotated[tuple[Text, ...], MinLen(1)] = ()
    key: Annotated[tuple[Text, ...], MinLen(1)] = ()
    model: Annotated[tuple[Text, ...], MinLen(1)] = ()
    route: Annotated[tuple[Route, ...], MinLen(1)] = ()

    def __post_init__(self) -> None:
        if not (self.tenant or self.key or self.model or self.route):
            raise PydanticCustomError("scope", "give at least one of 'tenant', 'key', 'model' and 'route'")


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is different for some exchanges; where several are about one, they apply in order.

    Attributes:
        id: unique among the policy's overlays; the record names those that applied.
        scope: which exchanges it is about.
        remove: ids of rules that do not apply.
        override: changes to rules, by id.
        rules: rules that apply beside the others.
        message: what a blocked caller is told where the rule says nothing.
        why: the reason, for the reader and the auditor.
        origin: where it was written.
        origins: where its values were written, by key: `message`, `override.RULE.threshold`, `remove.RULE`.
    """

    __pydantic_config__ = STRICT_KEYS

    id: Name
    scope: Scope
    remove: tuple[Name, ...] = ()
    override: Mapping[Name, Override] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    message: Message | None = None
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)
    origins: Origins = field(default_factory=dict, compare=False)

    def written_at(self, key: str) -> Origin:
        """Return where one of its values was written; for one that was not, where the overlay was."""
        return self.origins.get(key, self.origin)


@dataclass(frozen=True, slots=True)
class RuleException:
    """What some rules are not to fire on, for a time; the record names it wherever it made a difference.

    At least one of `fingerprint`, `pattern` and `scope`; those that are given must all meet.

    Attributes:
        id: unique among the policy's exceptions.
        rules: ids of the rules that are not to fire.
        until: the last day on which it holds, in UTC.
        why: the reason, for the reader and the auditor.
        owner: who answers for it.
        fingerprint: sha256 of the whole text, hexadecimal: `printf %s TEXT | sha256sum`.
        pattern: a regular expression (RE2) that the whole of every stretch found must match.
        scope: whose exchanges.
    """

    __pydantic_config__ = STRICT_KEYS

    id: Name
    rules: Annotated[tuple[Name, ...], MinLen(1)]
    until: date
    why: Text
    owner: str = ""
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    pattern: Text | None = None
    scope: Scope | None = None
    origin: Written = field(default_factory=Origin, compare=False)

    def __post_init__(self) -> None:
        if not (self.fingerprint or self.pattern or self.scope):
            raise PydanticCustomError("exception", "give at least one of 'fingerprint', 'pattern' and 'scope'")


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts exchanges in which a rule fired. When there are enough it is itself found, as `count.ID`.

    Attributes:
        id: unique among the policy's counters.
        rules: ids of the rules to count; shadow rules count as well.
        at_least: so many exchanges …
        within: … in so long a time; then it is found in every request, from the next one on …
        hold: … for so long.
        per: whose exchanges are counted together: those of a key (all without one are one more), of a tenant, or of a
            user or a conversation that the request names; requests that name none are not counted.
        why: the reason, for the reader and the auditor.
    """

    __pydantic_config__ = STRICT_KEYS

    id: Name
    rules: Annotated[tuple[Name, ...], MinLen(1)]
    at_least: Annotated[int, Ge(1), Le(10_000)]
    within: Duration
    hold: Duration
    per: Literal["key", "tenant", "user", "conversation"] = "key"
    why: str = ""
    origin: Written = field(default_factory=Origin, compare=False)


@dataclass(frozen=True, slots=True)
class Exemption:
    """Text that the operator chose not to have judged; the coverage of every exchange says so.

    Attributes:
        role: the message role whose text is left alone (`system`, `developer`, `tool` …).
        why: the reason, shown in the coverage.
    """

    __pydantic_config__ = STRICT_KEYS

    role: Role
    why: Text
    origin: Written = field(default_factory=Origin, compare=False)


@dataclass(frozen=True, slots=True)
class UpstreamChoice:
    """Who answers: `embedded`, `fake`, or an OpenAI-compatible base URL (`http://host/v1`).

    Attributes:
        use: `embedded`, `fake`, or the base URL; `embedded:NAME` for another engine than the default, pulled by that
            name or in the folder of that path; `,draft=NAME` after it for a smaller one that guesses what it says.
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

    def at_once(self, length: int) -> bool:
        """Whether a text of so many code points is judged in one window, whatever it says."""
        return length <= self.window + 1


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
class Removal:
    """A rule of a pack, or of the policy below, that does not apply.

    Attributes:
        rule: its id.
        by: what removed it: `policy shop`, `overlay clinics`.
        origin: where.
    """

    rule: str
    by: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a deployment decided, frozen.

    What no check can read is a finding too, so that rules settle it: `unjudged.media` for images, audio and files,
    `unjudged.field` for text in request fields that the API does not document. So is a counter that is full.

    Attributes:
        checks: what it looks for itself, beside the installed checks.
        counters: what is counted over several exchanges.
        exceptions: what rules are not to fire on, for a time.
        overlays: what is different for some exchanges; see `overlay.effective`.
        message: what a blocked caller is told where the rule says nothing.
        revision: sha256 over the canonical form of everything else, hexadecimal.
        applied: ids of the overlays that made it what it is.
        removed: the rules that were taken away on the way to it.
        files: every file that it was read from.
        layers: those of them that are policies, each building on the one before; the last is its own.
        origins: where the keys that are no lists were written: `message`, `stream.window`; those left out are missing.
        looking: the rules by stage and category.
    """

    name: str
    rules: tuple[Rule, ...]
    checks: tuple[OwnCheck, ...] = ()
    counters: tuple[Counter, ...] = ()
    exceptions: tuple[RuleException, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    message: Message = DEFAULT_MESSAGE
    exempt: tuple[Exemption, ...] = ()
    upstream: UpstreamChoice = field(default_factory=UpstreamChoice)
    stream: StreamSettings = field(default_factory=StreamSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    limits: Limits = field(default_factory=Limits)
    revision: str = ""
    applied: tuple[str, ...] = field(default=(), compare=False)
    removed: tuple[Removal, ...] = field(default=(), compare=False)
    files: tuple[Path, ...] = field(default=(), compare=False)
    layers: tuple[Path, ...] = field(default=(), compare=False)
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)
    looking: Mapping[tuple[Stage, str], tuple[Rule, ...]] = field(init=False, compare=False, repr=False)

    @property
    def every_rule(self) -> tuple[Rule, ...]:
        """Its rules, and those that its overlays add."""
        return (*self.rules, *(rule for overlay in self.overlays for rule in overlay.rules))

    def __post_init__(self) -> None:
        looking: dict[tuple[Stage, str], list[Rule]] = {}
        for rule in self.rules:
            for stage in rule.stages:
                looking.setdefault((stage, rule.category), []).append(rule)
        # Made once: a decision looks at the few rules that may have to do with a finding.
        object.__setattr__(self, "looking", {place: tuple(rules) for place, rules in looking.items()})


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
        rules: ids of the rules that fired and asked for `action`, the surest first; none where only a failed check did.
        logged: ids of weaker rules that fired beside them.
        unanswered: ids of rules whose check could not answer, with what their `on_error` asked for.
        escalated: ids of rules whose check was not sure of some text, with the category that was to settle it; what
            that came to, or why it could not be found, is among the findings.
        shadow: ids of shadow rules that would have fired, with the action they would have asked for.
        excepted: ids of rules that did not fire on something, with the ids of all exceptions because of which they did
            not, in the order of the alphabet.
        overlays: ids of the policy's overlays that applied.
        unheard: names of checks that were not shown some text, as no rule that has them look is about it, with the
            roles whose text that was.
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
    escalated: Mapping[str, str] = field(default_factory=dict)
    shadow: Mapping[str, Action] = field(default_factory=dict)
    excepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    overlays: tuple[str, ...] = ()
    unheard: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    errors: tuple[str, ...] = ()
    message: str = ""
    revision: str = ""

    @property
    def would(self) -> Mapping[str, str]:
        """What each shadow rule would have done, as it is told: `would_block`, `would_rewrite` …"""
        return {rule: f"would_{action}" for rule, action in self.shadow.items()}
