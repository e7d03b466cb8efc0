"""How the guard model is made: what labels mean, who is kept apart from whom, and that training is repeatable."""

import gzip
import json
import re
from dataclasses import replace
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch

from ringfence.guard.classifier.calibrate import calibrate
from ringfence.guard.classifier.corpus import (
    SOURCES,
    Example,
    Recipe,
    Source,
    Use,
    attacks,
    distinct,
    hate_statements,
    load_corpus,
    own_rows,
    requests,
    responses,
    style_weights,
)
from ringfence.guard.classifier.export import build
from ringfence.guard.classifier.heads import HEADS
from ringfence.guard.classifier.network import Network, Shape
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.classifier.scorer import TOKENIZER, WEIGHTS, feed
from ringfence.guard.classifier.tokens import cut, load_tokenizer
from ringfence.guard.classifier.train import Plan, embed, fit, view

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


def test_no_shipped_source_has_a_licence_that_forbids_commercial_use():
    assert not [
        source.file for source in SOURCES if source.free and ("NC" in source.licence or "none" in source.licence)
    ]


def test_broken_line_of_a_pool_is_named(pool):
    (pool / "own.jsonl").write_text('{"id": "own-1", "text": "x", "prompt_label": 0}\n{nonsense\n')
    with pytest.raises(RowError, match=r"own\.jsonl:2: "):
        load_corpus(pool, Recipe.SHIPPED, own=pool, sources=POOL)


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


def batch_of(tokenizer):
    pairs = [("Tea in the garden", None), ("A letter about bread and stone and song", "Who wrote it?"), ("x", "")]
    return feed([window for text, prompt in pairs for window in cut(tokenizer, text, prompt)[0]])


def test_float_graph_is_the_network(network, tokenizer):
    inputs = batch_of(tokenizer)
    with torch.no_grad():
        expected = network(*(torch.tensor(inputs[name]) for name in ("ids", "kinds", "mask"))).numpy()
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


def test_training_learns_what_is_labelled_and_leaves_other_heads_alone(tokenizer, tmp_path):
    torch.manual_seed(1)
    network = Network(TINY)
    before = network.heads.weight.detach().clone()
    plan = replace(PLAN, epochs=12, average=0.9, head_rate=1e-2)
    examples = lessons()
    for _ in fit(network, tokenizer, examples, plan, tmp_path / "c.pt", torch.device("cpu")):
        pass
    with torch.no_grad():
        logits = [network(*tensors(tokenizer, example.text))[0, HEADS.index("prompt_harm")] for example in examples]
    right = [(logit > 0) == example.labels["prompt_harm"] for logit, example in zip(logits, examples, strict=True)]
    assert sum(right) > 0.9 * len(right)
    changed = (network.heads.weight - before).abs().amax(dim=1) > 0.02
    assert changed.tolist() == [head == "prompt_harm" for head in HEADS]


def test_resumed_training_ends_where_uninterrupted_training_does(tokenizer, tmp_path):
    def train(path, *, stop=None, resume=False):
        torch.manual_seed(1)
        network = Network(TINY)
        for step in fit(network, tokenizer, lessons(), PLAN, path, torch.device("cpu"), resume=resume):
            if step.done == stop:
                return None
        return network.state_dict()

    whole = train(tmp_path / "whole.pt")
    train(tmp_path / "cut.pt", stop=9)
    resumed = train(tmp_path / "cut.pt", resume=True)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


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
