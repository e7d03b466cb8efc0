"""What a check is: it reads a passage and says what it found. It decides nothing."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from math import isnan
from operator import itemgetter
from types import MappingProxyType
from typing import Literal, Protocol, cast, runtime_checkable

from ringfence.guard.expressions import Unusable, has_room, refuse_beyond_room
from ringfence.guard.images import Image
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.findable import Findable
from ringfence.policies.own import GuardModel, OwnCheck, located
from ringfence.policies.types import Finding, Span, Stage
from ringfence.policies.words import Voice

__all__ = [
    "VOICES",
    "Bounded",
    "Calibrated",
    "CannotAnswer",
    "Check",
    "Distant",
    "Findable",
    "Finding",
    "Passage",
    "Replaceable",
    "Roomy",
    "Seeing",
    "Span",
    "UnknownCheck",
    "Versioned",
    "Warm",
    "can_read",
    "is_replaced",
    "load_checks",
    "own_checks",
    "reads_of",
    "refuse_nan",
    "renewed",
    "said",
]

ENTRY_POINTS = "ringfence.checks"
KINDS = "ringfence.kinds"

Form = Literal["text", "image"]
"""What a passage is."""

TEXTS: frozenset[Form] = frozenset({"text"})

VOICES: Mapping[Stage, Voice] = MappingProxyType({Stage.INPUT: "user", Stage.OUTPUT: "assistant"})
"""Whose text is judged at a stage, where nobody says whose it is."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One text or image to judge, with what is needed to understand it.

    Attributes:
        role: who said it (`user`, `system`, `assistant`, `tool` …).
        text: what is judged; spans of findings count its code points. Empty for an image, and so is a span over it.
        prompt: of what the assistant says, what that answers: the last thing the user said before it; of an image, the
            text of the same message.
        system: on the output stage, what the operator told the model: system and developer messages, one per line.
        earlier: what the user and the assistant said before it, oldest first, each with its role; `prompt` included. Of
            a long conversation the end, as `Exchange.before` cuts it; empty where nobody knows.
        part: index of the text within its exchange; a finding's spans carry it on.
        until: when nobody waits for the findings any more, in seconds of `time.monotonic`; None where somebody always
            will. A check that may be slow stops then.
        rewritable: the stretches `[start, end)` that can be rewritten, each by itself; None where all of it can.
        before: code points of the whole text that stand before this stretch of it, which are not judged again.
        voice: as rules name whose text it is: `tool_call` for what a model hands to a tool, else the role.
        image: what is judged, where that is an image; it can be read.
        seams: where a line break may stand as well (`seams.py`); checks are shown both readings.
    """

    stage: Stage
    role: str
    text: str
    prompt: str = ""
    system: str = ""
    part: int = 0
    rewritable: tuple[tuple[int, int], ...] | None = None
    until: float | None = None
    before: int = 0
    voice: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    image: Image | None = None
    seams: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.voice:
            object.__setattr__(self, "voice", self.role)

    @property
    def form(self) -> Form:
        """What it is."""
        return "text" if self.image is None else "image"

    def can_rewrite(self, span: Span) -> bool:
        """Whether a span lies within one stretch that can be rewritten."""
        if self.rewritable is None:
            return True
        at = bisect_right(self.rewritable, span.start, key=itemgetter(0)) - 1  # a tool call may have very many
        return at >= 0 and span.end <= self.rewritable[at][1]


def said(stage: Stage, voice: str, text: str, prompt: str = "", system: str = "") -> Passage:
    """Return a text by itself as a passage, whoever says it: what a model hands to a tool the assistant says."""
    return Passage(stage, "assistant" if voice == "tool_call" else voice, text, prompt, system, voice=voice)


class Check(Protocol):
    """Finds. One call reads one passage; it may be slow, and may raise: the pipeline settles both.

    A rule over a category that no check answers for is refused when the policy is put to use.
    """

    @property
    def name(self) -> str:
        """As in findings and error messages."""
        ...

    @property
    def categories(self) -> frozenset[str]:
        """The roots of every category it may report: `pii` stands for `pii.*`. No two checks share a root."""
        ...

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return what stands in the passage. Thread-safe."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A check whose answers depend on more than its code: the record says which version gave them."""

    @property
    def revision(self) -> str:
        """The sha256 of what it runs on, hexadecimal."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A check whose scores were made probabilities on labelled texts: beyond the scores of those nobody knows."""

    def reach(self, category: str) -> tuple[float, float] | None:
        """Return the lowest and the highest score that those texts of the category had; None where there were none."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A check that can say beforehand all that it may find: a rule that waits for anything else would wait forever."""

    @property
    def finds(self) -> Sequence[Findable]:
        """Every category in full, those below a root included."""
        ...


