"""Writes the card of a set of weights as a page for people. Knows the card's fields and nothing of the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ringfence.guard.classifier.heads import HAZARDS

Card = Mapping[str, Any]

BOUNDED = ("f1", "fpr", "auroc", "recall_at_fpr", "ece")
"""Measures whose bounds are shown; the card has those of all."""

TERMS = {
    "CC-BY-4.0": "creativecommons.org/licenses/by/4.0",
    "CC-BY-SA-3.0": "creativecommons.org/licenses/by-sa/3.0",
    "CC0-1.0": "creativecommons.org/publicdomain/zero/1.0",
    "ODC-BY": "opendatacommons.org/licenses/by/1-0",
}
"""Where licences can be read that ask for it to be said."""


def to_markdown(card: Card, beside: Card | None = None) -> str:
    """Return the page; every figure on it stands in the card, or in that of other weights to put beside them."""
    return "\n".join((*_lines(card), *(_compared(card, beside) if beside else ()))) + "\n"


def _lines(card: Card) -> Iterator[str]:
    base, training, calibration = card["base"], card["training"], card["calibration"]
    yield "# The guard model's card"
    yield ""
    yield "Printed by `ringfence train card` from the card that travels with the weights; do not edit."
    yield ""
    yield f"- **Base**: {base['name']} ({base['licence']}), sha256 `{base['sha256']}`"
    if teacher := card["teacher"]:
        yield f"- **Taught by** {teacher}"
    yield f"- **Weights**: revision `{card['revision']}`, recipe `{card['recipe']}`, int8"
    yield f"- **Heads**: {', '.join(card['heads'])}"
    plan = card["plan"]
    yield f"- **Trained on** {training['examples']:,} texts, {plan['epochs']} times over, seed {plan['seed']}"
    if note := card.get("note"):
        yield f"- **Note**: {note}"
    yield f"- **Calibrated on** {sum(calibration['families'].values()):,} other texts (Platt scaling by head)"
    yield "- **Speed**: {ms} ms for one text of {tokens} tokens, {cores} cores of {on}".format(**card["latency"])
    yield ""
    yield from _short(card)
    yield "## What it is bad at"
    yield ""
    yield from (f"- {limit}" for limit in (*card["limits"], *card.get("found", ())))
    yield ""
    yield "## On sources that it did not learn from"
    yield ""
    yield "Whole sources: neither weights nor calibration curves were fitted to them. They were looked at all the"
    yield "same: what share of harmful texts a score of one half stands for was chosen by how these sources do, so"
    yield "figures at 0.5 and ECE are better here than elsewhere; AUPRC and R@1% do not depend on it. One threshold,"
    yield "0.5, on calibrated scores; the shipped policy blocks at thresholds of its own (`ringfence policy show`)."
    yield "FPR is the share of harmless texts that are flagged; R@1% the recall where one in a hundred of them is;"
    yield "ECE the calibration error. In brackets: the middle 95 % of 1,000 resamples. A dash stands where a source"
    yield "has one class only."
    yield from _truncated(card["unseen_sources"]["all"])
    yield ""
    yield "| head | mean F1 of the sources | F1, all rows together | recall | FPR | R@1% | ECE |"
    yield "|---|---|---|---|---|---|---|"
    for head, mean in card["mean_f1"].items():
        yield f"| {head} | {_cell(mean['f1'], mean['ci95'])} of {mean['sources']} | {_pooled(card, head)} |"
    for head in card["unseen_sources"]["all"]:
        yield from _by_source(head, head, card["unseen_sources"])
    yield from _ours(card.get("ours", {}))
    yield from _hazards(card)
    yield ""
    yield "## What it learnt from"
    yield ""
    yield from _sources(training, card.get("credits", {}))
    yield ""
    yield "## What it was calibrated on"
    yield ""
    yield "Texts that it did not learn from: what the caps of the sources above leave over, one block in nine of our"
    yield "own rows, and what is kept for it of these:"
    yield ""
    yield from _sources(calibration, card.get("credits", {}))
    yield ""
    yield "Of all sources texts were drawn, near-duplicates dropped and labels translated into the heads above, and of"
    yield "training texts parts were shown, or whole ones within others. No text of theirs ships with the weights."
    licences = {**training["licences"], **calibration.get("licences", {})}.values()
    terms = [f"{name} {where}" for name, where in TERMS.items() if any(name in licence for licence in licences)]
    yield f"Licences: {', '.join(terms)}."


def _short(card: Card) -> Iterator[str]:
    """Yield the figures that guards are compared by, each with its bounds; those that the card has."""
    unseen, ours, mean = card["unseen_sources"], card.get("ours", {}), card["mean_f1"]
    rows: list[tuple[str, str]] = []
    for head, what in (("prompt_harm", "harmful prompts"), ("response_harm", "harmful responses")):
        if found := mean.get(head):
            rows.append((f"{what}: mean F1 of {found['sources']} sources", _cell(found["f1"], found["ci95"])))
    for what, source, head, measure in (
        ("harmful responses: F1 by labels of our own", ours.get("all", {}), "response_harm", "f1"),
        ("alarming but harmless questions that are flagged", ours.get("own_alarming", {}), "prompt_harm", "fpr"),
        (
            "harmless sentences with an attack's words that are flagged",
            ours.get("own_trigger_words", {}),
            "attack",
            "fpr",
        ),
        ("attacks that are found", unseen["all"], "attack", "recall"),
        (
            "harmful prompts found where one harmless in a hundred is flagged",
            unseen["all"],
            "prompt_harm",
            "recall_at_fpr",
        ),
        ("expected calibration error, prompts", unseen["all"], "prompt_harm", "ece"),
    ):
        if head in source:
            rows.append((what, _figure(source[head], measure)))
    yield "## In short"
    yield ""
    yield "One threshold, 0.5, on sources that it did not learn from; how they were chosen and each by itself below."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {what} | {figure} |" for what, figure in rows)
    yield ""


def _by_source(title: str, head: str, sources: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"### {title}"
    yield ""
    yield "| source | texts | positive | F1 | precision | recall | FPR | AUPRC | R@1% | ECE |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for source, heads in sources.items():
        if head in heads:
            yield _row(source, heads[head])


def _ours(sources: Mapping[str, Any]) -> Iterator[str]:
    if not sources.get("all"):
        return
    yield ""
    yield "### By labels of our own"
    yield ""
    yield "Answers of sources above whose published labels mean something else than harm, or are often wrong, read"
    yield "anew; and prompts that we wrote to measure by. Nothing was learnt from them. [training.md](training.md) says"
    yield "how they were made, and how far published labels are from ours."
    for head in sources["all"]:
        yield from _by_source(f"{head}, by labels of our own", head, sources)


def _hazards(card: Card) -> Iterator[str]:
    if not card.get("hazards"):
        return
    yield ""
    yield "### Hazards"
    yield ""
    yield "A hazard's score is its probability in a text that is harmful, so these figures are of harmful texts alone:"
    yield "positive are those of the hazard, and FPR is the share of those of another that are flagged."
    yield ""
    yield "| hazard | learnt from | source | texts | positive | F1 | precision | recall | FPR | AUROC | R@1% | ECE |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for hazard, sources in card["hazards"].items():
        name = f"{hazard} {HAZARDS[hazard]}"
        for source, found in sources.items():
            cells = (f"{card['training']['labels'][hazard][1]:,}", source, found["n"], found["positives"])
            figures = _figures(found, "f1", "precision", "recall", "fpr", "auroc", "recall_at_fpr", "ece")
            yield f"| {name} | {' | '.join(map(str, (*cells, *figures)))} |"


def _truncated(heads: Mapping[str, Any]) -> Iterator[str]:
    if counts := [f"{head} {found['truncated']}" for head, found in heads.items() if found.get("truncated")]:
        yield f"Texts that are too long to be read in full, whose figures are about a part only: {', '.join(counts)}."


def _sources(learnt: Mapping[str, Any], credits: Mapping[str, str]) -> Iterator[str]:
    yield "| source | licence | whose |"
    yield "|---|---|---|"
    for source, licence in sorted(learnt.get("licences", {}).items()):
        yield f"| {source} | {licence} | {credits.get(source) or '–'} |"
    yield ""
    yield "Texts by family: " + ", ".join(f"{name} {count}" for name, count in learnt["families"].items()) + "."


def _compared(card: Card, beside: Card) -> Iterator[str]:
    yield ""
    yield f"## Beside it: the recipe `{beside['recipe']}`"
    yield ""
    alone = ", without the teacher," if card["teacher"] and not beside["teacher"] else ""
    yield f"The same training{alone} on every source that may teach, also those whose licence forbids commercial use."
    if note := beside.get("note"):
        yield note
    yield f"It is not shipped. {beside['training']['examples']:,} texts; on the sources that neither learnt from:"
    yield ""
    names = (card["recipe"], beside["recipe"])
    yield (
        "| "
        + " | ".join(("head", "source", *(f"{measure}, {name}" for measure in ("F1", "FPR") for name in names)))
        + " |"
    )
    yield "|---|---|---|---|---|---|"
    for head in card["heads"]:
        for source, heads in card["unseen_sources"].items():
            other = beside["unseen_sources"].get(source, {})
            if source != "all" and head in heads and head in other:
                cells = [_cell(found[head][measure]) for measure in ("f1", "fpr") for found in (heads, other)]
                yield f"| {head} | {source} | {' | '.join(cells)} |"


def _pooled(card: Card, head: str) -> str:
    return " | ".join(_figures(card["unseen_sources"]["all"][head], "f1", "recall", "fpr", "recall_at_fpr", "ece"))


def _row(source: str, found: Mapping[str, Any]) -> str:
    cells = _figures(found, "f1", "precision", "recall", "fpr", "auprc", "recall_at_fpr", "ece")
    return f"| {source} | {found['n']} | {found['positives']} | {' | '.join(cells)} |"


def _figures(found: Mapping[str, Any], *measures: str) -> Iterator[str]:
    """Yield cells of some measures, with bounds where they are worth their room; recall is that at 1 %."""
    for measure in measures:
        yield _figure(found, measure) if measure in BOUNDED else _cell(found[measure])


def _figure(found: Mapping[str, Any], measure: str) -> str:
    value, bounds = found[measure], found["ci95"].get(measure)
    if measure == "recall_at_fpr":
        value, bounds = value["0.01"], (bounds or {}).get("0.01")
    return _cell(value, bounds)


def _cell(value: float | None, bounds: Sequence[float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + (f" ({bounds[0]:.2f}–{bounds[1]:.2f})" if bounds else "")
