"""Several processes, a device each, that train one model: everyone takes an equal share of every batch.

`accelerate` starts them (`accelerate launch`) and carries what they tell each other. Weights start alike, every
process gets the mean of all gradients, and a sample's noise hangs on its key, so they stay alike to the bit.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_vit.errors import InputError


@dataclass(frozen=True)
class Shares:
    """Which share of every batch this process takes, of how many."""

    index: int = 0
    number: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.index == 0

    def of(self, rows: Tensor) -> Tensor:
        """This process's share of `rows`; together the shares are the whole."""
        return rows[self.index :: self.number]

    def positions(self, samples: int) -> list[int]:
        """Likewise of the samples 0, 1, …"""
        return list(range(self.index, samples, self.number))

    @torch.no_grad()
    def average(self, values: Sequence[Tensor]) -> None:
        """Puts the mean over all processes in the place of each value."""
        if self.number == 1 or not values:
            return
        mean = _reduced(torch.cat([value.detach().flatten() for value in values]), "mean")
        for value, part in zip(values, mean.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))

    def total(self, counts: Tensor) -> Tensor:
        """The sum over all processes."""
        return counts if self.number == 1 else _reduced(counts, "sum")

    def wait(self) -> None:
        """Until every process is here."""
        if self.number > 1:
            _state(False).wait_for_everyone()


ALONE = Shares()


def averaged(model: nn.Module) -> list[Tensor]:
    """What processes have to agree on after a backward pass: the gradients, and batch normalisation's statistics.

    Batches are normalised by the statistics of a process's own share, as is common; only the running ones are averaged.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    return gradients + [kept for m in layers for kept in (m.running_mean, m.running_var) if kept is not None]


def find_shares(device: str) -> tuple[Shares, torch.device]:
    """This process's share and its device: the one asked for, or with several processes its own of that kind.

    Raises InputError when several were started and `accelerate` is not installed.
    """
    if processes() == 1:
        return ALONE, torch.device(device)
    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            f"{processes()} processes were started to train together (WORLD_SIZE), which needs accelerate:"
            " pip install 'robustbench_vit[distributed]'"
        )
    state = _state(device == "cpu")
    return Shares(state.process_index, state.num_processes), state.device


def processes() -> int:
    """How many processes were started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Whether this process speaks for all of them."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def require_shares(shares: Shares, batch: int, whole_batch: str | None) -> None:
    """Raises InputError when batches cannot be shared equally, or the loss `whole_batch` has to see whole ones."""
    if shares.number > 1 and batch % shares.number:
        raise InputError(
            f"a batch of {batch} samples can't be cut into {shares.number} equal shares;"
            " choose a batch_size, or a number of processes, that divides"
        )
    if shares.number > 1 and whole_batch is not None:
        raise InputError(f"the loss '{whole_batch}' decides by whole batches, so it trains in one process only")


def _state(cpu: bool) -> Any:
    """accelerate's state, one per process: the first call sets it up."""
    from accelerate import PartialState

    return PartialState(cpu=cpu)


def _reduced(value: Tensor, how: str) -> Tensor:
    from accelerate.utils import reduce

    return reduce(value, how)  # type: ignore[return-value]
