"""The corpus of secrets: well formed, without doubles, as its script writes it, and nothing that a scanner stops at."""

import json
import re
import runpy
from collections import Counter

import pytest

from ringfence.guard.bench.spans import FOLDER, LabelledSpan, load_corpus_of
from ringfence.guard.check import Passage
from ringfence.guard.checks.secrets import SecretsCheck
from ringfence.guard.classifier.rows import RowError
from ringfence.policies.types import Stage

TEXTS = load_corpus_of("secrets")
STORED = [json.loads(line) for line in (FOLDER / "secrets.jsonl").read_text(encoding="utf-8").splitlines()]
SECRETS = [(span.category, text.text[span.start : span.end]) for text in TEXTS for span in text.spans]


def test_spans_lie_inside_in_order_and_apart():
    for text in TEXTS:
        edges = [edge for span in text.spans for edge in (span.start, span.end)]
        assert edges == sorted(edges), text.id
        assert all(0 <= span.start < span.end <= len(text.text) for span in text.spans), text.id


def test_spans_begin_and_end_at_the_secret_itself():
    for category, secret in SECRETS:
        assert secret == secret.strip(), category
        assert not re.search("^[\"'`<=:]|[\"'`<,;]$", secret), (category, secret)


def test_ids_texts_and_secrets_stand_once():
    for seen in ([text.id for text in TEXTS], [" ".join(text.text.split()) for text in TEXTS], SECRETS):
        assert [one for one, count in Counter(seen).items() if count > 1] == []


def test_about_half_of_the_rows_hold_no_secret():
    empty = sum(not text.spans for text in TEXTS)
    assert 0.45 < empty / len(TEXTS) < 0.55


def test_no_mark_of_the_writing_is_left_in_a_text():
    assert not [text.id for text in TEXTS if re.search("[¦⟦⟧‹›]", text.text)]


def test_forms_of_known_length_are_drawn_to_that_length():
    forms = {
        "aws-access-token": r"A[KS]IA[A-Z2-7]{16}",
        "aws-secret-key": r"[A-Za-z0-9+/]{40}",
        "gcp-api-key": r"AIza[\w-]{35}",
        "github-pat": r"ghp_[A-Za-z0-9]{36}",
        "sendgrid-api-token": r"SG\.[\w-]{22}\.[\w-]{43}",
        "azure-storage-key": r"[A-Za-z0-9+/]{86}==",
        "jwt": r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43,}",
    }
    for category, secret in SECRETS:
        assert re.fullmatch(forms.get(category, r"(?s).{8,}"), secret), (category, secret)


def test_the_script_writes_the_rows_again():
    assert runpy.run_path(str(FOLDER / "draw_secrets.py"))["rows"]() == STORED


def test_no_secret_is_written_out_in_a_file_of_the_corpus():
    files = [(FOLDER / name).read_text(encoding="utf-8") for name in ("secrets.jsonl", "secrets.txt")]
    drawn = [secret for category, secret in SECRETS if category not in {"password", "url-password"}]
    assert not [secret for secret in drawn for file in files if secret in file]
    forms = {"secret.password", "secret.basic_auth"}  # shared with near-misses, which are stored as they are
    for row in STORED:
        if row["spans"]:
            found = SecretsCheck().find(Passage(Stage.INPUT, "user", row["text"]))
            assert {finding.category for finding in found} <= forms, row["id"]


def write(folder, *rows):
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_row_is_read_plain_or_with_a_mark_set_into_its_text(tmp_path):
    spans = [[4, 9, "password"]]
    plain = {"id": "1", "text": "pw: ab|cd", "spans": spans}
    write(tmp_path, plain, {"id": "2", "text": "pw: ¦ab¦cde", "spans": spans, "cut": "¦"})
    one, other = load_corpus_of("own", tmp_path)
    assert (one.text, other.text) == ("pw: ab|cd", "pw: abcde")
    assert one.spans == other.spans == (LabelledSpan(4, 9, "password"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": [[0, 5, "x"]]}, "within the 4 characters of text"),
        ({"spans": [[2, 2, "x"]]}, "a span is"),
        ({"spans": [[0, "1", "x"]]}, "a span is"),
        ({"spans": [[0, 3, "x"], [2, 4, "x"]]}, "not overlap"),
        ({"spans": None}, "spans must be a list"),
        ({"text": ""}, "text must be a string"),
        ({"id": 7}, "id must be a string"),
        ({"cut": ""}, "cut must be a string"),
    ],
)
def test_a_row_that_is_not_as_it_should_be_is_named_by_its_line(tmp_path, change, message):
    good = {"id": "1", "text": "abcd", "spans": []}
    write(tmp_path, good, {**good, **change})
    with pytest.raises(RowError, match=rf"own\.jsonl:2: .*{message}"):
        load_corpus_of("own", tmp_path)


def test_an_unknown_corpus_is_answered_with_those_there_are():
    with pytest.raises(RowError, match=r"no corpus is called sekrets; there are .*secrets"):
        load_corpus_of("sekrets")
