"""The check behind every guard that answers in words: a passage becomes questions, verdicts become findings.

Knows no family and nobody who answers: a family says how it is asked, an `Oracle` gives the verdicts. A text in
disguise is asked about in the clear as well, in one go, and each category has the higher of the scores.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain, dropwhile, groupby, islice
from operator import itemgetter
from typing import Protocol

from ringfence.guard.check import TEXTS, CannotAnswer, Findable, Finding, Form, Passage, Span, refuse_nan
from ringfence.guard.checks.disguise import in_every_reading
from ringfence.guard.checks.guards.family import Family, Judgement, Question, Turn, Wording, listed
from ringfence.guard.checks.guards.hazards import HAZARD_OF, below
from ringfence.guard.classifier.heads import HAZARDS
from ringfence.policies.document import PolicyError, Problem, did_you_mean
from ringfence.policies.own import GuardModel
from ringfence.policies.types import Stage
from ringfence.policies.words import Origin

METHOD = 5
"""Part of a check's revision: raised when the same guard comes to be asked or read otherwise."""

UNNAMED = "not named in the answer"
"""What a finding says in its detail that merely scores as the verdict does: nobody knows which category it is."""


class Oracle(Protocol):
    """Who gives a guard's verdicts: weights that are run here, or a server."""

    @property
    def revision(self) -> str:
        """What tells it from others of the same family."""
        ...

    def warm(self) -> object:
        """Get ready."""
        ...

    def away(self) -> str | None:
        """Return why it cannot be asked at present; see `Distant`."""
        ...

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of its own; see `Replaceable`."""
        ...

    def clear(self, text: str) -> str:
        """Return a text in which nothing can be taken for a part of the prompt."""
        ...

    def judge(self, questions: Sequence[Question], codes: Sequence[str], until: float | None) -> Sequence[Judgement]:
        """Answer questions about one passage and its other readings, in their order. Thread-safe.

        Args:
            codes: the categories that an answer may name.
            until: when nobody waits any more, in seconds of `time.monotonic`.

        Raises:
            TimeoutError: that came first.
            CannotAnswer: there is no verdict.
        """
        ...


class GuardCheck:
    """Reports what a guard says of every text: its verdict by the check's category, the guard's categories below it.

    It reads the text and what the user and the assistant said before it; no system message. Where the policy says so,
    an image is shown to it with the text of the same message; of earlier ones it is told what was said.
    """

    def __init__(self, spec: GuardModel, family: Family, oracle: Oracle) -> None:
        self.name = spec.category
        self.categories = frozenset({spec.category})
        self.reads: frozenset[Form] = TEXTS | {"image"} if spec.images else TEXTS
        self._spec = spec
        self._family = family
        self._oracle = oracle
        self._wordings = wordings_of(spec, family)
        own = {one.code for one in spec.categories if one.text is not None}
        self._below = {code: below(family.name, code, code in own) for code in self._wordings}
        mapped = HAZARD_OF.get(family.name, {})
        self._titles = {
            f"{spec.category}.{name}": HAZARDS[name]
            for code, name in self._below.items()
            if code not in own and code in mapped
        }
        words = [word.strip().lower() for word in family.unsafe] if len(family.unsafe) > 1 else []
        names = dict.fromkeys([*words, *self._below.values()])
        self.finds = tuple(map(Findable, [spec.category, *(f"{spec.category}.{name}" for name in names)]))

    @property
    def revision(self) -> str:
        """The sha256 of who is asked, and how."""
        categories = {code: [wording.asked, wording.answered] for code, wording in self._wordings.items()}
        asked = [METHOD, self._spec.kind, categories, self._oracle.revision, *(self.reads - TEXTS)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def warm(self) -> object:
        """Load the weights, or see whether the server is there."""
        return self._oracle.warm()

    def away(self) -> str | None:
        """Return why the server cannot be asked at present; None where it can, or the weights are here."""
        return self._oracle.away()

    def is_replaced(self) -> bool:
        """Whether other weights stand in the place of those that are run here."""
        return self._oracle.is_replaced()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return the verdict on a passage and on each category, over all of it. Scores have four decimals.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than anybody waits.
            CannotAnswer: there is no verdict.
        """
        if not passage.text.strip() and passage.image is None:
            return ()
        return in_every_reading(self._found, passage)

    def _found(self, readings: Sequence[Passage]) -> Sequence[Sequence[Finding]]:
        asked = [self._questions(one) for one in readings]
        questions = list(chain.from_iterable(asked))
        judged = self._oracle.judge(questions, list(self._wordings), readings[0].until)
        if len(judged) != len(questions):
            raise CannotAnswer(f"{self._spec.kind} gave {len(judged)} verdicts on {len(questions)} questions")
        refuse_nan((score for one in judged for score in (*one.unsafe.values(), *one.codes.values())), self._spec.kind)
        verdicts = iter(judged)
        each = [list(islice(verdicts, len(about))) for about in asked]
        return [self._findings(*one) for one in zip(readings, asked, each, strict=True)]

    def _questions(self, passage: Passage) -> Sequence[Question]:
        turns = [replace(turn, text=self._oracle.clear(turn.text)) for turn in conversation(passage)]
        return self._family.ask(turns, self._wordings)

    def _findings(
        self, passage: Passage, questions: Sequence[Question], judged: Sequence[Judgement]
    ) -> Sequence[Finding]:
        span = (Span(passage.part, 0, len(passage.text)),)
        scores = self._scores(questions, judged)
        bounds = self._bounds(questions, judged)
        loose = bounds if all(one.calibrated for one in judged) else scores
        notes = (self._titles, dict.fromkeys(bounds, UNNAMED), dict.fromkeys(loose, "calibrated: false"))
        told = {name: ", ".join(note[name] for note in notes if name in note) for name in scores}
        return [Finding(self.name, name, round(score, 4), span, told[name]) for name, score in scores.items()]

    def _scores(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> Mapping[str, float]:
        """Return scores by category, the check's own first; where several questions give one, the highest."""
        scores = {self.name: 0.0}
        for question, one in zip(questions, judged, strict=True):
            for name, score in self._told(question, one):
                full = f"{self.name}.{name}" if name else self.name
                scores[full] = max(scores.get(full, 0.0), score)
        return scores

    def _told(self, question: Question, one: Judgement) -> Iterator[tuple[str, float]]:
        unsafe = sum(one.unsafe.values())
        yield "", unsafe
        if len(one.unsafe) > 1:
            yield from ((word.strip().lower(), score) for word, score in one.unsafe.items())
        if question.code:
            yield self._below[question.code], unsafe
        else:
            yield from ((self._below[code], unsafe * (share if one.named else 1)) for code, share in one.codes.items())

    def _bounds(self, questions: Sequence[Question], judged: Sequence[Judgement]) -> Collection[str]:
        """Return the categories that score as the verdict does, and may be less: its answer does not name them."""
        loose = [one for question, one in zip(questions, judged, strict=True) if not (question.code or one.named)]
        return {f"{self.name}.{self._below[code]}" for one in loose for code in one.codes}


def conversation(passage: Passage) -> Sequence[Turn]:
    """Return a passage as the conversation that guards know, which a user begins, and in which turns alternate.

    What somebody says in a row is one turn: cut into several messages, a text is read as the model reads it. An image
    is in the last.
    """
    replies = passage.stage is Stage.OUTPUT or passage.role == "assistant"
    last = passage.text if passage.image is None else passage.prompt
    said = [*passage.earlier, ("assistant" if replies else "user", last)]
    said = list(dropwhile(lambda one: one[0] == "assistant", said)) or [("user", passage.prompt), said[-1]]
    turns = [
        Turn("assistant" if role == "assistant" else "user", "\n\n".join(text for _, text in run))
        for role, run in groupby(said, itemgetter(0))
    ]
    return [*turns[:-1], replace(turns[-1], image=passage.image)]


def refuse_without_pillow(who: str, origin: Origin) -> None:
    """Refuse a check that reads images where nobody can look into one.

    Raises:
        PolicyError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise PolicyError([Problem(origin, f"{who} reads images, which needs Pillow; install `ringfence[images]`")])


def wordings_of(spec: GuardModel, family: Family) -> Mapping[str, Wording]:
    """Return what a policy has a guard asked about.

    Raises:
        PolicyError: the guard knows no such category, or cannot be asked about new ones; one is named twice, two would
            have one name, or a new one has a code that cannot be a name.
    """
    what = f"the guard of '{spec.category}'"
    if spec.categories and not family.custom:
        told = f"{what}: {family.name} always answers about its own categories; leave `categories` out"
        raise PolicyError([Problem(spec.origin, told)])
    chosen: dict[str, Wording] = {}
    names: dict[str, str] = {}
    for one in spec.categories:
        if one.code in chosen:
            raise PolicyError([Problem(spec.origin, f"{what} is asked about '{one.code}' twice; leave one out")])
        if one.text is None and one.code not in family.categories:
            told = f"{what}: {family.name} knows no category '{one.code}'{did_you_mean(one.code, family.categories)}"
            raise PolicyError([Problem(spec.origin, f"{told}; a new one needs a 'text'")])
        if one.text is not None and (why := _unfit(one.code)):
            told = f"{what}: a new category cannot have the code {one.code!r}: {why}"
            raise PolicyError([Problem(spec.origin, told)])
        name = below(family.name, one.code, one.text is not None)
        if name in names:
            told = f"{what}: '{names[name]}' and '{one.code}' would both be '{spec.category}.{name}'; rename one"
            raise PolicyError([Problem(spec.origin, told)])
        names[name] = one.code
        chosen[one.code] = family.categories[one.code] if one.text is None else Wording(one.text, one.text)
    if family.custom and not (chosen or family.categories):
        told = f"{what}: {family.name} judges by policies of yours; write one under `categories`, as its 'text'"
        raise PolicyError([Problem(spec.origin, told)])
    default = family.default or tuple(family.categories)
    return chosen or {code: family.categories[code] for code in default}


def _unfit(code: str) -> str:
    """Return why a new category cannot have a code, that an answer and a rule have to name; empty where it can."""
    name = below("", code, own=True)
    if not name:
        return "rules name it by its letters A to Z, digits and underscores, and it has none"
    if re.fullmatch(r"[Ss][0-9]+", name):
        return "an S-code is that of a hazard; choose another"
    if listed(code) != {code} or len(code.splitlines()) > 1:
        return "no answer could name it; leave out commas, line breaks, and a dot at the end"
    return ""
