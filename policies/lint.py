"""Warns of what a policy may say but hardly means. Reads a policy only; judges nothing."""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date
from difflib import get_close_matches
from itertools import chain, product
from types import MappingProxyType
from typing import get_args

from ringfence.policies.cases import Suite, without_cases
from ringfence.policies.document import Problem, did_you_mean, name_of
from ringfence.policies.findable import Findable, Sought, sought
from ringfence.policies.overlay import as_any_overlay_has_them, effective
from ringfence.policies.own import Keywords, written_at
from ringfence.policies.types import Action, Condition, Degrade, Overlay, Policy, Rule, Stage
from ringfence.policies.words import Origin, Voice, covers, lineage, root

Reach = Callable[[str], tuple[float, float] | None]
"""The lowest and the highest score of a category that anything is known of; None where there are no such bounds."""

REPLYING = frozenset({"assistant", "tool_call"})
"""Whose text there is on the output stage."""

EVERYBODY = frozenset[str](get_args(Voice))

CODES = (
    (
        re.compile(r"(?i)ml[-_.]?commons?\b.*|s[-_.]?\d+"),
        re.compile(r"(MLCommons:)?S([1-9]|1[0-4])"),
        "is no hazard of MLCommons: they are S1 to S14, as MLCommons:S9",
    ),
    (
        re.compile(r"(?i).*owasp.*llm.*|(.*:)?llm[-_.]?\d+(:.*)?"),
        re.compile(r"(?=.*LLM(0[1-9]|10)(?!\d))(?=.*(?<!\d)(2023|2025)(?!\d)).*"),
        "is no risk of OWASP's for LLMs and the list's year: LLM01 to LLM10 of 2023 or 2025, as OWASP-LLM-2025:LLM01",
    ),
    (
        re.compile(r"(?i)open-?ai[-_.]?moderations?\b.*"),
        re.compile(
            r"OpenAI-Moderation:(harassment(/threatening)?|hate(/threatening)?|illicit(/violent)?"
            r"|self-harm(/intent|/instructions)?|sexual(/minors)?|violence(/graphic)?)"
        ),
        "is no category of OpenAI's moderation, as OpenAI-Moderation:self-harm/intent: `/v1/moderations` knows it not",
    ),
)
"""What looks like a code of a list, what is one, and what to say of the rest.

The lists: MLCommons AILuminate 1.0, 2024; OWASP Top 10 for LLM Applications, whose years number the risks differently;
the categories of OpenAI's moderations as the `openai` Python package types them.
"""


def lint(
    policy: Policy,
    suites: Sequence[Suite],
    today: date,
    reach: Reach = lambda _: None,
    findable: Mapping[str, Sequence[Findable]] = MappingProxyType({}),
) -> Iterator[Problem]:
    """Yield a warning for each rule that cannot decide anything, or always would, and for each that no case shows.

    Each overlay is looked at as though it alone applied; what is said of the policy is not said of it again.

    Args:
        today: what has run out by then is told.
        findable: by first word of categories all that can ever be found of them; where anything can, it is missing.
    """
    if not policy.rules:
        yield Problem(
            Origin(name_of(policy.layers[-1]) if policy.layers else policy.name),
            "the policy has no rule: everything passes unjudged",
        )
    beside = _Beside(policy, today)
    told = [problem for rule in policy.rules for problem in _of_rule(rule, policy, beside, reach, findable)]
    yield from told
    said = {problem.what for problem in told}
    for overlay in policy.overlays:
        for problem in _of_overlay(overlay, policy, today, reach, findable):
            if problem.what not in said:
                yield replace(problem, what=f"in overlay '{overlay.id}', {problem.what}")
    yield from _unasked(policy)
    yield from _never_full(policy)
    yield from _held_longer(policy)
    for one in policy.exceptions:
        if one.until < today:
            yield Problem(one.origin, f"exception '{one.id}' ran out on {one.until}: renew it, or take it out")
    for rule in without_cases(policy, suites):
        yield Problem(rule.origin, f"rule '{rule.id}' has no case: add one with expect.rules: [{rule.id}]")


