"""Intervals, paired tests, ranks and sequential tests on verdicts. Importing it is light: scipy is imported on use."""

from robustbench_vit.statistics.confidence_sequence import ConfidenceSequence
from robustbench_vit.statistics.intervals import INTERVALS, clopper_pearson, wilson
from robustbench_vit.statistics.order import InOrder, in_order, sample_order
from robustbench_vit.statistics.paired import Flips, drop_interval, flips, mcnemar, samples_to_decide
from robustbench_vit.statistics.ranks import holm, ranks
from robustbench_vit.statistics.sequential import Decision, DropTest

__all__ = [
    "INTERVALS",
    "ConfidenceSequence",
    "Decision",
    "DropTest",
    "Flips",
    "InOrder",
    "clopper_pearson",
    "drop_interval",
    "flips",
    "holm",
    "in_order",
    "mcnemar",
    "ranks",
    "sample_order",
    "samples_to_decide",
    "wilson",
]
