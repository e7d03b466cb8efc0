"""What lint says of a policy; that no rule it calls dead could make a difference is tried on policies made up."""

import re
from dataclasses import replace
from datetime import date
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.guard.check import load_checks
from ringfence.guard.known import findable
from ringfence.policies.decide import decide
from ringfence.policies.findable import Findable
from ringfence.policies.lint import lint
from ringfence.policies.load import loads_policy
from ringfence.policies.overlay import effective
from ringfence.policies.types import (
    Action,
    Condition,
    Degrade,
    Escalate,
    Finding,
    Overlay,
    Override,
    Policy,
    Rule,
    RuleException,
    Scope,
    Span,
    Stage,
)
from ringfence.policies.words import covers

HEAD = "version: 1\nname: tiny\n"
TODAY = date(2026, 11, 22)
FUTURE, PAST = date(2999, 1, 1), date(2026, 11, 21)


def warnings(policy, found=None):
    told = [str(one) for one in lint(policy, [], TODAY, findable=found or {})]
    return [one for one in told if "has no case" not in one]


def of_rules(*lines, more=""):
    return loads_policy(HEAD + "rules:\n" + "".join(f"  - {{{line}}}\n" for line in lines) + more)


def test_lint_warns_of_rules_that_never_decide_or_have_no_case():
    policy = loads_policy(
        HEAD + "rules:\n"
        "  - {id: all, category: pii, action: block, threshold: 0.4}\n"
        "  - {id: mail, category: pii.email, action: rewrite}\n"
        "  - {id: early, category: pii.email, action: rewrite, threshold: 0.3}\n"
        "  - {id: shadow, category: pii.email, action: log, shadow: true}\n"
    )
    told = [str(one) for one in lint(policy, [], TODAY)]
    assert told[0] == (
        "<memory>:5:5: rule 'mail' never decides: 'all' (<memory>:4:5) asks for block from 0.4 on, "
        "where this one asks for rewrite from 0.5, and only hides on record what it finds"
    )
    assert "rule 'early' asks for rewrite in vain from 0.4 on: there 'all'" in told[1]
    assert len(told) == 6
    assert all("has no case" in warning for warning in told[2:])
    assert "everything passes" in str(next(lint(loads_policy(HEAD), [], TODAY)))


STRONG = "id: strong, category: pii.email, action: block"
WEAK = "id: weak, category: pii.email, action: rewrite"
ASKING = ", escalate: {to: harm, between: [0.5, 0.9]}"
EXCEPTED = "exceptions: [{id: ex, rules: [%s], pattern: '.*', until: %s, why: tests}]\n"


@pytest.mark.parametrize(
    ("strong", "weak", "more"),
    [
        (STRONG, WEAK, EXCEPTED % ("strong", FUTURE)),
        (STRONG + ", on_error: allow", WEAK, ""),
        (STRONG + ", on_error: {degrade: harm}", WEAK + ", on_error: log", ""),
        (STRONG.replace("block", "rewrite"), WEAK.replace("rewrite", "log") + ASKING, ""),
        (STRONG.replace("block", "log"), WEAK.replace("rewrite", "log") + ASKING, ""),
        (STRONG, WEAK + ", message: ours", ""),
        (
            STRONG.replace("block", "rewrite"),
            WEAK.replace("rewrite", "log") + ", when: {category: harm}",
            "",
        ),
        (STRONG, WEAK, "overlays: [{id: o, scope: {model: [m]}, remove: [strong]}]\n"),
        (STRONG, WEAK, "overlays: [{id: o, scope: {model: [m]}, override: {strong: {shadow: true}}}]\n"),
        (STRONG, WEAK, "counters: [{id: c, rules: [weak], at_least: 3, within: 1h, hold: 1h}]\n"),
        (STRONG + ", threshold: 0.8", WEAK.replace("rewrite", "log"), ""),
        (STRONG + ", threshold: 0.8", WEAK, ""),
        (STRONG.replace("pii.email", "pii") + ", threshold: 0.8", WEAK.replace("rewrite", "log"), ""),
        (STRONG.replace("pii.email", "pii") + ", threshold: 0.8, when: {category: harm}", WEAK, ""),
        (STRONG.replace("pii.email", "pii") + ", threshold: 0.8, shadow: true", WEAK, ""),
        (STRONG, WEAK.replace("pii.email", "pii"), ""),
        (STRONG + ", stages: [output]", WEAK + ", stages: [input]", ""),
        (STRONG + ", roles: [user]", WEAK + ", roles: [tool]", ""),
        (STRONG.replace("email", "card"), WEAK, ""),
    ],
)
def test_a_rule_that_may_decide_is_not_called_dead(strong, weak, more):
    assert warnings(of_rules(strong, weak, more=more)) == []