def _of_rule(
    rule: Rule, policy: Policy, beside: "_Beside", reach: Reach, findable: Mapping[str, Sequence[Findable]]
) -> Iterator[Problem]:
    """Yield what is odd about one rule of a policy, be it beside others or by itself."""
    if stronger := beside.stronger(rule):
        hides = rule.action is Action.REWRITE and policy.audit.text == "masked"
        yield Problem(
            rule.origin,
            f"rule '{rule.id}' never decides: '{stronger.id}' ({stronger.origin}) asks for {stronger.action} "
            f"from {stronger.threshold:g} on, where this one asks for {rule.action} from {rule.least:g}"
            + (", and only hides on record what it finds" if hides else ""),
        )
    elif same := beside.saying_the_same(rule):
        what = f"rule '{rule.id}' adds nothing: '{same.id}' ({same.origin}) asks for {same.action} wherever it does"
        yield Problem(rule.origin, what)
    elif twin := beside.rewriting_the_same(rule):
        yield Problem(rule.origin, f"rule '{rule.id}' rewrites nothing that '{twin.id}' ({twin.origin}) leaves")
    elif above := beside.stronger_in_part(rule):
        yield _in_vain(rule, above)
    elif rival := beside.rewriting_otherwise(rule):
        yield _each_its_own_way(rule, rival)
    yield from _idle_threshold(rule)
    yield from _out_of_reach(rule, reach(rule.category))
    yield from _never_found(rule, findable)
    yield from _contradicted(rule)
    yield from _misfiled(rule)
    yield from _cascaded(rule, policy)
    if rule.restore and (rule.action is not Action.REWRITE or Stage.INPUT not in rule.stages):
        what = f"rule '{rule.id}' has 'restore', and rewrites no request: there is nothing to give back"
        yield Problem(rule.origin, what)


def _of_overlay(
    overlay: Overlay, policy: Policy, today: date, reach: Reach, findable: Mapping[str, Sequence[Findable]]
) -> Iterator[Problem]:
    """Yield what is odd about the rules that an overlay brings or changes, each where the overlay has it.

    That a rule of the policy has nothing left to decide where an overlay asks for more is what overlays are for.
    """
    theirs = replace(effective(policy, [overlay.id]), overlays=())
    if policy.rules and not theirs.rules:
        yield Problem(overlay.origin, "there is no rule left: everything passes unjudged")
    beside, own = _Beside(theirs, today), {rule.id for rule in overlay.rules}
    written = {*overlay.origins.values()}
    for rule in theirs.rules:
        found: Iterable[Problem] = ()
        if rule.id in own or rule.id in overlay.override:
            found = _of_rule(rule, theirs, beside, reach, findable)
        elif (rival := beside.rewriting_otherwise(rule)) and (rival.id in own or rival.id in overlay.override):
            found = [_each_its_own_way(rule, rival)]
        for problem in found:
            here = rule.id in own or problem.origin in written
            yield problem if here else replace(problem, origin=overlay.written_at(f"override.{rule.id}"))


def _held_longer(policy: Policy) -> Iterator[Problem]:
    for check in policy.checks:
        if isinstance(check, Keywords):
            length, index = max((len(word), index) for index, word in enumerate(check.words))
            if length > (reach := policy.stream.reach):
                what = f"word {index + 1} of '{check.category}' has {length} characters: replies are held back that far"
                place = written_at(check, "words", index)
                yield Problem(place, f"{what}, and not the {reach} of 'stream.reach'")


@dataclass(frozen=True, slots=True)
class _Place:
    """What a rule must share with one that may stand in for it; a message only where that matters."""

    category: str
    exceptions: frozenset[str]
    message: str | None = None


