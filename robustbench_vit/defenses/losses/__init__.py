"""What a model is trained to make small: a module for each loss."""

from __future__ import annotations

from robustbench_vit.defenses.losses.alp import LogitPairing
from robustbench_vit.defenses.losses.awp import WeightPerturbation
from robustbench_vit.defenses.losses.clean import CrossEntropy
from robustbench_vit.defenses.losses.fast_at import FastAdversarialTraining
from robustbench_vit.defenses.losses.gaussian import Consistency, GaussianAugmentation
from robustbench_vit.defenses.losses.inner import perturb
from robustbench_vit.defenses.losses.ltd import LowTemperature, LowTemperatureTrades
from robustbench_vit.defenses.losses.mart import Mart
from robustbench_vit.defenses.losses.pgd_at import PGDAdversarialTraining
from robustbench_vit.defenses.losses.trades import Trades

__all__ = [
    "Consistency",
    "CrossEntropy",
    "FastAdversarialTraining",
    "GaussianAugmentation",
    "LogitPairing",
    "LowTemperature",
    "LowTemperatureTrades",
    "Mart",
    "PGDAdversarialTraining",
    "Trades",
    "WeightPerturbation",
    "perturb",
]
