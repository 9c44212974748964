"""Forward times of the 224×224 architectures beside DeiT-S, set against their multiply-accumulates.

`python -m benchmarks.architectures` writes docs/architectures-speed.md (three minutes, one core); `--page` measures
nothing. All models run in turn, `ROUNDS` times over, in one process and one thread; a round's times are compared with
each other only. Seconds are processor time, which depends little on what else the machine does.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.side_by_side import machine
from robustbench_vit.models.build import build_model, register_models
from robustbench_vit.running.memory import keep_freed_memory
from robustbench_vit.storage import write_atomic

BATCH = 8
ROUNDS = 9
BASE = "deit_small_patch16_224"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: (BASE, {}),
    "t2t_vit_14": ("t2t_vit_14", {}),
    "t2t_vit_t_14": ("t2t_vit_t_14", {}),
    "evit_small, keep 1.0": ("evit_small_patch16_224", {"keep_rate": 1.0}),
    "evit_small, keep 0.7": ("evit_small_patch16_224", {"keep_rate": 0.7}),
    "evit_small, keep 0.5": ("evit_small_patch16_224", {"keep_rate": 0.5}),
    "refiner_vit_s": ("refiner_vit_s", {}),
}
"""Label -> the model and its settings; those that are not registered are left out."""

RESULTS = Path(__file__).resolve().parent / "results" / "architectures.json"
REPORT = Path(__file__).resolve().parent.parent / "docs" / "architectures-speed.md"


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached, from each round's times."""

    text: str
    slow: str  # the ratio is the slow label's time over the fast one's,
    fast: str
    per_mac: bool  # divided by the same ratio of their multiply-accumulates
    at_least: float | None = None
    at_most: float | None = None

    def ratios(self, found: dict[str, Any]) -> list[float]:
        """One per round."""
        slow, fast = found["models"][self.slow], found["models"][self.fast]
        divisor = slow["macs"] / fast["macs"] if self.per_mac else 1.0
        return [a / b / divisor for a, b in zip(slow["seconds"], fast["seconds"], strict=True)]

    def line(self, found: dict[str, Any]) -> str:
        """Its line of the page."""
        ratios = self.ratios(found)
        middle = statistics.median(ratios)
        reached = middle >= (self.at_least or 0) and middle <= (self.at_most or float("inf"))
        bound = f"≥ {self.at_least:.2f}" if self.at_least else f"≤ {self.at_most:.2f}"
        spread = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        return f"- {self.text}: {spread}, goal {bound}: {'reached' if reached else 'missed'}."


GOALS = (
    Goal("`t2t_vit_14`'s time over DeiT-S's, over the ratio of their MACs", "t2t_vit_14", BASE, True, at_most=1.15),
    Goal(
        "images/s of `evit_small_patch16_224` at keep 0.7 over those at keep 1.0",
        "evit_small, keep 1.0",
        "evit_small, keep 0.7",
        False,
        at_least=1.35,
    ),
)


def main() -> None:
    """See the module's docstring."""
    if "--page" not in sys.argv:
        torch.set_num_threads(1)
        keep_freed_memory()
        found = {"machine": machine(), **measure()}
        write_atomic(RESULTS, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    page = report(json.loads(RESULTS.read_text()))
    write_atomic(REPORT, page.encode())
    print(page)


def measure(labels: list[str] | None = None, batch: int = BATCH, rounds: int = ROUNDS) -> dict[str, Any]:
    """Multiply-accumulates, parameters and seconds per round of the models with these labels, all by default."""
    register_models()
    chosen = {label: MODELS[label] for label in labels or MODELS if timm.is_model(MODELS[label][0])}
    built = {label: build_model(name, **args) for label, (name, args) in chosen.items()}
    x = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {label: [] for label in built}
    with torch.inference_mode():
        for at in range(rounds + 1):
            for label, model in built.items():
                taken = _seconds(model, x)
                seconds[label] += [taken] if at else []  # the first round warms up
    models = {
        label: {
            "macs": macs(*chosen[label]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds[label],
        }
        for label, model in built.items()
    }
    return {"batch": batch, "rounds": rounds, "models": models}


def macs(name: str, args: dict[str, Any]) -> int:
    """Multiply-accumulates of one image's matrix products and convolutions, counted without computing them."""
    with torch.device("meta"):
        model, x = build_model(name, **args), torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(x)
    return counted.get_total_flops() // 2


def _seconds(model: nn.Module, x: torch.Tensor) -> float:
    began = time.process_time()
    model(x)
    return time.process_time() - began


def report(found: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Speed of the architectures",
        "",
        "<!-- generated by `python -m benchmarks.architectures`; do not edit -->",
        "",
        f"Forward passes of 224×224 images in batches of {found['batch']}: float32, random weights, one thread of a",
        f"CPU. The models run in turn, {found['rounds']} rounds after one to warm up; times are the processor's, and",
        "ratios to `deit_small_patch16_224` are medians over the rounds, with their range. MACs are those of matrix",
        "products and convolutions; the last column is the ratio of the times over that of the MACs.",
        "",
        "| model | parameters | GMACs | images/s | time / DeiT-S's (range) | per MAC |",
        "|---|---:|---:|---:|---:|---:|",
        *[_line(label, found) for label in MODELS if label in found["models"]],
        "",
        *[goal.line(found) for goal in GOALS if {goal.slow, goal.fast} <= set(found["models"])],
        "",
    ]
    lines += [*REFINER, ""] if "refiner_vit_s" in found["models"] else []
    return "\n".join([*lines, f"Made with `python -m benchmarks.architectures` on: {found['machine']}.", ""])


REFINER = (
    "Refiner has no goal: its convolutions over attention maps of 197×197 numbers per head move much memory for few",
    "multiplications, so its time says little about its MACs.",
)


def _line(label: str, found: dict[str, Any]) -> str:
    one, base = found["models"][label], found["models"][BASE]
    ratios = [a / b for a, b in zip(one["seconds"], base["seconds"], strict=True)]
    middle, cost = statistics.median(ratios), one["macs"] / base["macs"]
    cells = (
        f"{one['parameters']:,}",
        f"{one['macs'] / 1e9:.2f}",
        f"{found['batch'] / statistics.median(one['seconds']):.1f}",
        f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{middle / cost:.2f}",
    )
    return f"| {label} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
