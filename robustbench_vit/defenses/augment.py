"""Random changes of training images."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, StrictInt
from torch import Tensor

from robustbench_vit.defenses.registry import register, settings


@register("augment", "shift")
@settings
class Shift:
    """Each image moved by up to `pixels` in both directions, uniformly; zeros come in at the border."""

    pixels: Annotated[StrictInt, Field(ge=1)]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        corner = torch.randint(0, 2 * self.pixels + 1, (2, n, 1), generator=generator)
        rows = (corner[0] + torch.arange(height)).to(x.device)  # (n, h)
        columns = (corner[1] + torch.arange(width)).to(x.device)  # (n, w)
        padded = F.pad(x, [self.pixels] * 4).permute(0, 2, 3, 1)  # (n, h + 2p, w + 2p, c)
        sample = torch.arange(n, device=x.device)[:, None, None]
        return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
