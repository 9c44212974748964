"""How many rows to run at once: what keeps a device busy, as far as its free memory goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from robustbench_vit.engine.oracle import SMALLEST, frozen, out_of_memory, unwrap
from robustbench_vit.errors import OutOfMemoryError

STATE_IMAGES = 16
"""An attack's state and what a step makes on the way take at most so many images per row."""
USABLE = 0.5
"""Of the free memory: allocators keep some for themselves, and other programs want some."""
BUSY = {"cpu": (2**20, 256), "cuda": (2**24, 1024)}
"""Pixel values at a time, and rows at most, beyond which more rows should gain nothing and a step only takes longer,
until which progress is not seen. On CUDA it is a guess that nobody has measured."""


@dataclass(frozen=True)
class Width:
    """How many rows run at a time, and how many images are in a physical batch with and without a gradient."""

    rows: int
    gradients: int
    forwards: int


def automatic_width(model: Any, image: Tensor, device: torch.device, processes: int = 1) -> Width:
    """What suits images like `image` (c, h, w): powers of two, at least eight. `processes` share the device.

    Passes that keep nothing for the way back get batches up to four times as large. Raises OutOfMemoryError when there
    is no memory for eight images.
    """
    pixels, most = BUSY.get(device.type, BUSY["cuda"])
    each, state = bytes_per_image(model, image, device), STATE_IMAGES * image.numel() * image.element_size()
    room = int(USABLE * free_bytes(device) / processes)
    rows = max(_power_of_two(min(pixels // max(image.numel(), 1), most, room // (state + each // 4))), SMALLEST)
    gradients = max(_power_of_two(min(rows, (room - rows * state) // each)), SMALLEST)
    return Width(rows, gradients, min(rows, 4 * gradients))


def _power_of_two(n: int) -> int:
    """The largest one up to n; 0 when there is none."""
    return 1 << (n.bit_length() - 1) if n > 0 else 0


def bytes_per_image(model: Any, image: Tensor, device: torch.device) -> int:
    """Memory that a forward pass and one back to the input take for one of eight images.

    On an accelerator the allocator's peak is read; on a CPU what the forward pass keeps for the way back is added up.
    """
    x = image.to(device).expand(SMALLEST, *image.shape).contiguous()
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), frozen(model):  # a model may draw
            total = _peak(model, x) if device.type == "cuda" else _kept(model, x)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{device} has too little memory for {SMALLEST} images of this model") from error
    return -(-total // SMALLEST)


def _peak(model: Any, x: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    _forth_and_back(model, x)
    return torch.cuda.max_memory_allocated(x.device) - before


def _kept(model: Any, x: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in _tensors(model)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forth_and_back(model, x)
    return sum(kept.values()) + x.numel() * x.element_size()


def _forth_and_back(model: Any, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = unwrap(model(x)).sum()
        if total.requires_grad:  # not behind a step that has no gradient
            torch.autograd.grad(total, x)


def _tensors(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


def free_bytes(device: torch.device) -> int:
    """Memory that could be used now: the device's, or the host's within the limit of its control group."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    limit, used = (_number(CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(min(free, limit - used), 0)


CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its limits (version 2)."""


def _number(path: Path) -> int | None:
    """The number in a file; None when there is no file, or no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
