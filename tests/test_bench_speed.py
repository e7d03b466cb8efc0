"""`ringfence bench guard --speed`: what is compared is alike, and the figures are those of the clock."""

import json
import time
from random import Random

import pytest
from typer.testing import CliRunner

from ringfence.guard.bench import speed
from ringfence.guard.bench.speed import WORDS, Effort, in_turns, load_graph, measure_speed, text_of
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.scorer import TOKENIZER, WEIGHTS, Scorer, Scores, WeightsError
from ringfence.guard.classifier.tokens import cut, load_tokenizer
from ringfence.proxy.cli.bench import app


class PromptJudge:
    """Answers at once; remembers how often it was asked for what."""

    revision = "0123456789abcdef" * 4

    def __init__(self):
        self.asked = []

    def score(self, text, prompt=None):
        self.asked.append(text)
        return Scores(0.5, dict.fromkeys(TASKS, 0.5), {}, {}, truncated=False)

    def score_many(self, texts):
        return [self.score(*pair) for pair in texts]


class Clock:
    """Goes only when somebody works."""

    def __init__(self):
        self.now = 0.0

    def work(self, seconds):
        self.now += seconds


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(WEIGHTS / TOKENIZER)


def test_every_word_is_one_token(tokenizer):
    for word in WORDS.split():
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1, word


@pytest.mark.parametrize("tokens", [16, 128])
def test_texts_are_as_long_as_they_are_said_to_be(tokenizer, tokens):
    windows, _ = cut(tokenizer, text_of(tokenizer, tokens, Random(0)))
    assert [len(window.ids) for window in windows] == [tokens]


def test_medians_are_of_the_timed_runs_alone(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    order = []

    def side(name, seconds):
        def work():
            order.append(name)
            clock.work(seconds)

        return work

    assert in_turns(side("a", 0.06), side("b", 0.2), 2) == (pytest.approx(0.06), pytest.approx(0.2))
    assert order == ["a", "a", "b", "b", "b", "b", "a", "a"]


def test_stock_pipeline_infers_in_full_precision_on_texts_of_the_same_length(tokenizer):
    stock = speed.stock_pipeline(WEIGHTS / TOKENIZER, speed.shape_of(speed.load_graph(WEIGHTS)))
    seen = []
    stock.model.register_forward_pre_hook(
        lambda model, _, named: seen.append((tuple(named["input_ids"].shape), model.training)), with_kwargs=True
    )
    stock([text_of(tokenizer, 128, Random(0))] * 20, truncation=True)
    assert seen == [((16, 128), False), ((4, 128), False)]
    assert {str(weight.dtype) for weight in stock.model.parameters()} == {"torch.float32"}


def test_command_prints_every_comparison(monkeypatch):
    judge = PromptJudge()
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: judge)
    monkeypatch.setattr(speed, "Effort", lambda: Effort(pairs=2, texts=4, rounds=1, calls=1))
    done = CliRunner().invoke(app, ["guard", "--speed", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found) == ["machine", "single", "batched", "long", "concurrent", "weights"]
    assert found["weights"] == {"folder": str(WEIGHTS), "revision": judge.revision}
    assert found["machine"]["cores"] >= 1
    assert "onnxruntime" in found["machine"]["versions"]
    assert found["machine"]["device"] == "cpu"
    assert (found["single"]["tokens"], found["batched"]["texts"], found["concurrent"]["callers"]) == (128, 4, 16)
    assert found["long"]["bytes"] == 50_000
    assert max(map(len, judge.asked)) == 50_000
    assert found["single"]["ratio"] < 1  # this judge does nothing, and is faster than a pass
    assert found["batched"]["ratio"] > 1


def test_weights_without_a_graph_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"guard\.onnx"):
        load_graph(tmp_path)


def test_effort_of_a_call_is_what_was_asked_for():
    judge = PromptJudge()
    found = measure_speed(judge, effort=Effort(pairs=1, texts=3, rounds=1, calls=2))
    assert (found.single.pairs, found.batched.texts, found.concurrent.requests) == (1, 3, 32)
