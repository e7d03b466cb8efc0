"""Fits the heads of given weights to somebody's own labelled texts; the encoder stays. Knows no network and no pool.

A head whose correction does not show on rows it was not fitted on is left as it was. What it does to other texts is
told as well, by rows of the project's own that the shipped weights never learnt from.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import f1_score

from ringfence.guard.classifier.calibrate import PRIOR, PRIORS
from ringfence.guard.classifier.corpus import OWN_DATA, load_own
from ringfence.guard.classifier.correction import Line, Texts, Vector, cross_validate, fit_texts, log_losses, root_of
from ringfence.guard.classifier.files import read_path
from ringfence.guard.classifier.heads import HEADS, TASKS
from ringfence.guard.classifier.ordinary import ALONE, ANSWERS, ORDINARY, read_ordinary
from ringfence.guard.classifier.rows import RowError, exchange_of
from ringfence.guard.classifier.scorer import CALIBRATION, GRAPH, TOKENIZER, Curve, Heads, Scorer
from ringfence.guard.classifier.sources import LABELS
from ringfence.guard.labelled import merged, read_label

FEWEST = 20
"""A head with fewer rows of either label is left alone."""

NOTE = "adapted.json"
"""Says which weights the heads were fitted from, and what changed."""

OF_RESPONSES = ("response_harm", "refusal")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, the prompt it answers (None where it stands alone), and what it is by head."""

    text: str
    prompt: str | None
    labels: Mapping[str, int]


Pair = tuple[float, float]
"""A figure before and after."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one head, measured on texts that the correction was not fitted on.

    Attributes:
        rows, positives: how many were labelled for it; nothing else is known where either label has too few.
        truncated: how many of these are too long to be read in full: their labels are about more than was read.
        kept: the correction is in the new weights.
        loss: weighted mean log loss in nats.
        f1: at a threshold of one half.
        alarms: share of other texts without it that score one half or more; None where there are no such texts.
        found: share of other texts with it that do.
    """

    rows: int
    positives: int
    truncated: int = 0
    kept: bool = False
    loss: Pair | None = None
    f1: Pair | None = None
    alarms: Pair | None = None
    found: Pair | None = None


def read_labelled(path: Path) -> list[Labelled]:
    """Read rows `{text, response, prompt_label, response_label, refusal, attack, toxicity}` from a file or a folder.

    Labels are 0, 1 or null, `attack` also by its words. `response_label` and `refusal` are those of the response, all
    others those of the text. A text that comes again counts once; one in which nothing is said teaches nothing.

    Raises:
        RowError: a row is not as expected, or a text is labelled both ways; the message begins with `FILE:line`.
    """
    found: dict[tuple[str, str | None], Labelled] = {}

    def add(where: str, text: str, prompt: str | None, labels: Mapping[str, int]) -> None:
        known = found[text, prompt].labels if (text, prompt) in found else {}
        labels = merged(known, labels, where, lambda head: f"'{LABELS.get(head, head)}'")
        if labels and text.strip():
            found[text, prompt] = Labelled(text, prompt, labels)

    for where, row in read_path(path):
        text, response = exchange_of(row, where)
        try:
            read = {head: read_label(row, LABELS.get(head, head)) for head in TASKS}
        except ValueError as error:
            raise RowError(f"{where}: {error}") from error
        labels = {head: label for head, label in read.items() if label is not None}
        answer = {head: labels.pop(head) for head in OF_RESPONSES if head in labels}
        if answer and response is None:
            raise RowError(f"{where}: response_label and refusal need a response")
        add(where, text, None, labels)
        add(where, str(response), text, answer)
    if not found:
        raise RowError(f"{path}: no row has a label")
    return list(found.values())


