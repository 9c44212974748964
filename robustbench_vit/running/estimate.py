"""What a run would take: passes from the cards, time and memory from a short measurement of each model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from robustbench_vit.attacks.rows import Cost
from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.engine.bench import make_bench
from robustbench_vit.engine.cascade import Stage, build_stages
from robustbench_vit.engine.oracle import frozen, unwrap
from robustbench_vit.engine.search import Search
from robustbench_vit.engine.width import bytes_per_image
from robustbench_vit.plan import Plan
from robustbench_vit.running.board import RunOptions, run_folder
from robustbench_vit.running.entries import Prepared, board_plan, chosen, prepare
from robustbench_vit.subject import find_device, placed

WARM_UP, TIMED = 1, 3
"""Passes before and while the clock runs."""


def estimate_board(board: Loaded[BoardCard], workspace: Workspace, options: RunOptions) -> Iterator[str]:
    """The plan in words, line by line. Upper bounds: as if every sample stayed robust to the end."""
    entries = chosen(board, options.entries)
    device, search = find_device(options.device, None), options.search(board)
    search.require(device)
    plan, data = board_plan(board, workspace, options.n, options.smoke)
    plan = plan.in_precision(search.precision)
    checked = [prepare(board, entry, workspace, plan, data) for entry in entries]
    stages = build_stages(plan)
    radii = ", ".join(show_number(eps) for eps in plan.eps)
    yield f"{board.name}: {len(data)} samples of {data.name}/{data.split}, {plan.norm}, eps {radii}"
    yield f"protocol {plan.protocol_id}, seed {plan.seed}, results in {run_folder(board, options)}"
    if search != Search():
        yield f"searched {search.shown}; successes are rechecked in IEEE float32"
    for stage in stages:
        yield from _lanes(stage, data.num_classes)
    for stage, names in _adaptive(checked):
        yield from _lanes(stage, data.num_classes, f", adaptive, on {', '.join(names)}")
    cost = _total(stages, data.num_classes, plan)
    yield f"a robust sample costs at most {_passes(cost)}"
    yield ""
    for entry, prepared in zip(entries, checked, strict=True):
        more = build_stages(prepared.plan)[len(stages) :]
        cost = _total([*stages, *more], data.num_classes, plan)
        image, model = torch.from_numpy(data.x[0]), prepared.subject.model
        with placed(model, device), frozen(model):
            bench = make_bench(model, image, device, options.width, prepared.plan, search)
            memory = bench.width.gradients * bytes_per_image(model, image, device)
            x = image.to(device).expand(bench.width.gradients, *image.shape).contiguous()
            with bench.opened() as opened:
                forward, backward = _measure(opened.searched, x)
        seconds = len(data) * (cost.forwards * forward + cost.backwards * backward) / len(x)
        parameters = prepared.subject.entry["parameters"]
        adaptive = f", with its adaptive attacks {_passes(cost)}" if more else ""
        yield (
            f"{entry.name}: {entry.model} + {entry.defense}, {parameters:,} parameters, width {bench.width.rows},"
            f" {memory / 2**20:,.0f} MiB of activations, at most {_duration(seconds)} on {device}, one thread{adaptive}"
        )


def _adaptive(checked: Sequence[Prepared]) -> list[tuple[Stage, list[str]]]:
    """Every adaptive attack, as it runs on the first of its entries, with the names of them all."""
    found: dict[str, tuple[Stage, list[str]]] = {}
    for prepared in checked:
        for stage in build_stages(prepared.plan)[len(prepared.plan.attacks) :]:
            found.setdefault(stage.plan.name, (stage, []))[1].append(prepared.name)
    return list(found.values())


def _passes(cost: Cost) -> str:
    return f"{cost.forwards:,} forward and {cost.backwards:,} backward passes"


def _lanes(stage: Stage, classes: int, about: str = "") -> Iterator[str]:
    yield f"{stage.plan.name}{about}:"
    for lane in stage.lanes:
        cost = lane.attack.cost(classes)
        turns = lane.spec(classes).turns
        rows = f"{turns} rows" if turns > 1 else "1 row"
        yield f"  {lane.plan.name}: {rows} a sample, {cost.forwards:,} forwards, {cost.backwards:,} backwards"


def _total(stages: list[Stage], classes: int, plan: Plan) -> Cost:
    costs = [lane.attack.cost(classes) for stage in stages for lane in stage.lanes]
    budgets = len(plan.eps)
    return Cost(1 + budgets * sum(c.forwards for c in costs), budgets * sum(c.backwards for c in costs))


def _measure(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass of the whole batch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        forward = _timed(lambda: _forward(model, x), x)
        both = _timed(lambda: _gradient(model, x), x)
    finally:
        torch.set_num_threads(threads)
    return forward, max(both - forward, 0.0)


def _forward(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def _gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(unwrap(model(leaf)).logsumexp(1).sum(), leaf)


def _timed(call: Callable[[], None], x: Tensor) -> float:
    for _ in range(WARM_UP):
        call()
    if x.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMED):
        call()
    if x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
