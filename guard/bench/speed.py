"""How fast the guard is on this machine, against the least that its graph costs and against a stock pipeline.

What is compared runs in turns in one process. Knows nothing of labels: what a text says changes no time here.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime

from ringfence.guard.classifier.scorer import GRAPH, TOKENIZER, Scores, WeightsError, weights_folder
from ringfence.guard.classifier.tokens import Window, cut, load_tokenizer

if TYPE_CHECKING:
    from ringfence.guard.classifier.network import Shape

TOKENS = 128
"""Length of the texts that are compared, markers included."""

BATCH = 16
"""Texts in one batch of the stock pipeline."""

LONG = 50_000
"""Bytes of the long text."""

CALLERS = 16

SETTLE = 0.05
"""Seconds that a side runs untimed before its turn: the other's threads go on spinning for some 20 ms after their last
pass and would take its cores."""

WORDS = (
    "river stone garden window table paper morning evening winter summer music letter bridge market kitchen doctor "
    "teacher student village mountain forest island harbor train station ticket coffee bread butter sugar water fire "
    "green yellow silver little large quiet early often never always under over between around before after write "
    "read open close carry build answer follow listen remember travel visit"
)
"""Each is one token."""

Timed = Callable[[], object]


class Judge(Protocol):
    """What is measured; it must remember no text."""

    def score(self, text: str, prompt: str | None = None) -> Scores:
        """As `Scorer.score`."""
        ...

    def score_many(self, texts: Iterable[tuple[str, str | None]]) -> list[Scores]:
        """As `Scorer.score_many`."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is timed."""

    pairs: int = 60
    texts: int = 128
    rounds: int = 3
    calls: int = 8


@dataclass(frozen=True, slots=True)
class Single:
    """Median milliseconds of one text by itself, from string to scores, and of the bare graph on its ready ids."""

    tokens: int
    pairs: int
    ringfence_ms: float
    bare_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Batched:
    """Texts a second, many at a time: ours, and a stock transformers pipeline in fp32 of the same backbone."""

    tokens: int
    texts: int
    rounds: int
    batch_size: int
    ringfence_per_s: float
    transformers_per_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Long:
    """Median seconds of one long text."""

    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Concurrent:
    """Short requests a second, from many callers at once and one after the other."""

    callers: int
    requests: int
    together_per_s: float
    in_turn_per_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Speed:
    """All of it, and the machine that it holds for."""

    machine: Mapping[str, Any]
    single: Single
    batched: Batched
    long: Long
    concurrent: Concurrent

    def to_json(self) -> dict[str, Any]:
        """Return one object, as `ringfence bench guard --speed --json` prints it."""
        return {**asdict(self), "machine": dict(self.machine)}


def measure_speed(judge: Judge, weights: Path | None = None, effort: Effort | None = None) -> Speed:
    """Time the judge, whose weights are in a folder, on the cores of this machine.

    Raises:
        WeightsError: the graph or the tokenizer cannot be loaded.
    """
    folder, effort, random = weights_folder(weights), effort or Effort(), Random(1)  # noqa: S311
    session, tokenizer = load_graph(folder), load_tokenizer(folder / TOKENIZER)
    text = text_of(tokenizer, TOKENS, random)
    texts = [text_of(tokenizer, TOKENS, random) for _ in range(effort.texts)]
    return Speed(
        machine=machine(),
        single=single(judge, session, cut(tokenizer, text)[0][0], text, effort),
        long=long(judge, random, effort),
        concurrent=concurrent(judge, random, effort),
        batched=batched(judge, stock_pipeline(folder / TOKENIZER, shape_of(session)), texts, effort),
    )


def single(judge: Judge, session: onnxruntime.InferenceSession, window: Window, text: str, effort: Effort) -> Single:
    """Time one text by itself against a bare pass."""
    feed = {
        "ids": np.array([window.ids], np.int64),
        "kinds": np.array([window.kinds], np.int64),
        "mask": np.ones((1, len(window.ids)), np.int64),
    }
    ours, bare = in_turns(lambda: judge.score(text), lambda: session.run(None, feed), effort.pairs)
    return Single(len(window.ids), effort.pairs, round(ours * 1000, 3), round(bare * 1000, 3), round(ours / bare, 3))


