"""Perturbation budgets: balls of a norm, intersected with the box [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustbench_vit.attacks.noise import Noise

TINY = 1e-12
"""Keeps divisions by a norm finite; the reference's constant."""


class Norm(Protocol):
    """What attacks need of a norm; every function works on rows (row, c, h, w)."""

    @property
    def name(self) -> str:
        """As cards call it."""
        ...

    def size(self, delta: Tensor) -> Tensor:
        """(row,) the norm of each row."""
        ...

    def dual(self, grad: Tensor) -> Tensor:
        """(row,) the dual norm: the largest grad·d over d of norm 1."""
        ...

    def project(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """`x` moved into the ball of radius eps (row,) around x0, then into the box [0, 1]."""
        ...

    def steepest(self, grad: Tensor) -> Tensor:
        """The direction of norm 1 along which the gradient promises most."""
        ...

    def on_sphere(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        """x0 plus a random direction of norm eps (row,)."""
        ...

    def in_ball(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        """x0 plus a uniform draw from the ball of radius eps (row,)."""
        ...


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Linf:
    """The largest change of a single pixel value."""

    name: str = "linf"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def dual(self, grad: Tensor) -> Tensor:
        return grad.flatten(1).abs().sum(1)

    def project(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        radius = _column(eps, x0)
        return torch.minimum(torch.maximum(x, x0 - radius), x0 + radius).clamp(0, 1)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def on_sphere(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        u = 2 * noise.uniform(tuple(x0.shape[1:]), stream).to(x0.dtype) - 1
        return x0 + _column(eps, x0) * u / (_column(self.size(u), u) + TINY)

    def in_ball(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        return x0 + _column(eps, x0) * (2 * noise.uniform(tuple(x0.shape[1:]), stream).to(x0.dtype) - 1)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of the change."""

    name: str = "l2"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).square().sum(1).sqrt()

    def dual(self, grad: Tensor) -> Tensor:
        return self.size(grad)

    def project(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        delta = x - x0
        length = _column(self.size(delta), x)
        return (x0 + delta / (length + TINY) * torch.minimum(_column(eps, x0), length)).clamp(0, 1)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad / (_column(self.size(grad), grad) + TINY)

    def on_sphere(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        direction = noise.normal(tuple(x0.shape[1:]), stream).to(x0.dtype)
        return x0 + _column(eps, x0) * self.steepest(direction)

    def in_ball(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        pixels = x0[0].numel()
        radius = noise.uniform((1,), stream + 1).flatten().to(x0.dtype) ** (1 / pixels)
        return self.on_sphere(x0, eps.to(x0.dtype) * radius, noise, stream)


NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2()}
