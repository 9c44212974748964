"""When a gate has seen enough: a sequential paired test, looked at after every sample.

Both errors of an entry are kept to alpha. Half of it goes to the sequential test (which may be looked at as often as
one likes), half to the test on all samples that follows where the sequential one comes to no end: that one is
two-sided, and only one of its sides can be an error.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from robustbench_vit.evaluation import Watcher
from robustbench_vit.running.sequential import evaluate_in_order, ordered
from robustbench_vit.running.session import Evaluation
from robustbench_vit.statistics import Decision, DropTest
from robustbench_vit.statistics.sequential import log_against_drop

LOOK_AHEAD = 4096
"""So many samples ahead it is worked out when the test would end without another flip."""


@dataclass(frozen=True)
class NotWorse:
    """Stops when a sequential paired test has decided.

    Two tests hear of the same samples: `strict` says worse, `test` not worse. When several entries are gated at once,
    only the level of the former is divided by their number, so that false alarms don't add up.
    """

    baseline: Mapping[str, bool] = field(repr=False)  # robust, per sample
    test: DropTest
    strict: DropTest

    @staticmethod
    def at(baseline: Mapping[str, bool], max_drop: float, alpha: float, entries: int = 1) -> NotWorse:
        """The rule before it has heard of any sample, for one of so many entries."""
        return NotWorse(baseline, DropTest(max_drop, alpha / 2), DropTest(max_drop, alpha / 2 / entries))

    @property
    def decision(self) -> Decision | None:
        """What it found; None while it doesn't know."""
        if self.strict.decision is not None:
            return self.strict.decision
        return Decision.NOT_WORSE if self.test.decision is Decision.NOT_WORSE else None

    @property
    def over(self) -> bool:
        """Whether it has decided."""
        return self.decision is not None

    def take(self, sample: str, robust: bool) -> NotWorse:
        """The rule after one more sample."""
        before = self.baseline[sample]
        test = self.test.take(before, robust)
        strict = test if self.strict == self.test else self.strict.take(before, robust)
        return dataclasses.replace(self, test=test, strict=strict)

    def ahead(self) -> int:
        """How many more samples it takes if nothing flips any more."""
        return bisect_left(range(LOOK_AHEAD), True, key=self._decided_after)

    def _decided_after(self, more: int) -> bool:
        """Whether it would have decided after so many more samples without a flip; once true it stays so."""
        test = self.test
        lost, gained, n = np.array(test.lost), np.array(test.gained), np.array(test.n + more)
        return bool(log_against_drop(lost, gained, n, test.max_drop) >= -math.log(test.alpha))


@dataclass(frozen=True)
class EvaluateGate:
    """Evaluates an entry until its rule has decided."""

    rule: NotWorse
    order_seed: int

    def __call__(self, work: Evaluation, send: Watcher) -> None:
        evaluate_in_order(self.rule, ordered(work.plan, self.order_seed), work, send)
