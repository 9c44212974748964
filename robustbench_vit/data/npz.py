"""A user's own samples: an .npz file with arrays x and y."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from robustbench_vit.data.dataset import Dataset, content_ids
from robustbench_vit.errors import InputError


def load_npz(path: Path) -> Dataset:
    """Samples from `path`: x (n, c, h, w), uint8 (divided by 255) or float in [0, 1], and integer labels y (n,).

    Raises InputError when the file or its arrays are not that. Nothing in the file is executed (no pickles).
    """
    if not path.is_file():
        raise InputError(f"no data file at {path}")
    found = _read(path)
    if missing := {"x", "y"} - set(found):
        raise InputError(f"{path}: no array {', '.join(sorted(missing))}; it has {', '.join(sorted(found)) or 'none'}")
    x, y = found["x"], found["y"]
    check_arrays(x, y, str(path))
    preprocessing = "pixels / 255" if x.dtype == np.uint8 else "none"
    x = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    ids = tuple(f"{path.stem}:{i}" for i in found["index"].tolist()) if _has_index(found) else content_ids(x, y)
    return Dataset(
        name="npz",
        split=path.name,
        x=x,
        y=y.astype(np.int64),
        sample_ids=ids,
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        preprocessing=preprocessing,
        num_classes=max(int(y.max()) + 1, 2),  # few samples may lack the higher classes
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays in the file; raises InputError unless it is a whole archive of plain arrays."""
    try:
        with zipfile.ZipFile(path):
            pass  # np.load would read other formats too, pickles among them, whatever the file is called
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable .npz file of plain arrays: {error}") from error


def _has_index(found: dict[str, np.ndarray]) -> bool:
    """Whether the file numbers its samples (array `index`, one distinct integer each)."""
    index = found.get("index")
    if index is None or index.shape != found["y"].shape or not np.issubdtype(index.dtype, np.integer):
        return False
    return len(np.unique(index)) == len(index)


def check_arrays(x: np.ndarray, y: np.ndarray, where: str) -> None:
    """Raises InputError unless x are images and y their labels."""
    if x.ndim != 4 or len(x) == 0:
        raise InputError(f"{where}: x has shape {x.shape}; expected (n, channels, height, width) with n ≥ 1")
    if y.shape != (len(x),):
        raise InputError(f"{where}: y has shape {y.shape}; expected one label for each of the {len(x)} images")
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{where}: y has type {y.dtype}; expected integer class numbers")
    if y.min() < 0:
        raise InputError(f"{where}: y holds the label {y.min()}; classes are numbered from 0")
    if x.dtype == np.uint8:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{where}: x has type {x.dtype}; expected uint8 (0..255) or floats in [0, 1]")
    if not np.isfinite(x).all():
        raise InputError(f"{where}: x holds NaN or infinite pixels")
    if x.min() < 0 or x.max() > 1:
        raise InputError(
            f"{where}: x ranges from {x.min():g} to {x.max():g}; expected pixels in [0, 1]"
            + (" (divide by 255?)" if x.max() > 2 else " (undo the normalisation and use rbv.normalised)")
        )
