"""Makes probabilities of logits, on examples the weights never learnt from. Knows heads and numbers, no network.

Hazards are calibrated among harmful texts, as their probabilities are those of a text that is harmful.
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

HAZARD_PRIOR = 0.1
"""The same for a hazard, among harmful texts: most have one of the fourteen, some two."""

FEWEST = 50
"""A task with fewer rows of either label keeps its raw logits: a curve through so little would be noise."""

FEWEST_HAZARDS = 20
"""The same for a hazard: there are fewer rows, and raw logits are of no scale at all."""

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
    """Fit one curve for each head on its annotated examples, for a hazard on those that are harmful.

    Within a label every family of sources weighs the same, however many rows it has.

    Args:
        logits: (examples, heads), as the exported graph gives them.
    """
    curves: dict[str, Curve] = {}
    scores: dict[str, NDArray[np.float64]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for column, head in enumerate(HEADS):
        prior, fewest = (PRIOR, FEWEST) if head in TASKS else (HAZARD_PRIOR, FEWEST_HAZARDS)
        rows = [index for index, one in enumerate(examples) if _tells(one, head)]
        label = np.array([examples[index].labels[head] >= 0.5 for index in rows], np.int64)
        if min(Counter(label.tolist())[value] for value in (0, 1)) < fewest:
            continue
        x = logits[rows, column].astype(np.float64)
        curves[head] = fit_curve(x, label, [project(examples[index].family) for index in rows], prior)
        scores[head] = 1 / (1 + np.exp(-(curves[head].slope * x + curves[head].offset)))
        labels[head] = label
    return Calibration(curves, scores, labels)


def _tells(example: Example, head: str) -> bool:
    """Whether an example has something to say of a head."""
    harmful = max(example.labels.get(task, 0.0) for task in ("prompt_harm", "response_harm")) >= 0.5
    return head in example.labels and head not in example.doubt and (head in TASKS or harmful)


def project(family: str) -> str:
    """Name the project a family comes from: our own files are one, or they would outweigh all others."""
    return "own" if family.startswith("own_") else family


def fit_curve(
    logits: NDArray[np.float64], labels: NDArray[np.int64], families: Sequence[str], prior: float = PRIOR
) -> Curve:
    """Fit slope and offset by weighted maximum likelihood, the positives weighed to the prior."""
    groups = list(zip(families, labels.tolist(), strict=True))
    rows, kinds = Counter(groups), Counter(label for _, label in set(groups))
    share = {1: prior, 0: 1 - prior}
    weights = np.array([share[label] / kinds[label] / rows[family, label] for family, label in groups])
    model = LogisticRegression(C=1e6).fit(logits[:, None], labels, sample_weight=weights * len(labels))
    return Curve(slope=float(model.coef_[0, 0]), offset=float(model.intercept_[0]))
