"""The rows and columns of a convolution's matrix, by the entries of its weight that stand in them.

A convolution on inputs of a fixed size is a matrix in which every entry of the weight stands many times, but at most
once in a row or a column. The row of output channel o at pixel p holds W[o, :, t] for the taps t of the kernel that
meet the image there (the others meet padding); the column of input channel c at pixel q holds W[:, c, t] for the taps
that carry q to an output pixel: with stride 2 every other tap, for one. So rows and columns come in few classes, each a
set of taps. In several dimensions these sets are products of the sets of each dimension. Of sets that lie in others
nothing is kept: their sums of absolute values are no larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from robustbench_vit.diagnostics.layers import WeightLayer, output_size, paddings

Side = Literal["rows", "columns"]


@dataclass(frozen=True)
class Line:
    """One row or column of the matrix."""

    group: int
    channel: int  # within its group: of the output for a row, of the input for a column
    taps: Tensor  # bool (tap,)


@dataclass(frozen=True)
class Lines:
    """All rows or all columns of a layer's matrix, of two that hold the same weights one."""

    side: Side
    groups: int
    taps: Tensor  # 0/1 (class, tap), with the weight's dtype and device

    def blocks(self, weight: Tensor) -> Tensor:
        """The weight as (group, output channel, input channel, tap): without copying, if it is contiguous."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1, self.taps.shape[1])

    def sums(self, weight: Tensor) -> Tensor:
        """(group, channel, class): sums of the absolute values in each row or column."""
        return self.blocks(weight).abs().sum(2 if self.side == "rows" else 1) @ self.taps.T

    def line(self, number: int, sums: Tensor) -> Line:
        """The row or column of that number in the flattened `sums`."""
        _, channels, classes = sums.shape
        channel, kind = divmod(number, classes)
        return Line(channel // channels, channel % channels, self._marked[kind])

    @cached_property
    def _marked(self) -> tuple[Tensor, ...]:
        return (self.taps > 0).unbind()

    def entries(self, blocks: Tensor, line: Line) -> Tensor:
        """(channel of the other side, tap): the part of `blocks` with that channel, as a view."""
        block = blocks[line.group]
        return block[line.channel] if self.side == "rows" else block[:, line.channel]


def lines_of(layer: WeightLayer, input_size: Sequence[int], side: Side) -> Lines:
    """The rows or columns of a layer that `require_measurable` lets through, on inputs of that spatial size."""
    taps = torch.ones(1, 1, dtype=torch.bool)
    if isinstance(layer, nn.Linear):
        return Lines(side, 1, taps.to(layer.weight))
    for i, (n, pad) in enumerate(zip(input_size, paddings(layer), strict=True)):
        out = output_size(layer, input_size)[i]
        met = _met(n, out, layer.kernel_size[i], layer.stride[i], layer.dilation[i], pad[0], side)
        taps = (taps[:, None, :, None] & _maximal(met)[None, :, None, :]).flatten(2).flatten(0, 1)
    return Lines(side, layer.groups, taps.to(layer.weight))


def _met(n: int, out: int, kernel: int, stride: int, dilation: int, before: int, side: Side) -> Tensor:
    """Bool (pixel, tap) in one dimension: which taps meet the image from an output pixel, or carry an input pixel."""
    reach = torch.arange(kernel) * dilation - before
    if side == "rows":
        at = torch.arange(out)[:, None] * stride + reach
        return (at >= 0) & (at < n)
    at = torch.arange(n)[:, None] - reach
    return (at % stride == 0) & (at >= 0) & (at < out * stride)


def _maximal(sets: Tensor) -> Tensor:
    """The distinct rows of a bool matrix that lie in no other one."""
    sets = sets.unique(dim=0)
    inside = ~(sets[:, None, :] & ~sets[None, :, :]).any(2)  # [a, b]: a lies in b
    return sets[inside.sum(1) == 1]
