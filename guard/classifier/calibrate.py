"""Makes probabilities of logits, on examples the weights never learnt from. Knows heads and numbers, no network.

Hazards keep their logits: they are learnt at the rates that they have among harmful texts, and too few rows are kept
apart to know better.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ringfence.guard.classifier.examples import Example
from ringfence.guard.classifier.heads import HEADS, TASKS
from ringfence.guard.classifier.scorer import Curve, Logits

PRIOR = 0.4
"""Share of positives that a score of one half stands for; the calibration rows are weighed to it."""

FEWEST = 50
"""A head with fewer rows of either label keeps its raw logits: a curve through so little would be noise."""

VERSION = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """A curve per head, and what it was fitted on.

    Attributes:
        scores: per head, the calibrated scores of the calibration rows: for fitting a policy's thresholds.
        labels: per head, their labels, in the same order.
    """

    curves: Mapping[str, Curve]
    scores: Mapping[str, NDArray[np.float64]]
    labels: Mapping[str, NDArray[np.int64]]

    def to_json(self) -> dict[str, Any]:
        """Return the form that is written beside the weights."""
        return {
            "version": VERSION,
            "prior": PRIOR,
            "curves": {head: asdict(curve) for head, curve in self.curves.items()},
            "scores": {head: [round(float(score), 4) for score in scores] for head, scores in self.scores.items()},
            "labels": {head: "".join(str(label) for label in labels) for head, labels in self.labels.items()},
        }


def calibrate(examples: Sequence[Example], logits: Logits) -> Calibration:
    """Fit one curve for each task on its annotated examples.

    Within a label every family of sources weighs the same, however many rows it has.

    Args:
        logits: (examples, heads), as the exported graph gives them.
    """
    curves: dict[str, Curve] = {}
    scores: dict[str, NDArray[np.float64]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for head in TASKS:
        column = HEADS.index(head)
        rows = [index for index, one in enumerate(examples) if head in one.labels and head not in one.doubt]
        label = np.array([examples[index].labels[head] for index in rows], np.int64)
        if min(Counter(label.tolist())[value] for value in (0, 1)) < FEWEST:
            continue
        x = logits[rows, column].astype(np.float64)
        curves[head] = fit_curve(x, label, [project(examples[index].family) for index in rows])
        scores[head] = 1 / (1 + np.exp(-(curves[head].slope * x + curves[head].offset)))
        labels[head] = label
    return Calibration(curves, scores, labels)


def project(family: str) -> str:
    """Name the project a family comes from: our own files are one, or they would outweigh all others."""
    return "own" if family.startswith("own_") else family


def fit_curve(logits: NDArray[np.float64], labels: NDArray[np.int64], families: Sequence[str]) -> Curve:
    """Fit slope and offset by weighted maximum likelihood."""
    groups = list(zip(families, labels.tolist(), strict=True))
    rows, kinds = Counter(groups), Counter(label for _, label in set(groups))
    share = {1: PRIOR, 0: 1 - PRIOR}
    weights = np.array([share[label] / kinds[label] / rows[family, label] for family, label in groups])
    model = LogisticRegression(C=1e6).fit(logits[:, None], labels, sample_weight=weights * len(labels))
    return Curve(slope=float(model.coef_[0, 0]), offset=float(model.intercept_[0]))
