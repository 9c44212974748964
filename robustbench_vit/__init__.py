"""Adversarial-robustness benchmark suite for image classifiers, Vision Transformers first."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_vit.boards.view import load_board
    from robustbench_vit.evaluation import evaluate
    from robustbench_vit.models.normalise import normalised
    from robustbench_vit.records import Record

__version__ = "0.1.0"
__all__ = ["Record", "__version__", "evaluate", "load_board", "normalised"]

_HOMES = {
    "Record": "robustbench_vit.records",
    "evaluate": "robustbench_vit.evaluation",
    "load_board": "robustbench_vit.boards.view",
    "normalised": "robustbench_vit.models.normalise",
}


def __getattr__(name: str) -> Any:
    """The public names, imported on first use: `import robustbench_vit` itself stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'robustbench_vit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
