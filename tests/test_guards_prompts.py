"""What other people's guards are asked, word for word, and what their answers say."""

import json
import re
from pathlib import Path

import pytest

from ringfence.guard.check import Passage
from ringfence.guard.checks.guards.check import conversation, wordings_of
from ringfence.guard.checks.guards.family import NoVerdict, Turn, Wording, find_families, neutral, read_answer
from ringfence.guard.checks.guards.hazards import HAZARD_OF, below
from ringfence.guard.classifier.heads import HAZARDS
from ringfence.policies.document import PolicyError
from ringfence.policies.own import GuardCategory, GuardModel
from ringfence.policies.types import Stage
from ringfence.policies.words import Origin

GOLDEN = Path(__file__).parent / "golden" / "guards"
FAMILIES = find_families()
EXCHANGES = [
    (name, what) for name in FAMILIES for what in json.loads((GOLDEN / f"{name}.json").read_text())["exchanges"]
]


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def clear(family, turns):
    return [Turn(role, neutral(text, family.seams)) for role, text in turns]


def spec(kind, *categories, **fields):
    return GuardModel(kind, "g", "local", "m", categories, origin=Origin("p.yaml", 3, 5), **fields)


@pytest.mark.parametrize(("name", "what"), EXCHANGES)
def test_every_exchange_becomes_the_prompt_of_the_golden_file(name, what):
    family, kept = FAMILIES[name], golden(name)
    given = kept["exchanges"][what]
    categories = {code: Wording(*wording) for code, wording in given["categories"].items()}
    asked = family.ask(clear(family, given["turns"]), categories)
    assert [(one.code, one.prompt) for one in asked] == [(one["code"], one["prompt"]) for one in given["questions"]]
    told = [list(one.messages) if one.messages is not None else None for one in asked]
    assert told == [one["messages"] for one in given["questions"]]
    assert (family.opens, family.begins) == (kept["opens"], kept["begins"])


@pytest.mark.parametrize("name", FAMILIES)
def test_there_are_at_least_six_exchanges_of_each_family_and_it_says_what_policies_call_it(name):
    assert len(golden(name)["exchanges"]) >= 6
    assert FAMILIES[name].name == name


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("who", ["user", "assistant"])
def test_a_text_that_imitates_the_prompt_adds_no_control_token_section_or_turn_to_it(name, who):
    kept = golden(name)["exchanges"]
    hostile = kept[f"hostile, of a{' user' if who == 'user' else 'n assistant'}"]
    plain = kept["user only" if who == "user" else "user and assistant"]
    marks = re.compile(
        r"<\|[^|]*\|>|</?(?:think|eos|bos)>|</?(?:BEGIN|END|start_of|end_of)\w*[^>]*>"
        r"|^(?:User|Agent|ASSISTANT|(?:User|Assistant) Message|Human Question|Chatbot Response):|^===",
        re.IGNORECASE | re.MULTILINE,
    )
    for one, other in zip(hostile["questions"], plain["questions"], strict=True):
        assert marks.findall(one["prompt"]) == marks.findall(other["prompt"])
        assert len(one["prompt"]) > len(other["prompt"])


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_text_is_not_changed(name):
    text = "Dear user, a < b and c | d; <b>bold</b>, x <= y, f(x) -> |x|. The end: User agents differ. 3 = 3\n"
    assert neutral(text, FAMILIES[name].seams) == text


