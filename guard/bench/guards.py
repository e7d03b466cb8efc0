"""The guards that can be measured side by side: who is behind a name, and how a labelled text is put to them.

Knows no labels and no figures. The guard model is asked as `ringfence bench guard` asks it alone, save that one which
it cannot read in full counts as not answered; whatever else a policy can look for is asked through the pipeline, so
that what it cannot answer here it could not answer in use.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from ringfence.guard.bench.formats import Target
from ringfence.guard.bench.items import Item
from ringfence.guard.bench.run import asked_for
from ringfence.guard.check import Bounded, Check, Passage, Warm, load_checks, own_checks, reads_of
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.scorer import PARTLY, Scorer
from ringfence.guard.pipeline import Pipeline, revision_of
from ringfence.policies.document import did_you_mean
from ringfence.policies.own import OwnCheck
from ringfence.policies.types import Action, Limits, Policy, Rule, Stage
from ringfence.policies.words import Origin, covers, root

MODEL = "ringfence"
"""The shipped guard model, or that of `--weights`; `ringfence.toxicity` is one of its heads."""

PATIENCE = 600.0
"""Seconds that a check may take for a text here, where nobody waits for it; its own `timeout_s` holds all the same."""

HERE = frozenset({"local", "embedded", "fake"})
"""What `use` says where nobody else's machine is asked."""


class UnknownGuard(LookupError):
    """Nobody answers to a name; the message says which are known."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked about a text, under one name or several: one reading answers for all.

    Attributes:
        revision: what tells these answers from those of another version.
        here: whether this machine does the work.
        per_minute: texts that may be asked about in a minute; None where nothing limits them.
        warm: gets ready, and is asked once for nothing, as the first time takes longest.
        ask: gives by name a score from 0 to 1, or in words why there is none.
    """

    names: Sequence[str]
    revision: str
    here: bool
    per_minute: int | None
    warm: Callable[[], object]
    ask: Callable[[Item], Mapping[str, float | str]]


def find_guards(names: Sequence[str], policy: Policy, target: Target, weights: Path | None = None) -> Sequence[Asked]:
    """Return who is behind some names: the guard model, or the checks that find the categories so called.

    Args:
        policy: whose own checks are there, beside the installed ones; its rules have no part.

    Raises:
        UnknownGuard: nobody answers to a name.
        PolicyError: a check that is wanted cannot be made.
        UnknownCheck: a check of the policy has a category that an installed one has.
        WeightsError: the guard model cannot be loaded.
    """
    installed = load_checks()
    own = {spec.category: spec for spec in policy.checks}
    heads = [MODEL, *(f"{MODEL}.{task}" for task in TASKS)]
    known = [*heads, *own, *sorted(category for check in installed.values() for category in check.categories)]
    for name in names:
        if name not in heads and (root(name) == MODEL or root(name) not in known):
            raise UnknownGuard(f"no guard is called '{name}'{did_you_mean(name, known)}")
    made = own_checks(spec for spec in policy.checks if spec.category in set(map(root, names)))
    pipeline = Pipeline(replace(policy, rules=(), exceptions=(), overlays=()), {**installed, **made})
    found: list[Asked] = []
    if mine := [name for name in names if name in heads]:
        found.append(_model(mine, Scorer.load(weights, remember=0), target))
    behind = {name: _check(pipeline, name) for name in names if name not in heads}
    for check in {one.name: one for one in behind.values()}.values():
        asked = [name for name, one in behind.items() if one is check]
        found.append(_asked(asked, check, own.get(root(asked[0]))))
    return found


def category_of(name: str, target: Target) -> str:
    """Return what a policy calls what a guard finds."""
    if name == MODEL:
        return "attack" if target == "attack" else "harm"
    head = name.removeprefix(f"{MODEL}.")
    return "harm" if name != head and head.endswith("_harm") else head


def _model(names: Sequence[str], scorer: Scorer, target: Target) -> Asked:
    def ask(item: Item) -> Mapping[str, float | str]:
        found = scorer.score(item.text, item.prompt)
        if found.truncated:
            return dict.fromkeys(names, PARTLY)
        return {
            name: asked_for(found, target) if name == MODEL else found.tasks[name.removeprefix(f"{MODEL}.")]
            for name in names
        }

    return Asked(names, scorer.revision, True, None, lambda: scorer.score("warm"), ask)


def _asked(names: Sequence[str], check: Check, spec: OwnCheck | None) -> Asked:
    rules = tuple(Rule(name, name, Action.LOG) for name in names)
    own = (spec,) if spec else ()
    pipeline = Pipeline(Policy("bench", rules, own, limits=Limits(check_seconds=PATIENCE)), {check.name: check})

    def ask(item: Item) -> Mapping[str, float | str]:
        passage = passage_of(item)
        findings = pipeline.find(passage.stage, [passage])
        answers: dict[str, float | str] = {}
        for name in names:
            failed = (one.error for one in findings if one.error is not None and _about(name, one.category))
            scores = [one.score for one in findings if one.error is None and covers(name, one.category)]
            unusable = (f"a score of {score} is none" for score in scores if not 0 <= score <= 1)
            answers[name] = next(failed, None) or next(unusable, None) or max(scores, default=0.0)
        return answers

    def warm() -> None:
        if isinstance(check, Warm):
            check.warm()
        ask(Item("warm", None, 0))

    served = getattr(spec, "api_key_env", ...) is not ... and getattr(spec, "use", None) not in HERE
    return Asked(names, _revision(check, spec), not served, getattr(spec, "per_minute", None), warm, ask)


def passage_of(item: Item) -> Passage:
    """Return a labelled text as checks read it."""
    if item.prompt is None:
        return Passage(Stage.INPUT, "user", item.text)
    return Passage(Stage.OUTPUT, "assistant", item.text, item.prompt)


def _check(pipeline: Pipeline, name: str) -> Check:
    check = pipeline.check_of(name)
    if check is None:
        raise UnknownGuard(f"no guard is called '{name}'")
    if "text" not in reads_of(check):
        raise UnknownGuard(f"'{check.name}' reads no texts, and there is nothing else to compare guards by")
    if isinstance(check, Bounded) and not any(covers(name, one.category) for one in check.finds):
        finds = [one.category for one in check.finds]
        raise UnknownGuard(f"'{check.name}' finds no '{name}'{did_you_mean(name, finds)}")
    return check


def _about(name: str, category: str) -> bool:
    """Whether a check that could not answer for a category could not answer for a name."""
    return covers(name, category) or covers(category, name)


def _revision(check: Check, spec: OwnCheck | None) -> str:
    """Return a check's revision; where it has none, that of what it was made from."""
    made = repr(replace(spec, why="", origin=Origin())) if spec else version("ringfence")
    return revision_of(check) or hashlib.sha256(made.encode()).hexdigest()
