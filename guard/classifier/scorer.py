"""Runs the guard model: text in, calibrated probabilities out. Loads no training library; decides nothing.

A text's score is the highest of its windows, and depends on the text, the prompt beside it and the weights alone.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import load, save
from tokenizers import Tokenizer

from ringfence.guard.classifier.encoder import Encoder, Features
from ringfence.guard.classifier.heads import HAZARDS, HEADS, TASKS
from ringfence.guard.classifier.language import identifier, language
from ringfence.guard.classifier.tokens import UNKNOWN, Window, cut, load_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
ELSEWHERE = "RINGFENCE_WEIGHTS"
"""Environment variable: a folder of weights to use instead of the shipped ones."""

GRAPH, HEADS_FILE, TOKENIZER, CALIBRATION = "guard.onnx", "heads.safetensors", "tokenizer.json", "calibration.json"
FILES = (GRAPH, HEADS_FILE, TOKENIZER, CALIBRATION)

PARTLY = "the text is too long to be read in full; its middle was not"
"""Why scores of a truncated text are no answer about it."""

Logits = NDArray[np.float32]


class WeightsError(RuntimeError):
    """The weights cannot be used; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of one text.

    Attributes:
        harm: probability that the text is harmful: as a prompt, or as a response where a prompt came with it.
        tasks: probability by task head (`attack`, `refusal`, `toxicity` …).
        hazards: probability of each hazard S1 … S14 given that the text is harmful.
        spans: for each task, the code points `[start, end)` of the window that scored highest.
        truncated: some of the text was not read, because it is longer than `tokens.READ_LIMIT` allows.
        language: ISO 639 code of the text's language, None where it cannot be told. The model knows little but
            English: of text in another language the scores say little.
        unknown: share of the tokens that stand for characters the model has no words for, 0 … 1. Whatever they say,
            they look alike to it.
    """

    harm: float
    tasks: Mapping[str, float]
    hazards: Mapping[str, float]
    spans: Mapping[str, tuple[int, int]]
    truncated: bool
    language: str | None = None
    unknown: float = 0.0


@dataclass(frozen=True, slots=True)
class Heads:
    """The last layer, one line a head: `features @ weight.T + bias`; weight (heads, W), bias (heads,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def check(self, width: int, curves: Mapping[str, "Curve"]) -> None:
        """See that these heads and curves fit an encoder.

        Raises:
            ValueError: they do not.
        """
        if self.weight.shape != (len(HEADS), width) or self.bias.shape != (len(HEADS),):
            raise ValueError(f"the heads are {self.weight.shape}, expected {(len(HEADS), width)}")
        numbers = [curve.slope for curve in curves.values()] + [curve.offset for curve in curves.values()]
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all() and np.isfinite(numbers).all()):
            raise ValueError("a number of the heads or curves is not finite")

    def write(self, folder: Path) -> None:
        """Write them as `Scorer.load` reads them."""
        (folder / HEADS_FILE).write_bytes(save({"weight": self.weight, "bias": self.bias}))

    def logits(self, features: Features) -> Logits:
        """Return logits (n, heads) of features (n, W); a row's are the same whatever rows are beside it.

        Raises:
            WeightsError: one is not a number.
        """
        # einsum, as a matrix product would add in another order for another number of rows
        logits: Logits = np.einsum("nw,hw->nh", features, self.weight) + self.bias
        return numbers(logits)


@dataclass(frozen=True, slots=True)
class Curve:
    """Turns a logit into a probability: `sigmoid(slope * logit + offset)` (Platt 1999)."""

    slope: float = 1.0
    offset: float = 0.0


