"""scikit-learn's 1,797 real scans of handwritten digits, 8×8, sixteen grey levels (UCI optdigits test set)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from robustbench_vit.data.dataset import Dataset, datasets, require_split
from robustbench_vit.errors import InputError

SOURCE_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
TEST_SAMPLES = 500


@lru_cache(maxsize=1)
def _source() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) uint8 with values 0..16 and labels (1797,) uint8, checked against SOURCE_SHA256."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if digest != SOURCE_SHA256:
        raise InputError(
            f"scikit-learn's digits changed: sha256 {digest}, expected {SOURCE_SHA256}; results would not compare"
        )
    return images, labels


def positions_of_test(images: np.ndarray, labels: np.ndarray, samples: int) -> np.ndarray:
    """Positions of the stratified test split, ascending.

    Each class gives its share of `samples` (largest remainders), taken in the order of the images' sha256: no
    generator is involved, so no library version can change the split.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * samples / counts.sum()
    quota = np.floor(shares).astype(int)
    quota[np.argsort(-(shares - quota), kind="stable")[: samples - quota.sum()]] += 1
    chosen: list[np.intp] = []
    for label, take in zip(classes, quota, strict=True):
        positions = np.flatnonzero(labels == label)
        chosen += sorted(positions, key=lambda p: hashlib.sha256(images[p].tobytes()).digest())[:take]
    return np.sort(np.array(chosen))


@datasets.register("digits")
def digits(split: str) -> Dataset:
    """Handwritten digits, 8×8 grey, 1,297 train and 500 test samples, pixels / 16."""
    require_split("digits", split)
    images, labels = _source()
    test = positions_of_test(images, labels, TEST_SAMPLES)
    positions = test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)
    return Dataset(
        name="digits",
        split=split,
        x=(images[positions, None] / np.float32(16)).astype(np.float32),
        y=labels[positions].astype(np.int64),
        sample_ids=tuple(f"digits:{p}" for p in positions),
        source_sha256=SOURCE_SHA256,
        preprocessing="pixels / 16",
        num_classes=10,
    )
