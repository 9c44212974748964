"""Robust accuracies in tests: the pytest plugin `robustbench_vit`. Only pytest imports it; it imports no torch."""
