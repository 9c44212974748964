"""Residual networks of units with an IC layer, for 32×32 images (arXiv:1905.05928)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.layers.classifier import ClassifierHead
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.builder import built
from robustbench_vit.models.ic_layer import IC

UNITS = ("relu-ic-conv", "ic-conv-relu", "conv-relu-ic")
"""Orders of the three parts of a unit; the paper recommends the first for residual networks."""

EXPANSION = 4
"""Output channels of a bottleneck block over those of its 3×3 convolution."""


class ICBlock(nn.Module):
    """x ↦ shortcut(x) + unit(…unit(x)): two 3×3 units, or a bottleneck of 1×1, 3×3 and 1×1 units.

    The 3×3 unit that comes first has the stride. The shortcut is a bare 1×1 convolution when the shape changes.
    """

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, unit: str, p: float) -> None:
        super().__init__()
        self.outputs = width * EXPANSION if bottleneck else width
        convs = [_conv(inputs, width, 3, stride), _conv(width, width, 3)]
        if bottleneck:
            convs = [_conv(inputs, width, 1), _conv(width, width, 3, stride), _conv(width, self.outputs, 1)]
        self.units = nn.Sequential(*[_unit(unit, conv, p) for conv in convs])
        same = inputs == self.outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, self.outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.units(x)


class ICResNet(nn.Module):
    """Stem, three stages of `ICBlock`, average pooling and a linear layer; images of any size, at best 32×32.

    Every weight layer stands in a unit of the same order, the stem without what would see the image and the linear
    layer without what would see the logits. All three orders have the same parameters and IC layers.
    """

    def __init__(
        self,
        depth: int,
        bottleneck: bool = False,
        widths: tuple[int, int, int] = (16, 32, 64),
        unit: str = "relu-ic-conv",
        p: float = 0.05,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        img_size: int | tuple[int, int] | None = None,
    ) -> None:
        """`depth` counts the convolutions but shortcuts, and the linear layer: 6n + 2, with bottlenecks 9n + 2.

        `p` is the IC layers' dropout, `drop_rate` one before the linear layer. `img_size` changes nothing; it is here
        so that the settings of a Transformer build this model too. Raises InputError for what cannot be built.
        """
        super().__init__()
        blocks = _blocks(depth, bottleneck)
        _require_unit(unit, p)
        self.num_classes, self.in_chans = num_classes, in_chans
        self.stem = _trim(unit, _unit(unit, _conv(in_chans, widths[0], 3), p), after=True)
        stages, inputs, self.feature_info = [], widths[0], []
        for i, width in enumerate(widths):
            stage = nn.Sequential()
            for k in range(blocks):
                stage.append(ICBlock(inputs, width, 2 if i and not k else 1, bottleneck, unit, p))
                inputs = width * EXPANSION if bottleneck else width
            stages.append(stage)
            self.feature_info.append({"module": f"stages.{i}", "num_chs": inputs, "reduction": 2**i})
        self.stages = nn.Sequential(*stages)
        self.final = _trim(unit, _unit(unit, nn.Conv2d(inputs, 1, 1), p), after=False)
        self.num_features = self.head_hidden_size = inputs
        self.head = ClassifierHead(inputs, num_classes, global_pool, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's features, (n, c, h / 4, w / 4), as the linear layer's unit has them before pooling."""
        return self.final(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new linear layer in, or none for 0 classes."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refused: a second forward pass would move the running statistics twice in a step."""
        if enable:
            raise InputError("ICResNet has no gradient checkpointing: it would update batch statistics twice a step")


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _unit(order: str, conv: nn.Conv2d, p: float) -> nn.Sequential:
    """Convolution, ReLU and IC layer in that order; children are called as in `order`."""
    names = order.split("-")
    features = conv.in_channels if names.index("ic") < names.index("conv") else conv.out_channels
    parts = {"conv": conv, "relu": nn.ReLU(), "ic": IC(features, p, 1)}
    return nn.Sequential(OrderedDict((name, parts[name]) for name in names))


def _trim(order: str, unit: nn.Sequential, after: bool) -> nn.Sequential:
    """The unit from its convolution on, or what stands before the convolution."""
    names = order.split("-")
    at = names.index("conv")
    kept = names[at:] if after else names[:at]
    return nn.Sequential(OrderedDict((name, unit.get_submodule(name)) for name in kept))


def _blocks(depth: int, bottleneck: bool) -> int:
    """Blocks per stage."""
    layers = 9 if bottleneck else 6
    if depth < layers + 2 or (depth - 2) % layers:
        raise InputError(f"depth {depth}: three equal stages need a depth of {layers}n + 2, n at least 1")
    return (depth - 2) // layers


def _require_unit(unit: str, p: float) -> None:
    if unit not in UNITS:
        raise InputError(f"unit '{unit}' is none of {', '.join(UNITS)}")
    if not 0 <= p < 1:
        raise InputError(f"dropout p is a probability in [0, 1), got {p:g}")


def _cfg(input_size: tuple[int, int, int] = (3, 32, 32)) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": input_size,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }


default_cfgs = generate_default_cfgs(
    {
        "ic_resnet20": _cfg(),
        "ic_resnet56": _cfg(),
        "ic_resnet110": _cfg(),
        "ic_resnet164_bottleneck": _cfg(),
        "digits_ic_resnet": {**_cfg((1, 8, 8)), "mean": (0.0,), "std": (1.0,)},
    }
)


def _create(name: str, pretrained: bool, given: dict[str, Any], **defaults: Any) -> ICResNet:
    features = {"out_indices": (0, 1, 2), "flatten_sequential": True}
    return built(ICResNet, name, pretrained, defaults, given, feature_cfg=features)


@register_model
def ic_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """IC-ResNet-20 for 32×32 images: dropout after batch normalisation before each weight layer, 273,066 parameters."""
    return _create("ic_resnet20", pretrained, kwargs, depth=20)


@register_model
def ic_resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """IC-ResNet-56 for 32×32 images."""
    return _create("ic_resnet56", pretrained, kwargs, depth=56)


@register_model
def ic_resnet110(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """IC-ResNet-110 for 32×32 images, 1,734,666 parameters."""
    return _create("ic_resnet110", pretrained, kwargs, depth=110)


@register_model
def ic_resnet164_bottleneck(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """IC-ResNet-164 for 32×32 images, of bottleneck blocks that are four times as wide outside (arXiv:1603.05027)."""
    return _create("ic_resnet164_bottleneck", pretrained, kwargs, depth=164, bottleneck=True)


@register_model
def digits_ic_resnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """IC-ResNet-8 for 8×8 grey images."""
    return _create("digits_ic_resnet", pretrained, kwargs, depth=8)
