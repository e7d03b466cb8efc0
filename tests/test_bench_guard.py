"""`ringfence bench guard`: right figures, null where a set cannot say, and bad rows named."""

import gzip
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ringfence.guard.bench.items import Item, read_set
from ringfence.guard.bench.run import Scored, report_on, report_on_all, score_items
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.measure import FPRS, interval, measure, resample, weighted
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.classifier.scorer import Scorer, Scores
from ringfence.proxy.cli.bench import app
from ringfence.proxy.cli.bench_guard import written

KEYS = [
    "n", "positives", "threshold", "f1", "precision", "recall", "fpr", "auprc", "auroc", "recall_at_fpr", "ece",
    "latency_ms",
]  # fmt: skip


class LengthJudge:
    """Scores a text by its length; the attack score is the rest."""

    revision = "0123456789abcdef" * 4

    def score(self, text, prompt=None):
        harm = min(len(text) / 10, 1)
        return Scores(harm, {**dict.fromkeys(TASKS, harm), "attack": 1 - harm}, {}, {}, truncated=False)


class HastyJudge(LengthJudge):
    """Reads the first six characters only, and says so."""

    def score(self, text, prompt=None):
        return replace(super().score(text[:6], prompt), truncated=len(text) > 6)


@pytest.fixture
def bench(monkeypatch):
    """The command, with a judge that needs no weights."""
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: LengthJudge())
    return lambda *arguments: CliRunner().invoke(app, ["guard", *map(os.fspath, arguments)])


def test_measures_are_those_counted_by_hand():
    found = measure([0.9, 0.8, 0.4, 0.6, 0.1], [1, 1, 1, 0, 0])
    assert (found.n, found.positives) == (5, 3)
    assert found.precision == found.recall == found.f1 == pytest.approx(2 / 3)
    assert found.fpr == pytest.approx(1 / 2)
    assert found.auroc == pytest.approx(5 / 6)
    assert found.recall_at_fpr == {"0.01": pytest.approx(2 / 3), "0.001": pytest.approx(2 / 3)}
    assert found.ece == pytest.approx((0.1 + 0.2 + 0.6 + 0.6 + 0.1) / 5)


def test_score_at_the_threshold_counts_as_flagged():
    assert measure([0.5, 0.2], [1, 0]).recall == 1


def test_set_without_negatives_has_a_recall_and_no_false_positives():
    found = measure([0.9, 0.2], [1, 1])
    assert (found.recall, found.f1) == (0.5, pytest.approx(2 / 3))
    assert found.fpr is found.auprc is found.auroc is found.recall_at_fpr["0.01"] is None


def test_set_without_positives_has_only_false_positives():
    found = measure([0.9, 0.2], [0, 0])
    assert found.fpr == 0.5
    assert found.f1 is found.precision is found.recall is found.auprc is None


def test_attack_bench_reads_the_attack_score():
    items = [Item("x" * 9, None, 0), Item("x", None, 1)]
    assert report_on(score_items(LengthJudge(), items, "attack")).measures.f1 == 1
    assert report_on(score_items(LengthJudge(), items, "prompt")).measures.f1 == 0


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.sampled_from([0.25, 0.5, 2]))
def test_resampling_measures_as_the_plain_way_does(pairs, threshold):
    pairs = sorted(pairs, reverse=True)
    scores, labels = np.array([score / 8 for score, _ in pairs]), np.array([label for _, label in pairs])
    plain = measure(scores, labels, threshold)
    fast = weighted(np.ones((1, len(pairs)), np.int64), scores, labels, threshold)
    wanted = {name: getattr(plain, name) for name in ("f1", "precision", "recall", "fpr", "auprc", "auroc", "ece")}
    wanted |= {f"recall_at_fpr {limit}": plain.recall_at_fpr[str(limit)] for limit in FPRS}
    for name, value in wanted.items():
        if value is None:
            assert np.isnan(fast[name][0]), name
        else:
            assert fast[name][0] == pytest.approx(value), name


def test_item_drawn_twice_counts_as_two_items():
    once = weighted(np.array([[2, 0, 1, 3]]), np.array([0.9, 0.6, 0.4, 0.1]), np.array([True, False, True, False]), 0.5)
    plain = measure([0.9, 0.9, 0.4, 0.1, 0.1, 0.1], [1, 1, 1, 0, 0, 0])
    assert once["f1"][0] == pytest.approx(plain.f1)
    assert once["auprc"][0] == pytest.approx(plain.auprc)
    assert once["ece"][0] == pytest.approx(plain.ece)


def test_interval_is_that_of_theory_and_the_same_every_time():
    labels = [1] * 400
    scores = [0.9] * 320 + [0.1] * 80  # a recall of 0.8, whose standard error is sqrt(0.8 * 0.2 / 400) = 0.02
    low, high = interval(resample(scores, labels)["recall"])
    assert low == pytest.approx(0.8 - 1.96 * 0.02, abs=0.008)
    assert high == pytest.approx(0.8 + 1.96 * 0.02, abs=0.008)
    assert (low, high) == interval(resample(scores, labels)["recall"])


