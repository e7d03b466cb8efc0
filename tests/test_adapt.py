"""Fitting the heads to somebody's own rows: what it changes, what it leaves alone, and what it refuses."""

import json
import shutil
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

from ringfence.guard.classifier import adapt as adapting
from ringfence.guard.classifier.adapt import Labelled, adapt, compare, read_labelled
from ringfence.guard.classifier.calibrate import PRIORS
from ringfence.guard.classifier.correction import Line, Texts, fit_texts
from ringfence.guard.classifier.heads import HEADS
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.classifier.scorer import CALIBRATION, GRAPH, WEIGHTS, Scorer
from ringfence.proxy.cli.root import app

CLOSED = ("the merger", "project Heron", "the layoffs", "the audit", "the recall", "the lawsuit", "the Q3 numbers")
OPEN = ("the canteen menu", "the parking lot", "the summer party", "the bike shed", "the printer", "the bus times")
WAYS = (
    "Write a post about {} for our website.",
    "what do we know about {}?",
    "Summarise {} in three lines",
    "Can I tell a friend about {}?",
    "Draft an e-mail to the press on {}.",
    "{}: give me the background",
    "who decides on {}",
)


def house_rows():
    """A house rule that no model could know: some topics are closed, others open."""
    rows = [Labelled(way.format(topic), None, {"prompt_harm": 1}) for topic in CLOSED for way in WAYS]
    rows += [Labelled(way.format(topic), None, {"prompt_harm": 0}) for topic in OPEN for way in WAYS]
    Random(3).shuffle(rows)
    return rows


def test_a_house_rule_is_learnt_and_the_rest_stays(tmp_path):
    changes = adapt(house_rows(), WEIGHTS, tmp_path)
    assert changes["prompt_harm"].kept
    assert changes["prompt_harm"].f1[1] > max(0.85, changes["prompt_harm"].f1[0] + 0.1)
    assert changes["prompt_harm"].loss[1] < changes["prompt_harm"].loss[0]
    before, after = Scorer.load(WEIGHTS), Scorer.load(tmp_path)
    for way in ("Draft a tweet about {}", "Who is in charge of {}?"):  # neither was in the rows
        closed, opened = ([after.score(way.format(topic)).harm for topic in topics] for topics in (CLOSED, OPEN))
        assert min(closed) > max(0.5, *opened)
        assert sum(opened) / len(opened) < 0.5
    for head in set(HEADS) - {"prompt_harm"}:
        at = HEADS.index(head)
        assert (before.heads.weight[at] == after.heads.weight[at]).all()
    assert after.revision != before.revision
    assert (tmp_path / GRAPH).read_bytes() == (WEIGHTS / GRAPH).read_bytes()
    assert json.loads((tmp_path / "adapted.json").read_text())["from"] == before.revision


def test_labels_without_sense_show_as_such(tmp_path):
    random = Random(5)
    rows = [Labelled(row.text, None, {"prompt_harm": random.randint(0, 1)}) for row in house_rows()]
    change = adapt(rows, WEIGHTS, tmp_path)["prompt_harm"]
    assert change.loss[1] > 0.6  # of a coin: 0.69; a head that learnt the rows by heart would be near 0


def test_a_head_that_is_right_already_stays_as_it_is():
    logits = np.log([1 / 9, 1.0, 9.0]).repeat(10)
    truth = np.array([0] * 9 + [1] + [0, 1] * 5 + [0] + [1] * 9)  # as often as the logits say, half of them in all
    windows = [np.array([[logit]]) for logit in logits]
    texts = Texts(windows, truth, [str(index) for index in range(30)], prior=0.5)
    line = Line(np.ones(1), 0.0)
    found = fit_texts(line, texts, np.eye(2), penalty=0.01)
    assert abs(found.c) + abs(found.v[0]) < 1e-3
    assert fit_texts(line, replace(texts, prior=0.4), np.eye(2), penalty=0.01).c < -0.2


