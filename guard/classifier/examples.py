"""What a labelled text is, and where such texts come from. Data alone."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ringfence.guard.classifier.rows import Row

DOUBTFUL = 0.3
"""Weight of a label that is inferred rather than annotated."""


class Use(StrEnum):
    """What a source is for. Neither weights nor curves are fitted to sources that are reported; the priors that the
    curves stand on (`calibrate.PRIORS`) were chosen on these."""

    TRAIN = "train"
    CALIBRATE = "calibrate"
    REPORT = "report"
    OURS = "ours"
    """Reported beside the others: a source of theirs, with our own labels in place of the published ones."""


class Recipe(StrEnum):
    """Which licences may teach the weights: those that allow commercial use, or all."""

    SHIPPED = "shipped"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Example:
    """One text with the heads it teaches.

    Attributes:
        text: what is judged: a prompt, a statement, or, where `prompt` is set, the response to it.
        prompt: None where the text stands alone; empty where a response's prompt is unknown.
        labels: head → 0 or 1; a head that is missing learns nothing from this row.
        doubt: heads whose label is inferred; they count `DOUBTFUL`.
        family: the project that rows come from. What its cap leaves over of a training source calibrates, so a family
            may stand on both sides there; texts and prompts never do.
    """

    text: str
    labels: Mapping[str, float]
    family: str
    prompt: str | None = None
    doubt: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the pool.

    Attributes:
        file: relative to the pool, without `.jsonl.gz`.
        read: turns one row into examples.
        licence: as its SOURCES entry states it.
        free: whether that licence allows commercial use of what is learnt.
        caps: most examples kept with a positive and with a negative first label.
    """

    file: str
    read: Callable[[Row], Iterable[Example]]
    licence: str
    free: bool = True
    use: Use = Use.TRAIN
    caps: tuple[int, int] = (1000, 1000)
    family: str = ""