@pytest.mark.parametrize(
    "more", ["", EXCEPTED % ("strong, weak", FUTURE), EXCEPTED % ("weak", FUTURE), EXCEPTED % ("strong", PAST)]
)
def test_a_rule_beside_a_stronger_one_is_dead_where_no_exception_silences_that_one_alone(more):
    told = warnings(of_rules(STRONG, WEAK, more=more))
    assert told[0].startswith("<memory>:5:5: rule 'weak' never decides: 'strong'")


@pytest.mark.parametrize(
    ("strong", "weak"),
    [
        (STRONG.replace("block", "rewrite"), WEAK.replace("rewrite", "log") + ASKING + ", on_error: log"),
        (STRONG, WEAK + ASKING),
        (STRONG + ", message: ours", WEAK + ", message: ours"),
        (STRONG, WEAK.replace("rewrite", "log") + ", message: ours"),
    ],
)
def test_a_rule_that_decides_nothing_even_where_a_check_fails_is_dead(strong, weak):
    assert warnings(of_rules(strong, weak))[0].startswith("<memory>:5:5: rule 'weak' never decides: 'strong'")


def test_of_two_that_say_the_same_the_first_counts_unless_the_check_is_hurried_by_the_other():
    mail, again = WEAK.replace("rewrite", "log"), WEAK.replace("rewrite", "log").replace("weak", "again")
    (told,) = warnings(of_rules(mail, again))
    assert "rule 'again' adds nothing: 'weak'" in told
    assert warnings(of_rules(mail, again + ", seconds: 1")) == []


IN_PART = [
    (", stages: [output]", "", "on the output stage"),
    (", roles: [user, tool]", ", roles: [user, tool, assistant], threshold: 0.6", "in text of tool, user"),
    (", roles: [user], stages: [input]", ", roles: [user, tool]", "on the input stage in text of user"),
    (", threshold: 0.8", "", "from 0.8 on"),
    (", threshold: 0.8, stages: [input]", "", "on the input stage from 0.8 on"),
    (", threshold: 0.8, on_error: allow", "", "from 0.8 on"),
]


@pytest.mark.parametrize(("strong", "weak", "where"), IN_PART)
def test_of_rules_that_overlap_in_part_the_one_that_wins_there_is_told(strong, weak, where):
    told = warnings(of_rules("id: strong, category: pii, action: block" + strong, WEAK + weak))
    assert told == [
        f"<memory>:5:5: rule 'weak' asks for rewrite in vain {where}: there 'strong' (<memory>:4:5) asks for block, and "
        "the stronger action wins"
    ]


def test_of_several_that_win_over_a_rule_the_strongest_is_told():
    rewriting = "id: rewriting, category: pii, action: rewrite, stages: [input]"
    blocking = "id: blocking, category: pii, action: block, stages: [output]"
    (told,) = warnings(of_rules(rewriting, blocking, WEAK.replace("rewrite", "log")))
    assert "asks for log in vain on the output stage: there 'blocking'" in told


BROAD = "id: broad, category: pii, action: rewrite"


def test_a_rule_that_rewrites_what_another_rewrites_alike_is_told():
    assert warnings(of_rules(BROAD, WEAK)) == [
        "<memory>:5:5: rule 'weak' rewrites nothing that 'broad' (<memory>:4:5) leaves"
    ]
    assert len(warnings(of_rules(BROAD + ", restore: true", WEAK + ", stages: [output]"))) == 1
    assert warnings(of_rules(BROAD, WEAK + ", seconds: 1")) == []
    assert warnings(of_rules(BROAD + ", threshold: 0.6", WEAK)) == []
    assert warnings(of_rules(BROAD + ", stages: [input]", WEAK)) == []


