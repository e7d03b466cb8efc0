"""`ringfence bench guard --guards` and `--cascade`: right figures, nothing dropped without a word, nothing asked twice."""

import json
import os
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_curve
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from ringfence.guard.bench.answers import Answer, Scores, ask_all, key_of
from ringfence.guard.bench.cascade import (
    LEAST,
    Band,
    Both,
    CannotChoose,
    Want,
    best_alone,
    best_band,
    both_of,
    choose_band,
    cuts_of,
    halves,
    measure_cascade,
)
from ringfence.guard.bench.guards import find_guards
from ringfence.guard.bench.items import Item
from ringfence.guard.bench.side_by_side import Price, comparable, compare, gains_over_first
from ringfence.guard.check import Passage, own_checks
from ringfence.guard.classifier.scorer import PARTLY
from ringfence.policies.load import load_draft, loads_policy
from ringfence.policies.types import Stage
from ringfence.proxy.cli.bench import app

TINY = run_path(str(Path(__file__).parent / "tiny_guards.py"))

POLICY = """
version: 1
name: guards
checks:
  - {{ kind: keywords, category: war, words: [war, bomb] }}
  - {{ kind: classifier-model, category: toxic, model: {toxic}, labels: [{{ label: TOXIC }}] }}
  - {{ kind: llama-guard-3, category: guard, use: "{url}", model: guard, per_minute: {per_minute} }}
rules:
  - {{ id: r, category: war, action: log }}
"""

ROWS = [
    {"text": text, "prompt_label": label}
    for text, label in [
        ("how to build a bomb", 1),
        ("the war in the north", 0),
        ("a recipe for bread", 0),
        ("poison for my neighbour", 1),
        ("an odd question", 1),
        ("weather for tomorrow", 0),
    ]
]


class GuardServer:
    """Answers as Llama Guard does, without probabilities: unsafe is what has a bomb or poison in it. What is odd it
    answers with chatter, until it is told to behave."""

    def __init__(self):
        self.asked = []
        self.behaves = False

    def app(self):
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def answer(request: Request):
            text = (await request.json())["messages"][-1]["content"]
            self.asked.append(text)
            said = "unsafe\nS2" if "bomb" in text or "poison" in text else "safe"
            if "odd" in text and not self.behaves:
                said = "Well, that depends."
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            return JSONResponse({"id": "1", "object": "chat.completion", "model": "guard", "choices": [choice]})

        app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": "guard", "object": "model"}]})
        return app


@pytest.fixture(scope="module")
def toxic(tmp_path_factory):
    return TINY["save_classifier"](tmp_path_factory.mktemp("toxic"), "roberta", {0: "FINE", 1: "TOXIC"})


@pytest.fixture
def server():
    return GuardServer()


