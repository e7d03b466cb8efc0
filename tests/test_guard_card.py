"""The page about the guard says what its card says, of the weights that are there."""

import json
from copy import deepcopy
from pathlib import Path

from typer.testing import CliRunner

from ringfence.guard.classifier.page import to_markdown
from ringfence.guard.classifier.scorer import WEIGHTS, Scorer
from ringfence.proxy.cli.root import app

CARD = json.loads((WEIGHTS / "card.json").read_text())


def test_page_is_what_the_command_prints() -> None:
    page = Path(__file__).parent.parent / "docs" / "guard-card.md"
    assert page.read_text() == CliRunner().invoke(app, ["train", "card"]).output


def test_card_speaks_of_the_weights_beside_it() -> None:
    assert CARD["revision"] == Scorer.load().revision


def test_only_sources_that_neither_of_two_sets_of_weights_learnt_from_are_compared() -> None:
    other = deepcopy(CARD) | {"recipe": "everything"}
    del other["unseen_sources"]["dices"]
    other["unseen_sources"]["toxicchat"]["prompt_harm"]["f1"] = 0.123
    section = to_markdown(CARD, other).split("## Beside it: the recipe `everything`")[1]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| prompt_harm")]
    ours = CARD["unseen_sources"]["toxicchat"]["prompt_harm"]["f1"]
    assert ["toxicchat", f"{ours:.2f}", "0.12"] in [row[1:4] for row in rows]
    assert "dices" not in section
    assert "| all |" not in section