@pytest.mark.parametrize("other", [", replacement: gone", ", restore: true", ", replacement: gone, stages: [input]"])
def test_of_two_rules_that_rewrite_the_same_otherwise_the_one_whose_words_stand_is_told(other):
    assert warnings(of_rules(BROAD, WEAK + other)) == [
        "<memory>:5:5: rules 'weak' and 'broad' (<memory>:4:5) rewrite the same, each in its own way: that of 'broad' "
        "stands, whose id comes first"
    ]
    assert len(warnings(of_rules(BROAD, BROAD.replace("broad", "again") + other))) == 1
    assert warnings(of_rules(BROAD + ", stages: [output]", WEAK + ", replacement: gone, stages: [input]")) == []


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a")])
def test_of_two_replacements_that_of_the_id_that_comes_first_stands_as_lint_says(ids):
    policy = of_rules(f"id: {ids[0]}, category: pii, action: rewrite, replacement: {ids[0]}", f"id: {ids[1]}, {MAIL}")
    (told,) = warnings(policy)
    (made,) = decide(policy, Stage.INPUT, [Finding("pii", "pii.email", 0.9, (Span(0, 0, 4),))]).rewrites
    assert f"that of '{made.rule}' stands" in told


MAIL = "category: pii.email, action: rewrite, replacement: mail"


def test_a_check_that_no_rule_looks_at_is_told():
    more = "checks:\n" + "".join(f"  - {{kind: keywords, category: {name}, words: [x]}}\n" for name in "abcd")
    more += "overlays: [{id: o, scope: {model: [m]}, rules: [{id: r, category: c, action: log}]}]\n"
    looking = "id: q, category: pii, action: log, when: {not: {category: b}}, on_error: {degrade: d}"
    assert warnings(of_rules(looking, more=more)) == [
        "<memory>:6:5: no rule looks at 'a': the check is never asked; write a rule over it, or take it out"
    ]


UNKNOWN = ["S15", "S0", "s9", "MLCommons:S15", "mlcommons:S9", "ML-Commons:S9", "MLCommons:hate", "MLCommons:S09"]
UNKNOWN += ["OWASP:LLM99", "OWASP:LLM01", "LLM01", "OWASP-LLM-2024:LLM01", "OWASP-LLM-2025:LLM11", "LLM1:2025"]
UNKNOWN += ["OWASP-LLM-2025:LLM00", "owasp-llm-2025:llm01", "OWASP-LLM-2025:injection", "OWASP-LLM-2025:LLM010"]
UNKNOWN += ["OpenAI-Moderation:threats", "openai-moderation:hate", "OpenAI-Moderation:self-harm/threatening"]
FREE = ["MLCommons:S1", "MLCommons:S14", "S9", "OWASP-LLM-2025:LLM01", "OWASP-LLM-2023:LLM10", "LLM01:2025", "banana"]
FREE += ["OWASP:A01", "ISO:S15", "team-s3", "S-Bahn", "LLM", "llm2-team", "MLCommonsense", "2025"]
FREE += ["OpenAI-Moderation:hate", "OpenAI-Moderation:self-harm/instructions", "OpenAI:moderated"]


@pytest.mark.parametrize(("tag", "known"), [*((tag, False) for tag in UNKNOWN), *((tag, True) for tag in FREE)])
def test_a_tag_that_looks_like_a_code_and_is_none_is_told_and_others_are_free(tag, known):
    told = warnings(of_rules(f'id: a, category: pii, action: log, tags: ["{tag}"]'))
    assert [one.split(" is no ")[0] for one in told] == ([] if known else [f"<memory>:4:41: tag '{tag}' of rule 'a'"])


def test_a_tag_that_an_override_brings_is_told_where_it_is_written():
    more = "overlays:\n  - id: o\n    scope: {model: [m]}\n    override: {a: {tags: [S15]}}\n"
    (told,) = warnings(of_rules("id: a, category: pii, action: log", more=more))
    assert told.startswith(
        "<memory>:8:20: in overlay 'o', tag 'S15' of rule 'a' is no hazard of MLCommons: they are S1 to S14"
    )


COUNTING = "counters:\n  - {id: c, rules: [%s], at_least: 1, within: 1h, hold: 1h}\n"
PAUSE = "id: pause, category: count.c, action: block, stages: [input]"


