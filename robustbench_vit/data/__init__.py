"""Datasets by name: fixed sample lists with a hash of their source. No torch."""

from robustbench_vit.data.dataset import Dataset, datasets, load_dataset

__all__ = ["Dataset", "datasets", "load_dataset"]
