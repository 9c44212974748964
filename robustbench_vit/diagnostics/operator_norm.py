"""Exact norms of linear, convolutional and batch normalisation layers as linear maps (arXiv:2009.08435).

On inputs of a fixed size such a layer is a matrix M. Its linf norm is the largest row sum of |M|, its l1 norm the
largest column sum, its l2 (spectral) norm the largest singular value. Nothing is approximated by cases: every stride,
padding, dilation, number of groups and input size goes one way (see `lines`, and `spectral` for l2). The paper's code
is wrong for rectangular kernels with unequal strides and skips small inputs, groups and dilation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_vit.diagnostics.layers import WEIGHT_LAYERS, WeightLayer, require_measurable
from robustbench_vit.diagnostics.lines import Lines, Side, lines_of
from robustbench_vit.diagnostics.spectral import largest_singular_value, operator_of
from robustbench_vit.errors import InputError

Order = Literal["l1", "l2", "linf"]
ORDERS: tuple[Order, ...] = ("l1", "l2", "linf")
SIDES: dict[str, Side] = {"l1": "columns", "linf": "rows"}
"""Whose largest sum of absolute values the norm is."""

_NAMES: dict[object, Order] = {1: "l1", 2: "l2", math.inf: "linf", "1": "l1", "2": "l2", "inf": "linf"}


def operator_norm(layer: nn.Module, input_size: Sequence[int], ord: float | str) -> float:
    """The norm of `layer` (without its bias) as a map on inputs of spatial size `input_size`, in float64.

    `ord` is 1, 2 or inf (or 'l1', 'l2', 'linf'). The size counts for convolutions only. Batch normalisation is taken
    in eval mode: all three norms are max |γ|/√(var + eps). l1 and linf are sums; l2 is exact for small matrices, and
    for large ones iterated until it is known within 5e-5, mostly far better (see `spectral.TOLERANCE`).

    Raises InputError for layers whose norms are not known (other kinds, subclasses with a forward of their own, padding
    with anything but zeros), for inputs too small for the kernel, and for weights that are not finite.
    """
    order = named_order(ord)
    require_measurable(layer, input_size)
    if isinstance(layer, _BatchNorm):
        return float(scales(layer).max())
    known = cast(WeightLayer, layer)  # nothing else is measurable
    if order == "l2":
        return largest_singular_value(operator_of(known, input_size))
    lines = lines_of(known, input_size, SIDES[order])
    exact = Lines(lines.side, lines.groups, lines.taps.to("cpu", torch.float64))
    return float(exact.sums(known.weight.detach().to("cpu", torch.float64)).max())


def extreme_entries(layer: WeightLayer, input_size: Sequence[int], ord: float | str) -> Tensor:
    """0/1 mask, shaped like the weight, of the entries in the row (linf) or column (l1) that makes the norm.

    Of equal rows or columns the first is taken. Raises as `operator_norm` does, and for the l2 norm.
    """
    order = named_order(ord)
    if order == "l2":
        raise InputError("the l2 norm is made by all entries; take l1 or linf")
    if not isinstance(layer, WEIGHT_LAYERS):
        raise InputError(f"entries of a weight are known for Linear and Conv1d/2d/3d, not for {type(layer).__name__}")
    require_measurable(layer, input_size)
    lines = lines_of(layer, input_size, SIDES[order])
    sums = lines.sums(layer.weight.detach())
    mask = torch.zeros_like(layer.weight, memory_format=torch.contiguous_format)
    line = lines.line(int(sums.argmax()), sums)
    lines.entries(lines.blocks(mask), line)[..., line.taps] = 1
    return mask


def scales(layer: _BatchNorm) -> Tensor:
    """|γ|/√(var + eps) of each channel (float64, on the CPU): what batch normalisation multiplies by in eval mode."""
    if layer.running_var is None:
        raise InputError(f"this {type(layer).__name__} keeps no running variance")
    deviation = (layer.running_var.detach().to("cpu", torch.float64) + layer.eps).sqrt()
    gamma = torch.ones_like(deviation) if layer.weight is None else layer.weight.detach().to("cpu", torch.float64)
    return gamma.abs() / deviation


def named_order(ord: float | str) -> Order:
    """'l1', 'l2' or 'linf' for 1, 2, inf or one of these names; raises InputError for others."""
    for name in ORDERS:
        if ord == name:
            return name
    try:
        return _NAMES[ord]
    except (KeyError, TypeError):
        raise InputError(f"layer norms are of order 1, 2 or inf, not {ord!r}") from None
