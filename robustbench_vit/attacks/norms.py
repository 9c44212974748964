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

    def steepest_from(self, x: Tensor, grad: Tensor) -> Tensor:
        """The direction to take from `x` in the box: the steepest, unless a wall could take all of it away."""
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
        wall = x0 - radius
        inside = torch.maximum(x, wall, out=wall)
        return torch.minimum(inside, x0 + radius, out=inside).clamp_(0, 1)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def steepest_from(self, x: Tensor, grad: Tensor) -> Tensor:
        return self.steepest(grad)

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

    def steepest_from(self, x: Tensor, grad: Tensor) -> Tensor:
        return self.steepest(grad)

    def on_sphere(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        direction = noise.normal(tuple(x0.shape[1:]), stream).to(x0.dtype)
        return x0 + _column(eps, x0) * self.steepest(direction)

    def in_ball(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        return self.on_sphere(x0, _random_radius(x0, eps, noise, stream), noise, stream)


@dataclass(frozen=True)
class L1:
    """The sum of the changes."""

    name: str = "l1"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    def dual(self, grad: Tensor) -> Tensor:
        return grad.flatten(1).abs().amax(1)

    def project(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """The point nearest to `x` in the intersection of ball and box (arXiv:2103.01208, prop. 2.1).

        Every pixel goes back towards x0 by the same amount, but not past x0 and at least to the wall. The ball is
        smaller by four roundings and pixels are rounded towards x0: a sum of many of them would else exceed eps.
        """
        delta, in_box = x - x0, x.clamp(0, 1)
        way, outside = delta.abs(), (x - in_box).abs()
        radius = eps.double() * (1 - 4 * torch.finfo(x0.dtype).eps)
        back = _shrinkage(way.flatten(1), outside.flatten(1), radius).view(-1, *[1] * (x.dim() - 1))
        left = (way - back).clamp_min(0).to(x.dtype)
        nearest = x0 + delta.sign() * left
        nearest = torch.where((nearest - x0).abs() > left, torch.nextafter(nearest, x0), nearest).clamp(0, 1)
        return torch.where(back <= outside, in_box, nearest)

    def steepest(self, grad: Tensor) -> Tensor:
        """All of it on the largest entry (the first one, where several are largest)."""
        flat = grad.flatten(1)
        largest = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(grad)

    def steepest_from(self, x: Tensor, grad: Tensor) -> Tensor:
        """All of it on the largest entry that can move; a pixel held by a wall would hold up the attack for good."""
        held = ((x <= 0) & (grad < 0)) | ((x >= 1) & (grad > 0))
        return self.steepest(grad.masked_fill(held, 0))

    def on_sphere(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        """Uniform on the sphere: Laplace draws, each the difference of two exponential ones, divided by their size."""
        exponential = -torch.log1p(-noise.uniform((2, *x0.shape[1:]), stream).to(x0.dtype))  # 1 - u lies in (0, 1]
        direction = exponential[:, 0] - exponential[:, 1]
        return x0 + _column(eps, x0) * direction / (_column(self.size(direction), x0) + TINY)

    def in_ball(self, x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
        return self.on_sphere(x0, _random_radius(x0, eps, noise, stream), noise, stream)


def _random_radius(x0: Tensor, eps: Tensor, noise: Noise, stream: int) -> Tensor:
    """(row,) distances of uniform draws from a ball of radius eps (row,); uses the stream after `stream`."""
    u = noise.uniform((1,), stream + 1).flatten().to(x0.dtype)
    return eps.to(x0.dtype) * u ** (1 / x0[0].numel())


def _shrinkage(way: Tensor, outside: Tensor, radius: Tensor) -> Tensor:
    """float64 (row,): the least s ≥ 0 with Σ way - clamp(s, outside, way) ≤ radius (row,); way, outside (row, pixels).

    The sum is piecewise linear in s with kinks at way and outside, and falls to nothing at the largest way. Adding it
    up from there, in float64, keeps it small and exact where it is needed, at the radius.
    """
    kinks, order = torch.cat([way, outside], 1).sort(dim=1, descending=True)
    kinks, radius = kinks.double(), radius.unsqueeze(1)
    starts = torch.where(order < way.shape[1], 1, -1)  # below its way a pixel is left with something, then with no more
    slope = starts.cumsum(1)[:, :-1]
    pieces = slope * (kinks[:, :-1] - kinks[:, 1:])
    left = torch.cat([torch.zeros_like(radius), pieces.cumsum(1)], 1)  # the sum at each kink
    piece = (left < radius).sum(1, keepdim=True)
    above = (piece - 1).clamp(0, slope.shape[1] - 1)
    s = kinks.gather(1, above) - (radius - left.gather(1, above)) / slope.gather(1, above).clamp_min(1)
    return torch.where(piece == kinks.shape[1], 0, s).squeeze(1)


NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2(), "l1": L1()}
