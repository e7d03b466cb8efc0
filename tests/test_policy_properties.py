"""Policies made up from the types that they are written in: a field that is new is tried without a word here. Where it
names other parts of the policy, or is more than its type says, `FILLED` has to know."""

import json
import types
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import date
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from annotated_types import Len, MinLen
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import StringConstraints
from pydantic.fields import FieldInfo

from ringfence.policies import document
from ringfence.policies.decide import decide, escalations
from ringfence.policies.document import PolicyError, parse_document
from ringfence.policies.load import PACKS, PolicyFile, canonical, loads_policy
from ringfence.policies.types import (
    MAY_BE_ABSENT,
    Action,
    Condition,
    Degrade,
    Finding,
    Kept,
    Override,
    Rule,
    RuleException,
    Scope,
    Span,
    Stage,
)
from ringfence.policies.words import NOT_WRITTEN

HEAD = "version: 1\nname: t\n"
RULE = "  - {id: r%d, category: pii, action: block}\n"

CATEGORIES = ["harm", "harm.S4", "pii", "pii.email", "attack", "unjudged.media"]
SECOND = ["guard", "guard.S4"]
RULE_IDS = [f"rule-{i}" for i in range(4)]
OTHER_IDS = [f"other-{i}" for i in range(4)]
PACKED = {
    path.stem: [rule["id"] for rule in yaml.safe_load(path.read_text())["rules"]]
    for path in PACKS.glob("*.yaml")
    if not path.name.endswith(".cases.yaml")
}

text = st.text(st.characters(codec="utf-8"), max_size=8)
patterns = st.sampled_from(["a+", "(?i)x|y", "[0-9]{3}"])
categories = st.sampled_from(CATEGORIES)
some_rules = st.lists(st.sampled_from(RULE_IDS), min_size=1, max_size=3, unique=True)

bands = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda band: band[0] < band[1])

FILLED = {
    "extends": None,
    "target": None,
    "remove": None,
    "override": None,
    "origins": None,
    "category": categories,
    "degrade": categories,
    "to": st.sampled_from(["guard", "guard.S4"]),
    "between": bands,
    "roles": st.lists(st.sampled_from(["user", "tool"]), max_size=2),
    "packs": st.lists(st.sampled_from(sorted(PACKED)), max_size=2, unique=True),
    "replacement": st.sampled_from(["", "[{category}]", "***"]),
    "pattern": patterns,
    "patterns": st.lists(patterns, min_size=1, max_size=2),
    "until": st.dates(date(2000, 1, 1), date(2100, 1, 1)).map(str),
}
"""By key, what its type does not say; None: it needs another file, or names what there has to be, and comes later."""


