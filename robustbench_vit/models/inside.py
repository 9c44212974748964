"""What a model that drops tokens offers to attacks that know how it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from robustbench_vit.models.evit import at_keep_rate
from robustbench_vit.models.evit_block import Attended, DroppingBlock, recording

KEEP_ALL = "keep-1"
"""The same weights with every token kept: an exact surrogate."""


@dataclass(frozen=True)
class TokenDropper:
    """A model in which at least one block drops tokens."""

    model: nn.Module

    def recorder(self) -> AbstractContextManager[list[Attended]]:
        """A list that fills with what the dropping blocks see, while it is open."""
        return recording(self.model)

    @property
    def surrogates(self) -> Mapping[str, Callable[[], Any]]:
        """By name: functions that build a model which shares this one's tensors."""
        return {KEEP_ALL: partial(at_keep_rate, self.model, 1.0)}


def inside_of(model: Any) -> TokenDropper | None:
    """What attacks can use of the model; None for one that has nothing, or keeps every token."""
    if not isinstance(model, nn.Module):
        return None
    dropping = [module for module in model.modules() if isinstance(module, DroppingBlock)]
    return TokenDropper(model) if any(block.keep_rate < 1 for block in dropping) else None