@runtime_checkable
class Roomy(Protocol):
    """A check that holds words or patterns of a policy: all of one policy together may take so much room."""

    @property
    def room(self) -> int:
        """Bytes that they take."""
        ...


@runtime_checkable
class Seeing(Protocol):
    """A check that says what it reads: only one that says so is shown images, and may then read no texts."""

    @property
    def reads(self) -> frozenset[Form]:
        """The forms of passages that it is given."""
        ...


@runtime_checkable
class Warm(Protocol):
    """A check with something to load: done before the first exchange, so that none has to wait for it."""

    def warm(self) -> object:
        """Load it."""
        ...


@runtime_checkable
class Replaceable(Protocol):
    """A check that runs on files: where others stand in their place, it is made anew when the policy is read again."""

    def is_replaced(self) -> bool:
        """Whether other files stand in the place of those that it runs on; told without reading them."""
        ...


@runtime_checkable
class Distant(Protocol):
    """A check whose answers may come from elsewhere, where nobody may be."""

    def away(self) -> str | None:
        """Return why nobody can be asked at present; None where somebody can. It looks now and then, not every time."""
        ...


class CannotAnswer(Exception):
    """A check cannot judge a passage; the text says why and what to do, and nothing of the passage: it is recorded."""


class UnknownCheck(LookupError):
    """No check answers for a category, or two do; the text has one line a problem, as that of `PolicyError`."""


def reads_of(check: Check) -> frozenset[Form]:
    """Return what a check reads: texts alone, where it does not say."""
    return check.reads if isinstance(check, Seeing) else TEXTS


def can_read(check: Check, passage: Passage) -> bool:
    """Whether a check may be given a passage."""
    return passage.form in reads_of(check)


def is_replaced(check: Check) -> bool:
    """Whether a check runs on files in whose place others stand by now."""
    return isinstance(check, Replaceable) and check.is_replaced()


def refuse_nan(scores: Iterable[float], who: str) -> None:
    """Refuse scores of which one is not a number, before they are compared: the other of two would pass for the higher.

    Raises:
        CannotAnswer: one is not.
    """
    if any(map(isnan, scores)):
        raise CannotAnswer(f"{who} gave a score that is not a number; look at what it runs on")


def load_checks() -> Mapping[str, Check]:
    """Instantiate every installed check: `ringfence.checks` entry points name zero-argument factories."""
    return {point.name: cast(Check, point.load()()) for point in entry_points(group=ENTRY_POINTS)}


def renewed(installed: Mapping[str, Check]) -> Mapping[str, Check]:
    """Return installed checks, of which those are made anew that run on files in whose place others stand by now."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return {
        name: cast(Check, points[name].load()()) if name in points and is_replaced(check) else check
        for name, check in installed.items()
    }


def own_checks(wanted: Iterable[OwnCheck]) -> Mapping[str, Check]:
    """Make the checks that a policy brings along: `ringfence.kinds` entry points name who makes a kind.

    Returns:
        them by names of their own, so that one whose category an installed check has does not take its place unseen.

    Raises:
        PolicyError: some cannot be made as the policy has them, or their patterns take too much room together; with
            every problem up to there.
    """
    made: dict[str, Check] = {}
    problems: list[Problem] = []
    taken = 0
    for one in wanted:
        try:
            made[f"checks.{one.category}"] = check = _made(one)
            taken += taken_by([check])
            refuse_beyond_room(taken, one.origin)
        except PolicyError as error:
            problems += error.problems
            taken += error.room if isinstance(error, Unusable) else 0
        if not has_room(taken):
            break  # to read on would take as long as the policy's author likes
    if problems:
        raise PolicyError(problems)
    return made


def taken_by(checks: Iterable[Check]) -> int:
    """Return how many bytes the words and patterns of some checks take."""
    return sum(check.room for check in checks if isinstance(check, Roomy))


def _made(wanted: OwnCheck) -> Check:
    # Kept, so that a policy that is read again does not learn its examples anew, or forget a judge's verdicts.
    wanted = located(wanted)  # before it is looked up: two policies may each have weights of one name beside them
    kept = _kept(wanted)
    if not kept or is_replaced(kept[0]):
        # Families are anybody's, and made alike.
        kind = "guard-model" if isinstance(wanted, GuardModel) else wanted.kind
        (maker,) = entry_points(group=KINDS, name=kind)
        kept[:] = [cast(Check, maker.load()(wanted))]
    return kept[0]


@lru_cache(maxsize=256)
def _kept(_: OwnCheck) -> list[Check]:
    """Return the place of a check: empty until it is made."""
    return []
