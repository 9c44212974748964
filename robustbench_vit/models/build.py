"""Any timm classifier by name, ours among them."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import timm
from torch import nn

from robustbench_vit.errors import InputError, RobustbenchError, UnknownNameError
from robustbench_vit.models.catalogue import model_modules

GROUP = "robustbench_vit.models"
"""Entry points whose import registers further models with timm (`timm.models.register_model`)."""


@cache
def register_models() -> None:
    """Imports what registers models: this package's modules, then installed entry points."""
    for module in model_modules():
        importlib.import_module(module)
    for point in entry_points(group=GROUP):
        point.load()


def build_model(name: str, **args: Any) -> nn.Module:
    """The classifier called `name` in timm's registry, randomly initialised, in eval mode.

    `args` are passed to its builder (`num_classes`, `in_chans`, `img_size`, …). Nothing is downloaded: weights come
    from a file. Raises UnknownNameError naming the nearest model, InputError for arguments the builder refuses.
    """
    register_models()
    if args.get("pretrained"):
        raise InputError(f"model '{name}': pretrained weights are not downloaded; give a weights file instead")
    if not timm.is_model(name):
        raise UnknownNameError("model", name, timm.list_models())
    try:
        return timm.create_model(name, pretrained=False, **args).eval()
    except RobustbenchError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in args.items()) or "no arguments"
        raise InputError(f"model '{name}' cannot be built with {given}: {error}") from error