def batched(judge: Judge, stock: Any, texts: Sequence[str], effort: Effort) -> Batched:
    """Time many texts against a stock pipeline."""
    pairs = [(text, None) for text in texts]
    ours, theirs = in_turns(lambda: judge.score_many(pairs), lambda: stock(list(texts), truncation=True), effort.rounds)
    count = len(texts)
    return Batched(
        TOKENS, count, effort.rounds, BATCH, round(count / ours, 1), round(count / theirs, 1), round(theirs / ours, 3)
    )


def long(judge: Judge, random: Random, effort: Effort) -> Long:
    """Time one long text."""
    text = " ".join(random.choices(WORDS.split(), k=LONG // 4))[:LONG]
    return Long(len(text.encode()), round(statistics.median(timed(lambda: judge.score(text), effort.rounds)), 3))


def concurrent(judge: Judge, random: Random, effort: Effort) -> Concurrent:
    """Time short texts of many callers at once against the same texts one after the other."""
    texts = [" ".join(random.choices(WORDS.split(), k=12)) for _ in range(CALLERS * effort.calls)]
    with ThreadPoolExecutor(CALLERS) as pool:
        together, in_turn = in_turns(
            lambda: list(pool.map(judge.score, texts)), lambda: [judge.score(text) for text in texts], effort.rounds
        )
    count = len(texts)
    return Concurrent(
        CALLERS, count, round(count / together, 1), round(count / in_turn, 1), round(in_turn / together, 3)
    )


def in_turns(one: Timed, other: Timed, rounds: int) -> tuple[float, float]:
    """Return the median seconds of each; who goes first changes from round to round."""
    times: dict[Timed, list[float]] = {one: [], other: []}
    for at in range(rounds):
        for side in (one, other) if at % 2 == 0 else (other, one):
            settled = time.perf_counter() + SETTLE
            side()
            while time.perf_counter() < settled:
                side()
            times[side] += timed(side, 1)
    return statistics.median(times[one]), statistics.median(times[other])


def timed(side: Timed, rounds: int) -> list[float]:
    """Return the seconds of each call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        side()
        times.append(time.perf_counter() - start)
    return times


def text_of(tokenizer: Any, tokens: int, random: Random) -> str:
    """Write a text that the model reads as so many tokens, markers included."""
    words: list[str] = []
    while len(cut(tokenizer, " ".join(words))[0][0].ids) < tokens:
        words.append(random.choice(WORDS.split()))
    return " ".join(words)


def load_graph(folder: Path) -> onnxruntime.InferenceSession:
    """Load the graph with the runtime's own settings, beside the one that the judge runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises bare exceptions of its own
        raise WeightsError(f"{folder / GRAPH}: not usable ({error}); reinstall, or train anew") from error


def shape_of(session: onnxruntime.InferenceSession) -> "Shape":
    """Return the sizes of the backbone that a graph is of, by the width of what it gives."""
    from ringfence.guard.classifier.network import MPNET_SHAPE, Shape

    width = session.get_outputs()[0].shape[1]
    return next((one for one in (Shape(), MPNET_SHAPE) if one.width == width), Shape())


def stock_pipeline(tokenizer: Path, shape: "Shape") -> Any:
    """Build a transformers pipeline of the backbone's sizes; weights are random, as they change no time."""
    # Imported here: only this needs them, and they take seconds to load.
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        intermediate_size=shape.inner,
        max_position_embeddings=shape.positions,
    )
    marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk")}
    reader = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(tokenizer), model_max_length=shape.positions, **marks
    )
    network = BertForSequenceClassification(config).eval()  # type: ignore[no-untyped-call]  # else it draws dropout too
    return pipeline("text-classification", model=network, tokenizer=reader, device=-1, batch_size=BATCH)


def machine() -> dict[str, Any]:
    """Say what the figures hold for."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = ("onnxruntime", "torch", "transformers", "tokenizers", "numpy")
    return {
        "device": "cpu",
        "cpu": cpu_name(),
        "cores": cores,
        "threads": {"onnxruntime": cores, "torch": torch.get_num_threads()},
        "load": [round(one, 2) for one in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def cpu_name() -> str:
    """Return the processor's name, as Linux or else Python gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
