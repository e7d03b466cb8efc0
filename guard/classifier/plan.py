"""How to train. Data alone."""

from dataclasses import dataclass


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
