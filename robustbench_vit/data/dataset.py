"""What a dataset is, and how one is found by name or by path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.registry import Registry

Loader = Callable[[str], "Dataset"]
"""From a split's name to its samples."""

datasets: Registry[Loader] = Registry("dataset", "robustbench_vit.datasets", ("robustbench_vit.data.digits",))


@dataclass(frozen=True)
class Dataset:
    """Samples of one split, in a fixed order."""

    name: str
    split: str
    x: np.ndarray  # float32 (n, c, h, w) in [0, 1]
    y: np.ndarray  # int64 (n,)
    sample_ids: tuple[str, ...]
    source_sha256: str  # of the source's bytes, before any preprocessing
    preprocessing: str  # the policy in words
    num_classes: int

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int | None) -> Dataset:
        """The first `n` samples (all when None); raises InputError when there are fewer."""
        if n is None or n == len(self):
            return self
        if not 1 <= n <= len(self):
            raise InputError(f"asked for {n} samples of {self.name}/{self.split}, which has {len(self)}")
        return Dataset(
            self.name,
            self.split,
            self.x[:n],
            self.y[:n],
            self.sample_ids[:n],
            self.source_sha256,
            self.preprocessing,
            self.num_classes,
        )


def load_dataset(name: str, split: str = "test") -> Dataset:
    """The dataset called `name`, or a user's arrays when `name` is a path ending in .npz."""
    if name.endswith(".npz"):
        from robustbench_vit.data.npz import load_npz

        return load_npz(Path(name))
    return datasets.get(name)(split)


def content_ids(x: np.ndarray, y: np.ndarray) -> tuple[str, ...]:
    """Ids made from each sample's pixels and label; repeated samples are numbered, so that ids stay unique."""
    seen: dict[str, int] = {}
    ids = []
    for image, label in zip(np.ascontiguousarray(x), y, strict=True):
        digest = hashlib.sha256(image.tobytes() + int(label).to_bytes(8, "little", signed=True)).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}#{seen[digest]}")
    return tuple(ids)
