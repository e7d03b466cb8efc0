"""How sure a share, and a change of one, can be of so many exchanges. Plain statistics; knows nothing of policies."""

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happens to the same exchanges under two policies.

    Attributes:
        old: to how many under the old policy.
        new: to how many under the new one.
        gained: to how many under the new one only.
        lost: to how many under the old one only.
        change: by what share of the exchanges more, negative for fewer.
        low: of the change, the lower end of its 95 % interval.
        high: the upper end.
        least: the lower end whatever the undecided exchanges come to.
        most: the upper end in the same way.
    """

    old: int
    new: int
    gained: int
    lost: int
    change: float
    low: float
    high: float
    least: float
    most: float


def paired_interval(gained: int, lost: int, pairs: int) -> tuple[float, float]:
    """Return the 95 % interval of a change between paired shares.

    Source: Bonett and Price (2012), "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based
    on Paired Data": Wald's, with one pair added to each of the two outcomes that differ. Pairs count as independent.
    """
    up, down, total = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2), pairs + 2
    half = Z * math.sqrt(max(0.0, up + down - (up - down) ** 2) / total)
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def rate(
    counts: tuple[int, int], known: tuple[int, int], low: tuple[int, int], high: tuple[int, int], pairs: int
) -> Rate:
    """Return how often something happens to `pairs` exchanges under two policies.

    Args:
        counts: under the old policy, and under the new one.
        known: under the new policy only, and under the old one only.
        low: the same where all that is undecided makes the change smaller.
        high: where it makes the change larger.
    """
    change = (known[0] - known[1]) / pairs if pairs else 0.0
    lower, upper = paired_interval(*known, pairs)
    return Rate(
        *counts, *known, change, lower, upper, paired_interval(*low, pairs)[0], paired_interval(*high, pairs)[1]
    )