def test_resampling_in_parts_yields_as_many_resamples(monkeypatch):
    monkeypatch.setattr("ringfence.guard.classifier.measure.CELLS", 30)
    found = resample([0.9, 0.2, 0.6], [1, 0, 0], count=25)
    assert {len(values) for values in found.values()} == {25}


def test_several_sets_have_a_mean_over_those_with_an_f1_and_one_pool():
    sets = {
        "harmful": Scored([0.9, 0.1], [1, 1], [1.0, 3.0]),
        "mixed": Scored([0.8, 0.7], [1, 0], [1.0, 1.0]),
        "harmless": Scored([0.6, 0.2], [0, 0], [1.0, 1.0]),
    }
    found = report_on_all(sets)
    assert found.sets["harmless"].measures.f1 is None
    assert found.mean_f1 == pytest.approx(2 / 3)
    assert found.mean_f1_ci95[0] <= found.mean_f1 <= found.mean_f1_ci95[1]
    assert (found.pooled.measures.n, found.pooled.measures.positives, found.pooled.flagged) == (6, 3, 4)
    assert found.pooled.measures == measure([0.9, 0.1, 0.8, 0.7, 0.6, 0.2], [1, 1, 1, 0, 0, 0])


def test_sets_without_harm_have_no_mean():
    assert report_on_all({name: Scored([0.2], [0], [1.0]) for name in "ab"}).mean_f1 is None


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = (
    {"text": "ask", "response": "answer", "prompt_label": 0, "response_label": 1},
    {"text": "ask more", "response": None, "prompt_label": 1, "response_label": None},
)


def test_texts_that_are_read_in_part_only_are_counted_and_told(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: HastyJudge())
    long = write(tmp_path / "long.jsonl", *ROWS, {"text": "ask", "prompt_label": 1})
    short = write(tmp_path / "short.jsonl", {"text": "ask", "prompt_label": 1})
    for files, counted, n in (([long], [1], 3), ([long, short], [1, 0], 4)):
        arguments = [part for file in files for part in ("--data", file)]
        found = json.loads(bench(*arguments, "--target", "prompt", "--json").output)
        sets = list(found["sets"].values()) if "sets" in found else [found]
        assert [report["truncated"] for report in sets] == counted
        assert f"1 of {n} texts were read in part only" in bench(*arguments, "--target", "prompt").output
    assert found["pooled"]["truncated"] == 1
    assert "in part" not in bench("--data", short, "--target", "prompt").output


