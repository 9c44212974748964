"""The verdict beside every number: graded evidence that a model masks its gradients, with reasons."""

from robustbench_vit.diagnostics.reliability.lanes import LaneAccess
from robustbench_vit.diagnostics.reliability.verdict import assess, failed

__all__ = ["LaneAccess", "assess", "failed"]