def written(hint):
    """What a file may hold for a type, as JSON has it."""
    notes = getattr(hint, "__metadata__", ())
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    constraints = [note for note in notes if isinstance(note, StringConstraints)]
    least = next((note.min_length for note in notes if isinstance(note, MinLen | Len)), 0)
    if constraints:
        return st.from_regex(constraints[0].pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
    if is_dataclass(bare):
        return of_dataclass(bare)
    if get_origin(bare) in (Union, types.UnionType):
        return st.one_of([written(one) for one in get_args(bare) if one not in (types.NoneType, Kept)])
    if get_origin(bare) is tuple:
        return st.lists(written(get_args(bare)[0]), min_size=least, max_size=least + 1)
    if get_args(bare) and get_origin(bare) is not Literal:
        key, value = get_args(bare)
        return st.dictionaries(written(key), written(value), min_size=least, max_size=least + 1)
    if bare is str:
        return text.filter(lambda value: len(value) >= least)
    plain = st.from_type(hint)
    return plain.filter(lambda value: abs(value) <= 2**53) if bare in (int, float) else plain


def of_dataclass(kind):
    hints = get_type_hints(kind, include_extras=True)
    needed, free = {}, {}
    for field in fields(kind):
        notes = getattr(hints[field.name], "__metadata__", ())
        key = next((note.alias for note in notes if isinstance(note, FieldInfo) and note.alias), field.name)
        if NOT_WRITTEN not in notes and (inner := FILLED.get(key, hints[field.name])) is not None:
            value = inner if isinstance(inner, st.SearchStrategy) else st.deferred(lambda hint=inner: written(hint))
            if kind is Override and key in MAY_BE_ABSENT:
                value |= st.none()
            without = field.default is MISSING and field.default_factory is MISSING
            (needed if without else free)[key] = value
    if kind is Condition:
        return conditions(free)
    made = st.fixed_dictionaries(needed, optional=free)
    if kind is Scope:
        return made.filter(bool)
    if kind is RuleException:
        return made.filter(lambda one: {"fingerprint", "pattern", "scope"} & one.keys())
    return made


def conditions(forms):
    """One of four forms: which one, no type says. What holds others holds one that holds none, so that they end."""
    leaf = st.fixed_dictionaries({"category": forms["category"]}, optional={"threshold": forms["threshold"]})
    return st.recursive(
        leaf,
        lambda inner: (
            st.builds(
                lambda form, held: {form: held},
                st.sampled_from(["any", "all"]),
                st.lists(inner, min_size=1, max_size=2),
            )
            | st.builds(lambda held: {"not": held}, inner)
        ),
        max_leaves=3,
    )


@st.composite
def policies(draw):
    """A policy, read from a file whose parts name each other as they may."""
    file = draw(of_dataclass(PolicyFile))
    inherited = [name for pack in file.get("packs", []) for name in PACKED[pack]]
    rules = file.get("rules", [])
    overlays = file.get("overlays", [])
    own = [*rules, *(rule for overlay in overlays for rule in overlay.get("rules", []))]
    for i, rule in enumerate(own):
        rule["id"] = f"rule-{i}"
    for key in ("counters", "exceptions", "overlays"):
        for i, one in enumerate(file.get(key, [])):
            one["id"] = f"{key}-{i}"
    for i, check in enumerate(file.get("checks", [])):
        check["category"] = f"own{i}"
    known = inherited + [rule["id"] for rule in rules]
    some = st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True) if known else st.nothing()
    for key in ("counters", "exceptions"):
        if not known:
            file.pop(key, None)
        for one in file.get(key, []):
            one["rules"] = draw(some)
    changes = of_dataclass(Override)
    if inherited:
        file["override"] = draw(st.dictionaries(st.sampled_from(inherited), changes, max_size=1))
        file["remove"] = draw(st.lists(st.sampled_from(inherited), max_size=1))
        left = set(known) - set(file["remove"])
        assume(not set(file["remove"]) & set(file["override"]))
        for one in [*file.get("counters", []), *file.get("exceptions", [])]:
            one["rules"] = [name for name in one["rules"] if name in left]
            assume(one["rules"])
        known = sorted(left)
    for overlay in overlays:
        if known:
            overlay["override"] = draw(st.dictionaries(st.sampled_from(known), changes, max_size=1))
    return loads_policy(as_yaml(file))


@st.composite
def rule_sets(draw):
    """A policy of a few rules and what is excepted from them: all that a decision goes by."""
    rules = draw(st.lists(of_dataclass(Rule), min_size=1, max_size=4))
    for i, rule in enumerate(rules):
        rule["id"] = f"rule-{i}"
    named = st.lists(st.sampled_from([rule["id"] for rule in rules]), min_size=1, max_size=2)
    excepted = {"id": "exceptions-0", "rules": draw(named), "until": "2100-01-01", "why": "x", "pattern": "x"}
    return loads_policy(as_yaml({"version": 1, "name": "rules", "rules": rules, "exceptions": [excepted]}))


def as_yaml(file):
    return yaml.safe_dump(json.loads(json.dumps(file)))


spans = st.builds(
    lambda part, start, length: Span(part, start, start + length),
    st.integers(0, 1),
    st.integers(0, 20),
    st.integers(1, 9),
)
findings = st.lists(
    st.builds(
        Finding,
        check=st.sampled_from(["one", "other"]),
        category=categories | st.sampled_from(SECOND),
        score=st.floats(0, 1),
        spans=st.lists(spans, max_size=2).map(tuple),
        rewritable=st.booleans(),
        role=st.sampled_from(["", "user", "tool"]),
        excepted=st.lists(st.sampled_from(["exceptions-0"]), max_size=1).map(tuple),
    ),
    max_size=4,
)
with_failures = findings.flatmap(
    lambda found: st.tuples(*(st.sampled_from([one, one, replace(one, score=0.0, error="down")]) for one in found)).map(
        list
    )
)
stages = st.sampled_from(Stage)
some_of = settings(max_examples=50)


