"""Attacks: one file per algorithm, all of them pure functions over rows."""

from robustbench_vit.attacks.registry import NORM_NAMES, algorithms, attack_faults, build_attack

__all__ = ["NORM_NAMES", "algorithms", "attack_faults", "build_attack"]