class _Beside:
    """The rules of a policy by what they may stand in for.

    Of those that differ in nothing but the threshold only the lowest is kept, so that however many there are, few have
    to be compared.
    """

    def __init__(self, policy: Policy, today: date) -> None:
        exceptions: dict[str, set[str]] = {}
        for one in policy.exceptions:
            if today <= one.until:
                for name in one.rules:
                    exceptions.setdefault(name, set()).add(one.id)
        self._exceptions = {name: frozenset(ids) for name, ids in exceptions.items()}
        # What an overlay makes of a rule, or of its absence, is another policy.
        changed = {name for overlay in policy.overlays for name in overlay.override}
        removed = {name for overlay in policy.overlays for name in overlay.remove}
        self._left_alone = changed | {name for counter in policy.counters for name in counter.rules}
        self._kept: dict[_Place, dict[Hashable, Rule]] = {}
        for rule in sorted(policy.rules, key=_order):
            if rule.shadow or rule.when is not None or rule.id in changed or rule.id in removed:
                continue
            if rule.escalate:
                continue  # whether it asks, another check says
            kind = (rule.action, frozenset(rule.stages), _heard(rule), _least_on_error(rule))
            for message in (None, _message(rule)):
                place = _Place(rule.category, self._excepting(rule), message)
                self._kept.setdefault(place, {}).setdefault(kind, rule)

    def stronger(self, rule: Rule) -> Rule | None:
        """Return a rule because of which this one never decides; None where it may, or counts by itself."""
        # What cannot be rewritten is blocked by a rewriting rule too, and then its own message may be the one told.
        message = _message(rule) if rule.action is Action.REWRITE and rule.message else None
        found = (other for other in self._standing_in(rule, message) if other.action.strength > rule.action.strength)
        return next(found, None)

    def saying_the_same(self, rule: Rule) -> Rule | None:
        """Return a rule without which this one would say nothing that is not said; None where it adds something."""
        if rule.action is Action.REWRITE or rule.seconds is not None:
            return None  # it replaces what the other does not, or hurries the check
        # Of two that are equal only the first is among them.
        found = (other for other in self._standing_in(rule, _message(rule)) if other.action is rule.action)
        return next(found, None)

    def stronger_in_part(self, rule: Rule) -> Rule | None:
        """Return the strongest rule that takes from this one a part of what it decides; None where it decides it all.

        To log what is not sure enough for more, or to rewrite it under the same category, is no such part: so doubt is
        written down.
        """
        there = (other for other in self._about(rule) if other.action.strength > rule.action.strength)
        found = [other for other in there if _meet(other, rule) and _takes_unexpectedly(other, rule)]
        return max(found, key=lambda other: other.action.strength, default=None)

    def rewriting_the_same(self, rule: Rule) -> Rule | None:
        """Return a rule that rewrites, by the same words, all that this one does; None where it does more."""
        if rule.action is not Action.REWRITE or rule.seconds is not None:
            return None
        found = (other for other in self._standing_in(rule, _message(rule)) if other.action is Action.REWRITE)
        return next((other for other in found if _rewrite_alike(other, rule)), None)

    def rewriting_otherwise(self, rule: Rule) -> Rule | None:
        """Return a rule that rewrites some of the same by other words; of two over one category the first written."""
        if rule.action is not Action.REWRITE:
            return None
        there = (other for other in self._about(rule) if other.action is Action.REWRITE and _meet(other, rule))
        first = (other for other in there if other.category != rule.category or _order(other) < _order(rule))
        return next((other for other in first if not _rewrite_alike(other, rule)), None)

    def _standing_in(self, rule: Rule, message: str | None = None) -> Iterator[Rule]:
        """Yield rules that ask for their action, or more, wherever this one asks for anything."""
        return (other for other in self._about(rule, message) if _always_with(other, rule))

    def _about(self, rule: Rule, message: str | None = None) -> Iterator[Rule]:
        """Yield rules over the category of this one, or one above it, that no exception silences without it."""
        if rule.shadow or rule.id in self._left_alone:
            return
        for category in lineage(rule.category):
            # An exception that spares the other and not this one would leave this one to decide.
            for exceptions in dict.fromkeys((frozenset[str](), self._excepting(rule))):
                for other in self._kept.get(_Place(category, exceptions, message), {}).values():
                    if other is not rule:
                        yield other

    def _excepting(self, rule: Rule) -> frozenset[str]:
        return self._exceptions.get(rule.id, frozenset())


