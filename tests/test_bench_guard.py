"""`ringfence bench guard`: right figures, null where a set cannot say, and bad rows named."""

import gzip
import json
import os

import pytest
from typer.testing import CliRunner

from ringfence.guard.bench import Item, bench_guard, read_items
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.measure import measure
from ringfence.guard.classifier.rows import RowError
from ringfence.guard.classifier.scorer import Scores
from ringfence.proxy.cli.bench import app

KEYS = [
    "n", "positives", "threshold", "f1", "precision", "recall", "fpr", "auprc", "auroc", "recall_at_fpr", "ece",
    "latency_ms",
]  # fmt: skip


class LengthJudge:
    """Scores a text by its length; the attack score is the rest."""

    def score(self, text, prompt=None):
        harm = len(text) / 10
        return Scores(harm, {**dict.fromkeys(TASKS, harm), "attack": 1 - harm}, {}, {}, truncated=False)


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
    assert bench_guard(LengthJudge(), items, "attack").measures.f1 == 1
    assert bench_guard(LengthJudge(), items, "prompt").measures.f1 == 0


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = (
    {"text": "ask", "response": "answer", "prompt_label": 0, "response_label": 1},
    {"text": "ask more", "response": None, "prompt_label": 1, "response_label": None},
)


def test_response_is_judged_with_its_prompt_and_unlabelled_rows_are_passed_over(tmp_path):
    path = write(tmp_path / "rows.jsonl", *ROWS)
    assert list(read_items(path, "response")) == [Item("answer", "ask", 1)]
    assert list(read_items(path, "prompt")) == [Item("ask", None, 0), Item("ask more", None, 1)]


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
        list(read_items(path, "prompt"))
    assert complaint in str(caught.value)


def test_file_without_a_labelled_row_is_an_error(tmp_path):
    with pytest.raises(RowError, match="no row has a response_label"):
        list(read_items(write(tmp_path / "rows.jsonl", ROWS[1]), "response"))


def test_file_that_is_not_compressed_as_its_name_says_is_an_error(tmp_path):
    with pytest.raises(RowError, match=r"rows\.jsonl\.gz"):
        list(read_items(write(tmp_path / "rows.jsonl.gz", *ROWS), "prompt"))


def test_command_prints_the_documented_object(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
    done = CliRunner().invoke(app, ["guard", "--data", os.fspath(path), "--target", "prompt", "--json"])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert list(report) == KEYS
    assert list(report["recall_at_fpr"]) == ["0.01", "0.001"]
    assert list(report["latency_ms"]) == ["p50", "p95", "p99"]


def test_command_exits_2_and_says_why_on_a_bad_file(tmp_path):
    done = CliRunner().invoke(app, ["guard", "--data", os.fspath(tmp_path / "none.jsonl"), "--target", "prompt"])
    assert done.exit_code == 2
    assert "none.jsonl" in done.stderr
