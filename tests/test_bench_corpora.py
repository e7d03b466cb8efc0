"""The corpora that checks are measured on: well formed, marked as their README says, nothing that reaches a person."""

import ipaddress
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stdnum import iban, luhn

CORPORA = Path(__file__).parent.parent / "guard" / "bench" / "corpora"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (CORPORA / "pii.jsonl").read_text(encoding="utf-8").splitlines()
]
MARKED = [(row["id"], category, row["text"][start:end]) for row in ROWS for start, end, category in row["spans"]]

OBFUSCATED_AT = re.compile(r"@|%40|\bat\b|\barobase\b|[\[(<](at|ät|kukac)[\])>]|_AT_|\(punkt\)", re.IGNORECASE)
DOCUMENTATION = [
    ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def digits(text: str) -> int:
    return sum(char.isdigit() for char in text)


def is_address_of_a_documentation_or_private_network(text: str) -> bool:
    address = ipaddress.ip_address(text.replace("[.]", "."))
    return address.is_private or any(address in net for net in DOCUMENTATION if net.version == address.version)


FITS: dict[str, Callable[[str], bool]] = {
    "email": lambda text: bool(OBFUSCATED_AT.search(text)) and "example" in re.sub(r"\W", "", text).casefold(),
    "phone": lambda text: 7 <= digits(text) <= 15 or text.count(" ") >= 6,
    "card": lambda text: 13 <= digits(text) <= 19 and luhn.is_valid(re.sub(r"\D", "", text)),
    "iban": lambda text: iban.is_valid(text, check_country=False),
    "ssn": lambda text: digits(text) == 9,
    "ip": is_address_of_a_documentation_or_private_network,
    "national_id": lambda text: digits(text) >= 4,
    "passport": lambda text: text.startswith("P<") or digits(text) >= 3,
    "name": lambda text: digits(text) == 0 and any(char.isalpha() for char in text),
    "address": lambda text: any(char.isalpha() for char in text) and len(text) >= 8,
    "birth_date": lambda text: 4 <= digits(text) <= 8,
}


def test_every_row_has_an_id_a_text_and_spans_and_nothing_else() -> None:
    for number, row in enumerate(ROWS, 1):
        assert list(row) == ["id", "text", "spans"], row
        assert row["id"] == f"pii-{number:04d}"
        assert row["text"].strip() == row["text"] != "", row["id"]


def test_spans_stand_in_order_inside_their_text_without_overlap() -> None:
    for row in ROWS:
        ends = 0
        for start, end, _ in row["spans"]:
            assert ends <= start < end <= len(row["text"]), row["id"]
            assert row["text"][start:end].strip() == row["text"][start:end], row["id"]
            ends = end


@pytest.mark.parametrize("category", FITS)
def test_every_span_looks_like_what_it_is_marked_as(category: str) -> None:
    texts = [(row, text) for row, marked, text in MARKED if marked == category]
    assert [pair for pair in texts if not FITS[category](pair[1])] == []


def test_no_category_is_marked_that_the_readme_does_not_explain() -> None:
    assert {category for _, category, _ in MARKED} == set(FITS)


def test_no_text_stands_twice() -> None:
    folded = Counter(unicodedata.normalize("NFKC", row["text"]).casefold() for row in ROWS)
    assert [text for text, count in folded.items() if count > 1] == []


def test_about_half_of_the_rows_hold_nothing_to_mark() -> None:
    assert 0.4 <= sum(not row["spans"] for row in ROWS) / len(ROWS) <= 0.5


def test_the_readme_counts_what_the_file_holds() -> None:
    readme = (CORPORA / "README.md").read_text(encoding="utf-8")
    table = {name: int(count) for name, count in re.findall(r"^\| (\w+) \| (\d+) \|", readme, re.MULTILINE)}
    assert table == Counter(category for _, category, _ in MARKED)
    assert f"{len(ROWS)} rows, {sum(not row['spans'] for row in ROWS)} of them" in readme