@pytest.mark.parametrize(
    ("counted", "rules", "more"),
    [
        ("pause", [PAUSE], ""),
        ("pause", [PAUSE.replace("count.c", "count")], ""),
        ("mail", ["id: mail, category: pii, action: log, when: {all: [{category: harm}, {category: count.c}]}"], ""),
        ("mail", ["id: mail, category: pii, action: log, when: {any: [{category: count.c}]}"], ""),
        (
            "other",
            ["id: other, category: count.d, action: log", PAUSE],
            "  - {id: d, rules: [pause], at_least: 1, within: 1h, hold: 1h}\n",
        ),
    ],
)
def test_a_counter_that_only_what_waits_for_it_could_feed_is_told(counted, rules, more):
    told = warnings(of_rules(*rules, more=COUNTING % counted + more))
    place = 4 + len(rules) + 1
    assert told[0].startswith(
        f"<memory>:{place}:5: counter 'c' is never full: what it counts ({counted}) can fire only"
    )
    assert len(told) == 1 + bool(more)


@pytest.mark.parametrize(
    "mail",
    [
        "id: mail, category: pii, action: log",
        "id: mail, category: pii, action: log, shadow: true",
        "id: mail, category: pii, action: log, when: {not: {category: count.c}}",
        "id: mail, category: pii, action: log, when: {any: [{category: harm}, {category: count.c}]}",
        "id: mail, category: unjudged, action: log",
    ],
)
def test_a_counter_that_something_else_feeds_is_not_told(mail):
    assert warnings(of_rules(PAUSE, mail, more=COUNTING % "pause, mail")) == []


def test_a_counter_is_fed_by_what_an_overlay_makes_of_a_rule():
    freed = "overlays: [{id: o, scope: {model: [m]}, override: {mail: {when: {category: harm}}}}]\n"
    mail = "id: mail, category: pii, action: log, when: {category: count.c}"
    assert len(warnings(of_rules(mail, more=COUNTING % "mail"))) == 1
    assert warnings(of_rules(mail, more=COUNTING % "mail" + freed)) == []


@pytest.fixture(scope="module")
def checks():
    return load_checks().values()


FINDABLE = [
    (
        "category: pii.emial, action: block",
        "category",
        "looks at 'pii.emial', which nothing is ever found of; did you mean 'pii.email'?",
    ),
    ("category: harm.S15, action: block", "category", "of; did you mean 'harm.S5'?"),
    ("category: secret.aws, action: block", "category", "of; did you mean 'secret.aws_secret'?"),
    ("category: hidden.x, action: block", "category", "of; choose from: hidden.invisible, hidden.bidi,"),
    ("category: words.cat, action: block", "category", "of; choose from: words"),
    ("category: count, action: block", "category", "of"),
    ("category: unjudged.video, action: block", "category", "of; choose from: unjudged.media, unjudged.field"),
    (
        "category: pii, action: block, threshold: 1.0",
        "category",
        "from 1 on, and nothing that is found of it scores more than 0.99",
    ),
    ("category: exfiltration, action: block, roles: [user]", "category", "in text of user"),
    ("category: leak, action: block, stages: [input]", "category", "on the input stage, where it is never found"),
    ("category: unjudged, action: block, stages: [output]", "category", "on the output stage, where it is never found"),
    ("category: pii, action: block, when: {not: {category: pii.emial}}", "when", "looks at 'pii.emial'"),
    ("category: pii, action: block, on_error: {degrade: pii.emial}", "on_error", "looks at 'pii.emial'"),
    (
        "category: harm, action: block, stages: [output], roles: [user]",
        "roles",
        "looks at what user said, on the output stage",
    ),
    ("category: harm, action: block, stages: [output], roles: [user, tool_call]", "", ""),
    ("category: pii, action: block, threshold: 0.99", "", ""),
    ("category: language.german, action: block", "category", "did you mean 'language.de'?"),
    ("category: language.deu, action: block", "category", "did you mean 'language.de'?"),
    ("category: language.xx, action: block", "category", "choose from: language.ace, "),
    ("category: language.de, action: block, when: {not: {category: language.en}}", "", ""),
    ("category: words, action: block", "", ""),
    ("category: leak, action: block", "", ""),
]


@pytest.mark.parametrize(("rule", "key", "told"), FINDABLE)
def test_lint_warns_of_what_is_never_found(rule, key, told, checks):
    policy = of_rules(f"id: a, {rule}", more="checks: [{kind: keywords, category: words, words: [cat]}]\n")
    found = [one for one in warnings(policy, findable(policy, checks)) if "no rule looks at 'words'" not in one]
    column = f"  - {{id: a, {rule}".index(key) + 1
    assert len(found) == bool(told)
    assert all(one.startswith(f"<memory>:4:{column}: rule 'a' looks at ") and told in one for one in found)


