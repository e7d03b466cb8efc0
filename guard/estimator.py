"""The guard model as scikit-learn knows classifiers: texts in, probabilities out. Knows no policy and no checks."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_consistent_length

from ringfence.guard.checks.model import shared_reader
from ringfence.guard.classifier.heads import HEADS, TASKS
from ringfence.guard.classifier.scorer import Scores

ANSWERING = frozenset({"response_harm", "refusal"})
"""Heads that are asked about what answers a prompt."""

BATCH = 1024
"""Texts read together: what the encoder says of them takes some 1.5 kB for each window."""


class GuardClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """The guard model, ready to use in a `Pipeline` or with `cross_val_score`; nothing is learned.

    It is the model alone: disguises are not undone, as the `classifier` check does. For a hazard (`S1` … `S14`) the
    probability is that of a prompt which is harmful, and harmful in that way.

    Args:
        head: what is asked: `prompt_harm`, `response_harm`, `attack`, `refusal`, `toxicity`, or a hazard.
        threshold: from which probability on `predict` says 1.
    """

    def __init__(self, head: str = "prompt_harm", threshold: float = 0.5) -> None:
        self.head = head
        self.threshold = threshold

    @property
    def classes_(self) -> NDArray[np.int64]:
        """The two classes: 0 for a text that is not what the head asks for, and 1 for one that is."""
        return np.array([0, 1])

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Look whether texts and labels are such as the head understands; the model stays as it is.

        Raises:
            ValueError: a parameter, a text or a label is wrong.
        """
        _pairs(X, self._is_answering())
        if y is not None:
            check_consistent_length(X, y)
            if not set(np.unique(np.asarray(y)).tolist()) <= {0, 1}:
                raise ValueError("y must hold 0 and 1 only, or False and True: 1 for what the head asks for")
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the calibrated probabilities of both classes, (n, 2).

        Args:
            X: texts, (n,); for `response_harm` and `refusal` pairs of prompt and response, (n, 2), with an empty prompt
                where nobody knows it.

        Raises:
            ValueError: a parameter or a text is wrong, or a text is too long to be read in full.
            WeightsError: there is no model.
        """
        pairs = _pairs(X, self._is_answering())
        self._reader = shared_reader()  # held, so that the next call does not load the model again
        scores: list[Scores] = []
        for start in range(0, len(pairs), BATCH):
            scores += self._reader.scorer.score_many(pairs[start : start + BATCH])
        for row, score in enumerate(scores):
            if score.truncated:
                raise ValueError(f"row {row} of X is too long to be read in full")
        probable = np.array([self._of(score) for score in scores])
        return np.column_stack([1 - probable, probable])

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return 0 or 1 for each text, (n,); see `predict_proba`."""
        return (self.predict_proba(X)[:, 1] >= self.threshold).astype(np.int64)

    def _of(self, score: Scores) -> float:
        return score.tasks[self.head] if self.head in TASKS else score.harm * score.hazards[self.head]

    def _is_answering(self) -> bool:
        if self.head not in HEADS:
            raise ValueError(f"there is no head {self.head!r}; there are {', '.join(HEADS)}")
        if not (isinstance(self.threshold, Real) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold!r}")
        return self.head in ANSWERING

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = tags.target_tags.required = False
        tags.classifier_tags.multi_class = False
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_reader"}


def _pairs(X: ArrayLike, answering: bool) -> Sequence[tuple[str, str | None]]:
    """Return texts as the model takes them: with the prompt that each answers, None for one that stands alone.

    Raises:
        ValueError: they are not texts, or not as the head takes them.
    """
    rows = np.asarray(X, dtype=object)
    if rows.shape[1:] != ((2,) if answering else ()) or rows.ndim == 0:
        wanted = "(prompt, response) pairs, (n, 2)" if answering else "texts, (n,)"
        raise ValueError(f"X must be {wanted}; got an array of shape {rows.shape}")
    if not len(rows):
        raise ValueError("X holds no texts")
    for place, cell in np.ndenumerate(rows):
        if not isinstance(cell, str):
            raise ValueError(f"row {place[0]} of X must be text, got {type(cell).__name__}")
    return [(response, prompt) for prompt, response in rows] if answering else [(text, None) for text in rows]