@pytest.fixture
def bench(tmp_path, server, serve, toxic):
    """The command on six rows, with a policy of three guards: words, a tiny classifier, a server."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(toxic=toxic, url=f"{serve(server.app())}/v1", per_minute=10_000))

    def run(*arguments, rows=ROWS, target="prompt"):
        data = write(tmp_path / "rows.jsonl", rows)
        given = ["guard", "--data", data, "--target", target, "--policy", policy, *arguments]
        return CliRunner().invoke(app, list(map(os.fspath, given)))

    return run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(done):
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def said(scores, seconds=0.001):
    """Answers with these scores; None for one that failed."""
    return [Answer(score, seconds, "" if score is not None else "no verdict") for score in scores]


def items_of(labels):
    return [Item(f"text {number}", None, label) for number, label in enumerate(labels)]


def side_by_side(labels, prices=(), thresholds=(), **scores):
    answers = {name: said(own) for name, own in scores.items()}
    at = dict.fromkeys(answers, 0.5) | dict(thresholds)
    return compare(items_of(labels), answers, dict.fromkeys(answers, "r"), at, dict(prices))


def test_figures_are_those_of_scikit_learn():
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 300)
    scores = np.clip(labels * 0.2 + random.random(300), 0, 1)
    (side,) = side_by_side(labels.tolist(), a=scores.tolist(), thresholds={"a": 0.6}).sides
    found = side.answered.to_json()
    assert found["f1"] == pytest.approx(f1_score(labels, scores >= 0.6))
    assert found["auprc"] == pytest.approx(average_precision_score(labels, scores))
    fprs, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
    for limit in (0.01, 0.05):
        assert found["recall_at_fpr"][str(limit)] == pytest.approx(recalls[fprs <= limit].max())
    low, high = found["ci95"]["f1"]
    assert low < found["f1"] < high


def test_what_a_guard_could_not_answer_is_counted_with_its_reason_and_has_no_part_in_figures():
    found = side_by_side([1, 1, 0, 0], a=[0.9, 0.2, 0.1, 0.8], b=[None, 0.7, 0.1, 0.2])
    first, second = found.sides
    assert (first.failed, dict(second.failures), found.shared) == (0, {"no verdict": 1}, 3)
    assert first.answered.report.measures.f1 == pytest.approx(0.5)  # one of two found, one false alarm
    assert first.shared.report.measures.f1 == 0.0  # without the text that b could not answer it finds nothing
    assert second.answered.report.measures.f1 == second.shared.report.measures.f1 == 1.0
    assert (second.gain.n, second.gain.f1) == (3, 1.0)


def test_a_guard_that_answers_nothing_has_dashes_and_stops_nobody():
    found = side_by_side([1, 0], a=[0.9, 0.1], b=[None, None])
    assert (found.sides[1].answered, found.sides[1].seconds_per_1000, found.sides[1].failed) == (None, None, 2)
    assert found.sides[0].answered.report.measures.f1 == 1.0
    assert found.sides[0].shared is None


def test_scores_of_zero_and_one_have_no_calibration_error():
    sure, probable = side_by_side([1, 0, 1], a=[1.0, 0.0, 0.0], b=[0.9, 0.2, 0.4]).sides
    assert sure.answered.to_json()["ece"] is sure.answered.to_json()["ci95"]["ece"] is None
    assert probable.answered.to_json()["ece"] == pytest.approx((0.1 + 0.2 + 0.6) / 3)


def test_gain_is_the_difference_of_both_f1_with_the_interval_of_a_paired_bootstrap():
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 400).astype(bool)
    first = np.where(random.random(400) < 0.8, labels, ~labels)
    second = np.where(random.random(400) < 0.5, first, labels)  # like the first, and better
    (gain,) = gains_over_first(labels, [first, second])
    assert gain.f1 == pytest.approx(f1_score(labels, second) - f1_score(labels, first))
    drawn = [random.integers(400, size=400) for _ in range(1000)]
    plain = [f1_score(labels[at], second[at]) - f1_score(labels[at], first[at]) for at in drawn]
    assert gain.ci95 == pytest.approx(np.percentile(plain, (2.5, 97.5)), abs=0.012)


def test_a_guard_gains_nothing_over_one_that_says_the_same():
    (gain,) = gains_over_first([1, 0, 1, 0], [[1, 1, 0, 0]] * 2)
    assert (gain.f1, gain.ci95) == (0, (0, 0))
    (nothing,) = gains_over_first([0, 0], [[1, 0]] * 2)
    assert (nothing.f1, nothing.ci95) == (None, None)


def test_cost_is_a_price_or_the_time_that_texts_take_or_unknown():
    prices = {"a": Price(2.5, "million"), "b": Price(0.36, "hour")}
    a, b, c = side_by_side([1, 0], prices, a=[0.9, 0.1], b=[0.9, 0.1], c=[0.9, 0.1]).sides
    assert (a.usd_per_million, c.usd_per_million) == (2.5, None)
    assert b.usd_per_million == pytest.approx(0.001 * 1_000_000 / 3_600 * 0.36)
    assert b.seconds_per_1000 == pytest.approx(1.0)


def test_disagreements_are_texts_that_some_flag_and_others_do_not_the_widest_first():
    found = side_by_side([1, 0, 1, 0], a=[0.9, 0.6, 0.1, 0.2], b=[0.6, 0.1, 1.0, None], c=[0.8, 0.7, 0.2, 0.9])
    apart = [(one.item.text, list(one.flagged)) for one in found.disagreements]
    assert apart == [("text 2", ["b"]), ("text 3", ["c"]), ("text 1", ["a", "c"])]
    assert found.to_json(1)["disagreements"]["rows"][0]["text"] == "text 2"
    assert found.to_json(1)["disagreements"]["n"] == 3


FEW = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.booleans()), min_size=2, max_size=30)


def both_from(rows):
    small, big, labels = (np.array(column) for column in zip(*rows, strict=True))
    times = np.full(len(rows), 0.001), np.full(len(rows), 0.1)
    return Both(labels.astype(bool), small / 8, big / 8, *times, np.array([str(at) for at in range(len(rows))]))


@given(FEW, st.sampled_from([(0.25, 0.75), (0.0, 1.0), (0.3, 0.4)]))
def test_cascade_has_the_small_guards_word_outside_the_band_and_the_big_ones_within(rows, ends):
    both, band = both_from(rows), Band(*ends)
    verdicts = [
        big / 8 >= 0.6 if band.low <= small / 8 < band.high else small / 8 >= band.high for small, big, _ in rows
    ]
    found = measure_cascade(both, (0.5, 0.6), (None, None), band)
    asked = sum(band.low <= small / 8 < band.high for small, _, _ in rows)
    assert found.escalated.n == asked
    labels = both.labels.tolist()
    if any(labels):
        assert found.ways["cascade"].measures.f1 == pytest.approx(f1_score(labels, verdicts, zero_division=0))
        assert found.ways["big"].measures.f1 == pytest.approx(f1_score(labels, both.big >= 0.6, zero_division=0))
    assert found.agree.n == sum((small >= 4) == (big / 8 >= 0.6) for small, big, _ in rows)
    assert found.as_big.n == sum(said == (big / 8 >= 0.6) for said, (_, big, _) in zip(verdicts, rows, strict=True))
    assert found.ways["cascade"].seconds_per_1000 == pytest.approx(1 + 100 * asked / len(rows))


def test_cost_of_a_cascade_is_that_of_the_small_guard_and_of_what_the_big_one_is_asked():
    both = both_from([(0, 0, 0), (4, 8, 1), (8, 8, 1), (8, 8, 1)])
    found = measure_cascade(both, (0.5, 0.5), (Price(3, "million"), Price(1_000, "million")), Band(0.25, 0.75))
    assert [way.usd_per_million for way in found.ways.values()] == [3, 1_000, 3 + 1_000 / 4]
    unknown = measure_cascade(both, (0.5, 0.5), (None, Price(1_000, "million")), Band(0.25, 0.75))
    assert [way.usd_per_million for way in unknown.ways.values()] == [None, 1_000, None]
    hours = measure_cascade(both, (0.5, 0.5), (Price(3.6, "hour"), Price(3.6, "hour")), Band(0.25, 0.75))
    assert [way.usd_per_million for way in hours.ways.values()] == pytest.approx([1, 100, 26])


@given(FEW, st.sampled_from([Want("f1", 0.5), Want("f1", 0.9), Want("escalated", 0.0), Want("escalated", 0.3)]))
def test_the_band_found_is_the_best_of_all_that_there_are(rows, want):
    both = both_from([*rows, (4, 8, True)])
    every = {}
    for low in (cuts := cuts_of(both.small)):
        for high in cuts[cuts > low]:
            asked = (both.small >= low) & (both.small < high)
            verdicts = np.where(asked, both.big >= 0.5, both.small >= high)
            every[low, high] = (round(f1_score(both.labels, verdicts, zero_division=0), 9), asked.mean())
    fit = [pair for pair in every.values() if (pair[0] >= want.value if want.what == "f1" else pair[1] <= want.value)]
    if not fit:
        with pytest.raises(CannotChoose, match=f"no band comes to {want}"):
            best_band(both, 0.5, want)
        return
    band, f1, share = best_band(both, 0.5, want)
    assert every[band.low, band.high] == (pytest.approx(f1), pytest.approx(share))
    by_share = min(fit, key=lambda pair: (pair[1], -pair[0]))
    by_f1 = min(fit, key=lambda pair: (-pair[0], pair[1]))
    assert (f1, share) == pytest.approx(by_share if want.what == "f1" else by_f1)


@given(FEW)
def test_the_small_guards_best_threshold_is_the_best_of_all_that_there_are(rows):
    both = both_from([*rows, (4, 8, True)])
    threshold, f1 = best_alone(both)
    every = [f1_score(both.labels, both.small >= cut, zero_division=0) for cut in cuts_of(both.small)]
    assert f1 == pytest.approx(max(every))
    assert f1_score(both.labels, both.small >= threshold, zero_division=0) == pytest.approx(f1)


@given(FEW, st.sampled_from([5.0, 30.0, 80.0]), st.sampled_from(["million", "hour"]))
def test_the_band_for_a_cost_is_the_best_of_those_that_cost_no_more(rows, most, per):
    both = both_from([*rows, (4, 8, True)])
    prices = Price(1 if per == "million" else 3.6, per), Price(100 if per == "million" else 3.6, per)
    every = {}  # a text costs 1 USD a million, and 100 more where the big guard is asked
    for low in (cuts := cuts_of(both.small)):
        for high in cuts[cuts > low]:
            asked = (both.small >= low) & (both.small < high)
            verdicts = np.where(asked, both.big >= 0.5, both.small >= high)
            f1 = f1_score(both.labels, verdicts, zero_division=0)
            every[low, high] = (round(f1, 9), round(1 + 100 * asked.mean(), 6))
    fit = [pair for pair in every.values() if pair[1] <= most]
    if not fit:
        with pytest.raises(CannotChoose, match=r"no band comes to cost=.* USD a million; the small one alone, from"):
            best_band(both, 0.5, Want("cost", most), prices)
        return
    band, f1, _ = best_band(both, 0.5, Want("cost", most), prices)
    assert every[band.low, band.high] == pytest.approx(min(fit, key=lambda pair: (-pair[0], pair[1])))
    assert f1 == pytest.approx(every[band.low, band.high][0])


def test_a_cost_without_prices_is_no_band():
    with pytest.raises(ValueError, match="only where both guards have a price"):
        choose_band(many(), 0.5, Want("cost", 5.0), (Price(1, "million"), None))


def many(n=600, times=1):
    """Rows whose small guard is unsure in the middle, where the big one knows; each text so many times."""
    random = np.random.default_rng(3)
    labels = np.arange(n) % 2 == 0
    small = np.clip(np.where(labels, 0.65, 0.35) + random.normal(0, 0.2, n), 0, 1)
    big = np.clip(np.where(labels, 0.9, 0.1) + random.normal(0, 0.2, n), 0, 1)
    rows = np.arange(n).astype(str)
    return Both(*(np.repeat(one, times) for one in (labels, small, big, np.full(n, 0.001), np.full(n, 0.1), rows)))


def test_a_band_is_measured_on_texts_that_it_was_not_chosen_on():
    both = many()
    chosen, band, rest = choose_band(both, 0.5, Want("f1", 0.9))
    first, second = halves(both)
    assert sorted([*first, *second]) == list(range(600))
    assert rest.rows.tolist() == both.rows[second].tolist()
    assert abs(both.labels[first].mean() - 0.5) < 0.02
    assert best_band(both.at(first), 0.5, Want("f1", 0.9)) == (band, chosen.f1, chosen.escalated)
    assert chosen.f1 >= 0.9
    found = measure_cascade(rest, (0.5, 0.5), (None, None), band, chosen)
    assert found.n == len(second)
    assert found.ways["small"].measures.f1 < found.ways["cascade"].measures.f1
    assert chosen.kept_by(found) == (found.ways["cascade"].measures.f1 >= 0.9)
    assert (chosen.small_threshold, chosen.small_f1) == best_alone(both.at(first))
    best = found.ways["small_at_best"].measures.f1
    assert best == pytest.approx(f1_score(rest.labels, rest.small >= chosen.small_threshold))
    assert found.over["small_at_best"].f1 == pytest.approx(found.ways["cascade"].measures.f1 - best)
    assert not found.in_vain
    again = choose_band(both, 0.5, Want("f1", 0.9))
    assert (again[0], again[1]) == (chosen, band)


def test_the_same_text_is_never_in_both_halves():
    both = many(times=3)
    first, second = halves(both)
    assert not set(both.rows[first]) & set(both.rows[second])


def test_too_few_texts_are_refused_with_how_many_it_takes():
    for both in (many(150), many(150, times=3)):
        with pytest.raises(CannotChoose, match=f"it takes {2 * LEAST} of each label, and there are 75 positive and 75"):
            choose_band(both, 0.5, Want("f1", 0.5))


def test_guards_of_every_kind_stand_beside_each_other_with_the_scores_of_their_checks(bench, tmp_path, toxic):
    found = told(bench("--guards", "war,toxic,guard,ringfence", "--json"))
    assert list(found["guards"]) == ["war", "toxic", "guard", "ringfence"]
    war, classifier, served, model = found["guards"].values()
    assert war["answered"]["f1"] == pytest.approx(2 / (2 + 3))  # finds one of three, and one that is none
    check = own_checks([one for one in load_draft(tmp_path / "policy.yaml").checks if one.category == "toxic"])
    ((name, check),) = check.items()
    scores = [check.find(Passage(Stage.INPUT, "user", row["text"]))[0].score for row in ROWS]
    labels = [row["prompt_label"] for row in ROWS]
    assert classifier["answered"]["auprc"] == pytest.approx(average_precision_score(labels, scores))
    assert (classifier["revision"], name) == (check.revision, "checks.toxic")
    assert (served["failed"], served["answered"]["n"], served["answered"]["f1"]) == (1, 5, 1.0)
    (reason,) = served["failures"]
    assert "is no verdict" in reason
    assert (found["answered_by_all"], model["answered_by_all"]["n"]) == (5, 5)
    alone = json.loads(
        CliRunner()
        .invoke(app, ["guard", "--data", str(tmp_path / "rows.jsonl"), "--target", "prompt", "--json"])
        .stdout
    )
    for figure in ("n", "f1", "auprc", "ece", "flagged"):
        assert model["answered"][figure] == alone[figure]
    assert served["answered"]["ece"] is None
    assert all(guard["usd_per_million"] is None for guard in found["guards"].values())


def test_a_text_that_the_model_reads_in_part_only_is_not_answered(bench, monkeypatch):
    monkeypatch.setattr("ringfence.guard.classifier.tokens.READ_LIMIT", 20)
    found = told(bench("--guards", "ringfence,war", "--json"))["guards"]["ringfence"]
    assert found["failures"] == {PARTLY: found["failed"]}
    assert 0 < found["failed"] < 6


def test_an_hours_cost_is_for_what_runs_here_and_thresholds_are_for_one_or_all(bench):
    asked = ["--guards", "war,toxic,guard", "--hour", "3.6", "--price", "guard=40", "--threshold", "0.4"]
    found = told(bench(*asked, "--threshold", "toxic=0.7", "--json"))["guards"]
    assert {name: one["threshold"] for name, one in found.items()} == {"war": 0.4, "toxic": 0.7, "guard": 0.4}
    assert found["guard"]["usd_per_million"] == 40
    for name in ("war", "toxic"):
        assert found[name]["usd_per_million"] == pytest.approx(found[name]["seconds_per_1000"])
    assert told(bench("--guards", "war,guard", "--hour", "3.6", "--json"))["guards"]["guard"]["usd_per_million"] is None


def test_scores_that_are_kept_are_not_asked_for_again_and_failures_are(bench, server, tmp_path):
    kept = tmp_path / "scores.jsonl"
    before = told(bench("--guards", "war,guard", "--scores", kept, "--json"))
    assert Counter(server.asked)["how to build a bomb"] == 1
    assert len(kept.read_text().splitlines()) == 6 + 5
    server.asked.clear()
    server.behaves = True
    after = told(bench("--cascade", "war,guard", "--band", "0.2,0.8", "--scores", kept, "--json"))
    assert set(server.asked) - {"warm"} == {"an odd question"}
    assert after["n"] == before["answered_by_all"] + 1 == 6
    server.asked.clear()
    told(bench("--guards", "guard", "--scores", kept, "--json"))
    assert server.asked == []


def test_scores_of_another_revision_or_target_are_not_taken(bench, tmp_path):
    kept = tmp_path / "scores.jsonl"
    bench("--guards", "war", "--scores", kept)
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy.read_text().replace("[war, bomb]", "[bread]"))
    assert told(bench("--guards", "war", "--scores", kept, "--json"))["guards"]["war"]["answered"]["f1"] == 0
    assert len({json.loads(line)["revision"] for line in kept.read_text().splitlines()}) == 2
    items = [Item("a", "b", 1), Item("a", None, 1), Item("b", "a", 1)]
    assert len({key_of(item, target) for item in items for target in ("prompt", "response")}) == 6


@pytest.mark.parametrize("line", ['{"row": "x"}', "{", '{"row":"x","guard":"a","revision":"r","score":2,"seconds":1}'])
def test_a_file_of_scores_with_another_line_in_it_is_refused_with_its_place(bench, tmp_path, line):
    kept = tmp_path / "scores.jsonl"
    kept.write_text(f"{line}\n")
    done = bench("--guards", "war", "--scores", kept)
    assert done.exit_code == 2
    assert "scores.jsonl:1: this is no score" in done.stderr


def test_categories_of_one_check_are_one_question(bench, server):
    found = told(bench("--guards", "guard,war,guard.S2", "--json"))["guards"]
    assert list(found) == ["guard", "war", "guard.S2"]
    assert Counter(server.asked).most_common(1)[0][1] == 1
    assert found["guard"]["answered"]["f1"] == found["guard.S2"]["answered"]["f1"] == 1.0
    assert found["guard.S2"]["failed"] == 1


def test_a_reply_is_judged_with_its_prompt(bench, server):
    rows = [{"text": "how do I open it?", "response": "with a bomb", "response_label": 1}]
    rows.append({"text": "how do I open it?", "response": "with a key", "response_label": 0})
    found = told(bench("--guards", "guard,war", "--json", rows=rows, target="response"))["guards"]
    assert (found["guard"]["answered"]["f1"], found["war"]["answered"]["f1"]) == (1.0, 1.0)
    assert "with a bomb" in server.asked


def test_a_guard_with_a_limit_a_minute_is_waited_for(server, serve, toxic, tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.format(toxic=toxic, url=f"{serve(server.app())}/v1", per_minute=120))
    guards = find_guards(["guard"], load_draft(path), "prompt")
    items = [Item(f"text {number}", None, 0) for number in range(121)]
    answers = ask_all(guards, items, "prompt", Scores())["guard"]
    assert [one.why for one in answers if one.score is None] == []


def test_cascade_prints_the_line_for_a_policy_and_it_is_one(bench):
    done = bench("--cascade", "toxic,guard", "--band", "0.2,0.9", "--threshold", "guard=0.6")
    assert done.exit_code == 0
    assert "1 not answered" in done.stdout
    line = next(line.strip() for line in done.stdout.splitlines() if line.strip().startswith("escalate:"))
    assert line == "escalate: {to: guard, between: [0.2, 0.9], threshold: 0.6}"
    rule = loads_policy(
        f"version: 1\nname: p\nrules:\n  - id: r\n    category: harm\n    action: block\n    {line}\n"
    ).rules[0]
    assert rule.escalate.between == (0.2, 0.9)
    model = bench("--cascade", "ringfence,ringfence.toxicity", "--band", "0,1")
    assert "escalate: {to: toxicity, between: [0, 1], threshold: 0.5}" in model.stdout
    assert "in a rule over 'harm':" in model.stdout


def test_a_band_that_is_wanted_is_found_from_rows(bench):
    kinds = (("war", 1), ("poison", 1), ("bread", 0))  # words find the first, the big guard the second
    rows = [{"text": f"{word} {number}", "prompt_label": label} for number in range(110) for word, label in kinds]
    found = told(bench("--cascade", "war,guard", "--want", "f1=0.9", "--json", rows=rows))
    assert found["n"] + found["chosen"]["n"] == 330
    assert (found["band"], found["ways"]["cascade"]["f1"]) == ([0, 0.5], 1.0)
    assert max(found["ways"]["small"]["f1"], found["ways"]["big"]["f1"]) < 0.75
    assert found["escalated"]["share"] == pytest.approx(2 / 3, abs=0.05)
    assert (found["in_vain"], found["ways"]["small_at_best"]["f1"] < 0.85) == (False, True)
    bread = [row for row in rows if not row["text"].startswith("poison")]  # words find all that there is
    vain = bench("--cascade", "war,guard", "--want", "f1=0.9", rows=bread)
    assert "the small one alone does as well from 0.5 on: guard is asked in vain" in vain.stdout
    assert "war alone, from 0.5 on" in vain.stdout
    priced = ["--price", "war=1", "--price", "guard=30", "--want"]
    cheap = told(bench("--cascade", "war,guard", *priced, "cost=25", "--json", rows=rows))
    assert (cheap["chosen"]["want"], cheap["ways"]["cascade"]["f1"]) == ({"what": "cost", "value": 25.0}, 1.0)
    assert cheap["ways"]["cascade"]["usd_per_million"] == pytest.approx(21, abs=2)
    dear = bench("--cascade", "war,guard", *priced, "cost=0.5", rows=rows)
    assert (dear.exit_code, "no band comes to cost=0.5" in dear.stderr) == (1, True)
    never = bench("--cascade", "guard,war", "--want", "escalated=0.1", rows=ROWS)
    assert never.exit_code == 1
    assert f"it takes {2 * LEAST} of each label, and there are 3 positive and 3 negative ones" in never.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--guards", "wra"], "no guard is called 'wra'; did you mean 'war'?"),
        (["--guards", "ringfence.toxcity"], "did you mean 'ringfence.toxicity'?"),
        (["--guards", "guard.S77"], "'guard' finds no 'guard.S77'; did you mean"),
        (["--guards", "war,,toxic"], "--guards takes names with commas between them"),
        (["--guards", "war,war"], "names a guard twice"),
        (["--cascade", "war"], "--cascade takes a small guard and a big one"),
        (["--guards", "war", "--cascade", "war,toxic"], "ask for one at a time"),
        (["--guards", "war", "--threshold", "wra=0.5"], "'wra' is not among the guards; did you mean 'war'?"),
        (["--guards", "war", "--threshold", "war=1.5"], "--threshold takes a number from 0 to 1, got '1.5'"),
        (["--guards", "war", "--threshold", "nan"], "--threshold takes a number from 0 to 1, got 'nan'"),
        (["--guards", "war", "--price", "war=much"], "--price takes a number from 0, got 'much'"),
        (["--guards", "war", "--price", "war=inf"], "--price takes a number from 0, got 'inf'"),
        (["--guards", "war", "--want", "f1=0.8"], "--want goes with --cascade"),
        (["--guards", "war", "--published"], "--published is for the guard model alone"),
        (["--guards", "war", "--png", "x.gif"], "the name must end in .png"),
        (["--cascade", "war,toxic", "--png", "x.png"], "--png goes with --guards"),
        (["--cascade", "war,toxic", "--band", "0.9,0.1"], "the lower one first"),
        (["--cascade", "war,toxic", "--band", "0.1"], "--band takes two scores"),
        (["--cascade", "war,toxic", "--want", "recall=1"], "--want takes f1=0.8, escalated=0.1 or cost=20"),
        (["--cascade", "war,toxic", "--want", "f1=2"], "--want takes a number from 0 to 1, got '2'"),
        (["--cascade", "war,toxic", "--want", "cost=-2"], "--want takes a number from 0, got '-2'"),
        (["--cascade", "war,toxic", "--want", "f1=0.8", "--band", "0,1"], "give one of them"),
        (["--scores", "x.jsonl"], "goes with --guards or --cascade"),
        (["--guards", "war", "--policy", "none.yaml"], "none.yaml"),
        (["--guards", "guard", "--scores", "no/such/folder.jsonl"], "folder.jsonl"),
        (["--guards", "guard", "--png", "no/such/folder.png"], "folder.png"),
        (["--guards", "guard", "--disagreements-to", "no/such/rows.jsonl"], "rows.jsonl"),
    ],
)
def test_command_exits_2_and_says_why_before_anybody_is_asked(bench, server, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    done = bench(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert server.asked == []


def test_a_cost_is_wanted_of_guards_whose_cost_is_known(bench, server):
    rows = [{"text": f"row {number}", "prompt_label": number % 2} for number in range(220)]
    done = bench("--cascade", "war,guard", "--want", "cost=20", "--price", "war=1", rows=rows)
    assert done.exit_code == 2
    assert "--want cost needs what guard costs: --price guard=USD, or --hour guard=USD" in done.stderr
    assert server.asked == []


def test_tables_fit_a_hundred_columns(bench, tmp_path, toxic):
    longest = f"{'very_' * 8}long"
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        policy.read_text()
        .replace("category: war,", f"category: {longest},")
        .replace("category: war, a", f"category: {longest}, a")
    )
    text = "bread \x1b[2J " * 30
    rows = [*ROWS, *({"text": f"{text}{number}", "prompt_label": number % 2} for number in range(20))]
    costs = ["--price", "123456.78"]
    for arguments in (
        ["--guards", f"{longest},toxic,guard", "--disagreements", "9"],
        ["--cascade", f"{longest},guard"],
    ):
        done = bench(*arguments, *costs, rows=rows)
        assert done.exit_code == 0, done.output
        assert max(map(len, done.stdout.splitlines())) <= 100
        assert "\x1b" not in done.stdout
        assert "1 not answered" in done.stdout


def test_disagreements_are_shown_in_a_line_and_written_in_full(bench, tmp_path):
    text = "a war of words " * 20
    rows = [*ROWS, {"text": text, "prompt_label": 0}]
    path = tmp_path / "rows_apart.jsonl"
    done = bench("--guards", "war,guard", "--disagreements", "2", "--disagreements-to", path, rows=rows)
    shown = done.stdout.splitlines()
    assert sum(line.startswith("rows.jsonl:") for line in shown) == 2
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in written] == ["2", "4", "7"]
    assert written[2]["text"] == text
    assert written[2]["scores"] == {"war": 1.0, "guard": 0.0}
    assert written[2]["flagged"] == ["war"]
    assert text not in done.stdout


def test_a_picture_is_drawn_and_its_want_of_matplotlib_is_told(bench, tmp_path, monkeypatch):
    picture = tmp_path / "curves.png"
    assert bench("--guards", "war,toxic,guard", "--png", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = bench("--guards", "war", "--png", tmp_path / "one.png", rows=[row for row in ROWS if row["prompt_label"]])
    assert (done.exit_code, "texts of both labels" in done.stderr) == (2, True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = bench("--guards", "war", "--png", tmp_path / "none.png")
    assert (done.exit_code, "pip install 'ringfence[plots]'" in done.stderr) == (2, True)


def test_a_picture_is_drawn_without_a_guard_that_is_dead_and_says_so(bench, tmp_path):
    policy, picture = tmp_path / "policy.yaml", tmp_path / "curves.svg"
    policy.write_text(re.sub(r"http://[^/]*/v1", "http://127.0.0.1:9/v1", policy.read_text()))
    done = bench("--guards", "war,guard,toxic", "--png", picture)
    assert done.exit_code == 0, done.output
    assert f"{picture} is without guard: too few texts were answered" in done.stderr
    drawn = picture.read_text()
    assert "guard: not drawn, too few answers" in drawn
    assert "6 texts, 3 positive" in drawn
    assert all(f"{name}: AUPRC" in drawn for name in ("war", "toxic"))


@pytest.mark.parametrize("also", [["--json"], ["--png", "none.svg"], []])
def test_guards_that_answer_no_row_are_not_measured_and_say_why(bench, tmp_path, also, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = tmp_path / "policy.yaml"
    policy.write_text(re.sub(r"http://[^/]*/v1", "http://127.0.0.1:9/v1", policy.read_text()))
    dead = bench("--guards", "guard", *also)
    assert (dead.exit_code, dead.stdout) == (2, "")
    assert (
        "no guard answered a single row\nguard: 6 not answered: llama-guard-3 ('guard'): the upstream could"
        in dead.stderr
    )


def test_guards_that_answered_least_are_left_out_of_a_picture_until_there_is_one():
    items = items_of([1, 0, 1, 0])
    answers = {"a": said([0.9, 0.1, 0.8, 0.2]), "b": said([None, None, 0.8, None]), "c": said([0.9, 0.1, None, None])}
    assert comparable(items, answers) == (["a", "c"], [0, 1])
    assert comparable(items, {"b": answers["b"]}) == ([], [])


def test_cuts_lie_between_scores():
    scores = np.array([0.1, 0.2, 0.2, 0.7])
    assert cuts_of(scores).tolist() == [0.0, 0.15, 0.45, 1.0]
    assert all(low < high for low, high in pairwise(cuts_of(np.random.default_rng(0).random(5_000))))


def test_texts_that_one_of_two_could_not_answer_are_in_no_cascade():
    items = items_of([1, 0, 1])
    both = both_of(items, "prompt", said([0.9, None, 0.2]), said([0.9, 0.1, None]))
    assert (both.small.tolist(), both.labels.tolist()) == ([0.9], [True])