HALF_READ = [
    Findable("ways.out", stages=(Stage.INPUT,), roles=("tool", "function")),
    Findable("ways.out", stages=(Stage.OUTPUT,)),
]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("roles: [user]", True),
        ("roles: [user, system], stages: [input]", True),
        ("roles: [assistant], stages: [input]", True),
        ("roles: [assistant]", False),
        ("roles: [tool, user]", False),
        ("stages: [input]", False),
    ],
)
def test_lint_warns_of_a_rule_over_text_of_roles_that_its_check_never_reads(rule, told):
    found = warnings(of_rules(f"id: a, category: ways, action: block, {rule}"), {"ways": HALF_READ})
    assert [("rule 'a' looks at 'ways' in text of " in one) for one in found] == [True] * told
    standing_in = of_rules(f"id: a, category: harm, action: block, on_error: {{degrade: ways}}, {rule}")
    assert bool(warnings(standing_in, {"ways": HALF_READ})) == told
    # What a condition asks for counts in everybody's text.
    beside = of_rules(f"id: a, category: harm, action: block, when: {{category: ways}}, {rule}")
    assert warnings(beside, {"ways": HALF_READ}) == []


OPPOSITES = [
    (
        "{all: [{category: harm}, {not: {category: harm}}]}",
        "never fires",
        "'harm' from 0.5 on and for no 'harm' from 0.5",
    ),
    ("{all: [{category: harm.S1, threshold: 0.9}, {not: {category: harm}}]}", "never fires", "for no 'harm' from 0.5"),
    ("{all: [{category: harm}, {not: {any: [{category: attack}, {category: harm}]}}]}", "never fires", "for no 'harm'"),
    ("{all: [{category: harm}, {all: [{not: {category: harm}}]}]}", "never fires", "for no 'harm'"),
    ("{not: {category: pii}}", "never fires", "for 'pii.email' from 0.5 on and for no 'pii' from 0.5 on"),
    (
        "{all: [{any: [{category: harm}, {category: attack}]}, {not: {any: [{category: harm}, {category: attack}]}}]}",
        "never fires",
        "for the same under 'not'",
    ),
    (
        "{any: [{category: attack}, {all: [{category: harm}, {not: {category: harm}}]}]}",
        "has an 'all' that never holds",
        "for no 'harm' from 0.5 on",
    ),
    ("{all: [{category: harm}, {not: {category: harm, threshold: 0.9}}]}", "", ""),
    ("{all: [{category: harm}, {not: {category: harm.S1}}]}", "", ""),
    ("{any: [{category: harm}, {not: {category: harm}}]}", "", ""),
    ("{not: {category: pii.card}}", "", ""),
    ("{not: {category: pii, threshold: 0.6}}", "", ""),
    ("{not: {all: [{category: pii}, {category: harm}]}}", "", ""),
]


@pytest.mark.parametrize(("when", "told", "why"), OPPOSITES)
def test_lint_warns_of_a_rule_that_asks_for_something_and_for_its_absence(when, told, why):
    rule = f"id: a, category: pii.email, action: block, when: {when}"
    found = warnings(of_rules(rule))
    column = f"  - {{{rule}".index("when") + 1
    assert len(found) == bool(told)
    assert all(one.startswith(f"<memory>:4:{column}: rule 'a' {told}: ") and why in one for one in found)


