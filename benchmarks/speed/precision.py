"""What bf16, channels_last and compiling change: seconds, and the verdicts."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import robustbench_vit as rbv
from benchmarks import public_nets
from benchmarks.side_by_side import board
from benchmarks.speed import models
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.engine.search import Search, asked

NORM = "linf"
CASES = {
    "cnn-pgd-at": (40, None),
    "vit-pgd-at": (20, None),
    "vit-pgd-2-3-16": (20, 2 / 255),
    "cnn-a-adv": (20, 2 / 255),
}
"""Model -> samples, and the radius; None is the board's."""
SETTINGS = {"fp32": Search(), "bf16": Search("bf16"), "channels_last": Search(channels_last=True)}
RAW_SETTINGS = {**SETTINGS, "compiled": Search(compiled=True), "bf16, compiled": Search("bf16", compiled=True)}
RAW_MODELS = {"resnet18-cifar": 64, "vit-tiny-224": 8}
"""Model -> the physical batch."""
RAW_ROUNDS = 5


def measure(quick: bool) -> dict[str, Any]:
    """Whole evaluations of trained models, and raw calls of larger ones."""
    return {"evaluations": _evaluations(quick), "calls": {} if quick else _calls()}


def _evaluations(quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (n, eps) in list(CASES.items())[: 1 if quick else None]:
        if name in models.PUBLIC and not public_nets.available():
            continue
        subject = models.load(name, 8 if quick else n)
        for setting, search in SETTINGS.items():
            began = time.process_time()
            record = rbv.evaluate(
                subject.model, subject.data, None, "autoattack", NORM, eps or board().card.eps[0],
                adversarials=False, reliability=False, precision=search.precision, channels_last=search.channels_last,
            )  # fmt: skip
            robust = [outcome.robust for outcome in record.outcomes]
            found.setdefault(name, {})[setting] = {"seconds": time.process_time() - began, "robust": robust}
            print(name, setting, f"{time.process_time() - began:.1f} s, {sum(robust)} robust", flush=True)
    return found


def _calls() -> dict[str, Any]:
    """Model -> setting -> milliseconds of a forward pass, and of one with the gradient, round by round in turn."""
    found: dict[str, Any] = {}
    for name, batch in RAW_MODELS.items():
        subject = models.load(name, batch)
        x = torch.from_numpy(subject.data.x)
        with frozen(subject.model):
            found[name] = {setting: _rounds(subject.model, x, search) for setting, search in RAW_SETTINGS.items()}
        print(name, {k: round(statistics.median(v["gradient"])) for k, v in found[name].items()}, flush=True)
    return found


def _rounds(model: Any, x: torch.Tensor, search: Search) -> dict[str, list[float]]:
    with asked(model, search, torch.device("cpu")) as ask:

        def gradient() -> None:
            at = x.detach().requires_grad_()
            torch.autograd.grad(ask(at).sum(), at)

        def forward() -> None:
            with torch.no_grad():
                ask(x)

        forward()  # compiles, and warms up
        gradient()
        return {
            "forward": [_milliseconds(forward) for _ in range(RAW_ROUNDS)],
            "gradient": [_milliseconds(gradient) for _ in range(RAW_ROUNDS)],
        }


def _milliseconds(call: Any) -> float:
    began = time.process_time()
    call()
    return 1000 * (time.process_time() - began)


def section(found: dict[str, Any]) -> list[str]:
    """Its lines of the page."""
    return [
        "## Precision and compilation",
        "",
        f"Whole evaluations by `autoattack`, {NORM}, one seed, successes rechecked in IEEE float32. The time ratio is",
        "that of fp32 over the setting: above 1 the setting is faster. 'differ' counts verdicts that are not fp32's.",
        "",
        "| model | setting | n | robust | differ | time ratio |",
        "|---|---|---:|---:|---:|---:|",
        *[_line(name, setting, of) for name, of in found["evaluations"].items() for setting in of],
        "",
        "Raw calls of larger models with random weights, medians of milliseconds, and the ratio to fp32.",
        "",
        "| model | setting | forward | ratio | forward and gradient | ratio |",
        "|---|---|---:|---:|---:|---:|",
        *[_raw_line(name, setting, of) for name, of in found["calls"].items() for setting in of],
        "",
        "tf32 exists on CUDA only, and was not measured.",
        "",
    ]


def _line(name: str, setting: str, of: dict[str, Any]) -> str:
    one, base = of[setting], of["fp32"]
    differ = sum(a != b for a, b in zip(one["robust"], base["robust"], strict=True))
    ratio = base["seconds"] / one["seconds"]
    return f"| {name} | {setting} | {len(one['robust'])} | {sum(one['robust'])} | {differ} | {ratio:.2f} |"


def _raw_line(name: str, setting: str, of: dict[str, Any]) -> str:
    cells = []
    for what in ("forward", "gradient"):
        mine, base = (statistics.median(of[s][what]) for s in (setting, "fp32"))
        cells += [f"{mine:.0f}", f"{base / mine:.2f}"]
    return f"| {name} | {setting} | {' | '.join(cells)} |"
