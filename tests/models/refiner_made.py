"""Refiner-ViTs to test, their images and their attention maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustbench_vit.models.build import build_model


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(model: Any) -> Any:
    """The model in float64 and eval mode with parameters and statistics unlike the initial ones, none of them tiny."""
    generator = seeded(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(noise.abs() + 0.5 if "running_var" in name else tensor + 0.1 * noise)
    return model.double().eval()


def digits(**settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(build_model("digits_refiner_vit", **settings))


def images(n: int = 2, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.rand(n, *shape, generator=seeded(), dtype=torch.float64)


def on_meta(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return build_model(name, **settings)


def maps(model: Any, x: Tensor) -> list[tuple[Tensor | None, Tensor]]:
    """For every block the map that came in and the one that went out."""
    seen: list[tuple[Tensor | None, Tensor]] = []
    hooks = [block.register_forward_hook(lambda _, args, out: seen.append((args[1], out[1]))) for block in model.blocks]
    model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return seen
