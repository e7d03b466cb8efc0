"""How good scores are, given the truth. Numbers in, numbers out; knows no model, no file and no head."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

FPRS = (0.01, 0.001)
BINS = 15


@dataclass(frozen=True, slots=True)
class Measures:
    """What is commonly reported of a classifier; None where a set with one class cannot say.

    On a set without negatives precision is 1 by definition, and `f1` is still given, as the literature does.
    """

    n: int
    positives: int
    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None
    fpr: float | None
    auprc: float | None
    auroc: float | None
    recall_at_fpr: Mapping[str, float | None]
    ece: float


def measure(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> Measures:
    """Compare scores (n,) in 0 … 1 with labels (n,) of 0 and 1; a score at the threshold counts as flagged.

    Raises:
        ValueError: there is nothing to measure.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    if not len(score):
        raise ValueError("no labelled rows to measure")
    flagged = score >= threshold
    found, positives, negatives = int((flagged & label).sum()), int(label.sum()), int((~label).sum())
    recall = found / positives if positives else None
    precision = found / int(flagged.sum()) if positives and flagged.any() else (0.0 if positives else None)
    f1 = 2 * found / (int(flagged.sum()) + positives) if positives else None
    both = bool(positives and negatives)
    return Measures(
        n=len(score),
        positives=positives,
        threshold=threshold,
        f1=f1,
        precision=precision,
        recall=recall,
        fpr=int((flagged & ~label).sum()) / negatives if negatives else None,
        auprc=float(average_precision_score(label, score)) if both else None,
        auroc=float(roc_auc_score(label, score)) if both else None,
        recall_at_fpr={str(limit): recall_at(score, label, limit) if both else None for limit in FPRS},
        ece=calibration_error(score, label),
    )


def recall_at(score: NDArray[np.float64], label: NDArray[np.bool_], limit: float) -> float:
    """Return the highest recall of any threshold that flags at most `limit` of the negatives."""
    fprs, recalls, _ = roc_curve(label, score, drop_intermediate=False)
    return float(recalls[fprs <= limit].max())


def calibration_error(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over bins of equal width (Naeini et al. 2015)."""
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    gaps = [abs(score[bins == b].sum() - label[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(score))
