"""The files of a record: JSON, and the images beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.storage import write_atomic

_NAME, _VERSION = "robustbench_vit/record", 2
FORMAT = f"{_NAME}/{_VERSION}"


def write(path: str | os.PathLike[str], content: Mapping[str, Any], images: np.ndarray | None) -> Path:
    """Writes JSON to `path`, images (n, c, h, w) beside it as .images.safetensors; atomic. Returns the path."""
    path = Path(path)
    if images is not None:
        from safetensors.numpy import save

        write_atomic(images_beside(path), save({"adversarials": np.ascontiguousarray(images)}))
    else:
        images_beside(path).unlink(missing_ok=True)  # of an older record
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def read(path: Path) -> dict[str, Any]:
    """The JSON of the record at `path`; raises InputError when it is none, or one of another version."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable record: {error}") from error
    form = raw.get("format") if isinstance(raw, dict) else None
    if form == FORMAT:
        return raw
    found = re.fullmatch(rf"{_NAME}/(\d+)", form) if isinstance(form, str) else None
    if found and int(found[1]) > _VERSION:
        raise InputError(
            f"{path}: written by a newer version of robustbench_vit, as {form}; this version reads {FORMAT}; upgrade"
            " robustbench_vit to read it"
        )
    raise InputError(f'{path}: not a record of this version; expected "format": "{FORMAT}"')


def images_beside(path: Path) -> Path:
    """Where a record's images lie; not NAME.safetensors, which may be the model's weights."""
    return path.with_suffix(".images.safetensors")


def read_images(path: Path) -> np.ndarray | None:
    """The images beside the record at `path`, float32 (n, c, h, w), or None; raises InputError for damaged ones."""
    path = images_beside(path)
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)["adversarials"]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: not the images of a record: {error}") from error
