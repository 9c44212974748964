"""Lanes as the speed measurements run them: cut to some steps, with rows that never fall."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.models import Subject, right
from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.registry import algorithms
from robustbench_vit.cards import Loaded, open_workspace
from robustbench_vit.engine.bench import Bench
from robustbench_vit.engine.lanes import Lane, run_lane
from robustbench_vit.engine.waiting import Samples
from robustbench_vit.engine.width import Width
from robustbench_vit.plan import LanePlan

EPS = 1e-5
"""A budget in which nothing falls, so that every row stays to its end."""


def lane_of(name: str, norm: str, steps: int) -> Lane:
    """The lane of an attack card, cut to so many steps or queries, one target and one restart."""
    (loaded,) = open_workspace().lanes(name, norm)
    cut = {"steps": steps, "queries": steps, "targets": 1, "restarts": 1}
    changed = {key: min(value, cut[key]) for key, value in loaded.card.settings.items() if key in cut}
    card = Loaded(loaded.name, loaded.path, loaded.shown, loaded.card.model_copy(update=changed))
    version = algorithms.get(card.card.algorithm, card.shown).algorithm_version
    plan = LanePlan(card, {"algorithm": card.card.algorithm, **card.card.settings}, version, norm)
    return Lane(plan, build_attack(card, norm))


def rows_of(subject: Subject, rows: int) -> Samples:
    """So many samples that the model classifies right, with their classes ranked."""
    x, y = right(subject, rows)
    with torch.no_grad():
        ranking = torch.cat([subject.model(part) for part in x.split(8)]).argsort(dim=1, descending=True)
    return Samples(tuple(map(str, range(rows))), x, y, ranking)


def run(lane: Lane, model: Any, samples: Samples, width: Width) -> int:
    """Runs the lane to its end; returns the passes it wasted."""
    bench = Bench(model, torch.device("cpu"), width, 0)
    return sum(retired.wasted for retired in run_lane(lane, samples, EPS, bench, {}))
