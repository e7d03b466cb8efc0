"""Names by a spaCy pipeline: a real one, small and trained here on a few sentences."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from random import Random
from time import monotonic
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ringfence import Guard
from ringfence.guard.check import Passage, own_checks
from ringfence.guard.checks.own.entities import MARGIN, NAMED, WINDOW, windows
from ringfence.guard.exchange import Exchange, Kind, Part
from ringfence.guard.pipeline import Pipeline
from ringfence.policies.document import PolicyError
from ringfence.policies.load import load_policy
from ringfence.policies.own import Entities, Label
from ringfence.policies.schema import schema_of
from ringfence.policies.types import Action, Policy, Rule, Stage
from ringfence.policies.words import Origin

PEOPLE = ("Maria Keller", "Jonas Brandt", "Ines Duarte", "Omar Haddad")
PLACES = ("Lisbon", "Kassel", "Oslo")
SENTENCES = (
    "{p} wrote to us from {l} today .",
    "please send the parcel to {p} in {l} .",
    "I met {p} and we went to {l} by train .",
    "the invoice of {p} is still open .",
    "we moved to {l} last year , said {p} .",
    "nothing of note happened today , and nobody wrote to us .",
    "the train was late again and the parcel is still open .",
)
FILLER = "nothing of note happened today , and nobody wrote to us . "


def spacy():
    """Return the library. Without it a test is skipped; where `RINGFENCE_NEEDED` names it, it fails."""
    if "names" in os.environ.get("RINGFENCE_NEEDED", "").split(","):
        return import_module("spacy")
    return pytest.importorskip("spacy", reason="spaCy is not there: `make names` installs it")


def saved(folder: Path, build) -> Path:
    nlp = spacy().blank("en")
    build(nlp)
    nlp.to_disk(folder)
    return folder


def trained(nlp) -> None:
    """Teach a recogniser a few sentences, with a tagger beside it that knows nothing."""
    from spacy.training import Example
    from spacy.util import fix_random_seed

    fix_random_seed(0)
    nlp.add_pipe("tagger").add_label("NN")
    nlp.add_pipe("ner")
    examples = []
    for sentence in SENTENCES:
        for number in range(12):
            person, place = PEOPLE[number % len(PEOPLE)], PLACES[number % len(PLACES)]
            text = sentence.format(p=person, l=place)
            found = [(text.find(name), name, label) for name, label in ((person, "PERSON"), (place, "GPE"))]
            spans = [(start, start + len(name), label) for start, name, label in found if start >= 0]
            doc = nlp.make_doc(text)
            examples.append(Example.from_dict(doc, {"entities": spans, "tags": ["NN"] * len(doc)}))
    optimizer, random = nlp.initialize(lambda: examples), Random(0)
    for _ in range(6):
        random.shuffle(examples)
        for start in range(0, len(examples), 8):
            nlp.update(examples[start : start + 8], sgd=optimizer)


def ruled(*labels: str):
    """Return what makes a pipeline that knows a name by rote under each label."""

    def build(nlp) -> None:
        patterns = [{"label": label, "pattern": f"word{number}"} for number, label in enumerate(labels)]
        nlp.add_pipe("entity_ruler").add_patterns(patterns)

    return build


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline") / "ner", trained)


def open_check(folder: Path | str, *labels: Label, **fields):
    spec = Entities("entities", "people", str(folder), labels, origin=Origin("p.yaml", 7, 5), **fields)
    return own_checks([spec])["checks.people"]


def passage(text: str, **fields) -> Passage:
    return Passage(Stage.INPUT, "user", text, **fields)


def found(check, text: str) -> list[tuple[str, str]]:
    spans = [(finding.category, finding.spans[0]) for finding in check.find(passage(text))]
    return [(category, text[span.start : span.end]) for category, span in spans]


def test_people_and_places_are_found_at_their_exact_places(folder):
    check = open_check(folder)
    text = "🙂 please send the parcel to Maria Keller in Oslo ."
    findings = check.find(passage(text, part=3))
    assert [(f.category, f.score, f.detail) for f in findings] == [
        ("people.name", 1.0, "PERSON, calibrated: false"),
        ("people.place", 1.0, "GPE, calibrated: false"),
    ]
    assert [text[f.spans[0].start : f.spans[0].end] for f in findings] == ["Maria Keller", "Oslo"]
    assert {f.spans[0].part for f in findings} == {3}
    assert check.find(passage(FILLER)) == []
    assert check.find(passage(" \n")) == ()
    assert [one.category for one in check.finds] == ["people.place", "people.name"]


def test_the_model_reads_placeholders_and_the_caller_the_names(folder):
    rules = (Rule("names", "people", Action.REWRITE, restore=True),)
    guard = Guard(Policy("t", rules, revision="r"), checks={"people": open_check(folder)})
    text = "please send the parcel to Maria Keller in Oslo . I met Omar Haddad and we went to Oslo by train ."
    part = Part(Kind.TEXT, "user", ("messages", 0, "content"), text)
    exchange = Exchange("t", "m", [part], body={"messages": [{"role": "user", "content": text}]})
    guard.judge_request(exchange)
    said = exchange.body["messages"][0]["content"]
    assert said == text.replace("Maria Keller", "[NAME_1]").replace("Oslo", "[PLACE_1]").replace(
        "Omar Haddad", "[NAME_2]"
    )
    reply = guard.open_reply(exchange)
    reply.feed(("reply",), "[NAME_2] is in [PLACE_1], [NAME_9] is not.")
    told = reply.release(("reply",), last=True)
    reply.finish()
    assert told == "Omar Haddad is in Oslo, [NAME_9] is not."


@given(st.integers(0, 5 * WINDOW))
def test_every_place_of_a_text_is_told_by_one_window_that_reads_what_stands_around_it(length):
    cut = list(windows(length))
    assert [cut[0][0], cut[0][1], cut[-1][2]] == [0, 0, length]
    assert all(one[2] == other[1] for one, other in pairwise(cut))
    for start, first, last in cut:
        assert first - start == (MARGIN if start else 0)
        assert min(start + WINDOW, length) - last == (0 if last == length else MARGIN)


def test_a_name_is_found_once_wherever_windows_are_cut(folder):
    check, name = open_check(folder), "please send the parcel to Maria Keller in Oslo . "
    edge = next(windows(2 * WINDOW))[2]
    for shift in range(0, len(name) + 4, 3):
        whole, rest = divmod(edge - shift, len(FILLER))
        before = FILLER * whole + ("." * rest + " ")[1:]
        text = f"{before}{name}{FILLER * 80}"
        assert text.index(name) == edge - shift
        assert found(check, text) == [("people.name", "Maria Keller"), ("people.place", "Oslo")], shift


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ((3, 8), (-3, 8), [(-3, 8)]),  # a title belongs to the name for one of them alone
        ((-3, 8), (3, 8), [(-3, 8)]),
        ((-3, 8), (-3, 12), [(-3, 8), (-3, 12)]),
        ((-9, -3), (-3, 8), [(-9, -3), (-3, 8)]),
        ((-9, -3), (-9, -3), [(-9, -3)]),
        ((3, 8), (3, 8), [(3, 8)]),
    ],
)
def test_a_name_at_a_seam_that_two_windows_begin_otherwise_is_told(folder, monkeypatch, first, second, told):
    check, edge = open_check(folder), next(windows(2 * WINDOW))[2]
    start = [one[0] for one in windows(WINDOW + 1)]

    class Seen:
        """What spaCy would say of the two windows, each by itself."""

        def __init__(self) -> None:
            self.says = [(begin, *place) for begin, place in zip(start, (first, second), strict=True)]

        def memory_zone(self):
            return nullcontext()

        def __call__(self, _):
            begin, *place = self.says.pop(0)
            a, b = (edge + one - begin for one in place)
            return SimpleNamespace(ents=[SimpleNamespace(start_char=a, end_char=b, label_="PERSON")])

    monkeypatch.setattr(check, "_nlp", Seen())
    spans = [finding.spans[0] for finding in check.find(passage("a" * (WINDOW + 1)))]
    assert [(span.start - edge, span.end - edge) for span in spans] == told


def test_spacy_is_never_given_more_than_a_window(folder, monkeypatch):
    check = open_check(folder)
    monkeypatch.setattr(check.warm(), "max_length", WINDOW)
    text = f"{FILLER * 200}the invoice of Ines Duarte is still open . "
    assert len(text) > 2 * WINDOW
    assert found(check, text) == [("people.name", "Ines Duarte")]


def test_many_threads_may_ask_at_once_and_nothing_that_was_read_is_kept(folder):
    check = open_check(folder)
    texts = [f"word{number} the invoice of {PEOPLE[number % 4]} is still open . " * 150 for number in range(24)]
    alone = [found(check, text) for text in texts]
    known = len(check.warm().vocab.strings)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: found(check, text), texts)) == alone
    assert all(len(one) == 150 for one in alone)
    assert len(check.warm().vocab.strings) == known
    assert "word23" not in check.warm().vocab.strings


def test_a_text_that_nobody_waits_for_is_not_read_and_fails_closed(folder):
    check = open_check(folder)
    with pytest.raises(TimeoutError, match="timeout_s"):
        check.find(passage(FILLER, until=monotonic()))
    slow = open_check(folder, timeout_s=1e-9)
    policy = Policy("t", (Rule("r", "people", Action.LOG),))
    judged = Pipeline(policy, {"people": slow}).judge(Stage.INPUT, [passage(FILLER)])
    assert judged.action is Action.BLOCK
    assert "timeout_s" in judged.errors[0]


def test_half_a_surrogate_pair_is_read_over(folder):
    assert found(open_check(folder), "\ud83d the invoice of Ines Duarte is still open .") == [
        ("people.name", "Ines Duarte")
    ]


def test_a_policy_says_which_labels_count_and_what_they_are_called(folder):
    text = "please send the parcel to Maria Keller in Oslo ."
    assert found(open_check(folder, Label("PERSON", "staff")), text) == [("people.staff", "Maria Keller")]
    assert found(open_check(folder, Label("GPE")), text) == [("people", "Oslo")]


@pytest.mark.parametrize(
    ("label", "hint"), [("PERSN", "did you mean 'PERSON'"), ("NN", "choose from: GPE, PERSON"), ("ORG", "choose from")]
)
def test_a_label_that_the_pipeline_does_not_find_is_refused(folder, label, hint):
    with pytest.raises(PolicyError, match=rf"^p\.yaml:7:5: 'people' cannot use .*no label '{label}'; {hint}"):
        open_check(folder, Label("PERSON"), Label(label))


def test_labels_of_other_languages_are_known_and_those_of_no_name_have_to_be_named(tmp_path):
    labels = sorted(NAMED)
    many = open_check(saved(tmp_path / "many", ruled(*labels, "DATE")))
    text = " ".join(f"word{number}" for number in range(len(labels) + 1))
    assert found(many, text) == [(f"people.{NAMED[label]}", f"word{n}") for n, label in enumerate(labels)]
    with pytest.raises(PolicyError, match="it has the labels DATE; name under `labels` those that count"):
        open_check(saved(tmp_path / "none", ruled("DATE")))


def test_what_a_recogniser_does_not_read_is_left_out_unless_somebody_else_may(folder, tmp_path):
    assert open_check(folder).warm().component_names == ["ner"]

    def with_ruler(nlp):
        trained(nlp)
        ruled("PER")(nlp)

    assert open_check(saved(tmp_path / "x", with_ruler)).warm().component_names == ["tagger", "ner", "entity_ruler"]


def test_a_pipeline_without_a_recogniser_or_with_one_that_is_off_is_refused(folder, tmp_path):
    def tagging(nlp):
        nlp.add_pipe("tagger").add_label("PERSON")

    def off(nlp):
        ruled("PERSON")(nlp)
        nlp.disable_pipe("entity_ruler")

    for name, build in (("tagging", tagging), ("off", off)):
        with pytest.raises(PolicyError, match="it has no named-entity recogniser"):
            open_check(saved(tmp_path / name, build))


def test_an_installed_package_is_used_by_its_name(folder, tmp_path, monkeypatch):
    root = tmp_path / "xx_ours"
    meta = json.loads((folder / "meta.json").read_text()) | {"name": "ours", "version": "1.0", "lang": "xx"}
    shutil.copytree(folder, root / "xx_ours-1.0")
    (root / "meta.json").write_text(json.dumps(meta))
    (root / "__init__.py").write_text(
        "from spacy.util import load_model_from_init_py\n\n"
        "def load(**fields):\n    return load_model_from_init_py(__file__, **fields)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check = open_check("xx_ours")
    assert "xx_ours" not in sys.modules
    assert found(check, "I met Jonas Brandt and we went to Kassel by train .")[0] == ("people.name", "Jonas Brandt")
    assert check.warm().component_names == ["ner"]


def test_what_is_missing_is_said_with_what_to_install(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "spacy", None)
        with pytest.raises(PolicyError, match=r"p\.yaml:7:5: .*spaCy is not installed; install `ringfence\[names\]`"):
            open_check("en_core_web_sm")
    spacy()
    for model, words in (
        ("xx_none_sm", r"no package of that name is installed; .*`python -m spacy download xx_none_sm`"),
        ("not a name", "no package of that name is installed"),
        ("json", "no pipeline of spaCy's"),
        (f"{tmp_path}/none", "there is no such folder"),
        (f"{tmp_path}/.", r"the folder has no meta\.json"),
    ):
        with pytest.raises(PolicyError, match=rf"^p\.yaml:7:5: 'people' cannot use .*{words}"):
            open_check(model)


@pytest.mark.parametrize("file", ["meta.json", "config.cfg"])
def test_a_damaged_description_is_refused(folder, tmp_path, file):
    shutil.copytree(folder, tmp_path / "x")
    for spoilt in ("", "{", "[]", "[components]", '{"pipeline": ["ner"]}', "\ud800".encode("utf-8", "surrogatepass")):
        (tmp_path / "x" / file).write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
        with pytest.raises(PolicyError, match=r"^p\.yaml:7:5: 'people' cannot use .*download or save it anew"):
            open_check(tmp_path / "x")


@pytest.mark.parametrize("file", ["ner/model", "ner/moves", "vocab/strings.json", "tokenizer"])
def test_damaged_weights_are_refused_when_they_are_loaded(folder, tmp_path, file):
    shutil.copytree(folder, tmp_path / "x")
    data = (tmp_path / "x" / file).read_bytes()
    (tmp_path / "x" / file).write_bytes(data[: len(data) // 2])
    check = open_check(tmp_path / "x")
    with pytest.raises(PolicyError, match=r"^p\.yaml:7:5: 'people' cannot use .*download or save it anew"):
        check.warm()


def test_other_files_in_their_place_are_noticed_and_make_another_revision(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "x")
    check = open_check(tmp_path / "x")
    assert check.revision == open_check(folder).revision != open_check(folder, Label("PERSON", "name")).revision
    assert not check.is_replaced()
    (tmp_path / "x" / "vocab" / "strings.json").write_text("[]")
    assert check.is_replaced()
    assert open_check(tmp_path / "x").revision != check.revision


POLICY = """\
version: 1
name: t
checks:
  - kind: entities
    category: people
    model: ./ner
    labels:
      - { label: PERSON, category: name }
rules:
  - { id: names, category: people.name, action: rewrite, restore: true }
"""


def test_a_folder_of_a_policy_is_found_from_anywhere(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "policies" / "ner")
    file = tmp_path / "policies" / "p.yaml"
    file.write_text(POLICY)
    Draft202012Validator(schema_of("policy")).validate(yaml.safe_load(POLICY))
    monkeypatch.chdir(tmp_path)
    guard = Guard(load_policy(file))
    text = "please send the parcel to Maria Keller in Oslo ."
    assert [one.category for one in guard.check(text).findings] == ["people.name"]


def test_a_policy_that_looks_for_no_names_loads_no_spacy():
    code = "import sys; from ringfence import Guard; Guard(); assert 'spacy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
