"""Two models on the same samples: what flipped, whether chance explains it, and how large the drop is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.statistics.checks import check_share
from robustbench_vit.statistics.intervals import quantile

HALVINGS = 60
"""Bisection from an interval of length 1 or less: the rest is below the resolution of a float."""


@dataclass(frozen=True)
class Flips:
    """Shared samples whose verdicts differ between a baseline and a candidate."""

    lost: int  # robust in the baseline only
    gained: int  # robust in the candidate only
    n: int  # samples that both have

    def __post_init__(self) -> None:
        if min(self.lost, self.gained) < 0 or self.n < max(1, self.lost + self.gained):
            raise InputError(f"{self.lost} samples lost and {self.gained} gained of {self.n} cannot be")

    @property
    def drop(self) -> float:
        """How much lower the candidate's robust accuracy is, in [-1, 1]."""
        return (self.lost - self.gained) / self.n


def flips(baseline: np.ndarray, candidate: np.ndarray) -> Flips:
    """The flips between two verdicts (n,) on the same samples in the same order; True means robust."""
    one, two = np.asarray(baseline), np.asarray(candidate)
    if one.ndim != 1 or one.shape != two.shape or one.dtype != bool or two.dtype != bool:
        raise InputError(
            "paired verdicts are two bool arrays of one length, "
            f"got {one.dtype} {one.shape} and {two.dtype} {two.shape}"
        )
    if not one.size:
        raise InputError("there are no shared samples to compare")
    return Flips(int((one & ~two).sum()), int((~one & two).sum()), one.size)


def mcnemar(flips: Flips) -> float:
    """The exact two-sided p of McNemar's test (1947): were a flip as likely either way, flips this lopsided."""
    return float(mcnemar_p(np.array(flips.lost), np.array(flips.gained)))


def mcnemar_p(lost: np.ndarray, gained: np.ndarray) -> np.ndarray:
    """Like `mcnemar`, for counts in arrays of any shape; 1 where nothing flipped."""
    from scipy.special import bdtr

    return np.minimum(1.0, 2 * bdtr(np.minimum(lost, gained).astype(float), lost + gained, 0.5))


def drop_interval(flips: Flips, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval (low, high) of the drop, for paired proportions (Tango 1998, Statist. Med. 17:891-908)."""
    check_share("confidence", confidence)
    mirrored = Flips(flips.gained, flips.lost, flips.n)
    z = quantile(confidence)
    return -_upper_limit(mirrored, z), _upper_limit(flips, z)


def _upper_limit(flips: Flips, z: float) -> float:
    """The largest drop that the score test doesn't reject: the score falls as the drop in question grows."""
    if flips.lost == flips.n:
        return 1.0
    low, high = flips.drop, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(flips, middle) >= -z else (low, middle)
    return (low + high) / 2


def _score(flips: Flips, drop: float) -> float:
    """Tango's statistic (equation 7): standard normal were `drop` the true one."""
    variance = constrained_variance(flips.lost / flips.n, flips.gained / flips.n, drop)
    distance = flips.drop - drop
    if variance <= 0:  # nothing may flip, or everything must
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance * math.sqrt(flips.n / variance)


def constrained_variance(lost: float, gained: float, drop: float) -> float:
    """A pair's variance at the likeliest rates of flips whose difference is `drop`; `lost` and `gained` are shares.

    With q the rate of samples gained, the likelihood's maximum solves 2 q² + B q + C = 0 (Tango 1998, equation 6).
    """
    b = (2 - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
    return 2 * q + drop * (1 - drop)


def samples_to_decide(flips: Flips, max_drop: float, alpha: float, power: float = 0.8) -> int | None:
    """How many samples would let a comparison decide with probability `power`, were flips as frequent as they were.

    None when no number would: the drop equals max_drop. Always more than `flips.n`, as it is asked when those were too
    few.
    """
    needed = samples_at_rates(flips.lost / flips.n, flips.gained / flips.n, max_drop, alpha, power)
    return None if needed is None else max(needed, flips.n + 1)


def samples_at_rates(lost: float, gained: float, max_drop: float, alpha: float, power: float = 0.8) -> int | None:
    """How many samples a comparison needs to decide with probability `power`; `lost` and `gained` are shares of them.

    A normal approximation. *Not worse* (drop below max_drop) needs a `drop_interval` whose upper limit lies below
    max_drop; *worse* (drop above it) needs a significant McNemar test, and a drop above max_drop. None where the drop
    equals max_drop.
    """
    for name, value in (("max_drop", max_drop), ("alpha", alpha), ("power", power)):
        check_share(name, value)
    drop = lost - gained
    if math.isclose(drop, max_drop, rel_tol=1e-9):
        return None
    z, z_power, variance = quantile(1 - alpha), NormalDist().inv_cdf(power), lost + gained - drop**2
    if drop < max_drop:
        at_limit = constrained_variance(lost, gained, max_drop)
        return math.ceil(((z * math.sqrt(at_limit) + z_power * math.sqrt(variance)) / (max_drop - drop)) ** 2)
    # Connor 1987; then Fleiss' continuity correction, since the exact test is conservative.
    significant = ((z * math.sqrt(lost + gained) + z_power * math.sqrt(variance)) / drop) ** 2
    significant *= (1 + math.sqrt(1 + 4 / (significant * drop))) ** 2 / 4
    return math.ceil(max(significant, variance * (z_power / (drop - max_drop)) ** 2))
