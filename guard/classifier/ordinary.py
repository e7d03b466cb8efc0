"""What ordinary texts look like to the encoder: kept with the weights, for fitting heads to somebody's own rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ringfence.guard.classifier.correction import Vector, moments
from ringfence.guard.classifier.examples import Example
from ringfence.guard.classifier.scorer import Scorer, WeightsError, read

ORDINARY = "ordinary.safetensors"
ALONE, ANSWERS = "alone", "answers"
"""Texts that stand alone, and responses with their prompts: the moments (W + 1, W + 1) of their features."""

SAMPLE = 2000
"""Of either kind, at most so many texts are looked at."""


def write_ordinary(folder: Path, scorer: Scorer, examples: Sequence[Example], seed: int) -> None:
    """Look at some of the texts that the weights learnt from, and keep what a correction needs to know of them."""
    kinds: dict[str, list[tuple[str, str | None]]] = {
        ALONE: [(example.text, None) for example in examples if example.prompt is None],
        ANSWERS: [(example.text, example.prompt) for example in examples if example.prompt is not None],
    }
    random = Random(seed)  # noqa: S311
    found = {}
    for name, texts in kinds.items():
        features = scorer.features(random.sample(texts, min(SAMPLE, len(texts))))
        found[name] = moments(np.concatenate(features).astype(np.float64)).astype(np.float32)
    (folder / ORDINARY).write_bytes(save(found))


def read_ordinary(folder: Path) -> Mapping[str, Vector]:
    """Read the moments of either kind of texts.

    Raises:
        WeightsError: there are none, or none that can be used.
    """
    try:
        kept = load(read(folder / ORDINARY))
        return {name: kept[name].astype(np.float64) for name in (ALONE, ANSWERS)}
    except (SafetensorError, KeyError) as error:
        raise WeightsError(f"{folder / ORDINARY}: not what ordinary texts look like ({error})") from error
