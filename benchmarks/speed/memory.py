"""Peak memory per row of every lane, beside that of the raw forward pass with the gradient to the input.

Every point is a process of its own (`python -m benchmarks.speed.memory MODEL WHAT ROWS` prints its peak), in which
every block above 16 KiB gets pages of its own from the system and gives them back when freed, so that the peak of the
resident memory is that of what was alive. What doesn't grow with the rows cancels out of the slope.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import lanes, models
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.engine.width import Width

MODELS = ("vit-tiny-224", "resnet18-cifar")
JUDGED = "vit-tiny-224"
"""The goal is one for 224×224; smaller images drown in activations and are shown only."""
RAW = "raw"
LANES = {"apgd-ce": 2, "apgd-t": 2, "fab-t": 2, "square": 3}
"""Attack card, and the steps or queries it is cut to: none needs more memory later."""
ROWS = (8, 16, 24)
GOAL = 16.0
"""Images more than the raw calls need, per row."""
NORM = "linf"
ROOT = Path(__file__).resolve().parents[2]


def peak_bytes() -> int:
    """The largest resident memory of this process so far.

    Not `getrusage`: on Linux its figure begins with that of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(kib)


def work(model_name: str, what: str, rows: int) -> None:
    """The raw calls (`RAW`), or a lane with as many rows at once."""
    subject = models.load(model_name, rows)
    with frozen(subject.model):
        if what == RAW:
            for _ in range(2):
                _raw(subject.model, torch.from_numpy(subject.data.x))
            return
        lane = lanes.lane_of(what, NORM, LANES[what])
        lanes.run(lane, subject.model, lanes.rows_of(subject, rows), Width(rows, rows, rows))


def _raw(model: Any, x: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(model(at).sum(), at)
    return grad


def measured(model_name: str, what: str, rows: int) -> int:
    """The peak of `work` in a fresh process, in bytes."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", model_name, what, str(rows)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "16384",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def slope(points: dict[int, int]) -> float:
    """Bytes per row, by least squares over rows -> bytes."""
    return statistics.linear_regression(list(points), list(points.values())).slope


def measure(quick: bool) -> dict[str, Any]:
    """Model -> the bytes of an image, and of every lane and of the raw calls the peaks by rows."""
    found: dict[str, Any] = {}
    for name in MODELS:
        peaks = {}
        for what in (RAW, *LANES):
            peaks[what] = {rows: measured(name, what, rows) for rows in (ROWS[:2] if quick else ROWS)}
            print(name, what, f"{slope(peaks[what]) / 2**20:.2f} MiB per row", flush=True)
        found[name] = {"image": models.load(name, 1).data.x.nbytes, "peaks": peaks}
    return found


def section(found: dict[str, Any]) -> list[str]:
    """Its lines of the page."""
    over = [f"{lane} ({more:.1f})" for lane, more in extras(found[JUDGED]).items() if more > GOAL]
    verdict = f"Over it: {', '.join(over)}." if over else "Every lane keeps to it."
    return [
        "## Memory per row",
        "",
        "What one more row in the pool adds to the peak of the resident memory: the slope over several widths, each in",
        "a process of its own, the physical batch being the width. The raw calls are one forward pass with the",
        "gradient to the input of the same batch, parameters frozen, and include the images themselves. An image is",
        f"3·224·224 float32 values at 224×224. Norm: {NORM}.",
        "",
        "| model | raw, MiB | lane | MiB | more than raw, images |",
        "|---|---:|---|---:|---:|",
        *[line for name, one in found.items() for line in _rows(name, one)],
        "",
        f"The goal at 224×224 is at most {GOAL:g} images more than the raw calls. {verdict}",
        "A negative number is a lane that takes no gradients.",
        "",
    ]


def extras(one: dict[str, Any]) -> dict[str, float]:
    """Lane -> images per row that it needs more than the raw calls do."""
    slopes = {what: slope({int(rows): peak for rows, peak in points.items()}) for what, points in one["peaks"].items()}
    return {lane: (slopes[lane] - slopes[RAW]) / one["image"] for lane in slopes if lane != RAW}


def _rows(name: str, one: dict[str, Any]) -> list[str]:
    raw = slope({int(rows): peak for rows, peak in one["peaks"][RAW].items()})
    return [
        f"| {name} | {raw / 2**20:.1f} | {lane} | {(raw + more * one['image']) / 2**20:.1f} | {more:.1f} |"
        for lane, more in extras(one).items()
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(peak_bytes())
