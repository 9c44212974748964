"""A model under evaluation: what is said of it, and where it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.engine.intake import Declared
from robustbench_vit.errors import InputError


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, and what a record says of it."""

    model: Any
    entry: Mapping[str, Any]
    fingerprint: str  # of architecture and weights
    declared: Declared = Declared()


def make_subject(model: Any, entry: Mapping[str, Any] | None = None, declared: Declared | None = None) -> Subject:
    """The model with its number of parameters and a fingerprint of its weights."""
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None
    named = {"name": type(model).__name__, **(entry or {})}
    declared = declared or Declared()
    if declared.randomness is not None:
        named["randomness"] = declared.randomness
    return Subject(model, {**named, "parameters": parameters}, fingerprint(model), declared)


def fingerprint(model: Any) -> str:
    """A sha256 of a module's structure, settings, state and buffers; of a plain callable only its name is known.

    Settings are the plain values among a submodule's public attributes (a noise level, a number of kept tokens, …).
    """
    digest = hashlib.sha256()
    if not isinstance(model, nn.Module):
        digest.update(f"callable {getattr(model, '__qualname__', type(model).__qualname__)}".encode())
        return digest.hexdigest()
    digest.update(repr(model).encode())
    for name, module in model.named_modules():
        digest.update(f"{name} {sorted(_settings(module).items())}".encode())
    # Buffers that no checkpoint holds decide answers too: a normalisation's mean and std, for one.
    for name, value in {**dict(model.named_buffers()), **model.state_dict()}.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(module: nn.Module) -> dict[str, Any]:
    held = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: value for name, value in held.items() if isinstance(value, (bool, int, float, str, tuple))}


def find_device(device: str | torch.device | None, model: Any) -> torch.device:
    """The device asked for, else the model's own; raises InputError for one that doesn't exist."""
    if device is None:
        first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
        return first.device if first is not None else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error
    return found


@contextmanager
def placed(model: Any, device: torch.device) -> Iterator[None]:
    """While open, the module is on `device`; afterwards it is back where it was."""
    if not isinstance(model, nn.Module):
        yield
        return
    home = find_device(None, model)
    try:
        model.to(device)
        yield
    finally:
        model.to(home)
