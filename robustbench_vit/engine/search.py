"""How a model is asked while adversarial images are searched: the precision, and what only makes it faster.

Only the search: clean answers, intake, diagnostics and the recheck of every success ask the model itself, in IEEE
float32, not compiled, in its own memory format.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.engine.float32 import ieee_float32, tf32_float32
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.errors import InputError, ModelError, UnknownNameError
from robustbench_vit.plan import PRECISIONS, Precision

Ask = Callable[[Tensor], Tensor]
"""From images (m, c, h, w) to logits (m, classes)."""

_SHAPES = 128
"""Compiled versions that torch may keep of one function: sizes of batches, with a gradient and without."""


@dataclass(frozen=True)
class Search:
    """The precision, which is part of the protocol, and settings that change no more than roundings.

    fp32 is IEEE float32; tf32 lets CUDA round the factors of products; bf16 is torch's automatic mixed precision with
    bfloat16. Images, logits and gradients are float32 in each.
    """

    precision: Precision = "fp32"
    compiled: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)

    @property
    def few_shapes(self) -> bool:
        """Whether every further size of a batch costs a compilation."""
        return self.compiled

    @property
    def shown(self) -> str:
        """In words: 'in bf16, compiled, channels last'."""
        parts = [f"in {self.precision}", "compiled" * self.compiled, "channels last" * self.channels_last]
        return ", ".join(part for part in parts if part)

    @property
    def ran(self) -> dict[str, bool]:
        """What a record's provenance says of it; the precision stands in the protocol."""
        return {"compiled": self.compiled, "channels_last": self.channels_last}

    def require(self, device: torch.device) -> None:
        """Raises InputError when no model can be asked so on this device."""
        if self.precision == "tf32":
            _require_tf32(device)
        if self.precision == "bf16" and not torch.amp.is_autocast_available(device.type):
            raise InputError(f"precision bf16: torch has no mixed precision on a device of type '{device.type}'")
        if self.compiled:
            _require_compiler(device)


def _require_tf32(device: torch.device) -> None:
    if device.type != "cuda":
        raise InputError(f"precision tf32 exists on CUDA devices only, not on '{device}'; use fp32 or bf16")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise InputError(
            f"precision tf32 needs a GPU of compute capability 8.0 or higher, '{device}' has {major}.{minor}; use fp32"
        )


def _require_compiler(device: torch.device) -> None:
    """Raises InputError when what torch.compile needs on a device isn't installed."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("--compile (compiled=True) needs the package triton on a GPU; install it, or don't compile")
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise InputError(
            f"--compile (compiled=True) needs a C++ compiler, and there is no '{name}';"
            " install it, name another one in the environment variable CXX, or don't compile"
        )


@contextmanager
def asked(model: Any, search: Search, device: torch.device) -> Iterator[Ask]:
    """While open, a function that asks `model` as `search` says; the model itself stays as it is.

    Open it once for many questions: what is compiled is kept only while it is open. Raises InputError where `require`
    does, and ModelError for a model that cannot be copied or compiled, the latter also while it is open.
    """
    search.require(device)
    arithmetic = tf32_float32() if search.precision == "tf32" else ieee_float32()
    with arithmetic, _compiling() if search.compiled else nullcontext():
        yield _asking(model, search, device)


def _asking(model: Any, search: Search, device: torch.device) -> Ask:
    module = _channels_last_copy(model) if search.channels_last else model
    ask = _unwrapped(torch.compile(module, dynamic=False) if search.compiled else module)
    if search.precision == "bf16":
        ask = _in_bfloat16(ask, device)
    if search.channels_last:
        ask = _in_channels_last(ask)
    return _in_few_shapes(ask) if search.few_shapes else ask


def _unwrapped(model: Any) -> Ask:
    def ask(x: Tensor) -> Tensor:
        return unwrap(model(x))

    return ask


def _in_bfloat16(ask: Ask, device: torch.device) -> Ask:
    def rounded(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = ask(x)
        return logits.float()

    return rounded


def _in_channels_last(ask: Ask) -> Ask:
    def rearranged(x: Tensor) -> Tensor:
        return ask(_ChannelsLast.apply(x))

    return rearranged


class _ChannelsLast(torch.autograd.Function):
    """Images with the channels innermost in memory; their gradient in the usual format, which attacks may view flat."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()


def _channels_last_copy(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"channels_last rearranges the weights of an nn.Module, and this model is a {type(model).__name__};"
            " leave --channels-last (channels_last=True) out"
        )
    try:
        return copy.deepcopy(model).to(memory_format=torch.channels_last)
    except Exception as error:  # a module's own attributes decide how copying fails
        raise ModelError(
            f"channels_last needs a copy of the model, and it cannot be copied ({_first_line(error)});"
            " leave --channels-last (channels_last=True) out"
        ) from error


def _in_few_shapes(ask: Ask) -> Ask:
    """Batches padded to a power of two, by their last image; the oracle's have these sizes already."""

    def padded(x: Tensor) -> Tensor:
        missing = 2 ** (len(x) - 1).bit_length() - len(x)
        return ask(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]))[: len(x)] if missing else ask(x)

    return padded


@contextmanager
def _compiling() -> Iterator[None]:
    """While open, torch keeps enough compiled versions, and what it cannot compile is a ModelError."""
    from torch._dynamo import config  # where torch's documentation says these two are set
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(cache_size_limit=_SHAPES, accumulated_cache_size_limit=8 * _SHAPES):
            yield
    except TorchDynamoException as error:
        raise ModelError(
            f"the model cannot be compiled here ({_first_line(getattr(error, 'inner_exception', error))});"
            " leave --compile (compiled=True) out"
        ) from error


def _first_line(error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