class Scorer:
    """The guard model, ready to run. Thread-safe; remembers the texts it has read lately."""

    def __init__(
        self,
        encoder: Encoder,
        heads: Heads,
        tokenizer: Tokenizer,
        curves: Mapping[str, Curve],
        revision: str,
        remember: int = 4096,
        reach: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.revision = revision
        self.reach = reach or {}
        self.heads = heads
        self.curves = curves
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._slopes = np.array([curves.get(head, Curve()).slope for head in HEADS], np.float32)
        self._offsets = np.array([curves.get(head, Curve()).offset for head in HEADS], np.float32)
        self._remember = remember
        self._known: OrderedDict[bytes, Scores] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def load(cls, folder: Path | None = None, *, remember: int = 4096, threads: int = 0) -> Self:
        """Load weights: those of the folder, else of the folder in `RINGFENCE_WEIGHTS`, else the shipped ones.

        Args:
            remember: how many texts' scores are kept for when the same text comes again; 0 for none.
            threads: of one pass; 0 for one per core.

        Raises:
            WeightsError: a file is missing or unreadable.
        """
        folder = weights_folder(folder)
        parts = {name: read(folder / name) for name in FILES}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(parts[GRAPH], options, providers=["CPUExecutionProvider"])
            heads = Heads(**load(parts[HEADS_FILE]))
            tokenizer = load_tokenizer(folder / TOKENIZER)
            calibration = json.loads(parts[CALIBRATION])
            curves = {head: Curve(**curve) for head, curve in calibration["curves"].items()}
            reach = {head: (min(scores), max(scores)) for head, scores in calibration.get("scores", {}).items()}
            heads.check(session.get_outputs()[0].shape[1], curves)
        except Exception as error:  # the libraries raise bare exceptions of their own
            raise WeightsError(f"{folder}: not usable ({error}); reinstall, or train anew") from error
        identifier()  # loads, so that no text has to wait for it
        revision = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts.values())).hexdigest()
        return cls(Encoder(session), heads, tokenizer, curves, revision, remember, reach)

    def score(self, text: str, prompt: str | None = None, until: float | None = None) -> Scores:
        """Judge one text: a prompt or a statement, or, where `prompt` is given, the response to it.

        A response to an unknown prompt has the prompt `""`.

        Args:
            until: when nobody waits for the answer any more, in seconds of `time.monotonic`.

        Raises:
            TimeoutError: that time has come.
        """
        key = fingerprint(text, prompt)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        (scores,) = self.score_many([(text, prompt)], until)
        with self._lock:
            self._known[key] = scores
            while len(self._known) > self._remember:
                self._known.popitem(last=False)
        return scores

    def score_many(self, texts: Iterable[tuple[str, str | None]], until: float | None = None) -> list[Scores]:
        """Judge `(text, prompt)` pairs together, in batches of windows of like length. Remembers nothing."""
        pairs = list(texts)
        read = self.read(pairs, until)
        return [self._summarise(text, prompt, *seen) for (text, prompt), seen in zip(pairs, read, strict=True)]

    def logits(self, texts: Iterable[tuple[str, str | None]]) -> Logits:
        """Return the highest logit of each head over the windows of each text: (texts, heads), uncalibrated."""
        found = [self.heads.logits(features).max(axis=0) for features, *_ in self.read(list(texts))]
        return np.stack(found) if found else np.empty((0, len(HEADS)), np.float32)

    def features(self, texts: Iterable[tuple[str, str | None]]) -> list[Features]:
        """Return what the heads read of each window of each `(text, prompt)`: (windows, W)."""
        return [features for features, *_ in self.read(list(texts))]

    def read(
        self, texts: Sequence[tuple[str, str | None]], until: float | None = None
    ) -> Iterator[tuple[Features, list[Window], bool]]:
        """Yield for each text the features of its windows, the windows, and whether some of it is in none.

        Raises:
            WeightsError: what the encoder gives are no numbers.
        """
        read = [cut(self._tokenizer, text, prompt) for text, prompt in texts]
        features = numbers(self._encoder.features([window for windows, _ in read for window in windows], until))
        at = 0
        for windows, cut_off in read:
            yield features[at : at + len(windows)], windows, cut_off
            at += len(windows)

    def judge(self, windows: Sequence[Window]) -> Logits:
        """Return the probability of each head for each window: (windows, heads)."""
        return self._calibrated(self.heads.logits(numbers(self._encoder.features(windows))))

    def _calibrated(self, logits: Logits) -> Logits:
        """Return probabilities of logits (n, heads)."""
        probabilities: Logits = 1 / (1 + np.exp(-(logits * self._slopes + self._offsets)))
        return probabilities

    def _summarise(
        self, text: str, prompt: str | None, features: Features, windows: Sequence[Window], cut_off: bool
    ) -> Scores:
        """Take each head's highest window; the hazards are those of the most harmful one."""
        logits = self.heads.logits(features)
        probabilities = self._calibrated(logits)
        if windows[0].empty:
            probabilities[:] = 0  # nothing was said
        worst = {task: int(logits[:, HEADS.index(task)].argmax()) for task in TASKS}
        harm = "prompt_harm" if prompt is None else "response_harm"
        tasks = {task: float(probabilities[worst[task], HEADS.index(task)]) for task in TASKS}
        return Scores(
            harm=tasks[harm],
            tasks=tasks,
            hazards={name: float(probabilities[worst[harm], HEADS.index(name)]) for name in HAZARDS},
            spans={task: (windows[at].start, windows[at].end) for task, at in worst.items()},
            truncated=cut_off,
            language=language(text),
            unknown=unknown(windows),
        )


def weights_folder(named: Path | None = None) -> Path:
    """Return the folder of weights to use: the one named, else that of `RINGFENCE_WEIGHTS`, else the shipped one."""
    return named or Path(os.environ.get(ELSEWHERE) or WEIGHTS)


def unknown(windows: Sequence[Window]) -> float:
    """Return which share of the judged text's tokens, markers included, stands for what the vocabulary lacks."""
    own = [window.ids[-window.kinds.count(window.kinds[-1]) :] for window in windows]  # without the prompt
    return sum(ids.count(UNKNOWN) for ids in own) / sum(map(len, own))


def numbers(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a network gave.

    Raises:
        WeightsError: some of it is not a number, which every comparison would take for low.
    """
    if np.isnan(found).any():
        raise WeightsError("the guard model gives something else than numbers; reinstall, or train anew")
    return found


def fingerprint(text: str, prompt: str | None) -> bytes:
    """Name a question to the model in 16 bytes. The length of the prompt keeps the two apart."""
    prompt_bytes = b"" if prompt is None else prompt.encode("utf-8", "surrogatepass")
    head = b"alone" if prompt is None else str(len(prompt_bytes)).encode()
    return hashlib.blake2b(
        b"%s:%s%s" % (head, prompt_bytes, text.encode("utf-8", "surrogatepass")), digest_size=16
    ).digest()


def read(path: Path) -> Any:
    """Read a file of the weights."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; reinstall, or make it with `ringfence train guard`") from error