def _always_with(other: Rule, rule: Rule) -> bool:
    """Whether one rule, whose category covers the other's, asks wherever that asks, also where a check fails."""
    # Where a `when` or a second opinion is left open by itself, its rule asks for its `on_error`, and the other fired.
    beside_an_open_one = Action.BLOCK if rule.when is None and rule.escalate is None else other.action
    return (
        other.threshold <= rule.least
        and set(other.stages) >= set(rule.stages)
        and _heard(other) >= _heard(rule)
        and min(_least_on_error(other), beside_an_open_one.strength) >= _most_on_error(rule)
    )


def _meet(one: Rule, other: Rule) -> bool:
    return not (set(one.stages).isdisjoint(other.stages) or _heard(one).isdisjoint(_heard(other)))


def _takes_unexpectedly(other: Rule, rule: Rule) -> bool:
    if other.threshold > rule.least:
        return rule.action is not Action.LOG and other.category != rule.category
    # Where it leaves this one no stage and no role, that is there for its `on_error`.
    return not (set(other.stages) >= set(rule.stages) and _heard(other) >= _heard(rule))


def _in_vain(rule: Rule, above: Rule) -> Problem:
    where = []
    if not set(above.stages) >= set(rule.stages):
        where.append(f"on the {' and '.join(one for one in rule.stages if one in above.stages)} stage")
    if not _heard(above) >= _heard(rule):
        where.append(f"in text of {', '.join(sorted(_heard(above) & _heard(rule)))}")
    if above.threshold > rule.least:
        where.append(f"from {above.threshold:g} on")
    what = f"rule '{rule.id}' asks for {rule.action} in vain {' '.join(where)}: there '{above.id}' ({above.origin})"
    return Problem(rule.origin, f"{what} asks for {above.action}, and the stronger action wins")


def _each_its_own_way(rule: Rule, rival: Rule) -> Problem:
    what = f"rules '{rule.id}' and '{rival.id}' ({rival.origin}) rewrite the same, each in its own way"
    return Problem(rule.origin, f"{what}: that of '{min(rule.id, rival.id)}' stands, whose id comes first")


def _rewrite_alike(one: Rule, other: Rule) -> bool:
    restores = one.restore == other.restore or Stage.INPUT not in {*one.stages} & {*other.stages}
    return one.replacement == other.replacement and restores


def _heard(rule: Rule) -> frozenset[str]:
    return frozenset(rule.roles or EVERYBODY)


def _least_on_error(rule: Rule) -> int:
    return 0 if isinstance(rule.on_error, Degrade) else rule.on_error.strength


def _most_on_error(rule: Rule) -> int:
    return Action.BLOCK.strength if isinstance(rule.on_error, Degrade) else rule.on_error.strength


def _message(rule: Rule) -> str:
    return str(rule.message or "")


def _order(rule: Rule) -> tuple[float, str, int, int]:
    return rule.least, rule.origin.file, rule.origin.line, rule.origin.column


def _never_full(policy: Policy) -> Iterator[Problem]:
    """Yield a warning for each counter whose rules all wait for counters, in the end for itself."""
    counted = {name for one in policy.counters for name in one.rules}
    rules = [rule for rule in as_any_overlay_has_them(policy) if rule.id in counted]
    full, known = set[str](), -1
    while known < len(full):
        known = len(full)
        fires = {rule.id for rule in rules if _may_fire(rule, full)}
        full |= {f"count.{one.id}" for one in policy.counters if not fires.isdisjoint(one.rules)}
    for one in policy.counters:
        if f"count.{one.id}" not in full:
            what = f"counter '{one.id}' is never full: what it counts ({', '.join(one.rules)}) can fire only once it is"
            yield Problem(one.origin, f"{what}, or once another is that never is")


def _may_fire(rule: Rule, full: Set[str]) -> bool:
    """Whether a rule may ever fire, where no other counters than these are ever full."""
    return _may_be_found(rule.category, full) and (rule.when is None or _may_hold(rule.when, full))


