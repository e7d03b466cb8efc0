"""Our own training rows: well formed, labelled consistently, no doubles, and the disguised ones reproducible."""

import csv
import json
import re
import runpy
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent.parent / "guard" / "classifier" / "data"
FIELDS = {
    "id",
    "text",
    "response",
    "prompt_label",
    "response_label",
    "category",
    "categories",
    "attack",
    "refusal",
    "source",
    "lang",
}
HAZARDS = {f"S{n}" for n in range(1, 15)}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FILES = sorted(DATA.glob("*.jsonl"))
ROWS = [row for path in FILES for row in read(path)]
MEASURED = [row for path in sorted((DATA / "measured").glob("*.jsonl")) for row in read(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_has_the_fields_and_values_that_the_readme_promises(path: Path) -> None:
    for row in read(path):
        assert set(row) >= FIELDS, row["id"]
        assert row["text"].strip(), row["id"]
        assert row["source"] == f"own_{path.stem}", row["id"]
        assert {row["prompt_label"], row["response_label"], row["refusal"]} <= {0, 1, None}, row["id"]
        assert row["attack"] in {"jailbreak", "injection", "none", None}, row["id"]
        assert (row["response"] is None) == (row["response_label"] is None) == (row["refusal"] is None), row["id"]


def test_a_category_stands_on_harmful_rows_only() -> None:
    for row in ROWS:
        harmful = row["response_label"] if row["response"] is not None else row["prompt_label"]
        assert harmful == 1 or not row["categories"], row["id"]
        assert set(row["categories"]) <= HAZARDS, row["id"]
        assert row["category"] == (row["categories"][0] if row["categories"] else None), row["id"]


def plain(text: str | None) -> str:
    folded = unicodedata.normalize("NFKC", text or "").casefold()
    words = re.sub(r"[^\w\u0900-\u097f]+", " ", folded).strip()
    return words if len(words) > 1 else folded  # of emoji and dots nothing would be left


def test_what_is_measured_by_is_labelled_and_stands_in_no_training_row() -> None:
    assert max(Counter(row["id"] for row in MEASURED).values()) == 1
    assert len({plain(row["text"]) for row in MEASURED}) == len(MEASURED) > 800
    assert not {plain(row["text"]) for row in MEASURED} & {plain(row["text"]) for row in ROWS}
    for row in MEASURED:
        assert row["prompt_label"] in {0, 1}, row["id"]
        assert row["attack"] in {"jailbreak", "injection", "none"}, row["id"]


def test_ids_are_unique_and_no_text_stands_twice() -> None:
    assert max(Counter(row["id"] for row in ROWS).values()) == 1
    exchanges = Counter((plain(row["text"]), plain(row["response"])) for row in ROWS if "made_from" not in row)
    assert [pair for pair, count in exchanges.items() if count > 1] == []


def test_a_disguise_is_worn_by_as_many_benign_as_harmful_sentences() -> None:
    worn = Counter((row["obfuscation"], row["prompt_label"]) for row in read(DATA / "obfuscated.jsonl"))
    assert all(worn[name, 0] == worn[name, 1] for name, _ in worn)


def test_the_script_writes_the_disguised_rows_again_from_the_rows_they_were_made_from() -> None:
    script = runpy.run_path(str(DATA / "obfuscate.py"))
    plain = [row for name in script["SOURCES"] for row in read(DATA / f"{name}.jsonl")]
    assert script["obfuscate"](plain) == read(DATA / "obfuscated.jsonl")


def test_a_disguised_row_keeps_the_label_of_the_row_it_was_made_from() -> None:
    by_id = {row["id"]: row for row in ROWS}
    for row in read(DATA / "obfuscated.jsonl"):
        origin = by_id[row["made_from"]]
        assert (row["prompt_label"], row["categories"]) == (origin["prompt_label"], origin["categories"])


LABELS = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in (DATA / "labels").glob("*.csv")}


@pytest.mark.parametrize("name", sorted(LABELS))
def test_labels_of_other_peoples_texts_are_complete_and_hold_no_text(name: str) -> None:
    rows = LABELS[name]
    assert len({row["id"] for row in rows}) == len(rows) > 1000
    for row in rows:
        assert set(row.get("hazards", "").split()) <= HAZARDS, row
        assert all(value in {"0", "1", ""} for key, value in row.items() if key not in {"id", "hazards"}), row


def test_each_label_is_given_to_some_and_withheld_from_others() -> None:
    for rows in LABELS.values():
        for column in set(rows[0]) - {"id", "hazards"}:
            counts = Counter(row[column] for row in rows)
            assert min(counts["0"], counts["1"]) > 50, column
