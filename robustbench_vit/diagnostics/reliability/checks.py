"""The checks that call the model, what each costs, and which of them an allowance of passes buys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from robustbench_vit.diagnostics.reliability import ascent, differences, gradients, randomness, transfer
from robustbench_vit.diagnostics.reliability.grading import not_run
from robustbench_vit.diagnostics.reliability.probes import Probes
from robustbench_vit.records.reliability import Evidence, Reason

MOST_PROBES, FEWEST_PROBES = 64, 8
"""Samples that are looked at; with fewer, the dearest checks are left out."""
ROUND_TO = 8
"""Probes come in multiples of a physical batch, which would be padded otherwise."""


@dataclass(frozen=True)
class Suspect:
    """A model with its probe samples, and what may be tried on it."""

    probes: Probes
    tried: transfer.Tried
    blind: bool = False  # without a usable gradient

    def passes(self) -> dict[str, int]:
        """Model passes spent so far, the surrogate's among them."""
        spent = [probes.oracle.passes for probes in (self.probes, self.tried.surrogate) if probes is not None]
        return {
            "forwards": sum(int(p.forwards.sum()) for p in spent),
            "backwards": sum(int(p.backwards.sum()) for p in spent),
        }


@dataclass(frozen=True)
class Check:
    """A check that calls the model."""

    name: str
    cost: int  # forward equivalents per probe
    run: Callable[[Suspect], Reason]
    needs_gradient: bool = True


USABLE = Check(gradients.USABLE, gradients.COST, lambda s: gradients.usable_gradient(s.probes))
VANISHING = Check(gradients.VANISHING, gradients.COST, lambda s: gradients.vanishing_gradients(s.probes))
SATURATED = Check(gradients.SATURATED, 0, lambda s: gradients.saturated_logits(s.probes))  # from the same gradients
NOISE = Check(ascent.NOISE, ascent.NOISE_COST, lambda s: ascent.noise_as_strong(s.probes))
EOT = Check(randomness.NAME, randomness.COST, lambda s: randomness.eot_changes(s.probes))
TRANSFER = Check(
    transfer.NAME,
    transfer.COST,
    lambda s: transfer.transfer(s.probes, s.tried, s.blind),
    needs_gradient=False,
)
MISMATCH = Check(differences.NAME, differences.COST, lambda s: differences.gradient_mismatch(s.probes))
RISES = Check(ascent.RISES, ascent.RISES_COST, lambda s: ascent.loss_rises(s.probes))
LARGE = Check(ascent.LARGE, ascent.LARGE_COST, lambda s: ascent.large_eps(s.probes))

CHECKS = (USABLE, VANISHING, SATURATED, NOISE, EOT, TRANSFER, MISMATCH, RISES, LARGE)
"""In the order they run; where passes are few the last ones are left out first."""


@dataclass(frozen=True)
class Bought:
    """What an allowance pays for."""

    checks: tuple[Check, ...]
    probes: int


def affordable(wanted: Sequence[Check], allowance: int | None, available: int) -> Bought:
    """The first of the `wanted` checks that can look at enough of the `available` samples, and at how many.

    The number follows from passes, never from the clock, so that equal evaluations get equal verdicts.
    """
    for end in range(len(wanted), 0, -1):
        cost = sum(check.cost for check in wanted[:end])
        paid = MOST_PROBES if allowance is None or cost == 0 else allowance // cost
        n = min(MOST_PROBES, available, paid)
        if 0 < min(FEWEST_PROBES, available) <= n:
            return Bought(tuple(wanted[:end]), n // ROUND_TO * ROUND_TO if n > ROUND_TO else n)
    return Bought((), 0)


def run_checks(suspect: Suspect, checks: Sequence[Check]) -> Iterator[Reason]:
    """One reason per check; without a usable gradient those that need one don't run."""
    for check in checks:
        if suspect.blind and check.needs_gradient:
            yield not_run(check.name, gradients.NO_GRADIENT)
            continue
        reason = check.run(suspect)
        if check is USABLE:
            suspect = dataclasses.replace(suspect, blind=reason.evidence is Evidence.STRONG)
        yield reason
