"""Weights files: what is loaded is checked first, and nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from robustbench_vit.errors import WeightsError
from robustbench_vit.storage import write_atomic

NESTED = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Keys under which training scripts keep the state dict in a .pt file."""
WRAPPER = "module."
"""What DataParallel puts before every key."""

_CODE = ("Unsupported global", "Unsupported class", "Trying to call reduce", "Can only build Tensor")
"""How torch's unpickler says that a file asks for code to be run; its other complaints are about damage."""
_PLAIN_PICKLE = (b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How pickles begin that `pickle.dump` wrote, not torch.save: torch's unpickler doesn't read them at all."""


def load_weights(model: nn.Module, path: Path | str) -> str:
    """Loads the file into `model`, strictly; returns the sha256 of the file's bytes.

    `.safetensors` is preferred. `.pt` and `.pth` are read without executing anything in them; there a state dict nested
    under one of NESTED is taken out and a `module.` before every key is dropped. Names that the authors of an
    architecture use are understood (see `author_keys`). Raises WeightsError for a file that is missing, damaged,
    unsafe, of another kind, or does not fit the model; the model is unchanged then.
    """
    path = Path(path)
    data = _read(path)
    state = _parse_safetensors(data, path) if path.suffix == ".safetensors" else _parse_pickle(data, path)
    state = _under_our_names(model, state, path)
    _check_fit(model, state, path)
    model.load_state_dict(state)
    return hashlib.sha256(data).hexdigest()


def save_weights(model: nn.Module, path: Path | str, metadata: Mapping[str, str] | None = None) -> str:
    """Writes the model's state dict as safetensors, all at once or not at all; returns the file's sha256.

    Raises StorageError when the folder cannot be written.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    data = _sorted_header(safetensors_bytes(state, dict(metadata or {})))
    write_atomic(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def _sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header's metadata sorted: the library writes it in random order.

    A file is 8 bytes of header length (little endian), a JSON header padded with spaces, and the tensors.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if "__metadata__" in header:
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"{path}: weights are .safetensors, .pt or .pth files, not '{path.suffix or path.name}'")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise WeightsError(f"{path}: the file is empty")
    if data[:512].lstrip().startswith(b"<"):
        raise WeightsError(f"{path}: this is a web page, not weights (saved by a download that failed?)")
    return data


def _parse_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return read_safetensors(data)
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged or cut short ({error}); download or copy it again") from error


def _parse_pickle(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # what they warn about is refused below
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if data.startswith(_PLAIN_PICKLE) or any(word in str(error) for word in _CODE):
            raise WeightsError(
                f"{path}: loading this file would run code stored in it, which is refused; "
                "save the state dict alone, best as .safetensors"
            ) from error
        raise WeightsError(f"{path}: damaged, or not a file that torch.save wrote") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: damaged, or not a file that torch.save wrote") from error
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a loaded file by key, out of their nesting."""
    if isinstance(loaded, Mapping):
        for key in NESTED:
            if isinstance(loaded.get(key), Mapping):
                return _state_dict(loaded[key], path)
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"{path}: holds no state dict (tensors by name, plain or under {', '.join(NESTED)})")
    if all(key.startswith(WRAPPER) for key in loaded):
        return {key.removeprefix(WRAPPER): value for key, value in loaded.items()}
    return dict(loaded)


def _under_our_names(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """The state dict as it is, or, of a model whose class knows them, with its authors' names replaced by ours."""
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = getattr(model, "from_authors", None)
    if convert is None or state.keys() == model.state_dict().keys():
        return state
    try:
        return convert(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises WeightsError naming what does not fit, before anything is loaded."""
    wanted = model.state_dict()
    faults = []
    if missing := [key for key in wanted if key not in state]:
        faults.append(f"missing: {_some(missing)}")
    if unexpected := [key for key in state if key not in wanted]:
        faults.append(f"unexpected: {_some(unexpected)}")
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if shapes:
        faults.append(f"wrong shapes: {_some(shapes)}")
    if faults:
        raise WeightsError(f"{path}: weights of another model than this {type(model).__name__}; " + "; ".join(faults))
    if bad := [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]:
        raise WeightsError(f"{path}: holds NaN or infinite weights in {_some(bad)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)} in all)" if len(names) > 5 else "")
