"""Writes the card of a set of weights as a page for people. Knows the card's fields and nothing of the model."""

from collections.abc import Iterator, Mapping
from typing import Any

Card = Mapping[str, Any]


def to_markdown(card: Card) -> str:
    """Return the page; every figure on it stands in the card."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Card) -> Iterator[str]:
    base, training = card["base"], card["training"]
    yield "# The guard model's card"
    yield ""
    yield "Printed by `ringfence train card` from the card that travels with the weights; do not edit."
    yield ""
    yield f"- **Base**: {base['name']} ({base['licence']}), sha256 `{base['sha256']}`"
    yield f"- **Weights**: revision `{card['revision']}`, recipe `{card['recipe']}`, int8"
    yield f"- **Heads**: {', '.join(card['heads'])}"
    yield f"- **Trained on** {training['examples']:,} texts, in {len(card.get('stages', [1]))} stages"
    yield from (f"    {number}. {stage}" for number, stage in enumerate(card.get("stages", []), 1))
    yield f"- **Calibrated on** {sum(card['calibration']['families'].values()):,} other texts (Platt scaling by head)"
    yield ""
    yield "## What it is bad at"
    yield ""
    yield from (f"- {limit}" for limit in card["limits"])
    yield ""
    yield "## On sources that it never saw"
    yield ""
    yield "Whole sources, kept out of training and calibration. One threshold, 0.5, on calibrated scores. FPR is the"
    yield "share of harmless texts that are flagged; R@1% the recall where one in a hundred of them is; ECE the"
    yield "calibration error. A dash stands where a source has one class only. `all` pools the rows above it."
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


def _row(source: str, found: Mapping[str, Any]) -> str:
    values = [found[name] for name in ("f1", "precision", "recall", "fpr", "auprc")]
    values += [found["recall_at_fpr"]["0.01"], found["ece"]]
    cells = " | ".join("–" if value is None else f"{value:.2f}" for value in values)
    return f"| {source} | {found['n']} | {found['positives']} | {cells} |"