def test_every_head_is_weighed_as_its_curve_is(tmp_path, monkeypatch):
    start, seen = tmp_path / "start", []
    shutil.copytree(WEIGHTS, start)
    calibration = json.loads((start / CALIBRATION).read_text())
    del calibration["priors"]["attack"]
    calibration["priors"]["prompt_harm"] = 0.7
    (start / CALIBRATION).write_text(json.dumps(calibration))

    def still(line, texts, root, seed):
        seen.append(texts.prior)
        return 1.0, line.of_texts(texts.windows)

    monkeypatch.setattr(adapting, "cross_validate", still)
    rows = [replace(row, labels=dict.fromkeys(("prompt_harm", "attack"), *row.labels.values())) for row in house_rows()]
    adapt(rows, start, tmp_path / "out")
    assert seen == [0.7, PRIORS["attack"]]


def test_a_gain_that_chance_could_bring_changes_nothing():
    random = np.random.default_rng(3)
    truth = np.tile([0, 1], 100)
    prompts = [str(index // 20) for index in range(200)]
    texts = Texts([np.zeros((1, 1)) for _ in truth], truth, prompts)
    line = Line(np.zeros(1), 0.0)
    noise = random.normal(0, 0.8, 10).repeat(20) * np.where(truth, 1, -1)  # prompts move as one
    assert not compare(line, np.zeros(200), line, texts, texts).kept
    assert not compare(line, noise, line, texts, texts).kept
    assert compare(line, np.where(truth, 0.4, -0.4), line, texts, texts).kept


def test_other_texts_stay_where_they_were_though_the_rows_know_one_rule_only(tmp_path, monkeypatch):
    held = adapt(house_rows(), WEIGHTS, tmp_path / "held")["prompt_harm"]
    monkeypatch.setattr(adapting, "root_of", lambda moments: 0.1 * np.eye(len(moments)))  # every move costs alike
    pulled = adapt(house_rows(), WEIGHTS, tmp_path / "pulled")["prompt_harm"]
    assert held.f1[1] > 0.9
    assert held.alarms[1] < held.alarms[0] + 0.1
    assert held.found[1] > held.found[0] - 0.15
    assert pulled.alarms[1] > held.alarms[1] + 0.15


def test_a_long_text_is_judged_and_learnt_by_the_window_that_shows_it(tmp_path):
    filler = "The committee met on Tuesday and spoke about the timetable of the regional trains. " * 40
    rows = [Labelled(filler + row.text, None, row.labels) for row in house_rows()[:60]]
    change = adapt(rows, WEIGHTS, tmp_path)["prompt_harm"]
    after = Scorer.load(tmp_path)
    shown = [(after.score(row.text).harm >= 0.5) == row.labels["prompt_harm"] for row in rows]
    assert sum(shown) / len(shown) > 0.8
    assert change.f1[1] > change.f1[0]


def test_rows_that_are_read_in_part_only_are_counted_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("ringfence.guard.classifier.tokens.READ_LIMIT", 600)
    monkeypatch.setattr(adapting, "other_texts", lambda: house_rows()[:10])
    rows = house_rows()
    rows += [Labelled(f"Committee {at} met on Tuesday. " * 40, None, {"prompt_harm": 0}) for at in range(3)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": r.text, "prompt_label": r.labels["prompt_harm"]}) + "\n" for r in rows))
    done = CliRunner().invoke(app, ["train", "guard", "--head-only", "--data", str(data), "--out", str(tmp_path / "o")])
    assert "prompt_harm: 3 of its rows were read in part only" in done.output
    assert json.loads((tmp_path / "o" / "adapted.json").read_text())["heads"]["prompt_harm"]["truncated"] == 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"text": "a", "prompt_label": 1}, {"text": "a", "prompt_label": 0}),
        ({"text": "a", "response": "b", "refusal": 1}, {"text": "a", "response": "b", "refusal": 0}),
    ],
)
def test_a_text_that_is_labelled_both_ways_is_refused_with_its_place(tmp_path, first, second):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(RowError, match=r"rows\.jsonl:2: the same text is labelled otherwise before"):
        read_labelled(data)


