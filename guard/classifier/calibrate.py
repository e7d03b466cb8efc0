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
from ringfence.guard.classifier.scorer import Curve, Heads, Logits

PRIOR = 0.4
"""Share of positives that a score of one half stands for; the calibration rows are weighed to it."""

PRIORS = {"prompt_harm": 0.5, "response_harm": 0.6, "attack": 0.5}
"""The same for heads that do better by another share on sources that nothing was learnt from: what is harmful there
looks less so to them than where they have learnt."""

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
            "priors": {head: PRIORS.get(head, PRIOR) for head in TASKS},
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
        prior, fewest = (PRIORS.get(head, PRIOR), FEWEST) if head in TASKS else (HAZARD_PRIOR, FEWEST_HAZARDS)
        rows = [index for index, one in enumerate(examples) if tells(one, head)]
        label = np.array([examples[index].labels[head] >= 0.5 for index in rows], np.int64)
        if min(Counter(label.tolist())[value] for value in (0, 1)) < fewest:
            continue
        x = logits[rows, column].astype(np.float64)
        curves[head] = fit_curve(x, label, [project(examples[index].family) for index in rows], prior)
        scores[head] = 1 / (1 + np.exp(-(curves[head].slope * x + curves[head].offset)))
        labels[head] = label
    return Calibration(curves, scores, labels)


def tells(example: Example, head: str) -> bool:
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
    model = _fit(logits[:, None], labels, families, prior)
    return Curve(slope=float(model.coef_[0, 0]), offset=float(model.intercept_[0]))


def temper(heads: Heads, examples: Sequence[Example], logits: Logits) -> Heads:
    """Let what the refusal head says count against harm in a response, as far as that tells the examples apart.

    A refusal does no harm; the head for harm has learnt so from too few answers. Both read the same features, so one
    line of weights can say both.

    Args:
        logits: (examples, heads), as the exported graph gives them with these heads.
    """
    harm, refusal = HEADS.index("response_harm"), HEADS.index("refusal")
    rows = [index for index, one in enumerate(examples) if tells(one, "response_harm")]
    label = np.array([examples[index].labels["response_harm"] >= 0.5 for index in rows], np.int64)
    if len(set(label.tolist())) < 2:
        return heads
    families = [project(examples[index].family) for index in rows]
    [[own, other]] = _fit(logits[rows][:, [harm, refusal]].astype(np.float64), label, families, PRIOR).coef_
    share = min(0.0, float(other / own)) if own > 0 else 0.0
    weight, bias = heads.weight.copy(), heads.bias.copy()
    weight[harm] += share * weight[refusal]
    bias[harm] += share * bias[refusal]
    return Heads(weight, bias)


def _fit(
    logits: NDArray[np.float64], labels: NDArray[np.int64], families: Sequence[str], prior: float
) -> LogisticRegression:
    """Fit labels by logits (n, k), every family within a label weighing the same."""
    groups = list(zip(families, labels.tolist(), strict=True))
    rows, kinds = Counter(groups), Counter(label for _, label in set(groups))
    share = {1: prior, 0: 1 - prior}
    weights = np.array([share[label] / kinds[label] / rows[family, label] for family, label in groups])
    return LogisticRegression(C=1e6).fit(logits, labels, sample_weight=weights * len(labels))