def _may_hold(condition: Condition, full: Set[str]) -> bool:
    if condition.category is not None:
        return _may_be_found(condition.category, full)
    if condition.all is not None:
        return all(_may_hold(one, full) for one in condition.all)
    return condition.any is None or any(_may_hold(one, full) for one in condition.any)


def _may_be_found(category: str, full: Set[str]) -> bool:
    return root(category) != "count" or category in full or (category == "count" and bool(full))


def _never_found(rule: Rule, findable: Mapping[str, Sequence[Findable]]) -> Iterator[Problem]:
    for one in sought(rule):
        if (known := findable.get(root(one.category))) is not None and (what := _why_never(rule, one, known)):
            yield Problem(rule.written_at(one.key), f"rule '{rule.id}' looks at '{one.category}'{what}")
    if not _hears_anybody(rule):
        what = f"rule '{rule.id}' looks at what {', '.join(rule.roles)} said, on the output stage only, where there is "
        yield Problem(
            rule.written_at("roles"), f"{what}none of it: a reply is text of {' and '.join(sorted(REPLYING))}"
        )


def _contradicted(rule: Rule) -> Iterator[Problem]:
    """Yield a warning where a rule asks for something and for its absence at once."""
    if rule.when is None:
        return
    what = ""
    if apart := _opposites([Condition(category=rule.category, threshold=rule.least), rule.when]):
        what = f"rule '{rule.id}' never fires: {_at_once(*apart)}"
    elif apart := next(filter(None, (_opposites([one]) for one in _alls(rule.when))), None):
        what = f"rule '{rule.id}' has an 'all' that never holds: {_at_once(*apart)}"
    if what:
        yield Problem(rule.written_at("when"), what)


def _opposites(conditions: Iterable[Condition]) -> tuple[Condition, Condition] | None:
    """Return two conditions of which one never holds without the other, which must not, of those that must all hold."""
    parts = list(chain.from_iterable(map(_conjuncts, conditions)))
    denied = {part.not_ for part in parts if part.not_}
    least: dict[str, Condition] = {}
    for one in denied:
        if one.category and one.least <= least.get(one.category, one).least:
            least[one.category] = one
    for part in parts:
        if part in denied:
            return part, part
        for category in lineage(part.category or ""):
            if (other := least.get(category)) and other.least <= part.least:
                return part, other
    return None


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    """Yield what must hold for a condition to hold, each by itself."""
    if condition.all:
        yield from chain.from_iterable(map(_conjuncts, condition.all))
        return
    yield condition
    if condition.not_ and condition.not_.any:
        yield from (Condition(not_=one) for one in condition.not_.any)


def _alls(condition: Condition) -> Iterator[Condition]:
    if condition.all:
        yield condition
    for inner in (*(condition.any or ()), *(condition.all or ()), *([condition.not_] if condition.not_ else ())):
        yield from _alls(inner)


def _at_once(part: Condition, denied: Condition) -> str:
    if part.category and denied.category:
        there, gone = (f"'{one.category}' from {one.least:g} on" for one in (part, denied))
        return f"it asks for {there} and for no {gone}"
    return "it asks for something and for the same under 'not'"


def _why_never(rule: Rule, one: Sought, known: Sequence[Findable]) -> str:
    """Return why nothing is ever found that a rule looks for; nothing where something may be."""
    meant = [other for other in known if covers(one.category, other.category)]
    if not meant:
        return f", which nothing is ever found of{_nearest(one.category, known)}"
    there = [other for other in meant if not set(other.stages).isdisjoint(rule.stages)]
    if not there:
        return f" on the {' and '.join(rule.stages)} stage, where it is never found"
    of_its_roles = one.key != "when"  # which asks of everybody's text
    if of_its_roles and _hears_anybody(rule) and not any(_is_heard(other, rule) for other in there):
        return f" in text of {', '.join(rule.roles)}, where it is never found"
    highest = max(other.highest for other in there)
    if one.threshold > highest:
        return f" from {one.threshold:g} on, and nothing that is found of it scores more than {highest:g}"
    return ""


def _hears_anybody(rule: Rule) -> bool:
    return any(_voices(stage) & _heard(rule) for stage in rule.stages)