def test_response_is_judged_with_its_prompt_and_unlabelled_rows_are_passed_over(tmp_path):
    path = write(tmp_path / "rows.jsonl", *ROWS)
    found = read_set(path, "response")
    assert found.items == (Item("answer", "ask", 1),)
    assert (found.format, found.skipped) == ("rows", 1)
    assert read_set(path, "prompt").items == (Item("ask", None, 0), Item("ask more", None, 1))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{oops", "one JSON object a line"),
        ("[1]", "got list"),
        ('{"text": "x", "prompt_label": 2}', "prompt_label must be 0, 1 or null, got 2"),
        ('{"text": "x", "prompt_label": true}', "got True"),
        ('{"text": 5, "prompt_label": 1}', "text must be a string, got int"),
        ('{"prompt_label": 1}', "text must be a string, got nothing"),
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path, line, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine", "prompt_label": 0}\n\n' + line + "\n")
    with pytest.raises(RowError, match=r"rows\.jsonl:3: ") as caught:
        read_set(path, "prompt")
    assert complaint in str(caught.value)


def test_file_without_a_labelled_row_is_an_error(tmp_path):
    with pytest.raises(RowError, match="no row has a label that --target response needs"):
        read_set(write(tmp_path / "rows.jsonl", ROWS[1]), "response")


def test_file_that_is_not_compressed_as_its_name_says_is_an_error(tmp_path):
    with pytest.raises(RowError, match=r"rows\.jsonl\.gz"):
        read_set(write(tmp_path / "rows.jsonl.gz", *ROWS), "prompt")


def test_command_prints_the_documented_object(bench, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
    done = bench("--data", path, "--target", "prompt", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert list(report)[: len(KEYS)] == KEYS
    assert list(report["recall_at_fpr"]) == ["0.01", "0.001"]
    assert list(report["latency_ms"]) == ["p50", "p95", "p99"]
    assert (report["n"], report["f1"], report["flagged"], report["format"], report["skipped"]) == (2, 1, 1, "rows", 0)
    assert set(report["ci95"]) == {"f1", "precision", "recall", "fpr", "auprc", "auroc", "recall_at_fpr", "ece"}


def test_command_prints_several_files_as_sets_with_mean_and_pool(bench, tmp_path):
    first, second = write(tmp_path / "a.jsonl", *ROWS), write(tmp_path / "b.jsonl", *ROWS, ROWS[0])
    done = bench("--data", first, "--data", second, "--target", "prompt", "--json")
    report = json.loads(done.stdout)
    assert list(report["sets"]) == ["a.jsonl", "b.jsonl"]
    assert list(report["sets"]["a.jsonl"])[: len(KEYS)] == KEYS
    assert report["mean_f1"] == 1
    assert (report["pooled"]["n"], report["pooled"]["recall_at_fpr"]["0.01"]) == (5, 1)


def test_weights_that_were_measured_are_named(bench, tmp_path):
    one, two = (write(tmp_path / name, *ROWS) for name in ("a.jsonl", "b.jsonl"))
    for data in (["--data", one], ["--data", one, "--data", two]):
        asked = [*data, "--target", "prompt", "--weights", tmp_path / "mine"]
        shown = "".join(bench(*asked).stdout.split())
        assert f"weightsof{tmp_path}/mine,revision0123456789ab" in shown
        assert "0123456789abc" not in shown
        weights = json.loads(bench(*asked, "--json").stdout)["weights"]
        assert weights == {"folder": str(tmp_path / "mine"), "revision": LengthJudge.revision}


@pytest.mark.parametrize(
    ("measure", "value", "shown"),
    [
        ("n", 16870, "16,870"),
        ("latency_ms p50", 16870.4, "16,870"),
        ("latency_ms p50", 42.318, "42.3"),
        ("latency_ms p50", 4.2318, "4.23"),
        ("f1", 0.00001, "0.0000"),
        ("f1", None, "–"),
    ],
)
def test_no_figure_is_written_with_an_exponent(measure, value, shown):
    assert written(measure, value) == shown


def test_empty_texts_are_skipped_and_counted(bench, tmp_path):
    blank = [{"text": text, "prompt_label": 0} for text in ("", " \n\t", "\u2003", None)]
    path = write(tmp_path / "rows.jsonl", *ROWS, {"text": "ask", "prompt_label": None}, *blank)
    found = read_set(path, "prompt")
    assert ([item.text for item in found.items], found.skipped, found.empty) == (["ask", "ask more"], 5, 4)
    shown = bench("--data", path, "--target", "prompt").stdout
    assert "skipped: 1 without a label for it and 4 with an empty text" in " ".join(shown.split())
    report = json.loads(bench("--data", path, "--target", "prompt", "--json").stdout)
    assert (report["n"], report["skipped"], report["empty"]) == (2, 5, 4)
    with pytest.raises(RowError, match="every row that has a label has an empty text"):
        read_set(write(tmp_path / "blank.jsonl", *blank), "prompt")


def test_files_of_one_name_are_told_apart_by_their_folders(bench, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name / "test.jsonl", *ROWS)
    paths = [str(tmp_path / name / "test.jsonl") for name in "ab"]
    done = bench("--data", paths[0], "--data", paths[1], "--target", "prompt", "--json")
    assert list(json.loads(done.stdout)["sets"]) == paths


@pytest.mark.parametrize("width", [80, 110])
def test_tables_fit_the_terminal(bench, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ("a.jsonl", "a_rather_long_name_of_a_file.jsonl")
    data = [argument for name in names for argument in ("--data", write(tmp_path / name, *ROWS))]
    for arguments in (data, data[:2], ["--published"], ["--published", "--target", "response"]):
        done = bench("--target", "prompt", *arguments)
        assert done.exit_code == 0
        assert max(map(len, done.stdout.splitlines())) <= width
        assert "…" not in done.stdout.replace(" … ", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "none.jsonl", "--target", "prompt"], "none.jsonl"),
        (["--data", "empty.jsonl", "--target", "prompt"], "empty.jsonl:1: there are no rows"),
        (["--data", "empty.csv", "--target", "prompt"], "empty.csv:1: there are no rows"),
        (["--data", "rows.jsonl"], "--target is needed"),
        (["--target", "prompt"], "--data"),
        (["--data", "rows.jsonl", "--target", "prompt", "--format", "toxic"], "--format toxic is not known; there are"),
        (["--data", "rows.jsonl", "--target", "prompt", "--format", "rows", "--format", "rows"], "2 times for 1"),
        (["--data", "rows.jsonl", "--data", "rows.jsonl", "--target", "prompt"], "given twice"),
        (["--data", "rows.jsonl", "--target", "prompt", "--speed"], "--speed measures by itself"),
        (["--data", "odd.jsonl", "--target", "prompt"], "odd.jsonl:1: rows with the fields colour, size"),
        (["--data", "set.parquet", "--target", "prompt"], "read_parquet"),
        (["--data", "rows.txt", "--target", "prompt"], "must end in .jsonl, .json, .csv"),
        (["--data", "folder", "--target", "prompt"], "no file in it ends in"),
    ],
)
def test_command_exits_2_and_says_why(bench, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", *ROWS)
    write(tmp_path / "odd.jsonl", {"colour": "red", "size": 3})
    for name in ("empty.jsonl", "empty.csv", "set.parquet", "rows.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    done = bench(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
