"""What others published: every figure has a source, and our own stands beside it where it may."""

import json
import os

import pytest
from typer.testing import CliRunner

from ringfence.guard.bench.formats import FORMATS
from ringfence.guard.bench.published import load_published, ours, rows_of
from ringfence.guard.bench.run import Scored, report_on
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.scorer import Scorer, Scores
from ringfence.proxy.cli.bench import MEASURES, app

SIX = {"toxicchat", "openai-moderation", "aegis", "simplesafetytests", "harmbench", "wildguard"}


class EvenJudge:
    """Finds every text as harmful as the next."""

    def score(self, text, prompt=None):
        return Scores(0.5, dict.fromkeys(TASKS, 0.5), {}, {}, truncated=False)


def run(*arguments):
    return CliRunner().invoke(app, ["guard", *map(os.fspath, arguments)])


@pytest.fixture
def published():
    return load_published()


def test_every_table_names_source_date_and_who_ran_it(published):
    for table in published.tables:
        assert table.source
        assert table.date
        assert table.by
        assert table.measure in MEASURES
        assert set(table.columns) <= set(published.titles)
        for row in table.rows.values():
            assert all(figure is None or 0 <= figure <= 100 for figure in row)


def test_columns_named_as_a_format_are_about_a_target_of_it(published):
    for table in published.tables:
        for column in table.columns:
            assert column not in FORMATS or table.target in FORMATS[column].readings


def test_means_come_to_what_the_reports_print(published):
    prompts, responses, *_ = (table for table in published.tables if "Qwen3Guard Technical Report" in table.source)
    printed = {"LlamaGuard3-8B": (79.4, 70.7), "LlamaGuard4-12B": (75.9, 67.5), "WildGuard-7B": (85.8, 79.9),
               "ShieldGemma-9B": (70.4, 62.2), "ShieldGemma-27B": (70.0, 65.9), "NemoGuard-8B": (82.9, 78.1),
               "PolyGuard-Qwen-7B": (87.0, 74.0)}  # fmt: skip
    for model, averages in printed.items():
        for table, average in zip((prompts, responses), averages, strict=True):
            assert sum(table.rows[model]) / 7 == pytest.approx(average, abs=0.06), model


def test_row_of_another_length_than_the_columns_is_an_error():
    with pytest.raises(ValueError, match="some model has 1 figures for 2 benchmarks"):
        rows_of(["a", "b"], {"some model": [1.0]})


def test_narrowing_keeps_columns_in_order_and_drops_models_without_figures(published):
    (table,) = (one for one in published.about("prompt", SIX) if "Qwen3Guard Technical Report" in one.source)
    assert len(table.columns) == 6
    assert sum(table.rows["LlamaGuard4-12B"]) / 6 == pytest.approx(76.8)
    assert list(published.about("attack", {"wildguard"})) == []


def test_our_figure_is_of_the_kind_that_the_table_has():
    report = report_on(Scored([0.9, 0.1, 0.8, 0.2, 0.3], [1, 1, 0, 0, 0], [1.0] * 5))
    assert ours(report, "accuracy") == pytest.approx(60)
    assert ours(report, "fpr") == pytest.approx(100 / 3)
    assert ours(report, "f1") == pytest.approx(50)
    assert ours(report, "macro_f1") is None


def test_command_prints_the_tables_of_a_target():
    done = run("--published", "--target", "response")
    assert done.exit_code == 0
    assert "arXiv:2510.14276" in done.stdout
    assert "response: F1" in done.stdout
    assert "prompt: F1" not in done.stdout
    tables = json.loads(run("--published", "--json").stdout)
    assert {table["target"] for table in tables} == {"prompt", "response", "attack"}
    assert tables[0]["rows"]["WildGuard-7B"]["toxicchat"] == 70.8


def test_recognised_benchmark_has_published_figures_beside_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: EvenJudge())
    path = tmp_path / "wild.jsonl"
    rows = [{"prompt": f"text {n}", "prompt_harm_label": label, "response_harm_label": None} for n, label in enumerate(("harmful", "unharmful"))]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = run("--data", path, "--target", "prompt").stdout
    assert "others' runs, not re-measured here" in shown
    assert ["this", "run", "66.7"] in [line.split() for line in shown.splitlines()]
    assert ["WildGuard-7B", "88.9"] in [line.split() for line in shown.splitlines()]
    report = json.loads(run("--data", path, "--target", "prompt", "--json").stdout)
    assert "published" not in report
    report = json.loads(run("--data", path, "--target", "prompt", "--json", "--published").stdout)
    assert report["published"][0]["rows"]["WildGuard-7B"] == {"wildguard": 88.9}


def test_own_rows_have_nothing_published_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: EvenJudge())
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"text": "x", "prompt_label": 1}) + "\n")
    assert "re-measured" not in run("--data", path, "--target", "prompt").stdout