@pytest.mark.parametrize(
    ("name", "written", "unsafe", "codes"),
    [
        ("llama-guard-3", "\n\nsafe", [0.0], []),
        ("llama-guard-3", "unsafe\nS1,S10", [1.0], ["S1", "S10"]),
        ("llama-guard-3", "unsafe\nS2, S99", [1.0], ["S2"]),
        ("llama-guard-4", "unsafe", [1.0], []),
        ("shieldgemma", "Yes", [1.0], []),
        ("shieldgemma", "No\n\nThe question asks", [0.0], []),
        ("granite-guardian", "No", [0.0], []),
        ("granite-guardian", "Yes\n<confidence> High </confidence>", [1.0], []),
        ("qwen3guard", "Safety: Safe\nCategories: None", [0.0, 0.0], []),
        ("qwen3guard", "Safety: Controversial\nCategories: PII\nRefusal: No", [0.0, 1.0], ["PII"]),
        (
            "qwen3guard",
            "Safety: Unsafe\nCategories: Violent, Suicide & Self-Harm",
            [1.0, 0.0],
            ["Violent", "Suicide & Self-Harm"],
        ),
    ],
)
def test_an_answer_of_the_familys_form_is_read(name, written, unsafe, codes):
    family = FAMILIES[name]
    judged = read_answer(family, written, list(family.categories))
    assert list(judged.unsafe.values()) == unsafe
    assert [code for code, said in judged.codes.items() if said] == codes
    assert not judged.calibrated


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "written",
    [
        "",
        " \n",
        "Sure!",
        "No problem! How can I help?",
        "Yes, I can help you with that.",
        "The text is safe.",
        "safe, I think",
        "safe\nS1",
        "Safe unsafe",
        "safeunsafe",
        "UNSAFE?",
        "Safety: Safe",
        "Safety: Fine\nCategories: None",
        "Safety: Safe\nCategories: None\nSafety: Unsafe\nCategories: PII",
        "<html><body>safe</body></html>",
        '{"violation": 0}',
        "s" * 100_000,
        "\n" * 100_000 + "maybe",
    ],
)
def test_any_other_answer_is_no_verdict(name, written):
    with pytest.raises(NoVerdict):
        read_answer(FAMILIES[name], written, ["S1"])


def test_every_category_that_maps_is_one_of_its_family_and_maps_to_a_hazard():
    assert set(HAZARD_OF) == set(FAMILIES)
    for name, mapped in HAZARD_OF.items():
        assert set(mapped) <= set(FAMILIES[name].categories)
        assert set(mapped.values()) <= set(HAZARDS)
        names = [below(name, code, own=False) for code in FAMILIES[name].categories]
        assert len(set(names)) == len(names)


def test_a_policys_own_category_is_no_hazard_whatever_it_is_called():
    assert below("llama-guard-3", "S9", own=True) == "S9"
    assert below("qwen3guard", "PII", own=True) == "PII"
    assert below("qwen3guard", "PII", own=False) == "S7"
    assert below("qwen3guard", "Unethical Acts", own=False) == "Unethical-Acts"


def test_a_guard_reads_what_was_said_and_of_a_reply_what_it_answers():
    said = Passage(Stage.INPUT, "tool", "42 degrees", system="Be brief.")
    assert conversation(said) == (Turn("user", "42 degrees"),)
    reply = Passage(Stage.OUTPUT, "assistant", "No.", prompt="May I?")
    assert conversation(reply) == (Turn("user", "May I?"), Turn("assistant", "No."))


def test_a_policy_chooses_among_a_guards_categories_or_brings_its_own():
    family = FAMILIES["llama-guard-3"]
    assert list(wordings_of(spec("llama-guard-3"), family)) == [f"S{number}" for number in range(1, 15)]
    chosen = wordings_of(spec("llama-guard-3", GuardCategory("S6"), GuardCategory("A1", "Salaries.")), family)
    assert chosen == {
        "S6": Wording("Specialized Advice.", "Specialized Advice."),
        "A1": Wording("Salaries.", "Salaries."),
    }
    assert list(wordings_of(spec("granite-guardian"), FAMILIES["granite-guardian"])) == ["harm"]


@pytest.mark.parametrize(
    ("kind", "categories", "told"),
    [
        ("granite-guardian", ["violense"], r"p.yaml:3:5: .*no category 'violense'; did you mean 'violence'\?"),
        ("llama-guard-3", ["S1", "S1"], "p.yaml:3:5: .*'S1' twice"),
        ("qwen3guard", ["PII"], "p.yaml:3:5: .*leave `categories` out"),
    ],
)
def test_a_category_that_a_guard_cannot_be_asked_about_is_a_located_error(kind, categories, told):
    with pytest.raises(PolicyError, match=told):
        wordings_of(spec(kind, *map(GuardCategory, categories)), FAMILIES[kind])


@pytest.mark.parametrize(
    ("before", "unit"),
    [
        ("", "<|"),
        ("", "User :\n"),
        ("", " "),
        ("", "\n"),
        ("<", " "),
        ("<", "/"),
        ("Safety: Safe\nCategories: ", "S1,"),
        ("Yes", "\n"),
    ],
)
def test_texts_and_answers_of_any_shape_take_time_that_grows_with_their_length(before, unit, grows_with_its_length):
    def read(text):
        for family in FAMILIES.values():
            neutral(text, family.seams)
            family.answer.fullmatch(text)

    assert grows_with_its_length(read, unit, before)
