"""What a dataset is, and how one is found by name or by path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.registry import Registry

Loader = Callable[[str], "Dataset"]
"""From a split's name to its samples."""

datasets: Registry[Loader] = Registry(
    "dataset",
    "robustbench_vit.datasets",
    ("robustbench_vit.data.digits", "robustbench_vit.data.mnist", "robustbench_vit.data.cifar"),
)


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
        return self._part(slice(n))

    def take(self, positions: Sequence[int] | np.ndarray) -> Dataset:
        """The samples at `positions` (distinct, from 0), in that order; raises InputError for any others."""
        chosen = np.asarray(positions)
        if chosen.ndim != 1 or len(chosen) == 0 or not np.issubdtype(chosen.dtype, np.integer):
            raise InputError(f"positions must be a list of one or more integers, not {positions!r}")
        if chosen.min() < 0 or chosen.max() >= len(self):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise InputError(f"asked for position {wrong} of {self.name}/{self.split}, which has 0 to {len(self) - 1}")
        if len(np.unique(chosen)) < len(chosen):
            raise InputError(f"asked for a position of {self.name}/{self.split} twice; a sample counts once")
        return self._part(chosen)

    def _part(self, index: slice | np.ndarray) -> Dataset:
        ids = tuple(np.array(self.sample_ids, dtype=object)[index])
        return replace(self, x=self.x[index], y=self.y[index], sample_ids=ids)


def from_bytes(
    name: str,
    split: str,
    images: np.ndarray,  # uint8 (n, c, h, w)
    labels: np.ndarray,
    source_sha256: str,
    num_classes: int,
) -> Dataset:
    """A published split: pixels / 255, ids `NAME:POSITION` in the published order."""
    x = images.astype(np.float32)
    x /= np.float32(255)
    ids = tuple(f"{name}:{position}" for position in range(len(labels)))
    return Dataset(name, split, x, labels.astype(np.int64), ids, source_sha256, "pixels / 255", num_classes)


def require_split(name: str, split: str) -> None:
    """Raises InputError unless `split` is 'train' or 'test'."""
    if split not in ("train", "test"):
        raise InputError(f"{name} has the splits 'train' and 'test', not '{split}'")


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
