"""Writes the card of a set of weights as a page for people. Knows the card's fields and nothing of the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Card = Mapping[str, Any]


def to_markdown(card: Card, beside: Card | None = None) -> str:
    """Return the page; every figure on it stands in the card, or in that of other weights to put beside them."""
    return "\n".join((*_lines(card), *(_compared(card, beside) if beside else ()))) + "\n"


def _lines(card: Card) -> Iterator[str]:
    base, training = card["base"], card["training"]
    yield "# The guard model's card"
    yield ""
    yield "Printed by `ringfence train card` from the card that travels with the weights; do not edit."
    yield ""
    yield f"- **Base**: {base['name']} ({base['licence']}), sha256 `{base['sha256']}`"
    if teacher := card["teacher"]:
        yield f"- **Taught by** a larger network, {teacher['name']} ({teacher['licence']}), trained on the same texts"
    yield f"- **Weights**: revision `{card['revision']}`, recipe `{card['recipe']}`, int8"
    yield f"- **Heads**: {', '.join(card['heads'])}"
    plan = card["plan"]
    yield f"- **Trained on** {training['examples']:,} texts, {plan['epochs']} times over, seed {plan['seed']}"
    if note := card.get("note"):
        yield f"- **Note**: {note}"
    yield f"- **Calibrated on** {sum(card['calibration']['families'].values()):,} other texts (Platt scaling by head)"
    yield "- **Speed**: {ms} ms for one text of {tokens} tokens, {cores} cores of {on}".format(**card["latency"])
    yield ""
    yield "## What it is bad at"
    yield ""
    yield from (f"- {limit}" for limit in card["limits"])
    yield ""
    yield "## On sources that it never saw"
    yield ""
    yield "Whole sources, kept out of training and calibration. One threshold, 0.5, on calibrated scores; the shipped"
    yield "policy blocks at thresholds of its own (`ringfence policy show`). FPR is the share of harmless texts that"
    yield "are flagged; R@1% the recall where one in a hundred of them is; ECE the calibration error. In brackets: the"
    yield "middle 95 % of 1,000 resamples. A dash stands where a source has one class only."
    yield ""
    yield "| head | mean F1 of the sources | F1, all rows together | recall | FPR | R@1% | ECE |"
    yield "|---|---|---|---|---|---|---|"
    for head, mean in card["mean_f1"].items():
        yield f"| {head} | {_cell(mean['f1'], mean['ci95'])} of {mean['sources']} | {_pooled(card, head)} |"
    for head in card["unseen_sources"]["all"]:
        yield ""
        yield f"### {head}"
        yield ""
        yield "| source | texts | positive | F1 | precision | recall | FPR | AUPRC | R@1% | ECE |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for source, heads in card["unseen_sources"].items():
            if head in heads:
                yield _row(source, heads[head])
    yield ""
    yield "## What it learnt from"
    yield ""
    yield "| source | licence |"
    yield "|---|---|"
    yield from (f"| {source} | {licence} |" for source, licence in sorted(training["licences"].items()))
    yield ""
    yield "Texts by family: " + ", ".join(f"{name} {count}" for name, count in training["families"].items()) + "."


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
    found = card["unseen_sources"]["all"][head]
    sure = found["ci95"]
    cells = (_cell(found["f1"], sure["f1"]), _cell(found["recall"]), _cell(found["fpr"], sure["fpr"]))
    return " | ".join((*cells, _cell(found["recall_at_fpr"]["0.01"]), _cell(found["ece"])))


def _row(source: str, found: Mapping[str, Any]) -> str:
    sure = found["ci95"]
    cells = [
        _cell(found["f1"], sure["f1"]),
        _cell(found["precision"]),
        _cell(found["recall"]),
        _cell(found["fpr"], sure["fpr"]),
        _cell(found["auprc"]),
        _cell(found["recall_at_fpr"]["0.01"]),
        _cell(found["ece"]),
    ]
    return f"| {source} | {found['n']} | {found['positives']} | {' | '.join(cells)} |"


def _cell(value: float | None, bounds: Sequence[float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + (f" ({bounds[0]:.2f}–{bounds[1]:.2f})" if bounds else "")
