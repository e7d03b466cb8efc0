"""Categories learnt from a handful of examples: how well on texts held out, what is refused, and that it is repeatable.

`own_categories/` holds six, written for this, with thirty held-out texts each that nothing was chosen by.
"""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import monotonic

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from ringfence.guard.check import Passage
from ringfence.guard.checks.model import Reader, shared_reader
from ringfence.guard.checks.own.examples import LONGEST, ExamplesCheck, bar, learn
from ringfence.guard.classifier.corpus import OWN_DATA, load_own
from ringfence.guard.classifier.scorer import ELSEWHERE, WEIGHTS, Scorer
from ringfence.guard.classifier.tokens import READ_LIMIT
from ringfence.policies.document import PolicyError
from ringfence.policies.load import loads_policy
from ringfence.policies.own import Examples
from ringfence.policies.types import Stage
from ringfence.policies.words import Origin

CATEGORIES = sorted((Path(__file__).parent / "own_categories").glob("*.yaml"))


@dataclass
class Known:
    """A category as a policy has it, and held-out texts of either side."""

    spec: Examples
    belongs: list[str]
    does_not: list[str]


def known(name: str) -> Known:
    data = yaml.safe_load((Path(__file__).parent / "own_categories" / f"{name}.yaml").read_text(encoding="utf-8"))
    spec = Examples("examples", name, data["description"], tuple(data["match"]), tuple(data["leave"]))
    return Known(spec, data["held_out"]["match"], data["held_out"]["leave"])


def passage(text: str, **fields) -> Passage:
    return Passage(Stage.INPUT, "user", text, **fields)


def scores(check: ExamplesCheck, texts) -> np.ndarray:
    return np.array([check.find(passage(text))[0].score for text in texts])


def ordinary_texts() -> list[str]:
    """Harmless prompts of the project's own that the weights never learnt from, nor what is known of ordinary texts."""
    _, apart = load_own(OWN_DATA)
    odd = ("own_multilingual", "own_obfuscated")
    alone = [
        one for one in apart if one.prompt is None and one.labels.get("prompt_harm") == 0 and one.family not in odd
    ]
    return [one.text for one in alone[::3]][:200]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return shared_reader()


@pytest.fixture(scope="module")
def dosage(reader) -> ExamplesCheck:
    return learn(known("dosage").spec, reader)


def test_ten_examples_of_each_side_or_a_few_more_make_a_detector(reader):
    categories = [known(path.stem) for path in CATEGORIES]
    assert len(categories) == 6
    began = monotonic()
    checks = [learn(category.spec, reader) for category in categories]
    assert monotonic() - began < 30
    ordinary = ordinary_texts()
    assert len(ordinary) == 200
    # One text before all checks, then the next: they share the reading of it.
    others = np.array([[check.find(passage(text))[0].score for check in checks] for text in ordinary])  # (200, 6)
    rows = []
    for check, category, other in zip(checks, categories, others.T, strict=True):
        yes, no = scores(check, category.belongs), scores(check, category.does_not)
        auroc = roc_auc_score([1] * len(yes) + [0] * len(no), [*yes, *no])
        rows.append((auroc, *((some >= 0.5).mean() for some in (yes, no, other))))
        print(
            f"{check.name:12} AUROC {auroc:.3f}  recall {rows[-1][1]:.2f}  alarms: near misses {rows[-1][2]:.2f}, "
            f"ordinary {rows[-1][3]:.3f}"
        )
        assert auroc >= 0.7
        assert rows[-1][3] <= 0.2
    auroc, recall, near, far = np.mean(rows, axis=0)
    print(f"{'mean':12} AUROC {auroc:.3f}  recall {recall:.2f}  alarms: near misses {near:.2f}, ordinary {far:.3f}")
    assert auroc >= 0.85
    assert recall >= 0.7
    assert near <= 0.25
    assert far <= 0.05


def test_the_same_examples_make_the_same_check(dosage):
    again = learn(known("dosage").spec, Reader(Scorer.load(WEIGHTS), WEIGHTS))
    assert again.revision == dosage.revision
    texts = known("dosage").belongs
    assert scores(again, texts).tolist() == scores(dosage, texts).tolist()


def test_the_revision_is_that_of_examples_and_weights(dosage, reader):
    spec = known("dosage").spec
    assert learn(replace(spec, why="asked for", origin=Origin("x.yaml", 3, 1)), reader).revision == dosage.revision
    assert learn(replace(spec, leave=spec.leave[1:]), reader).revision != dosage.revision
    assert learn(replace(spec, description=f"{spec.description} Or so."), reader).revision != dosage.revision
    assert len(bytes.fromhex(dosage.revision)) == 32


def test_examples_without_sense_are_refused_with_a_place_and_those_that_come_out_wrong(reader):
    mixed = [text for name in ("dosage", "legal", "homework") for text in known(name).spec.match]
    Random(1).shuffle(mixed)
    spec = Examples(
        *("examples", "mood", "Whatever.", tuple(mixed[:15]), tuple(mixed[15:])),
        origin=Origin("p.yaml", 7, 3),
        origins={
            f"{side}.{i}": Origin("p.yaml", line + i, 9)
            for side, line in (("match", 20), ("leave", 40))
            for i in range(15)
        },
    )
    with pytest.raises(PolicyError) as refused:
        learn(spec, reader)
    first, *others = str(refused.value).splitlines()
    assert first.startswith("p.yaml:7:3: the examples of 'mood' cannot be told apart")
    assert "AUROC of 0." in first
    assert 1 <= len(others) <= 11
    listed = [line for line in others if not line.startswith("p.yaml:7:3: ")]
    assert len(listed) >= len(others) - 1
    places = {text[:20]: f"p.yaml:{20 + i}:9: '" for i, text in enumerate(spec.match)}
    assert any(
        line.startswith(place + text) and "of 'match' scores 0." in line
        for line in listed
        for text, place in places.items()
    )


