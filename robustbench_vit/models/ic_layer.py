"""IC layers: dropout after batch normalisation, put before weight layers (arXiv:1905.05928)."""

from __future__ import annotations

from torch import Tensor, nn

from robustbench_vit.errors import InputError

SHORTCUTS = ("shortcut", "downsample", "skip")
"""Names of modules whose 1×1 convolutions carry a residual connection."""


class IC(nn.Module):
    """Dropout_p(BatchNorm(x)); channels are dimension 1 of (n, c, h, w) and (n, c), the last one of (n, tokens, c).

    In eval mode this is the affine map a·x + b with a = γ / √(var + eps) and b = β - mean·a. Dropout drops single
    values (not whole channels), as the paper does.
    """

    def __init__(self, features: int, p: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return self.dropout(self.norm(x))
        if x.dim() == 3:
            return self.dropout(self.norm(x.transpose(1, 2)).transpose(1, 2))
        return self.dropout(self.norm(x.flatten(2)).view_as(x))


class BehindIC(nn.Module):
    """A weight layer behind its IC layer; state-dict keys `ic.norm.*` and `layer.*`."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, p: float) -> None:
        super().__init__()
        self.ic = IC(layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features, p)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.ic(x))


def with_ic_layers(model: nn.Module, p: float = 0.05) -> nn.Module:
    """`model`, changed in place, with an IC layer of dropout probability `p` before every weight layer.

    Weight layers are Conv2d and Linear. Left alone: the first convolution (it sees the image) and the 1×1 convolutions
    of residual connections, known by a part of their path (`shortcut`, `downsample`, `skip`). A wrapped layer's keys in
    the state dict move from `PATH.weight` to `PATH.layer.weight`, beside `PATH.ic.norm.*`. Raises InputError for a
    model with IC layers already or with nothing to wrap.
    """
    if not 0 <= p < 1:
        raise InputError(f"dropout is a probability in [0, 1), got {p:g}")
    if any(isinstance(module, IC) for module in model.modules()):
        raise InputError("this model has IC layers already; use the 'ic-layer' architecture on the model without them")
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    convs = [path for path in paths if isinstance(model.get_submodule(path), nn.Conv2d)]
    wrapped = [path for path in paths if path != "" and path not in convs[:1] and not _is_shortcut(model, path)]
    if not wrapped:
        raise InputError("no weight layer to put an IC layer before (the first convolution is left alone)")
    for path in wrapped:
        parent, _, name = path.rpartition(".")
        layer = model.get_submodule(path)
        behind = BehindIC(layer, p).to(layer.weight.device)  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), name, behind.train(model.training))
    return model


def _is_shortcut(model: nn.Module, path: str) -> bool:
    layer = model.get_submodule(path)
    one_by_one = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return one_by_one and any(word in path for word in SHORTCUTS)
