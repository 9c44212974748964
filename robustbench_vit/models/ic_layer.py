"""IC layers: dropout after batch normalisation, put before weight layers (arXiv:1905.05928)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustbench_vit.errors import InputError

SHORTCUTS = ("shortcut", "downsample", "skip")
"""Names of modules whose 1×1 convolutions carry a residual connection."""


class IC(nn.Module):
    """Dropout_p(BatchNorm(x)).

    Channels are dimension `channels`: 1 or -1; without it 1 for (n, c) and (n, c, h, w), the last for (n, tokens, c).
    In eval mode this is the affine map a·x + b with a = γ / √(var + eps) and b = β - mean·a; putting that map into the
    weights of a convolution that pads with zeros is wrong at the border, where b is missing. Dropout drops single
    values (not whole channels), as the paper does.
    """

    def __init__(self, features: int, p: float, channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.BatchNorm1d(features)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        if self.channels == -1 or (self.channels is None and x.dim() == 3):
            return self.dropout(self.norm(x.reshape(-1, x.shape[-1])).view(x.shape))
        if x.dim() == 2:
            return self.dropout(self.norm(x))
        return self.dropout(self.norm(x.flatten(2)).view(x.shape))


class BehindIC(nn.Module):
    """A weight layer behind its IC layer; state-dict keys `ic.norm.*` and `layer.*`."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, p: float) -> None:
        super().__init__()
        conv = isinstance(layer, nn.Conv2d)
        self.ic = IC(layer.in_channels, p, 1) if conv else IC(layer.in_features, p, -1)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.ic(x))


def with_ic_layers(model: nn.Module, p: float = 0.05) -> nn.Module:
    """`model`, changed in place, with an IC layer of dropout probability `p` before every weight layer.

    Weight layers are Conv2d (grouped and depthwise ones too) and Linear. Left alone: the convolutions that see the
    image (`first_conv` of a timm model's pretrained_cfg, else the first one) and the 1×1 convolutions of residual
    connections, known by a part of their path (`shortcut`, `downsample`, `skip`). Batch normalisation that the model
    has stays: where a convolution follows BN and ReLU, the IC layer normalises what ReLU made of it. In eval mode a
    fresh IC layer changes next to nothing, so pretrained weights stay useful.

    A wrapped layer's keys in the state dict move from `PATH.weight` to `PATH.layer.weight`, beside `PATH.ic.norm.*`.
    Raises InputError for a model with IC layers already, with nothing to wrap, or with weight layers that cannot be
    wrapped: inside nn.MultiheadAttention, which reads their weights, or used under two paths.
    """
    if not 0 <= p < 1:
        raise InputError(f"dropout is a probability in [0, 1), got {p:g}")
    if any(isinstance(module, IC) for module in model.modules()):
        raise InputError("this model has IC layers already; use the 'ic-layer' architecture on the model without them")
    _require_wrappable(model)
    layers = _weight_layers(model)
    bare = _stem(model, layers)
    wrapped = [path for path, layer in layers.items() if path not in bare and not _is_shortcut(path, layer)]
    if not wrapped:
        raise InputError("no weight layer to put an IC layer before (the first convolution is left alone)")
    for path in wrapped:
        parent, _, name = path.rpartition(".")
        behind = BehindIC(layers[path], p).to(layers[path].weight)
        setattr(model.get_submodule(parent), name, behind.train(model.training))
    return model


def _weight_layers(model: nn.Module) -> dict[str, Any]:
    """The weight layers by path, but the model itself."""
    return {path: m for path, m in model.named_modules() if path and isinstance(m, nn.Conv2d | nn.Linear)}


def _require_wrappable(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            raise InputError(f"'{path}' is an nn.MultiheadAttention, which reads its layers' weights past an IC layer")
        if isinstance(module, nn.Conv2d | nn.Linear) and seen.setdefault(id(module), path) != path:
            raise InputError(f"'{path}' and '{seen[id(module)]}' are one layer, which cannot have two IC layers")


def _stem(model: nn.Module, layers: dict[str, Any]) -> set[str]:
    """Paths of the convolutions that see the image."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    convs = [path for path, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    stem = [path for path in convs if path in ((named,) if isinstance(named, str) else named)]
    return set(stem or convs[:1])


def _is_shortcut(path: str, layer: nn.Module) -> bool:
    one_by_one = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return one_by_one and any(word in path for word in SHORTCUTS)