@given(policies())
@some_of
def test_canonical_form_of_any_policy_reads_back_as_the_same_policy_with_the_same_revision(policy):
    again = loads_policy(as_yaml(canonical(policy)))
    assert again == policy
    assert canonical(again) == canonical(policy)


def has_not(condition):
    inner = (*(condition.any or ()), *(condition.all or ())) if condition else ()
    return condition is not None and (condition.not_ is not None or any(map(has_not, inner)))


def raised(found, data):
    """The findings with one of them surer."""
    at = data.draw(st.integers(0, len(found) - 1))
    return [replace(one, score=data.draw(st.floats(one.score, 1))) if i == at else one for i, one in enumerate(found)]


@given(rule_sets(), stages, findings.filter(len), st.data())
@some_of
def test_surer_finding_never_gives_a_weaker_action_but_where_a_condition_says_not(policy, stage, found, data):
    policy = replace(policy, rules=tuple(rule for rule in policy.rules if not has_not(rule.when)))
    surer = decide(policy, stage, raised(found, data))
    assert surer.action.strength >= decide(policy, stage, found).action.strength


@given(rule_sets(), stages, with_failures.filter(len), st.data())
@some_of
def test_surer_finding_never_gives_a_weaker_action_where_a_check_failed_that_no_condition_asks(
    policy, stage, found, data
):
    # A rule that logs, and blocks while nobody knows whether its condition holds, logs once that is known.
    policy = replace(policy, rules=tuple(map(unconditional, policy.rules)))
    surer = decide(policy, stage, raised(found, data))
    assert surer.action.strength >= decide(policy, stage, found).action.strength


def unconditional(rule):
    on_error = Action.BLOCK if isinstance(rule.on_error, Degrade) else rule.on_error
    if rule.escalate:
        # A surer finding settles what its other check's failure had left open: its own action must be as strong.
        on_error = on_error if on_error.strength <= rule.action.strength else Action.ALLOW
    return replace(rule, when=None, on_error=on_error)


def plain(rule):
    """A rule without its `escalate`: it fires from the end of the band on."""
    return replace(rule, escalate=None, threshold=rule.escalate.between[1]) if rule.escalate else rule


@given(rule_sets(), stages, with_failures)
@some_of
def test_rule_that_is_in_doubt_of_nothing_decides_as_though_it_escalated_to_nobody(policy, stage, found):
    found = [replace(one, excepted=()) for one in found]
    asking = {rule.id for rule, _, _ in escalations(policy, stage, found)}
    assert asking == set(decide(policy, stage, found).escalated)
    rules = [rule for rule in policy.rules if rule.id not in asking and not isinstance(rule.on_error, Degrade)]
    sure = replace(policy, rules=tuple(map(plain, rules)))
    assert decide(replace(policy, rules=tuple(rules)), stage, found) == decide(sure, stage, found)


@given(rule_sets(), stages, with_failures, st.randoms())
@some_of
def test_order_of_rules_changes_nothing_about_a_decision(policy, stage, found, random):
    shuffled = replace(policy, rules=tuple(random.sample(policy.rules, len(policy.rules))))
    assert decide(shuffled, stage, found) == decide(policy, stage, found)


@given(rule_sets(), stages, with_failures, st.randoms())
@some_of
def test_order_of_findings_changes_nothing_but_the_order_that_they_are_listed_in(policy, stage, found, random):
    decision = decide(policy, stage, found)
    other = decide(policy, stage, random.sample(found, len(found)))
    assert set(other.errors) == set(decision.errors)
    assert replace(other, findings=decision.findings, errors=decision.errors) == decision


def read(source):
    """What a text is read as, with its places, or the problems of it."""
    try:
        return parse_document(source, "p.yaml", Any)
    except PolicyError as error:
        return str(error)


yaml_like = st.text(st.sampled_from(list("ab1:-,[]{}#'\"|>!?.\n\n  ")), max_size=30)


