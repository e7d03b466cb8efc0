"""Writes secrets.jsonl from secrets.txt: the texts are written by hand, what is random in them is drawn here.

It does not judge: what is a secret is marked in secrets.txt, a row between lines of `%%`. In a row

    ⟦category|value⟧   is a secret; without a category it is none, but is taken apart like one
    ‹w36›              is drawn: so many characters of an alphabet below
    ‹begin:NAME›       is put together by one of the forms below

The draw depends on the row alone, so that a new row leaves the others as they are. Run it again after a change:

    python guard/bench/corpora/draw_secrets.py
"""

import base64
import json
import random
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # one JSON object of the corpus

HERE = Path(__file__).parent
CUT = "¦"
EVERY = 5  # characters between two cuts: fewer than any scanner takes for a token

WORD = string.ascii_letters + string.digits
ALPHABETS = {
    "d": string.digits,
    "n": string.digits,  # a number: no zero in front
    "h": "0123456789abcdef",
    "H": "0123456789ABCDEF",
    "u": string.ascii_lowercase,
    "v": string.ascii_letters,
    "l": string.ascii_lowercase + string.digits,
    "K": string.ascii_uppercase + string.digits,
    "A": string.ascii_uppercase + "234567",  # base 32
    "y": "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L",  # bech32
    "w": WORD,
    "b": WORD + "+/",  # base 64
    "s": WORD + "-_",  # base 64 in addresses
    "p": WORD + "!#%*+-_=?",  # what password generators use
}
FORMS: Mapping[str, Callable[[str], str]] = {
    # The first three keep from secrets.txt what a scanner of repositories would stop at.
    "as": lambda text: text,
    "begin": lambda name: f"-----BEGIN {name}-----",
    "end": lambda name: f"-----END {name}-----",
    "e": lambda text: base64.b64encode(text.encode()).decode(),
    "j": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
}
INNERMOST = re.compile(r"‹([^‹›]*)›")
MARKED = re.compile(r"⟦([^⟦⟧|]*)\|([^⟦⟧]*)⟧")


def draw(template: str) -> str:
    """Fill in what is random, from the inside out; the same for the same template."""
    rng = random.Random(template)  # noqa: S311

    def one(match: re.Match[str]) -> str:
        form, colon, argument = match[1].partition(":")
        if colon:
            return FORMS[form](argument)
        first = "123456789" if form[0] == "n" else ALPHABETS[form[0]]
        return rng.choice(first) + "".join(rng.choices(ALPHABETS[form[0]], k=int(form[1:]) - 1))

    while INNERMOST.search(template):
        template = INNERMOST.sub(one, template)
    return template


def row_of(name: str, template: str) -> Row:
    """Return a row: its text taken apart, and the spans that its secrets have in the text put together."""
    stored, spans, length, at = "", [], 0, 0
    marked = draw(template)
    for match in MARKED.finditer(marked):
        before, (category, value) = marked[at : match.start()], match.groups()
        start = length + len(before)
        length, at = start + len(value), match.end()
        stored += before + "".join(CUT + value[i : i + EVERY] for i in range(0, len(value), EVERY))
        if category:
            spans.append([start, length, category])
    row: Row = {"id": name, "text": stored + marked[at:], "spans": spans}
    return {**row, "cut": CUT} if CUT in stored else row


def rows() -> list[Row]:
    """Return the corpus, in the order of the texts."""
    templates = (HERE / "secrets.txt").read_text(encoding="utf-8").rstrip("\n").split("\n%%\n")
    return [row_of(f"secrets-{number:04}", template) for number, template in enumerate(templates, start=1)]


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()]
    (HERE / "secrets.jsonl").write_text("".join(lines), encoding="utf-8")
