"""Checkpoints as the authors of an architecture name their tensors, and what the names are here."""