@given(yaml_like)
@settings(max_examples=300)
def test_text_means_the_same_without_libyaml(source):
    fast = read(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "FAST", document.Plain)
        slow = read(source)
    if isinstance(slow, str) and (not isinstance(fast, str) or "tag" in fast + slow):
        return  # libyaml takes some malformed texts besides, such as `>#`, and refuses `!:!` in other words
    assert fast == slow


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("[How much?, b]", ["How much?", "b"]),
        ("{a?: b, c: d?}", {"a?": "b", "c": "d?"}),
        ("[https://x.example/?q=1, a ?b, a ? b]", ["https://x.example/?q=1", "a ?b", "a ? b"]),
        ("[a\n ?b]", ["a ?b"]),
        ("[? a]", [{"a": None}]),  # as the first character of a key it is a sign, also in YAML
    ],
)
@pytest.mark.parametrize("parser", [document.FAST, document.Plain])
def test_a_question_mark_ends_no_word(source, value, parser, monkeypatch):
    monkeypatch.setattr(document, "FAST", parser)
    assert parse_document(source, "p.yaml", Any).value == value


def test_policy_loads_without_libyaml(monkeypatch):
    source = HEAD + "rules:\n" + "".join(RULE % i for i in range(3))
    fast = loads_policy(source)
    monkeypatch.setattr(document, "FAST", document.Plain)
    slow = loads_policy(source)
    assert slow == fast
    assert [rule.origin for rule in slow.rules] == [rule.origin for rule in fast.rules]


def test_time_to_load_grows_with_the_number_of_rules_and_no_faster(seconds):
    few, many = (HEAD + "rules:\n" + "".join(RULE % i for i in range(rules)) for rules in (500, 5_000))
    assert seconds(lambda: loads_policy(many)) < 25 * seconds(lambda: loads_policy(few))


LARGE = 500_000
BOMBS = {
    "brackets": ("[" * LARGE, "1:17: nested deeper than 16 levels"),
    "braces": ("{a: " * LARGE, "1:62: nested deeper than 16 levels"),
    "dashes": ("- " * LARGE, "1:33: nested deeper than 16 levels"),
    "indents": ("".join(" " * i + "a:\n" for i in range(1_000)), "16:16: nested deeper than 16 levels"),
    "laughs": ("a: &a [x]\nb: [*a, *a]\n", "1:4: anchors and aliases are not allowed ('a'); write the value out"),
    "letters": ("a" * LARGE, f'1:1: the file must be a mapping, got "{"a" * 56}...'),
    "text": (HEAD + f"message: '{'x' * LARGE}'\n", None),
    "digits": (f"version: {'9' * LARGE}\nname: x\n", f"1:1: 'version' cannot be {'9' * 56}...: a number is finite"),
    "minutes": (
        f"version: 1{':00' * LARGE}\nname: x\n",
        f"1:1: 'version' cannot be 1{':00' * 18}:...: a number is finite",
    ),
    "documents": ("---\n" * LARGE, "2:1: a second document begins here ('---'); a file holds one"),
    "comment": ("#" * LARGE, "1:1: the file is empty"),
    "blanks": ("\n" * LARGE, "1:1: the file is empty"),
    "late": (HEAD + "rules:\n" + "".join(RULE % i for i in range(10_000)) + "  - [\n", "10005:1: not YAML: "),
    "huge": ("a" * 6_000_000, "1:1: 6,000,000 characters are too many; at most 5,000,000 are read"),
}
"""Text, and how what is told of it begins; None where it is a policy."""


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_loads_or_is_told_with_its_place_in_bounded_time(name, seconds):
    source, expected = BOMBS[name]
    if expected is None:
        assert seconds(lambda: loads_policy(source)) < 5
        return

    def load():
        with pytest.raises(PolicyError) as caught:
            loads_policy(source, "p.yaml")
        assert str(caught.value).startswith(f"p.yaml:{expected}")

    assert seconds(load) < 5


def test_no_more_problems_are_told_than_somebody_reads():
    with pytest.raises(PolicyError) as caught:
        loads_policy(HEAD + "".join(f"key{i}: 1\n" for i in range(20_000)))
    lines = str(caught.value).splitlines()
    assert len(lines) == 101
    assert lines[0].startswith("<memory>:3:1: unknown key 'key0'")
    assert lines[-1] == "<memory>:103:1: there are more problems"
