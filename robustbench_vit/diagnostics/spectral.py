"""The largest singular value of a layer, as a map on zero-padded images of a fixed size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_vit.diagnostics.layers import WeightLayer, output_size
from robustbench_vit.errors import InputError

TOLERANCE = 1e-4
"""Largest ‖MᵀMv - σ²v‖ / σ² at which the iteration counts as converged: then σ is known within half of it, relatively.

That is the worst case. σ's own error falls with the square of it: on convolutions it is found to be below 1e-8.
"""
DENSE = 2**18
"""Matrices of at most so many entries are written out."""
ITERATIONS = 2000
"""Restarts of the iteration at most."""

_CONVOLVE: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


@dataclass(frozen=True)
class Operator:
    """A layer without its bias as a linear map in float64 on the CPU."""

    apply: Callable[[Tensor], Tensor]  # (batch, *inputs) -> (batch, *outputs)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """M x for each row of x (batch, number of inputs)."""
        with torch.no_grad():
            return self.apply(x.view(-1, *self.inputs)).flatten(1)

    def adjoint(self, y: Tensor) -> Tensor:
        """Mᵀ y for each row of y (batch, number of outputs)."""
        x, made = self._traced_once if len(y) == 1 else self._traced(len(y))
        (found,) = torch.autograd.grad(made, x, y.view_as(made), retain_graph=True)
        return found.flatten(1)

    def _traced(self, batch: int) -> tuple[Tensor, Tensor]:
        """Inputs and outputs with a graph between them; of a linear map its gradient is the adjoint, at any inputs."""
        x = torch.zeros(batch, *self.inputs, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            return x, self.apply(x)

    @cached_property
    def _traced_once(self) -> tuple[Tensor, Tensor]:
        return self._traced(1)

    @property
    def shape(self) -> tuple[int, int]:
        return math.prod(self.outputs), math.prod(self.inputs)


def operator_of(layer: WeightLayer, input_size: Sequence[int]) -> Operator:
    """The layer as a map on inputs of that spatial size."""
    weight = layer.weight.detach().to("cpu", torch.float64)
    if isinstance(layer, nn.Linear):
        return Operator(lambda x: x @ weight.T, (layer.in_features,), (layer.out_features,))
    convolve = next(f for kind, f in _CONVOLVE.items() if isinstance(layer, kind))
    settings = (None, layer.stride, layer.padding, layer.dilation, layer.groups)
    outputs = (layer.out_channels, *output_size(layer, input_size))
    return Operator(lambda x: convolve(x, weight, *settings), (layer.in_channels, *input_size), outputs)


def dense(operator: Operator) -> Tensor:
    """The matrix (outputs, inputs)."""
    outputs, inputs = operator.shape
    if inputs <= outputs:
        return operator.forward(torch.eye(inputs, dtype=torch.float64)).T
    return operator.adjoint(torch.eye(outputs, dtype=torch.float64))


def largest_singular_value(operator: Operator) -> float:
    """From the matrix when it is small, else by Lanczos iteration, power iteration's faster kin, to TOLERANCE.

    Raises InputError when that does not converge.
    """
    if math.prod(operator.shape) <= DENSE or min(operator.shape) <= 2:
        return float(torch.linalg.matrix_norm(dense(operator), 2))
    start = np.random.default_rng(0).standard_normal(min(operator.shape))
    forward, adjoint = _on_vectors(operator.forward), _on_vectors(operator.adjoint)
    if not forward(adjoint(start) if operator.shape[0] < operator.shape[1] else start).any():
        return 0.0  # the iteration cannot start from a zero matrix
    return _iterated(operator.shape, forward, adjoint, start)


def _iterated(
    shape: tuple[int, int],
    forward: Callable[[np.ndarray], np.ndarray],
    adjoint: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
) -> float:
    from scipy.sparse.linalg import ArpackError, LinearOperator, svds

    matrix = LinearOperator(shape, matvec=forward, rmatvec=adjoint, dtype=np.float64)  # type: ignore[call-arg]
    try:
        found: Any = svds(matrix, k=1, tol=TOLERANCE, v0=start, maxiter=ITERATIONS, return_singular_vectors=False)  # type: ignore[arg-type]
    except ArpackError as error:
        raise InputError(f"the largest singular value was not found in {ITERATIONS} iterations: {error}") from error
    return float(found[0])


def _on_vectors(maps: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: maps(torch.from_numpy(np.ascontiguousarray(v)).view(1, -1)).view(-1).numpy()
