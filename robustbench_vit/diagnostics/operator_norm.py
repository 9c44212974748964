"""Exact l1 and linf norms of linear and convolutional layers as linear operators (arXiv:2009.08435).

A convolution on inputs of a fixed size is a matrix M. Its linf norm is the largest row sum of |M|, its l1 norm the
largest column sum. Row sums are the layer with weight |W| applied to ones, column sums are its adjoint applied to
ones, and the entries of W that take part in one sum are where that sum's gradient with respect to W is not zero. All
of it goes through the layer's own convolution, so every stride, padding, dilation, group and input size is exact; the
paper's code treats them by cases and is wrong for some (a kernel as large as its stride among them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_vit.errors import InputError

Order = Literal["l1", "linf"]
WeightLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def operator_norm(layer: WeightLayer, input_size: Sequence[int], ord: Order) -> float:
    """The norm of `layer` (without its bias) as an operator on inputs of spatial size `input_size` (ignored by Linear).

    Raises InputError for a layer that is no Linear or zero-padded Conv, and for inputs too small for it.
    """
    _check(layer, input_size, ord)
    weight = layer.weight.detach()
    return float(_sums(layer, weight.abs(), input_size, ord).max())


def extreme_entries(layer: WeightLayer, input_size: Sequence[int], ord: Order) -> Tensor:
    """0/1 mask, shaped like the weight, of the entries in the row (linf) or column (l1) that makes the norm.

    Of equal rows or columns the first is taken. Raises as `operator_norm` does.
    """
    _check(layer, input_size, ord)
    weight = layer.weight.detach()
    first = _sums(layer, weight.abs(), input_size, ord).argmax()
    if isinstance(layer, nn.Linear):
        mask = torch.zeros_like(weight)
        mask.select(0 if ord == "linf" else 1, int(first)).fill_(1)
        return mask
    probe = weight.clone().requires_grad_()
    with torch.enable_grad():
        total = _taking_part(layer, probe, input_size, ord, first)
        (mask,) = torch.autograd.grad(total, probe)
    return mask


def input_sizes(model: nn.Module, image: Tensor) -> dict[str, tuple[WeightLayer, tuple[int, ...]]]:
    """Every Linear and Conv that runs on `image` (1, c, h, w), by path, with the spatial size of its input.

    One forward pass in eval mode with hooks, which are removed again; the model's mode comes back.
    """
    found: dict[str, tuple[WeightLayer, tuple[int, ...]]] = {}

    def noting(path: str):
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = () if isinstance(layer, nn.Linear) else tuple(inputs[0].shape[2:])
            found[path] = (layer, size)  # type: ignore[assignment]

        return note

    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, WEIGHT_LAYERS)]
    hooks = [layer.register_forward_pre_hook(noting(path)) for path, layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def _taking_part(layer: WeightLayer, weight: Tensor, input_size: Sequence[int], ord: Order, first: Tensor) -> Tensor:
    """The sum of the matrix's row (linf) or column (l1) number `first`, as a function of `weight`."""
    shape = (1, layer.weight.shape[1] * getattr(layer, "groups", 1), *input_size)
    if ord == "linf":
        return _convolve(layer, weight.new_ones(shape), weight).flatten()[first]
    one_hot = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    one_hot.view(-1)[first] = 1
    return _convolve(layer, one_hot, weight).sum()


def _sums(layer: WeightLayer, weight: Tensor, input_size: Sequence[int], ord: Order) -> Tensor:
    """The row sums (linf) or column sums (l1) of the matrix with the entries of `weight`, flattened."""
    if isinstance(layer, nn.Linear):
        return weight.sum(1 if ord == "linf" else 0)
    ones = weight.new_ones(1, weight.shape[1] * layer.groups, *input_size)
    if ord == "linf":
        return _convolve(layer, ones, weight).flatten()
    ones.requires_grad_()
    with torch.enable_grad():  # the operator is linear: its gradient is the adjoint on ones, wherever it is taken
        (columns,) = torch.autograd.grad(_convolve(layer, ones, weight).sum(), ones)
    return columns.flatten()


def _convolve(layer: WeightLayer, x: Tensor, weight: Tensor) -> Tensor:
    convolution = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(layer, kind))
    return convolution(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]


def _check(layer: nn.Module, input_size: Sequence[int], ord: str) -> None:
    if ord not in ("l1", "linf"):
        raise InputError(f"layer norms are l1 or linf, not '{ord}'")
    if isinstance(layer, nn.Linear):
        return
    kind = type(layer).__name__
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise InputError(f"layer norms are known for Linear and Conv1d/2d/3d, not for {kind}")
    if layer.padding_mode != "zeros":
        raise InputError(f"layer norms are exact for zero padding; this {kind} pads with '{layer.padding_mode}'")
    if len(input_size) != len(layer.kernel_size):
        raise InputError(f"a {kind} needs {len(layer.kernel_size)} input sizes, got {tuple(input_size)}")
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        padding = [r - 1 if layer.padding == "same" else 0 for r in reach]
    else:
        padding = [2 * p for p in layer.padding]
    if any(n < 1 or n + p < r for n, p, r in zip(input_size, padding, reach, strict=True)):
        raise InputError(
            f"inputs of size {tuple(input_size)} are too small for this {kind}, kernel {layer.kernel_size}"
        )
