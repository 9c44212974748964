"""Do two sides disagree more than chance explains?"""

from __future__ import annotations

import numpy as np

PERMUTATIONS = 100_000


def permutation_p(robust: np.ndarray, ours_robust: np.ndarray, per_side: int, seed: int = 0) -> float:
    """Two-sided p of the pooled difference if, for each sample, sides had been handed out at random.

    `robust` counts robust verdicts of a sample over both sides, `ours_robust` those on our side (both (pairs,)). Under
    the hypothesis the latter is hypergeometric, independently for each sample.
    """
    generator = np.random.default_rng(seed)
    disagree = (robust > 0) & (robust < 2 * per_side)
    if not disagree.any():
        return 1.0
    total, mine = robust[disagree], ours_robust[disagree]
    observed = abs((2 * mine - total).sum())
    draws = generator.hypergeometric(total, 2 * per_side - total, per_side, size=(PERMUTATIONS, len(total)))
    return float((1 + (np.abs((2 * draws - total).sum(1)) >= observed).sum()) / (1 + PERMUTATIONS))
