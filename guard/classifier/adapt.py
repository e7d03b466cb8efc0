"""Fits the heads of given weights to somebody's own labelled texts; the encoder stays. Knows no network and no pool.

For each head a correction is learnt on top of what the weights say: `logit + v·features + c`, with `v` kept small, so
that a head moves as far as the rows can show and no further. How small is settled by cross-validation, and a head whose
correction does not show on rows it was not fitted on is left as it was.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

from ringfence.guard.classifier.calibrate import PRIOR
from ringfence.guard.classifier.heads import TASKS
from ringfence.guard.classifier.rows import RowError, read_rows
from ringfence.guard.classifier.scorer import CALIBRATION, GRAPH, HEADS_FILE, TOKENIZER, Curve, Heads, Scorer

FEWEST = 20
"""A head with fewer rows of either label is left alone."""

NOTE = "adapted.json"
"""Says which weights the heads were fitted from, and what changed."""

FOLDS = 5
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 100.0)
"""Weights of |v|²/2 beside the mean loss of a row that are tried; the last leaves little but the constant."""

ROUNDS = 3
"""How often the windows that long texts are judged by are chosen anew."""

OF_RESPONSES = ("response_harm", "refusal")

LABELS = {"prompt_harm": "prompt_label", "response_harm": "response_label"}
"""Fields of a row that are not called as their head is."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, the prompt it answers (None where it stands alone), and what it is by head."""

    text: str
    prompt: str | None
    labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one head, measured on rows that the fold's correction was not fitted on.

    Attributes:
        rows, positives: how many were labelled for it.
        loss: weighted mean log loss, before and after, in nats.
        f1: at a threshold of one half, before and after.
        kept: the correction is in the new weights.
    """

    rows: int
    positives: int
    loss: tuple[float, float]
    f1: tuple[float, float]
    kept: bool


@dataclass(frozen=True, slots=True)
class Correction:
    """What is added to a head's calibrated logit: `v·features + c`."""

    v: Vector
    c: float

    def __call__(self, features: Vector) -> Vector:
        """Return what is added for features (n, W)."""
        return features @ self.v + self.c


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


def read_labelled(path: Path) -> list[Labelled]:
    """Read rows `{text, response, prompt_label, response_label, refusal, attack, toxicity}`; labels are 0, 1 or null.

    `response_label` and `refusal` are those of the response, all others those of the text.

    Raises:
        RowError: a row is not as expected; the message begins with `FILE:line`.
    """
    found: list[Labelled] = []
    for where, row in read_rows(path):
        text, response = row.get("text"), row.get("response")
        if not isinstance(text, str) or not (response is None or isinstance(response, str)):
            raise RowError(f"{where}: text must be a string, response a string or null")
        labels: dict[str, int] = {}
        for head in TASKS:
            label = row.get(LABELS.get(head, head))
            if label is not None:
                if isinstance(label, bool) or label not in (0, 1):
                    raise RowError(f"{where}: {LABELS.get(head, head)} must be 0, 1 or null, got {label!r}")
                labels[head] = int(label)
        answer = {head: labels.pop(head) for head in OF_RESPONSES if head in labels}
        if answer and response is None:
            raise RowError(f"{where}: response_label and refusal need a response")
        if labels:
            found.append(Labelled(text, None, labels))
        if answer:
            found.append(Labelled(str(response), text, answer))
    if not found:
        raise RowError(f"{path}: no row has a label")
    return found


