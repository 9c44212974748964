"""The samples that checks look at, the model as they may use it, and what they have learnt of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.attacks.losses import LOSSES, largest_other, logit
from robustbench_vit.attacks.noise import Noise, row_key
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Gradient, Objective, spread
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.records.outcome import Outcome, Status

LARGEST_BATCH, PIXELS_AT_A_TIME = 64, 2**20
"""Physical batch: so many images, fewer of large ones."""
ALGORITHM = "reliability"  # in the key of the noise


class OneDraw:
    """A random model held to one draw: equal calls give equal answers, and the global generators are left alone.

    With the draw fixed the model is an ordinary function, whose gradients can be checked like any other's.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self._model = model
        self.seed = seed

    def __call__(self, x: Tensor) -> Any:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(self.seed)
            return self._model(x)

    @contextmanager
    def at(self, seed: int) -> Iterator[None]:
        """While open, another draw answers."""
        kept, self.seed = self.seed, seed
        try:
            yield
        finally:
            self.seed = kept


def choose(outcomes: Sequence[Outcome], most: int) -> list[int]:
    """Positions of at most `most` correctly classified samples, ascending: survivors first, evenly spread.

    Evenly, because data sets may be sorted by class.
    """
    survived = [i for i, o in enumerate(outcomes) if o.robust]
    broken = [i for i, o in enumerate(outcomes) if o.status is Status.BROKEN]
    taken = _evenly(survived, most)
    return sorted(taken + _evenly(broken, most - len(taken)))


def _evenly(positions: list[int], most: int) -> list[int]:
    if len(positions) <= most:
        return positions
    return [positions[i * len(positions) // most] for i in range(most)]


class Probes:
    """Correctly classified samples with the model around them; every answer is asked for once."""

    def __init__(
        self,
        model: Any,
        x: Tensor,
        y: Tensor,
        ids: Sequence[str],
        norm: str,
        eps: float,
        seed: int,
        random: bool,
    ) -> None:
        """x (row, c, h, w) in [0, 1], y (row,); `random` holds the model to one draw at a time."""
        self.one_draw = OneDraw(model, seed) if random else None
        self.oracle = Oracle(self.one_draw or model, x.device, min(LARGEST_BATCH, PIXELS_AT_A_TIME // x[0].numel()))
        self.oracle.count(len(x))
        self.x, self.y = x, y
        self.ball = NORMS[norm]
        self.eps = torch.full((len(x),), eps, dtype=x.dtype, device=x.device)
        keys = [row_key(seed, sample, ALGORITHM, 0, 0) for sample in ids]
        self.noise = Noise(torch.tensor(keys, dtype=torch.int64, device=x.device))

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def cross_entropy(self) -> Gradient:
        """Of the cross-entropy at the samples."""
        return self.gradient(self.x, self.loss)

    @cached_property
    def margin(self) -> Gradient:
        """Of z_j - z_y at the samples, j being the runner-up of each."""
        return self.gradient(self.x, self.towards_rival)

    @cached_property
    def rival(self) -> Tensor:
        """int64 (row,): the runner-up class at each sample."""
        return self.cross_entropy.logits.scatter(1, self.y.unsqueeze(1), -torch.inf).argmax(1)

    def loss(self, z: Tensor, at: Tensor) -> Tensor:
        """The objective cross-entropy."""
        return LOSSES["ce"](z, self.y[at], self.y[at])

    def towards_rival(self, z: Tensor, at: Tensor) -> Tensor:
        """The objective z_j - z_y with a fixed class j: smooth wherever the model is."""
        return logit(z, self.rival[at]) - logit(z, self.y[at])

    def gradient(self, x: Tensor, objective: Objective) -> Gradient:
        """Logits, objective and gradient at x (row, …) of all probes in order."""
        return self.oracle.gradient(x, objective)

    def logits(self, x: Tensor) -> Tensor:
        """(row, classes) without a gradient."""
        return self.oracle.logits(x)

    def direction(self, grad: Tensor) -> Tensor:
        """The step of size 1 in the budget's norm that `grad` suggests.

        The steepest one, except in l1, where that would change a single pixel: there `grad` itself, scaled.
        """
        if self.ball.name == "l1":
            return grad / spread(self.ball.size(grad).clamp_min(torch.finfo(grad.dtype).tiny), grad)
        return self.ball.steepest(grad)

    def moved(self, x: Tensor, grad: Tensor, step: Tensor, radius: Tensor) -> Tensor:
        """`x` after a step of size `step` (row,) along `grad`, inside the budget `radius` (row,); NaN moves nothing."""
        return self.ball.project(x + spread(step, x) * self.direction(finite(grad)), self.x, radius)

    @contextmanager
    def draw(self, number: int) -> Iterator[None]:
        """While open, another draw of the random model answers; nothing changes for a deterministic one."""
        with self.one_draw.at(self.one_draw.seed + 1 + number) if self.one_draw else nullcontext():
            yield


def loss_of(z: Tensor, y: Tensor) -> Tensor:
    """(row,) cross-entropy in float64: it still tells apart what float32 rounds to 0."""
    return LOSSES["ce"](z.double(), y, y)


def margin_of(z: Tensor, y: Tensor) -> Tensor:
    """(row,) max_{j≠y} z_j - z_y in float64."""
    z = z.double()
    return largest_other(z, y) - logit(z, y)


def spread_of(z: Tensor) -> Tensor:
    """(row,) float64: largest minus smallest logit, the scale on which changes of the logits count."""
    return (z.amax(1) - z.amin(1)).double()


def float_step(z: Tensor) -> Tensor:
    """(row,) float64: the distance of neighbouring float32 numbers at each row's largest logit."""
    return z.abs().amax(1).double() * torch.finfo(torch.float32).eps


def norms(grad: Tensor) -> Tensor:
    """(row,) float64 Euclidean norms."""
    return grad.double().flatten(1).square().sum(1).sqrt()


def finite(grad: Tensor) -> Tensor:
    """`grad` with 0 in place of what is not finite."""
    return grad.nan_to_num(0.0, 0.0, 0.0)
