"""Normalisation as a part of the model, so that attacks and budgets live in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_vit.errors import InputError


class Normalised(nn.Module):
    """A model behind (x - mean) / std.

    Mean and std are non-persistent buffers: they follow the device and are no part of the state dict. A checkpoint of
    the wrapped model is therefore loaded through `.model`.
    """

    mean: Tensor  # (c, 1, 1)
    std: Tensor  # (c, 1, 1)

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.mean):
            raise InputError(f"the images have {x.shape[1]} channels, the normalisation {len(self.mean)}")
        return self.model((x - self.mean) / self.std)


def normalised(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Normalised:
    """`model` with its normalisation inside: the result takes images in [0, 1].

    `mean` and `std` hold one number per channel, in units of images in [0, 1]. The result starts in the model's mode.
    Raises InputError for lists of different lengths, for empty ones, and for numbers that cannot be divided by.
    """
    mean, std = [float(v) for v in mean], [float(v) for v in std]
    if len(mean) != len(std) or not mean:
        raise InputError(f"mean has {len(mean)} numbers and std {len(std)}; give one of each per channel")
    if not all(math.isfinite(v) for v in (*mean, *std)):
        raise InputError(f"mean {mean} and std {std} must be finite")
    if bad := [v for v in std if v <= 0]:
        raise InputError(f"std holds {bad[0]:g}; a standard deviation is above 0")
    return Normalised(model, mean, std).train(model.training)
