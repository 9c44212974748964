"""What a model is like, apart from how robust it is: norms of its layers, …"""

from robustbench_vit.diagnostics.operator_norm import operator_norm

__all__ = ["operator_norm"]
