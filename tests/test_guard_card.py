"""The page about the guard says what its card says, of the weights that are there."""

import json
from pathlib import Path

from ringfence.guard.classifier.page import to_markdown
from ringfence.guard.classifier.scorer import WEIGHTS, Scorer

CARD = json.loads((WEIGHTS / "card.json").read_text())


def test_page_is_the_card_as_it_stands() -> None:
    page = Path(__file__).parent.parent / "docs" / "guard-card.md"
    assert page.read_text() == to_markdown(CARD)


def test_card_speaks_of_the_weights_beside_it() -> None:
    assert CARD["revision"] == Scorer.load().revision