def _is_heard(found: Findable, rule: Rule) -> bool:
    """Whether something may be found in a text that the rule looks at."""
    stages = {*rule.stages}.intersection(found.stages)
    return any(_voices(stage) & _heard(rule) & {*(found.roles or _voices(stage))} for stage in stages)


def _voices(stage: Stage) -> frozenset[str]:
    return REPLYING if stage is Stage.OUTPUT else EVERYBODY


def _nearest(category: str, known: Sequence[Findable]) -> str:
    # Compared without the word that all of them begin with, which would make any two alike.
    names = {name: one.category for one in known for name in (_below(one.category), *one.called)}
    word = _below(category)
    near = [name for name in names if name.startswith(word)] or get_close_matches(word, names, n=1)
    if near:
        return did_you_mean(category, [names[name] for name in near])
    return f"; choose from: {', '.join(dict.fromkeys(names.values()))}" if names else ""


def _below(category: str) -> str:
    return category.partition(".")[2] or category


def _misfiled(rule: Rule) -> Iterator[Problem]:
    """Yield a warning for each tag that looks like one of a list that we know, and is none of it."""
    for tag, (like, code, what) in product(rule.tags, CODES):
        if like.fullmatch(tag) and not code.fullmatch(tag):
            yield Problem(rule.written_at("tags"), f"tag '{tag}' of rule '{rule.id}' {what}")


def _cascaded(rule: Rule, policy: Policy) -> Iterator[Problem]:
    """Yield what is odd about whom a rule asks where it is not sure, and what that costs for nothing."""
    if rule.escalate is None:
        return
    (low, high), to, place = rule.escalate.between, rule.escalate.to, rule.written_at("escalate")
    if _falls_back(rule) and not low <= rule.threshold <= high:
        what = f"rule '{rule.id}' falls back on its threshold, {rule.threshold:g}, where '{to}' cannot be had"
        yield Problem(
            rule.written_at("threshold"),
            f"{what}; it lies outside of the band that is asked about, {low:g} to {high:g}",
        )
    if low == 0:
        what = f"rule '{rule.id}' asks for '{to}' wherever anything at all is found of '{rule.category}'"
        yield Problem(place, f"{what}; let the band begin above 0")
    for other in policy.rules:
        always = {one.category for one in sought(other) if one.key != "escalate"}
        if not set(other.stages).isdisjoint(rule.stages) and any(root(one) == root(to) for one in always):
            what = f"rule '{rule.id}' saves nothing: '{other.id}' ({other.origin}) has every text read for '{root(to)}'"
            yield Problem(place, what)
            break


def _idle_threshold(rule: Rule) -> Iterator[Problem]:
    """Yield a warning where a threshold and an `escalate` were written together, and only one of them decides."""
    place = rule.written_at("threshold")
    together = "threshold" in rule.origins and place.file == rule.written_at("escalate").file
    if rule.escalate and together and not _falls_back(rule):
        what = f"rule '{rule.id}' has a threshold that decides nothing beside 'escalate'"
        yield Problem(place, f"{what}, but with on_error: {{degrade: {rule.category}}}")


def _falls_back(rule: Rule) -> bool:
    return isinstance(rule.on_error, Degrade) and rule.on_error.degrade == rule.category


def _unasked(policy: Policy) -> Iterator[Problem]:
    asked = {root(one.category) for rule in as_any_overlay_has_them(policy) for one in sought(rule)}
    for check in policy.checks:
        if check.category not in asked:
            hint = "the check is never asked; write a rule over it, or take it out"
            yield Problem(check.origin, f"no rule looks at '{check.category}': {hint}")


def _out_of_reach(rule: Rule, scores: tuple[float, float] | None) -> Iterator[Problem]:
    if scores is None:
        return
    lowest, highest = scores
    if rule.escalate is None and not lowest < rule.threshold <= highest:
        what = f"rule '{rule.id}' fires from {rule.threshold:g} on; '{rule.category}' was calibrated on texts that"
        yield Problem(
            rule.written_at("threshold"),
            f"{what} scored {lowest:g} to {highest:g}: beyond, nobody knows what a score means",
        )
