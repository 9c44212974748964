"""What our builders hand to timm: settings that are checked, and pretrained configurations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from timm.models import build_model_with_cfg
from torch import nn

from robustbench_vit.errors import InputError

TIMMS = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "features_only",
    "out_indices",
    "feature_cls",
)
"""Settings that timm's `build_model_with_cfg` takes itself, for models of any class."""

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def built(
    model: type[AnyModel],
    name: str,
    pretrained: bool,
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
    **options: Any,
) -> AnyModel:
    """A model of that class with the settings `given` over `defaults`, and the pretrained_cfg registered for `name`.

    `options` go to timm's `build_model_with_cfg` (`feature_cfg`, …). Raises InputError for pretrained weights (a file
    has them) and for a setting that the class does not have.
    """
    if pretrained:
        raise InputError(f"{name} has no pretrained weights; load a file, or train it with `rbvit train`")
    if unknown := sorted(set(given) - _settings_of(model) - set(TIMMS)):
        raise InputError(f"{name} has no setting '{unknown[0]}'")
    return build_model_with_cfg(model, name, False, **{**defaults, **given}, **options)


def require_square_patches(name: str, img_size: int | tuple[int, int], patch_size: int) -> None:
    """Raises InputError unless patches of that size tile the image."""
    for side in img_size if isinstance(img_size, tuple) else (img_size,):
        if side < 1 or side % patch_size:
            raise InputError(f"{name}: an image of side {side} is not divisible into patches of side {patch_size}")


def require_heads(name: str, width: int, heads: int) -> None:
    """Raises InputError unless the heads divide the width."""
    if heads < 1 or width % heads:
        raise InputError(f"{name}: {heads} heads don't divide a width of {width}")


def _settings_of(model: type[nn.Module]) -> set[str]:
    """The names its constructor takes, following **kwargs to its base classes."""
    names: set[str] = set()
    for cls in model.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}
