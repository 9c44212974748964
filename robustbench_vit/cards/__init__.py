"""YAML cards as typed frozen values. Nothing here imports torch."""

from robustbench_vit.cards.numbers import Number, parse_number
from robustbench_vit.cards.schema import (
    AlgorithmCard,
    AttackCard,
    BoardCard,
    Card,
    CascadeCard,
    Component,
    DefenseCard,
    Entry,
    Normalisation,
    NormKey,
    Policy,
    Validation,
)
from robustbench_vit.cards.workspace import Loaded, Workspace, open_workspace

__all__ = [
    "AlgorithmCard",
    "AttackCard",
    "BoardCard",
    "Card",
    "CascadeCard",
    "Component",
    "DefenseCard",
    "Entry",
    "Loaded",
    "NormKey",
    "Normalisation",
    "Number",
    "Policy",
    "Validation",
    "Workspace",
    "open_workspace",
    "parse_number",
]