def test_labels_drawn_by_lot_are_mostly_refused(reader):
    texts = [text for path in CATEGORIES for text in known(path.stem).spec.leave]
    taken = 0
    for seed in range(20):
        drawn = Random(seed).sample(texts, 12)
        try:
            learn(Examples("examples", "lot", "A thing.", tuple(drawn[:6]), tuple(drawn[6:])), reader)
            taken += 1
        except PolicyError:
            pass
    assert taken <= 3


def test_fewer_examples_have_to_do_better():
    assert bar(5, 5) > bar(10, 10) > bar(200, 200) == 0.7
    assert bar(5, 5) == pytest.approx(0.815, abs=0.001)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: replace(spec, leave=(*spec.leave, spec.match[0])), "example 11 of 'leave' is there already"),
        (lambda spec: replace(spec, match=(*spec.match, spec.match[0])), "example 11 of 'match' is there already"),
        (lambda spec: replace(spec, match=(*spec.match, " \n")), "example 11 of 'match' is nothing but white space"),
        (lambda spec: replace(spec, leave=("a " * LONGEST, *spec.leave)), "example 1 of 'leave' has 8,000 characters"),
        (lambda spec: replace(spec, description=" "), "the description is nothing but white space"),
    ],
)
def test_an_example_that_teaches_nothing_is_refused_with_its_number(reader, change, said):
    with pytest.raises(PolicyError, match=f"<memory>:1:1: {said}"):
        learn(change(known("dosage").spec), reader)


def test_an_example_that_teaches_nothing_is_told_where_it_stands(reader):
    policy = loads_policy(
        "version: 1\nname: n\nchecks:\n"
        "  - kind: examples\n    category: c\n    description: ' '\n"
        "    match: [a, b, c, d, ' ']\n    leave:\n      - e\n      - f\n      - a\n      - g\n      - h\n"
    )
    with pytest.raises(PolicyError) as refused:
        learn(policy.checks[0], reader)
    assert [(problem.origin.line, problem.origin.column) for problem in refused.value.problems] == [
        (6, 5),
        (7, 25),
        (11, 9),
    ]


def test_a_long_text_is_found_by_the_stretch_that_belongs(dosage):
    filler = "The road leads past the mill and then along the river to the old town. " * 60
    text = f"{filler}How many paracetamol tablets can I take in a day, and how often? {filler}"
    (finding,) = dosage.find(passage(text, part=3))
    (plain,) = dosage.find(passage(filler))
    (span,) = finding.spans
    assert plain.score < 0.5
    assert finding.score > plain.score
    assert span.part == 3
    assert "paracetamol" in text[span.start : span.end]
    assert span.end - span.start < len(text) / 2


def test_a_text_in_disguise_is_read_in_the_clear(dosage):
    text = "How much i\u200bbuprofen can I ta\u200bke in a d\u200bay?"
    (finding,) = dosage.find(passage(text))
    assert finding.score > 0.5
    assert (finding.spans[0].start, finding.spans[0].end) == (0, len(text))


def test_a_text_without_words_belongs_to_nothing(dosage):
    assert list(dosage.find(passage(""))) == []
    assert list(dosage.find(passage(" \n "))) == []


def test_a_text_too_long_to_be_read_says_so(dosage):
    findings = dosage.find(passage(f"How many drops?{' ' * READ_LIMIT}How many drops?"))
    assert [finding.error is None for finding in findings] == [True, False]


def test_nobody_waits_longer_than_the_passage_does(dosage):
    with pytest.raises(TimeoutError):
        dosage.find(passage("How many drops an hour? " * 5_000, until=monotonic() + 0.05))


def test_checks_share_one_model_and_one_reading_of_a_text(monkeypatch):
    reader = shared_reader()
    assert shared_reader() is reader
    passes = []
    run = reader.scorer._encoder.features
    monkeypatch.setattr(
        reader.scorer._encoder, "features", lambda windows, until=None: passes.append(1) or run(windows, until)
    )
    checks = [learn(known(path.stem).spec, reader) for path in CATEGORIES[:3]]
    passes.clear()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda check: check.find(passage("Is this a text that nobody has read yet?")), checks))
    assert [finding[0].category for finding in found] == [path.stem for path in CATEGORIES[:3]]
    assert len(passes) == 1


def test_a_reading_that_ran_out_of_time_is_no_answer_for_those_who_have_more(reader):
    text = "A text that takes a while to read, sentence after sentence. " * 400
    with pytest.raises(TimeoutError):
        reader.read(text, monotonic() - 1)
    assert len(reader.read(text).windows) > 1


def test_other_weights_are_another_model_and_go_with_the_last_check(tmp_path, monkeypatch):
    for file in WEIGHTS.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.setenv(ELSEWHERE, str(tmp_path))
    other = shared_reader()
    monkeypatch.delenv(ELSEWHERE)
    assert shared_reader() is not other
    gone = id(other)
    del other
    gc.collect()
    assert not any(id(one) == gone for one in gc.get_objects() if type(one) is Reader)
