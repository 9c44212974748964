"""The layers of a model that are linear maps, and the sizes of what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.layers.linear import Linear
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_vit.errors import InputError

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
WeightLayer = nn.Linear | Convolution
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHT_LAYERS = (nn.Linear, *CONVOLUTIONS)
BATCH_NORMS = (_BatchNorm,)
KIN = (*WEIGHT_LAYERS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear, nn.MultiheadAttention)
"""Layers with a weight matrix. Those that cannot be measured are named, so that nobody takes a list for complete."""

_FORWARDS = {*(base.forward for base in WEIGHT_LAYERS), Linear.forward}
"""Whose layers are the linear maps of their weight; timm's Linear differs under TorchScript only."""


@dataclass(frozen=True)
class Placed:
    """A layer where it stands in a model."""

    path: str
    layer: nn.Module
    input_size: tuple[int, ...]  # spatial; () for Linear and batch normalisation


@dataclass(frozen=True)
class Survey:
    """The layers of a model in the order in which they run, and those that cannot be measured, with the reason."""

    placed: tuple[Placed, ...]
    left_out: dict[str, str]

    @property
    def weight_layers(self) -> tuple[Placed, ...]:
        """Without batch normalisation."""
        return tuple(place for place in self.placed if isinstance(place.layer, WEIGHT_LAYERS))


def survey(model: nn.Module, image: Tensor) -> Survey:
    """Every Linear, Conv and batch normalisation that runs on `image` (1, c, h, w), with the size of its input.

    One forward pass in eval mode with hooks, which are removed again; every module's mode comes back. A layer that
    runs several times counts with its largest input.
    """
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, (*KIN, *BATCH_NORMS))}
    sizes = _input_sizes(model, layers, image)
    placed, left_out = [], {}
    for path, size in sizes.items():
        if fault := measurable_fault(layers[path], size):
            left_out[path] = fault
        else:
            placed.append(Placed(path, layers[path], size))
    for path, layer in layers.items():
        if path not in sizes:
            left_out[path] = f"this {type(layer).__name__} is not called when the model runs"
    return Survey(tuple(placed), left_out)


def _input_sizes(model: nn.Module, layers: Mapping[str, nn.Module], image: Tensor) -> dict[str, tuple[int, ...]]:
    """The spatial size of each layer's input, by path, in the order of the calls."""
    found: dict[str, tuple[int, ...]] = {}

    def noting(path: str):
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            size = tuple(inputs[0].shape[2:]) if isinstance(layer, CONVOLUTIONS) else ()
            found[path] = max(found.get(path, size), size, key=lambda s: torch.Size(s).numel())

        return note

    hooks = [layer.register_forward_pre_hook(noting(path)) for path, layer in layers.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return found


def measurable_fault(layer: nn.Module, input_size: Sequence[int]) -> str | None:
    """Why the norms of `layer` on inputs of that spatial size are not known exactly; None when they are."""
    kind = type(layer).__name__
    if isinstance(layer, BATCH_NORMS):
        missing = layer.running_var is None
        return f"this {kind} keeps no running variance, so that it is not linear in eval mode" if missing else None
    if not isinstance(layer, WEIGHT_LAYERS):
        return f"layer norms are known for Linear, Conv1d/2d/3d and batch normalisation, not for {kind}"
    if type(layer).forward not in _FORWARDS:
        base = next(base.__name__ for base in WEIGHT_LAYERS if isinstance(layer, base))
        return f"this {kind} computes something else than {base}, so its norms are not known"
    if isinstance(layer, nn.Linear):
        return None
    if layer.padding_mode != "zeros":
        return f"layer norms are exact for zero padding; this {kind} pads with '{layer.padding_mode}'"
    if len(input_size) != len(layer.kernel_size):
        return f"a {kind} needs {len(layer.kernel_size)} input sizes, got {tuple(input_size)}"
    if min(input_size) < 1 or min(output_size(layer, input_size)) < 1:
        return f"inputs of size {tuple(input_size)} are too small for this {kind}, kernel {tuple(layer.kernel_size)}"
    return None


def require_measurable(layer: nn.Module, input_size: Sequence[int]) -> None:
    """Raises InputError when `measurable_fault` finds one, or for weights that are not finite."""
    if fault := measurable_fault(layer, input_size):
        raise InputError(fault)
    values = layer.running_var if isinstance(layer, BATCH_NORMS) else layer.weight
    if not bool(torch.isfinite(values.detach()).all()):  # type: ignore[union-attr]
        raise InputError(f"this {type(layer).__name__} holds NaN or infinite values")


def paddings(layer: Convolution) -> list[tuple[int, int]]:
    """Zeros (before, after) in each dimension; 'same' puts the odd one after, as torch does."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(n // 2, n - n // 2) for n in total]
    return [(int(p), int(p)) for p in layer.padding]


def output_size(layer: Convolution, input_size: Sequence[int]) -> tuple[int, ...]:
    """The spatial size of the output; numbers below 1 when the input is too small."""
    return tuple(
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, pad, d, k, s in zip(
            input_size, paddings(layer), layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
