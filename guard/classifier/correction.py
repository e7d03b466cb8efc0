"""A correction to one head: learnt from labelled features, kept small, chosen by cross-validation. Knows no file.

`logit + v·features + c`, as small as the labels bear. What is small is measured on ordinary texts: the mean square of
what they move by. Rows of one kind would otherwise pull all other texts along.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.model_selection import StratifiedGroupKFold

from ringfence.guard.classifier.calibrate import PRIOR

FOLDS = 5
PENALTIES = (0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
"""Weights of half the mean square move of ordinary texts, in logits, beside the mean loss of a row, that are tried.

Under weaker ones the rows are learnt no better, and more of the other texts come along.
"""

SEARCH = 0.01
"""The penalty under which the windows that long texts are judged by are looked for."""

ROUNDS = 3
"""How often the windows that long texts are judged by are chosen anew."""

SHRINK = 1e-3
"""Of the mean variance of features, so much is added to each, so that a direction no ordinary text has costs too."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that are labelled for one head.

    Attributes:
        windows: the features (windows, W) of each.
        truth: 0 or 1 for each.
        groups: the prompt of each; texts of one prompt are held out together.
        prior: share of positives that they are weighed to: the one that the head is calibrated for.
    """

    windows: Sequence[Vector]
    truth: NDArray[np.int64]
    groups: Sequence[str]
    prior: float = PRIOR

    def at(self, chosen: Iterable[int]) -> "Texts":
        """Return some of them."""
        kept = list(chosen)
        windows, groups = [self.windows[at] for at in kept], [self.groups[at] for at in kept]
        return Texts(windows, self.truth[kept], groups, self.prior)


@dataclass(frozen=True, slots=True)
class Correction:
    """What is added to a head's calibrated logit: `v·features + c`."""

    v: Vector
    c: float


@dataclass(frozen=True, slots=True)
class Line:
    """One head with its curve: `weight·features + bias`, a calibrated logit."""

    weight: Vector
    bias: float

    def __call__(self, features: Vector) -> Vector:
        """Return the logits of features (n, W)."""
        return features @ self.weight + self.bias

    def plus(self, correction: Correction) -> "Line":
        """Return the line with a correction in it."""
        return Line(self.weight + correction.v, self.bias + correction.c)

    def of_texts(self, texts: Sequence[Vector]) -> Vector:
        """Return the logit of each text, given the features (windows, W) of its windows: that of its worst."""
        return np.array([self(text).max() for text in texts])

    def worst(self, texts: Sequence[Vector]) -> Vector:
        """Return the features (texts, W) of the window that each text is judged by."""
        return np.stack([text[self(text).argmax()] for text in texts])


def moments(features: Vector) -> Vector:
    """Return what a correction needs to know of ordinary texts: the mean of `fᵀf`, (W + 1, W + 1), `f` with a one."""
    extended = with_one(features)
    return extended.T @ extended / len(extended)


def with_one(features: Vector) -> Vector:
    """Put a one behind each row of features (n, W), for the constant."""
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def root_of(moments: Vector) -> Vector:
    """Return the Cholesky factor of moments, a little shrunk: in its terms, a square move is a squared length."""
    width = len(moments)
    root: Vector = np.linalg.cholesky(moments + SHRINK * np.trace(moments) / width * np.eye(width))
    return root


def cross_validate(line: Line, texts: Texts, root: Vector, seed: int) -> tuple[float, Vector]:
    """Choose the penalty by the log loss on held-out folds.

    Returns:
        the strongest penalty that does as well as the best one but for its standard error, and each text's logit under
        the correction that was fitted without it.
    """
    splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    folds = list(splits.split(texts.truth, texts.truth, texts.groups))
    tried: list[tuple[float, Vector, Vector]] = []
    for penalty in PENALTIES:
        held_out = line.of_texts(texts.windows)
        for train, test in folds:
            if len(set(texts.truth[train].tolist())) == 2:
                correction = fit_texts(line, texts.at(train), root, penalty)
                held_out[test] = line.plus(correction).of_texts(texts.at(test).windows)
        tried.append((penalty, held_out, log_losses(expit(held_out), texts)))
    best = min((losses for _, _, losses in tried), key=np.mean)
    bar = best.mean() + best.std() / len(best) ** 0.5
    return next((penalty, held_out) for penalty, held_out, losses in reversed(tried) if losses.mean() <= bar)


def fit_texts(line: Line, texts: Texts, root: Vector, penalty: float) -> Correction:
    """Fit a correction to texts of one or several windows.

    Which window a text is judged by depends on the correction, so the two are settled in turns: from a first fit in
    which every window of a text stands for it, and at first under a weak penalty, as a stronger one would never get as
    far as the windows that matter.
    """
    counts = np.array([len(windows) for windows in texts.windows])
    share = shares(texts)
    every = np.concatenate(texts.windows)
    if counts.max() == 1:
        return fit(line, every, texts.truth, share, root, penalty)
    correction = fit(line, every, texts.truth.repeat(counts), (share / counts).repeat(counts), root, SEARCH)
    for strength in (*[SEARCH] * ROUNDS, *[penalty] * ROUNDS):
        correction = fit(line, line.plus(correction).worst(texts.windows), texts.truth, share, root, strength)
    return correction


def fit(line: Line, x: Vector, truth: NDArray[Any], share: Vector, root: Vector, penalty: float) -> Correction:
    """Fit a correction to features (n, W) by penalised maximum likelihood; `share` says what each row counts."""
    logits = line(x)
    turned: Vector = solve_triangular(root, with_one(x).T, lower=True).T

    def loss(move: Vector) -> tuple[float, Vector]:
        score = expit(logits + turned @ move)
        value = (share * nats(score, truth)).sum() + penalty / 2 * (move @ move)
        return float(value), turned.T @ (share * (score - truth)) + penalty * move

    still: Vector = np.zeros(turned.shape[1])
    move = minimize(loss, still, jac=True, method="L-BFGS-B").x
    found = solve_triangular(root, move, lower=True, trans="T")
    return Correction(found[:-1], float(found[-1]))


def shares(texts: Texts) -> Vector:
    """Weigh texts so that positives are their prior's share of the whole, as in calibration; the weights sum to one."""
    positives, negatives = (max(int((texts.truth == label).sum()), 1) for label in (1, 0))
    share: Vector = np.where(texts.truth == 1, texts.prior / positives, (1 - texts.prior) / negatives)
    return share


def nats(score: Vector, truth: NDArray[Any]) -> Vector:
    """Return the log loss of each row."""
    right: Vector = np.where(truth == 1, score, 1 - score).clip(1e-12)
    loss: Vector = -np.log(right)
    return loss


def log_losses(score: Vector, texts: Texts) -> Vector:
    """Return the log loss of each text, weighed so that their mean is that of the whole."""
    return nats(score, texts.truth) * shares(texts) * len(texts.truth)
