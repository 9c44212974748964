"""Intervals, paired tests, ranks and sequential tests on verdicts. Importing it is light: scipy is imported on use."""

from robustbench_vit.statistics.intervals import INTERVALS, wilson

__all__ = ["INTERVALS", "wilson"]
