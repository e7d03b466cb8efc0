"""Runs the guard model: text in, calibrated probabilities out. Loads no training library; decides nothing.

A text's score is the highest of its windows, and depends on the text, the prompt beside it and the weights alone.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ringfence.guard.classifier.heads import HAZARDS, HEADS, TASKS
from ringfence.guard.classifier.tokens import Window, cut, load_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
GRAPH, TOKENIZER, CALIBRATION = "guard.onnx", "tokenizer.json", "calibration.json"
BATCH = 16
"""Windows in one pass: more gain nothing on a CPU and cost memory."""

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
    """

    harm: float
    tasks: Mapping[str, float]
    hazards: Mapping[str, float]
    spans: Mapping[str, tuple[int, int]]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """Turns a logit into a probability: `sigmoid(slope * logit + offset)` (Platt 1999)."""

    slope: float = 1.0
    offset: float = 0.0


class Scorer:
    """The guard model, ready to run. Thread-safe; remembers the texts it has read lately."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tokenizer: Tokenizer,
        curves: Mapping[str, Curve],
        revision: str,
        remember: int = 4096,
    ) -> None:
        self.revision = revision
        self._session = session
        self._tokenizer = tokenizer
        self._slopes = np.array([curves.get(head, Curve()).slope for head in HEADS], np.float32)
        self._offsets = np.array([curves.get(head, Curve()).offset for head in HEADS], np.float32)
        self._remember = remember
        self._known: OrderedDict[bytes, Scores] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def load(cls, folder: Path | None = None, *, remember: int = 4096, threads: int = 0) -> Self:
        """Load weights; the shipped ones where no folder is named.

        Args:
            remember: how many texts' scores are kept for when the same text comes again; 0 for none.
            threads: of one pass; 0 for one per core.

        Raises:
            WeightsError: a file is missing or unreadable.
        """
        folder = folder or WEIGHTS
        parts = [read(folder / name) for name in (GRAPH, TOKENIZER, CALIBRATION)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(parts[0], options, providers=["CPUExecutionProvider"])
            tokenizer = load_tokenizer(folder / TOKENIZER)
            curves = {head: Curve(**curve) for head, curve in json.loads(parts[2])["curves"].items()}
        except Exception as error:  # the libraries raise bare exceptions of their own
            raise WeightsError(f"{folder}: not usable ({error}); reinstall, or train anew") from error
        revision = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        return cls(session, tokenizer, curves, revision, remember)

    def score(self, text: str, prompt: str | None = None) -> Scores:
        """Judge one text: a prompt or a statement, or, where `prompt` is given, the response to it.

        A response to an unknown prompt has the prompt `""`.
        """
        key = fingerprint(text, prompt)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        (scores,) = self.score_many([(text, prompt)])
        with self._lock:
            self._known[key] = scores
            while len(self._known) > self._remember:
                self._known.popitem(last=False)
        return scores

    def score_many(self, texts: Iterable[tuple[str, str | None]]) -> list[Scores]:
        """Judge `(text, prompt)` pairs together, in batches of windows of like length. Remembers nothing."""
        return [
            self._summarise(logits, windows, prompt, cut_off) for logits, windows, prompt, cut_off in self._read(texts)
        ]

    def logits(self, texts: Iterable[tuple[str, str | None]]) -> Logits:
        """Return the highest logit of each head over the windows of each text: (texts, heads), uncalibrated."""
        return np.stack([logits.max(axis=0) for logits, *_ in self._read(texts)])

    def _read(self, texts: Iterable[tuple[str, str | None]]) -> Iterator[tuple[Logits, list[Window], str | None, bool]]:
        """Run the model over every window; yield for each text its windows with their logits (windows, heads)."""
        read = [(*cut(self._tokenizer, text, prompt), prompt) for text, prompt in texts]
        flat = [window for windows, _, _ in read for window in windows]
        logits = np.empty((len(flat), len(HEADS)), np.float32)
        order = sorted(range(len(flat)), key=lambda index: len(flat[index].ids))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            logits[chosen] = self._session.run(None, feed([flat[index] for index in chosen]))[0]
        at = 0
        for windows, cut_off, prompt in read:
            yield logits[at : at + len(windows)], windows, prompt, cut_off
            at += len(windows)

    def _summarise(self, logits: Logits, windows: Sequence[Window], prompt: str | None, cut_off: bool) -> Scores:
        """Take each head's highest window; the hazards are those of the most harmful one."""
        probabilities = 1 / (1 + np.exp(-(logits * self._slopes + self._offsets)))  # (windows, heads)
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
        )


def feed(windows: Sequence[Window]) -> dict[str, NDArray[np.int64]]:
    """Pad windows to the longest of them."""
    shape = (len(windows), max(len(window.ids) for window in windows))
    ids, kinds, mask = (np.zeros(shape, np.int64) for _ in range(3))
    for row, window in enumerate(windows):
        length = len(window.ids)
        ids[row, :length], kinds[row, :length], mask[row, :length] = window.ids, window.kinds, 1
    return {"ids": ids, "kinds": kinds, "mask": mask}


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