SCORES = st.sampled_from([0.2, 0.5, 0.6, 0.9])
LEAVES = st.builds(
    lambda category, threshold: Condition(category=category, threshold=threshold),
    st.sampled_from(["pii", "pii.email", "harm"]),
    SCORES,
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda one: Condition(not_=one), inner),
        st.builds(lambda some: Condition(all=tuple(some)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda some: Condition(any=tuple(some)), st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@given(CONDITIONS, SCORES, st.lists(st.tuples(st.sampled_from(["pii", "pii.email", "harm"]), SCORES), max_size=4))
def test_no_rule_fires_that_lint_says_never_does(when, threshold, found):
    rule = Rule("a", "pii.email", Action.BLOCK, threshold=threshold, when=when)
    findings = [Finding("c", category, score, (Span(0, 0, 1),)) for category, score in found]
    if any("never fires" in one for one in warnings(Policy("p", (rule,)))):
        assert decide(Policy("p", (rule,)), Stage.INPUT, findings).rules == ()


def test_what_an_overlay_makes_of_a_rule_is_looked_at_too_and_what_it_leaves_is_told_once(checks):
    policy = of_rules(
        "id: a, category: pii.emial, action: block",
        "id: b, category: leak, action: block",
        more="overlays:\n  - id: o\n    scope: {model: [m]}\n    override: {a: {shadow: true}, b: {stages: [input]}}\n",
    )
    mistyped, moved = warnings(policy, findable(policy, checks))
    assert mistyped.startswith("<memory>:4:13: rule 'a' looks at 'pii.emial'")
    assert moved.endswith("rule 'b' looks at 'leak' on the input stage, where it is never found")


IN_OVERLAY = [
    ("override: {weak: {threshold: 0.7}}", "9:16", "rule 'weak' never decides: 'strong' (<memory>:4:5) asks for block"),
    ("override: {weak: {threshold: 0.985}, strong: {shadow: true}}", "9:23", "rule 'weak' fires from 0.985 on"),
    ("override: {weak: {stages: [output], roles: [user]}, strong: {shadow: true}}", "9:41", "looks at what user said"),
    ("rules: [{id: new, category: pii.email, action: block}]", "9:13", "rule 'new' adds nothing: 'strong' (<memory>:4"),
    (
        "rules: [{id: new, category: pii.emial, action: block}]",
        "9:23",
        "rule 'new' looks at 'pii.emial', which nothing",
    ),
    (
        "rules: [{id: new, category: pii, action: rewrite, replacement: gone}]",
        "7:5",
        "rules 'weak' and 'new' (<memory>:9:13) rewrite the same, each in its own way: that of 'new' stands",
    ),
    ("remove: [strong, weak]", "7:5", "there is no rule left: everything passes unjudged"),
    ("override: {strong: {threshold: 0.2}}", "", ""),
    ("override: {weak: {why: ours}, strong: {threshold: 0.8}}", "", ""),
    ("rules: [{id: new, category: pii, action: block}]", "", ""),
    ("message: other", "", ""),
]


@pytest.mark.parametrize(("changes", "place", "told"), IN_OVERLAY)
def test_what_an_overlay_makes_of_the_rules_is_told_where_it_stands(changes, place, told, checks):
    weak = WEAK + ", threshold: 0.4, stages: [input]"
    policy = of_rules(STRONG, weak, more=f"overlays:\n  - id: o\n    scope: {{model: [m]}}\n    {changes}\n")
    found = [str(one) for one in lint(policy, [], TODAY, lambda _: (0.01, 0.98), findable(policy, checks))]
    mine = [one for one in found if told and told in one]
    assert [one for one in found if "in overlay" in one] == mine
    assert [one.partition(": ")[0] for one in mine] == [f"<memory>:{place}"] * bool(told)


def test_what_is_odd_without_an_overlay_is_not_told_of_it_again_but_what_it_changes_is():
    base = "id: a, category: pii, action: log, threshold: 0.999, tags: [S15]"
    one, other = (f"  - {{id: {o}, scope: {{model: [m]}}, override: {{a: {{{of}}}}}}}\n" for o, of in CHANGES.items())
    told = [str(one) for one in lint(of_rules(base, more=f"overlays:\n{one}{other}"), [], TODAY, lambda _: (0.1, 0.9))]
    assert [one.partition("'")[0] for one in told if "has no case" not in one] == [
        "<memory>:4:41: rule ",
        "<memory>:4:59: tag ",
        "<memory>:7:49: in overlay ",
    ]


CHANGES = {"o": "shadow: true", "p": "threshold: 0.95"}


def test_every_check_that_says_what_it_finds_says_so_of_each_of_its_categories(checks):
    for check in checks:
        if finds := getattr(check, "finds", None):
            assert {one.category.partition(".")[0] for one in finds} == check.categories


NAMES = ["a", "b", "c", "d"]
CATEGORIES = ["pii", "pii.email", "pii.card", "harm"]
categories = st.sampled_from(CATEGORIES)
scores = st.sampled_from([0.3, 0.5, 0.7])
stages = st.sampled_from([(Stage.INPUT,), (Stage.OUTPUT,), tuple(Stage)])
voices = st.sampled_from([(), ("user",), ("user", "tool")])
on_errors = st.sampled_from([Action.ALLOW, Action.LOG, Action.BLOCK, Degrade("harm")])
some = st.sets(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda names: tuple(sorted(names)))
conditions = st.sampled_from([None, None, Condition(category="harm"), Condition(not_=Condition(category="harm"))])


def rules(name):
    told = {"message": st.sampled_from([None, "no"]), "shadow": st.sampled_from([False, False, True])}
    told |= {"escalate": st.sampled_from([None, None, Escalate("harm", (0.3, 0.7))])}
    told |= {"when": conditions, "on_error": on_errors, "roles": voices, "threshold": scores, "stages": stages}
    return st.builds(Rule, st.just(name), st.sampled_from(CATEGORIES[:3]), st.sampled_from(Action), **told)


exceptions = st.builds(
    RuleException,
    st.sampled_from(["e", "f"]),
    some,
    st.sampled_from([FUTURE, PAST]),
    st.just("x"),
    pattern=st.just("."),
)
overrides = st.dictionaries(
    st.sampled_from(NAMES), st.builds(Override, threshold=scores, on_error=on_errors), max_size=1
)
overlays = st.builds(Overlay, st.sampled_from(["o", "p"]), st.just(Scope(model=("m",))), some, overrides)
findings = st.builds(
    Finding,
    st.just("check"),
    categories,
    st.sampled_from([0.2, 0.4, 0.6, 0.8, float("nan")]),
    st.sampled_from([(), (Span(0, 0, 1),)]),
    error=st.sampled_from([None, None, "late"]),
    role=st.sampled_from(["", "user", "tool", "stranger"]),
)


@st.composite
def policies(draw):
    return Policy(
        "p",
        tuple(draw(rules(name)) for name in NAMES),
        exceptions=tuple(draw(st.lists(exceptions, max_size=2, unique_by=lambda one: one.id))),
        overlays=tuple(draw(st.lists(overlays, max_size=2, unique_by=lambda one: one.id))),
    )


@given(
    policies(), st.lists(findings, max_size=3), st.sampled_from(Stage), st.sets(st.sampled_from(["o", "p"])), st.data()
)
def test_no_rule_that_lint_calls_dead_makes_a_difference(policy, found, stage, applied, data):
    told = [
        re.search(r"(?:in overlay '(.)', )?rule '(.)' (never decides|adds nothing|rewrites nothing)", str(one))
        for one in lint(policy, [], TODAY)
    ]
    dead = [one.groups() for one in told if one]
    looks_at = {rule.id: rule.category for rule in policy.rules}
    marked = []
    for one in found:
        may = [
            e.id
            for e in policy.exceptions
            if e.until >= TODAY and any(covers(looks_at[r], one.category) for r in e.rules)
        ]
        ids = data.draw(st.sets(st.sampled_from(may))) if may and one.error is None else set()
        marked.append(replace(one, excepted=tuple(sorted(ids))))
    for overlay, name, how in dead:
        now = effective(policy, [overlay] if overlay else applied)
        decided = decide(now, stage, marked)
        without = decide(replace(now, rules=tuple(r for r in now.rules if r.id != name)), stage, marked)
        assert (without.action, without.message) == (decided.action, decided.message)
        if how == "adds nothing":
            assert without.rewrites == decided.rewrites
        if how == "rewrites nothing":
            assert [one.span for one in without.rewrites] == [one.span for one in decided.rewrites]


def test_lint_says_where_a_keyword_holds_replies_back_longer_than_the_stream_does():
    checks = f"checks:\n  - {{kind: keywords, category: deal, words: [short, {'long ' * 13}word]}}\n"
    told = "<memory>:4:53: word 2 of 'deal' has 69 characters: replies are held back that far, and not the 64 of "
    assert [one for one in warnings(loads_policy(HEAD + checks)) if "held" in one] == [told + "'stream.reach'"]
    assert not [one for one in warnings(loads_policy(HEAD + checks + "stream: {reach: 69}\n")) if "held" in one]


def test_ten_thousand_rules_are_compared_without_looking_at_every_pair():
    kinds = [(f"pii.k{n % 100}", Action.LOG if n % 3 else Action.BLOCK, n % 9 / 10, f"told {n}") for n in range(10_000)]
    policy = Policy(
        "p", tuple(Rule(f"r{n}", *kind[:2], threshold=kind[2], message=kind[3]) for n, kind in enumerate(kinds))
    )
    started = perf_counter()
    assert len(warnings(policy)) > 1_000
    assert perf_counter() - started < 5
