"""OpenAI's moderation endpoint as a check, or any server's that answers alike: `kind: openai-moderation` in a policy.

It lives here and not among the checks as it asks an upstream. Scores are the endpoint's, by its own categories; what it
flags it says with thresholds that nobody knows, so that is told and not counted. It reads a text by itself; one in
disguise is asked about in the clear as well, and each category has the higher of the scores.

Source: OpenAI's API reference, as the `openai` Python package types it (`types/moderation.py`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from ringfence.guard.check import CannotAnswer, Findable, Finding, Passage, Span
from ringfence.guard.checks.disguise import in_every_reading
from ringfence.guard.checks.guards.hazards import HAZARD_OF, below
from ringfence.guard.classifier.heads import HAZARDS
from ringfence.guard.unicode import readable
from ringfence.policies.document import PolicyError, Problem
from ringfence.policies.own import Moderations
from ringfence.policies.types import UpstreamChoice
from ringfence.proxy.asking import Asking
from ringfence.proxy.upstreams.http import HttpUpstream, open_upstream
from ringfence.proxy.wire.openai_moderations import SOURCES

KIND = "openai-moderation"

METHOD = 1
"""Part of a check's revision: raised when the same endpoint comes to be asked otherwise."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the endpoint says of a text, by its own categories: all of OpenAI's, and any others."""

    flagged: bool
    by_category: Mapping[str, float]


class NoScores(Exception):
    """The endpoint answered something else."""


class ModerationsCheck:
    """Reports what a moderation endpoint scores every text: the highest by the check's category, each below it.

    Thread-safe. A text is asked about once, as long as the answer is remembered; no failure is.

    Args:
        upstream: who is asked; the check closes it when it is done for.
        clock: that of `Passage.until` and of the budget.
    """

    def __init__(self, spec: Moderations, upstream: HttpUpstream, clock: Callable[[], float] = monotonic) -> None:
        self.name = spec.category
        self.categories = frozenset({spec.category})
        names = dict.fromkeys(f"{spec.category}.{below(KIND, name, own=False)}" for name in SOURCES)
        self.finds = tuple(map(Findable, [spec.category, *names]))
        asked = [METHOD, KIND, spec.use, spec.model, HAZARD_OF[KIND]]
        self.revision = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self._spec = spec
        self._upstream = upstream
        self._server: Asking[Scores] = Asking(spec, upstream, clock)

    def warm(self) -> None:
        """See whether the server is there, and say so in the log where it is not."""
        self._server.warm()

    def away(self) -> str | None:
        """Return why the server cannot be asked at present; see `Distant`."""
        return self._server.away()

    def find(self, passage: Passage) -> Sequence[Finding]:
        """Return the highest score and each category's, over all of the passage. Scores have four decimals.

        A category that is none of OpenAI's counts for the highest, and is no finding of its own.

        Raises:
            TimeoutError: it took longer than `timeout_s`, or than anybody waits.
            CannotAnswer: there are no scores.
        """
        if not passage.text.strip():
            return ()
        return in_every_reading(self._found, passage)

    def _found(self, readings: Sequence[Passage]) -> Sequence[Sequence[Finding]]:
        answers = self._scores([readable(one.text) for one in readings], readings[0].until)
        return [self._findings(one, scores) for one, scores in zip(readings, answers, strict=True)]

    def _findings(self, passage: Passage, scores: Scores) -> Sequence[Finding]:
        span = (Span(passage.part, 0, len(passage.text)),)
        found: dict[str, float] = {self.name: max(scores.by_category.values())}
        for name in SOURCES:
            full = f"{self.name}.{below(KIND, name, own=False)}"
            found[full] = max(found.get(full, 0.0), scores.by_category[name])
        told = {self.name: "flagged by the endpoint" if scores.flagged else ""}
        told |= {name: HAZARDS.get(name.removeprefix(f"{self.name}."), "") for name in found if name != self.name}
        return [Finding(self.name, name, round(score, 4), span, told[name]) for name, score in found.items()]

    def _scores(self, texts: Sequence[str], until: float | None) -> Sequence[Scores]:
        async def ask(text: str) -> Scores:
            return read_scores(await self._upstream.ask("moderations", {"model": self._spec.model, "input": text}))

        try:
            key = hashlib.sha256(json.dumps(texts).encode()).digest()
            return self._server.ask(key, [partial(ask, text) for text in texts], until)
        except NoScores:
            what = (
                f"{self._server.who}: the answer of '{self._spec.model}' does not score all categories, or flags none"
            )
            raise CannotAnswer(f"{what}; check that {self._spec.use} has a moderation endpoint") from None


def open_moderations(spec: Moderations) -> ModerationsCheck:
    """Make the check for a moderation endpoint; nobody is asked yet.

    Raises:
        PolicyError: the address is none, or its key is not set.
    """
    try:
        upstream = open_upstream(UpstreamChoice(spec.use, spec.api_key_env, spec.timeout_s))
    except ValueError as error:
        what = f"the moderation endpoint of '{spec.category}' cannot be asked: {error}"
        raise PolicyError([Problem(spec.origin, what)]) from None
    return ModerationsCheck(spec, upstream)


def read_scores(body: Any) -> Scores:
    """Return the scores in an answer about one text.

    Raises:
        NoScores: one of OpenAI's categories has none, one is no number from 0 to 1, or the text is flagged for no
            category; the answer is not told, as it may quote the text.
    """
    try:
        (result,) = body["results"]
        flagged, scores = result["flagged"], dict(result["category_scores"])
        names = [name for name, found in dict(result["categories"]).items() if found]
    except (KeyError, TypeError, ValueError):
        raise NoScores from None
    if not (isinstance(flagged, bool) and scores.keys() >= SOURCES.keys() and all(map(_is_score, scores.values()))):
        raise NoScores
    if flagged and not names:
        raise NoScores
    return Scores(flagged, scores)


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
