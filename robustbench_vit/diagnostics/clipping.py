"""Singular values of convolutions on periodic images, and weights with the large ones cut (arXiv:1805.10408).

On periodic images a convolution of stride 1 is diagonalised by the Fourier transform: at each frequency it multiplies
the channels by one (output, input) matrix, the transform of the kernel padded to the image. Its singular values are
those of all these matrices together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_vit.diagnostics.layers import WeightLayer

SLACK = 1e-6
"""How far, relatively, a singular value may lie over the bound and count as within it: float32 rounds them."""


def clipped(layer: WeightLayer, input_size: Sequence[int], bound: float) -> Tensor | None:
    """The weight with singular values cut at `bound`; None when they all are within it, or none is known (NaN).

    Convolutions are taken as if their stride were 1 and inputs of spatial size `input_size` periodic. The inverse
    transform fills the whole image; only the kernel's own taps are kept.
    """
    if not bool(layer.weight.isfinite().all()):
        return None
    if isinstance(layer, nn.Linear):
        return _cut(layer.weight.detach(), bound)
    grid = _grid(layer, input_size)
    matrices = _transform(layer, grid)
    cut = _cut(matrices, bound)
    return None if cut is None else _taps(layer, cut, grid)


def periodic_singular_values(layer: WeightLayer, input_size: Sequence[int]) -> Tensor:
    """All singular values that `clipped` cuts, unordered; frequencies that are conjugate to each other count once."""
    if isinstance(layer, nn.Linear):
        return torch.linalg.svdvals(layer.weight.detach())
    return torch.linalg.svdvals(_transform(layer, _grid(layer, input_size))).flatten()


def _cut(matrices: Tensor, bound: float) -> Tensor | None:
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    if float(s.max()) <= bound * (1 + SLACK):
        return None
    return (u * s.clamp(max=bound).unsqueeze(-2)) @ v


def _grid(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, input_size: Sequence[int]) -> tuple[int, ...]:
    """The image's size, or the kernel's reach where that is larger."""
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return tuple(map(max, input_size, reach))


def _transform(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, grid: tuple[int, ...]) -> Tensor:
    """(*frequencies, group, output channel, input channel): the kernel's transform, of conjugate frequencies one."""
    weight = layer.weight.detach()
    padded = weight.new_zeros(*weight.shape[:2], *grid)
    padded[_places(layer)] = weight
    spectrum = torch.fft.rfftn(padded, dim=tuple(range(2, padded.dim())))
    matrices = spectrum.unflatten(0, (layer.groups, -1))
    return matrices.movedim((0, 1, 2), (-3, -2, -1))


def _taps(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, matrices: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The weight whose padded transform is nearest to `matrices`: the inverse, at the kernel's taps."""
    spectrum = matrices.movedim((-3, -2, -1), (0, 1, 2)).flatten(0, 1)
    return torch.fft.irfftn(spectrum, s=grid, dim=tuple(range(2, spectrum.dim())))[_places(layer)]


def _places(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[slice, ...]:
    """Where the kernel's taps lie in the padded kernel."""
    steps = [slice(0, d * (k - 1) + 1, d) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return (slice(None), slice(None), *steps)