def adapt(rows: Sequence[Labelled], start: Path, out: Path, *, seed: int = 13) -> Mapping[str, Change]:
    """Write weights to `out`: those of `start`, with the heads fitted to the rows where that helps; else nothing.

    Returns:
        what became of each head that had rows enough.

    Raises:
        ValueError: no head has `FEWEST` rows of either label, or `out` holds something already.
        WeightsError: the weights to start from cannot be used.
        OSError: `out` cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder, so that no weights are lost")
    scorer = Scorer.load(start, remember=0)
    features = [scorer.features(row.text, row.prompt).astype(np.float64) for row in rows]
    weight, bias = scorer.heads.weight.copy(), scorer.heads.bias.copy()
    calibration = json.loads((start / CALIBRATION).read_text(encoding="utf-8"))
    changes: dict[str, Change] = {}
    for at, head in enumerate(TASKS):
        chosen = [index for index, row in enumerate(rows) if head in row.labels]
        truth = np.array([rows[index].labels[head] for index in chosen])
        if min((truth == 0).sum(), (truth == 1).sum()) < FEWEST:
            continue
        curve = scorer.curves.get(head, Curve())
        line = Line(curve.slope * weight[at].astype(np.float64), curve.slope * float(bias[at]) + curve.offset)
        groups = [rows[index].prompt or rows[index].text for index in chosen]
        texts = [features[index] for index in chosen]
        penalty, held_out = cross_validate(line, texts, truth, groups, seed)
        changes[head] = compare(expit(line.of_texts(texts)), expit(held_out), truth, groups)
        if changes[head].kept:
            fitted = line.plus(fit_texts(line, texts, truth, penalty))
            weight[at], bias[at] = fitted.weight, fitted.bias
            calibration["curves"][head] = asdict(Curve())
            calibration["scores"][head] = [round(float(score), 4) for score in expit(held_out)]
            calibration["labels"][head] = "".join(str(label) for label in truth)
    if not changes:
        raise ValueError(f"no head has {FEWEST} rows of either label; label more")
    if not any(change.kept for change in changes.values()):
        return changes
    note = {"from": scorer.revision, "heads": {head: asdict(change) for head, change in changes.items()}}
    write(out, start, Heads(weight, bias), calibration, note)
    return changes


def compare(before: Vector, after: Vector, truth: NDArray[Any], groups: Sequence[str]) -> Change:
    """Compare scores before and after. A gain counts where it is twice its standard error, prompt by prompt."""
    losses = log_losses(before, truth), log_losses(after, truth)
    gains = [(losses[0] - losses[1])[np.array(groups) == group].mean() for group in dict.fromkeys(groups)]
    return Change(
        rows=len(truth),
        positives=int(truth.sum()),
        loss=(float(losses[0].mean()), float(losses[1].mean())),
        f1=(f1(truth, before), f1(truth, after)),
        kept=bool(np.mean(gains) > 2 * np.std(gains) / len(gains) ** 0.5),
    )


def cross_validate(
    line: Line, texts: Sequence[Vector], truth: NDArray[Any], groups: Sequence[str], seed: int
) -> tuple[float, Vector]:
    """Choose the penalty by the log loss on held-out folds; rows with the same prompt are held out together.

    Returns:
        the strongest penalty that does as well as the best one but for its standard error, and each text's logit under
        the correction that was fitted without it.
    """
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(truth, truth, groups))
    tried: list[tuple[float, Vector, Vector]] = []
    for penalty in PENALTIES:
        held_out = line.of_texts(texts)
        for train, test in folds:
            if len(set(truth[train].tolist())) == 2:
                correction = fit_texts(line, [texts[index] for index in train], truth[train], penalty)
                held_out[test] = line.plus(correction).of_texts([texts[index] for index in test])
        tried.append((penalty, held_out, log_losses(expit(held_out), truth)))
    best = min((losses for _, _, losses in tried), key=np.mean)
    bar = best.mean() + best.std() / len(best) ** 0.5
    return next((penalty, held_out) for penalty, held_out, losses in reversed(tried) if losses.mean() <= bar)


def fit_texts(line: Line, texts: Sequence[Vector], truth: NDArray[Any], penalty: float) -> Correction:
    """Fit a correction to texts of one or several windows.

    Which window a text is judged by depends on the correction, so the two are settled in turns, from a first fit in
    which every window of a text stands for it.
    """
    counts = np.array([len(text) for text in texts])
    share = shares(truth)
    correction = fit(line, np.concatenate(texts), truth.repeat(counts), (share / counts).repeat(counts), penalty)
    for _ in range(ROUNDS if counts.max() > 1 else 0):
        correction = fit(line, line.plus(correction).worst(texts), truth, share, penalty)
    return correction


def fit(line: Line, x: Vector, truth: NDArray[Any], share: Vector, penalty: float) -> Correction:
    """Fit a correction by penalised maximum likelihood, on features (n, W) brought to one scale; `share` sums to 1."""
    middle, spread = x.mean(0), x.std(0).mean() or 1.0
    logits, scaled = line(x), (x - middle) / spread

    def loss(parameters: Vector) -> tuple[float, Vector]:
        v, c = parameters[:-1], parameters[-1]
        score = expit(logits + scaled @ v + c)
        error = share * (score - truth)
        value = (share * nats(score, truth)).sum() + penalty / 2 * (v @ v)
        return float(value), np.append(scaled.T @ error + penalty * v, error.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    v = found[:-1] / spread
    return Correction(v, float(found[-1] - middle @ v))


def shares(truth: NDArray[Any]) -> Vector:
    """Weigh rows so that positives are `PRIOR` of the whole, as in calibration; the weights sum to one."""
    positives, negatives = (max(int((truth == label).sum()), 1) for label in (1, 0))
    share: Vector = np.where(truth == 1, PRIOR / positives, (1 - PRIOR) / negatives)
    return share


def nats(score: Vector, truth: NDArray[Any]) -> Vector:
    """Return the log loss of each row."""
    right: Vector = np.where(truth == 1, score, 1 - score).clip(1e-12)
    loss: Vector = -np.log(right)
    return loss


def log_losses(score: Vector, truth: NDArray[Any]) -> Vector:
    """Return the log loss of each row, weighed so that their mean is that of the whole."""
    return nats(score, truth) * shares(truth) * len(truth)


def f1(truth: NDArray[Any], score: Vector) -> float:
    """Return F1 at a threshold of one half."""
    return float(f1_score(truth, score >= 0.5, zero_division=0))


def write(out: Path, start: Path, heads: Heads, calibration: Any, note: Any) -> None:
    """Write the folder of weights: what changed anew, the rest copied, and a note on where they come from."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (GRAPH, TOKENIZER):
        shutil.copyfile(start / name, out / name)
    (out / HEADS_FILE).write_bytes(save({"weight": heads.weight, "bias": heads.bias}))
    (out / CALIBRATION).write_text(json.dumps(calibration, separators=(",", ":")) + "\n", encoding="utf-8")
    (out / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