def test_a_text_that_comes_again_counts_once_and_an_empty_one_not_at_all(tmp_path):
    rows = [{"text": "a", "prompt_label": 1}, {"text": "a", "attack": 0}, {"text": "a", "prompt_label": 1}]
    rows += [{"text": " ", "prompt_label": 1}, {"text": "a", "response": "", "refusal": 1}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_labelled(data) == [Labelled("a", None, {"prompt_harm": 1, "attack": 0})]


def test_weights_are_not_written_over_others(tmp_path):
    (tmp_path / "guard.onnx").write_bytes(b"hours of work")
    with pytest.raises(ValueError, match="not empty"):
        adapt(house_rows(), WEIGHTS, tmp_path)


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="label more"):
        adapt(house_rows()[:12], WEIGHTS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_teach_the_text_they_label(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "q", "response": "a", "prompt_label": 1, "response_label": 0, "refusal": 1, "attack": 0}\n'
        '{"text": "only a prompt", "prompt_label": 0, "attack": 1}\n'
        '{"text": "in words", "attack": "jailbreak"}\n'
    )
    assert read_labelled(path) == [
        Labelled("q", None, {"prompt_harm": 1, "attack": 0}),
        Labelled("a", "q", {"response_harm": 0, "refusal": 1}),
        Labelled("only a prompt", None, {"prompt_harm": 0, "attack": 1}),
        Labelled("in words", None, {"attack": 1}),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 3, "prompt_label": 1}', "text must be a string"),
        ('{"text": "a", "prompt_label": "yes"}', "prompt_label must be 0, 1 or null, got 'yes'"),
        ('{"text": "a", "prompt_label": true}', "prompt_label must be 0, 1 or null"),
        ('{"text": "a", "attack": "DAN"}', "attack must be 0, 1, null or one of none, jailbreak, injection, got 'DAN'"),
        ('{"text": "a"}', "no row has a label"),
        ("[1]", "one JSON object a line"),
        ('{"text": "a", "response": null, "refusal": 1}', "need a response"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RowError, match=said):
        read_labelled(path)


def test_command_says_what_changed_and_how_to_use_it(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"text": r.text, "prompt_label": r.labels["prompt_harm"]}) + "\n" for r in house_rows())
    )
    result = CliRunner().invoke(
        app, ["train", "guard", "--head-only", "--data", str(data), "--out", str(tmp_path / "mine")]
    )
    assert result.exit_code == 0, result.output
    assert "prompt_harm" in result.output
    assert "stays as it was" not in result.output
    assert f"RINGFENCE_WEIGHTS={tmp_path / 'mine'}" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --pool FOLDER, or"),
        (["--head-only"], "give --pool FOLDER, or"),
        (["--head-only", "--data", "x"], "give --pool FOLDER, or"),
        (["--head-only", "--pool", "."], "--pool: of no use with --head-only"),
        (["--pool", ".", "--data", "x"], "--data: of no use without --head-only"),
        (["--pool", ".", "--resume", "--head-only", "--data", "x", "--out", "y"], "--pool, --resume: of no use with"),
        (["--pool", ".", "--recipe", "all"], "'all' is not one of 'shipped', 'everything'"),
        (["--pool", ".", "--device", "tpu"], "'tpu' is not one of"),
    ],
)
def test_command_says_what_is_missing_or_of_no_use(arguments, said):
    result = CliRunner().invoke(app, ["train", "guard", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert said in result.output


def test_rows_come_from_tables_and_folders_as_well(tmp_path):
    (tmp_path / "a.csv").write_text("text,response,prompt_label,response_label,note\nhi,,0,,x\nq,a,1,0,\n")
    (tmp_path / "b.jsonl").write_text('{"text": "t", "prompt_label": 1, "times": 3}\n')
    expected = [
        Labelled("hi", None, {"prompt_harm": 0}),
        Labelled("q", None, {"prompt_harm": 1}),
        Labelled("a", "q", {"response_harm": 0}),
        Labelled("t", None, {"prompt_harm": 1}),
    ]
    assert read_labelled(tmp_path) == expected
    assert read_labelled(tmp_path / "a.csv") == expected[:3]


def test_nothing_is_written_where_nothing_was_learnt(tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "compare", lambda *given: replace(compare(*given), kept=False))
    assert not adapt(house_rows(), WEIGHTS, tmp_path / "mine")["prompt_harm"].kept
    assert not (tmp_path / "mine").exists()