def adapt(rows: Sequence[Labelled], start: Path, out: Path, *, seed: int = 13) -> Mapping[str, Change]:
    """Write weights to `out`: those of `start`, with the heads fitted to the rows where that helps; else nothing.

    Returns:
        what became of each head that any row is labelled for.

    Raises:
        ValueError: no head has `FEWEST` rows of either label, or `out` holds something already.
        WeightsError: the weights to start from cannot be used.
        OSError: `out` cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder, so that no weights are lost")
    changes = {head: counted(rows, head) for head in TASKS if any(head in row.labels for row in rows)}
    enough = [head for head, one in changes.items() if min(one.positives, one.rows - one.positives) >= FEWEST]
    if not enough:
        raise ValueError(f"no head has {FEWEST} rows of either label; label more")
    scorer = Scorer.load(start, remember=0)
    others = other_texts()
    (features, partly), (beside, _) = features_of(scorer, rows), features_of(scorer, others)
    roots = {name: root_of(moments) for name, moments in read_ordinary(start).items()}
    weight, bias = scorer.heads.weight.copy(), scorer.heads.bias.copy()
    calibration = json.loads((start / CALIBRATION).read_text(encoding="utf-8"))
    for head in enough:
        at, curve = HEADS.index(head), scorer.curves.get(head, Curve())
        line = Line(curve.slope * weight[at].astype(np.float64), curve.slope * float(bias[at]) + curve.offset)
        prior = calibration.get("priors", {}).get(head, PRIORS.get(head, PRIOR))
        texts = replace(texts_of(head, rows, features), prior=prior)
        root = roots[ANSWERS if head in OF_RESPONSES else ALONE]
        penalty, held_out = cross_validate(line, texts, root, seed)
        fitted = line.plus(fit_texts(line, texts, root, penalty))
        change = compare(line, held_out, fitted, texts, texts_of(head, others, beside))
        truncated = sum(head in row.labels for row, cut_off in zip(rows, partly, strict=True) if cut_off)
        changes[head] = replace(change, truncated=truncated)
        if changes[head].kept:
            weight[at], bias[at] = fitted.weight, fitted.bias
            calibration["curves"][head] = asdict(Curve())
            calibration["scores"][head] = [round(float(score), 4) for score in expit(held_out)]
            calibration["labels"][head] = "".join(str(label) for label in texts.truth)
    if any(change.kept for change in changes.values()):
        note = {"from": scorer.revision, "heads": {head: asdict(change) for head, change in changes.items()}}
        write(out, start, Heads(weight, bias), calibration, note)
    return changes


def counted(rows: Sequence[Labelled], head: str) -> Change:
    """Count the rows that are labelled for a head."""
    labels = [row.labels[head] for row in rows if head in row.labels]
    return Change(len(labels), sum(labels))


def other_texts() -> list[Labelled]:
    """Take one in three of the project's own rows that the shipped weights never learnt from; no label is in doubt."""
    _, apart = load_own(OWN_DATA)
    return [
        Labelled(
            example.text,
            example.prompt,
            {head: int(label) for head, label in example.labels.items() if head not in example.doubt},
        )
        for example in apart[::3]
    ]


def features_of(scorer: Scorer, rows: Sequence[Labelled]) -> tuple[list[Vector], list[bool]]:
    """Read the features (windows, W) of each text, and whether some of it was not read."""
    read = list(scorer.read([(row.text, row.prompt) for row in rows]))
    return [features.astype(np.float64) for features, *_ in read], [cut_off for *_, cut_off in read]


def texts_of(head: str, rows: Sequence[Labelled], features: Sequence[Vector]) -> Texts:
    """Take the texts that are labelled for a head."""
    here = [at for at, row in enumerate(rows) if head in row.labels]
    truth = np.array([rows[at].labels[head] for at in here], np.int64)
    return Texts([features[at] for at in here], truth, [rows[at].prompt or rows[at].text for at in here])


def compare(line: Line, held_out: Vector, fitted: Line, texts: Texts, others: Texts) -> Change:
    """Compare a head before and after. A gain counts where it is twice its standard error, prompt by prompt.

    Args:
        held_out: the logit of each text under the correction that was fitted without it.
    """
    before, after = expit(line.of_texts(texts.windows)), expit(held_out)
    losses = log_losses(before, texts), log_losses(after, texts)
    groups = np.array(texts.groups)
    gains = [(losses[0] - losses[1])[groups == group].mean() for group in dict.fromkeys(texts.groups)]
    flagged = [one.of_texts(others.windows) >= 0 for one in (line, fitted)]

    def flagged_of(label: int) -> Pair | None:
        here = others.truth == label
        return (float(flagged[0][here].mean()), float(flagged[1][here].mean())) if here.any() else None

    return Change(
        rows=len(texts.truth),
        positives=int(texts.truth.sum()),
        kept=bool(np.mean(gains) > 2 * np.std(gains) / len(gains) ** 0.5),
        loss=(float(losses[0].mean()), float(losses[1].mean())),
        f1=(f1(texts.truth, before), f1(texts.truth, after)),
        alarms=flagged_of(0),
        found=flagged_of(1),
    )


def f1(truth: NDArray[Any], score: Vector) -> float:
    """Return F1 at a threshold of one half."""
    return float(f1_score(truth, score >= 0.5, zero_division=0))


def write(out: Path, start: Path, heads: Heads, calibration: Any, note: Any) -> None:
    """Write the folder of weights: what changed anew, the rest copied, and a note on where they come from."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (GRAPH, TOKENIZER, ORDINARY):
        shutil.copyfile(start / name, out / name)
    heads.write(out)
    (out / CALIBRATION).write_text(json.dumps(calibration, separators=(",", ":")) + "\n", encoding="utf-8")
    (out / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
