"""The page about the guard says what its card says, of the weights that are there."""

import json
from copy import deepcopy
from pathlib import Path

from typer.testing import CliRunner

from ringfence.guard.classifier.card import LIMITS
from ringfence.guard.classifier.heads import HAZARDS
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


def test_card_says_what_is_true_of_all_weights_apart_from_what_was_found_about_these() -> None:
    assert CARD["limits"] == list(LIMITS)
    assert CARD["found"]
    anew = to_markdown({name: value for name, value in CARD.items() if name not in ("found", "note")})
    assert not [statement for statement in CARD["found"] if statement in anew]
    assert all(limit in anew for limit in LIMITS)


def test_every_source_that_was_learnt_from_or_calibrated_on_stands_with_licence_and_credit() -> None:
    page = to_markdown(CARD)
    for part in ("training", "calibration"):
        for source, licence in CARD[part]["licences"].items():
            assert CARD["credits"][source]
            assert f"| {source} | {licence} | {CARD['credits'][source]} |" in page
    learnt = {source.split("/")[0] for source in CARD["calibration"]["licences"]}
    assert "aegis_train_sample" in learnt & set(CARD["calibration"]["families"])


def test_every_hazard_has_figures_with_the_size_of_their_sample_and_bounds() -> None:
    page = to_markdown(CARD)
    for hazard, title in HAZARDS.items():
        for source, found in CARD["hazards"][hazard].items():
            low, high = found["ci95"]["recall_at_fpr"]["0.01"]
            (line,) = [line for line in page.splitlines() if line.startswith(f"| {hazard} {title} |")]
            assert f"| {source} | {found['n']} | {found['positives']} |" in line
            assert f"{found['recall_at_fpr']['0.01']:.2f} ({low:.2f}–{high:.2f})" in line


def test_card_without_figures_of_hazards_has_no_table_of_them() -> None:
    assert "### Hazards" not in to_markdown(CARD | {"hazards": {}})


def test_weights_without_a_card_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "card", "--weights", str(tmp_path)])
    assert done.exit_code == 2
    assert "card.json" in done.output
