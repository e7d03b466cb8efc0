"""How good scores are, given the truth. Numbers in, numbers out; knows no model, no file and no head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

FPRS = (0.01, 0.001)
BINS = 15
RESAMPLES = 1000
CELLS = 4_000_000
"""Numbers held at once while resampling; bounds the memory."""

Resampled = Mapping[str, NDArray[np.float64]]
"""By name of a measure (`recall_at_fpr 0.01`), its value in each resample; NaN where that cannot say."""


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


def resample(
    scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5, seed: Sequence[int] = (0,), count: int = RESAMPLES
) -> Resampled:
    """Measure sets of the same size drawn from this one with replacement (the bootstrap, Efron 1979)."""
    score, label = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    order = np.argsort(-score, kind="stable")
    score, label, size = score[order], label[order], len(score)
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, count, per := max(1, CELLS // size)):
        rows = min(per, count - start)
        drawn = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        parts.append(weighted(weights, score, label, threshold))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def weighted(
    weights: NDArray[np.int64], score: NDArray[np.float64], label: NDArray[np.bool_], threshold: float
) -> Resampled:
    """Do what `measure` does for many sets at once: weights (R, n) say how often each holds an item.

    Args:
        score, label: (n,), the highest score first.
    """
    last = np.append(np.nonzero(np.diff(score))[0], len(score) - 1)  # equal scores are flagged together or not at all
    hits, alarms = (np.cumsum(weights * of, axis=1)[:, last] for of in (label, ~label))  # (R, different scores)
    positives, negatives = hits[:, -1], alarms[:, -1]
    at = int((score[last] >= threshold).sum()) - 1
    found, wrong = (part[:, at] if at >= 0 else np.zeros(len(weights)) for part in (hits, alarms))
    with np.errstate(divide="ignore", invalid="ignore"):
        some = np.where(positives > 0, 1.0, np.nan)
        recalls, fprs = hits / positives[:, None], alarms / negatives[:, None]
        precisions = hits / (hits + alarms)
        both = np.where((positives > 0) & (negatives > 0), 1.0, np.nan)
        steps = np.diff(recalls, axis=1, prepend=0)
        left = np.pad(recalls, ((0, 0), (1, 0)))
        trapezes = (left[:, 1:] + left[:, :-1]) / 2 * np.diff(fprs, axis=1, prepend=0)
        result = {
            "f1": 2 * found / (found + wrong + positives) * some,
            "precision": np.where(found + wrong > 0, found / (found + wrong), 0) * some,
            "recall": found / positives,
            "fpr": wrong / negatives,
            "auprc": np.where(steps > 0, steps * precisions, 0).sum(axis=1) * both,
            "auroc": trapezes.sum(axis=1) * both,
        }
        for limit in FPRS:
            result[f"recall_at_fpr {limit}"] = np.where(fprs <= limit, recalls, 0).max(axis=1) * both
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    gaps = [np.abs((weights[:, bins == b] * (score - label)[bins == b]).sum(axis=1)) for b in range(BINS)]
    return {**result, "ece": np.sum(gaps, axis=0) / weights.sum(axis=1)}


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return where the middle 95 % of resampled values lie; None where most resamples cannot say."""
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def intervals(drawn: Resampled) -> dict[str, Any]:
    """Return the interval of each measure, named as the fields of `Measures` are."""
    spread: dict[str, Any] = {name: interval(values) for name, values in drawn.items()}
    limits = {str(limit): spread.pop(f"recall_at_fpr {limit}") for limit in FPRS}
    return {**spread, "recall_at_fpr": limits}
