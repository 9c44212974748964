"""How long a big board takes from its records to every format of its table, and how much memory.

Every round is a process of its own (`python -m benchmarks.speed.boards FOLDER` prints what it took), which imports
nothing that `rbvit table` doesn't. The outcomes are made up; their files are as big as those of an evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robustbench_vit.boards import FORMATS, build_table, render
from robustbench_vit.boards.generated import board_folder, load_records
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.plan import resolve_attack
from robustbench_vit.records import Outcome, Record, Status

ENTRIES = 100
SAMPLES = 10_000
ROUNDS = 3
GOAL_SECONDS = 10.0
GOAL_BYTES = 2**30
NAME = "big"
ATTACK = "autoattack"
LANES = {"apgd-ce": 0.9, "apgd-t": 0.09, "fab-t": 0.005, "square": 0.005}
"""The lanes, and of the samples that fall the share that each of them breaks."""
CARD: dict[str, Any] = {
    "version": 1,
    "about": "Made-up numbers.",
    "reference": "none",
    "data": {"name": "cifar10", "split": "test", "samples": "all"},
    "norm": "linf",
    "eps": "8/255",
    "attacks": [ATTACK],
    "precision": "fp32",
    "seed": 0,
    "confidence": 0.95,
    "interval": "wilson",
    "alpha": 0.05,
    "columns": [
        "entry",
        "model",
        "defense",
        "clean",
        f"{ATTACK}:interval",
        f"{ATTACK}:survivors",
        f"{ATTACK}:forwards",
        f"{ATTACK}:backwards",
        "reliability",
        "seconds",
    ],
}
ROOT = Path(__file__).resolve().parents[2]


def write_board(folder: Path, entries: int, samples: int) -> None:
    """Puts a board with its records into `folder`, a workspace."""
    names = [f"entry-{i:03}" for i in range(entries)]
    about = [{"name": name, "model": "resnet18", "defense": "standard", "weights": f"{name}.pt"} for name in names]
    (folder / "leaderboards").mkdir()
    text = yaml.safe_dump({**CARD, "entries": about}, sort_keys=False)
    (folder / "leaderboards" / f"{NAME}.yaml").write_text(text, encoding="utf-8")
    protocol = _protocol(folder, samples)
    noise = np.random.default_rng(0)
    difficulty = noise.normal(size=samples)
    for i, entry in enumerate(about):
        strength = 0.6 * i / entries - 0.3
        outcomes = _outcomes(difficulty + noise.normal(size=samples) / 4 < strength, noise)
        record = Record(entry, protocol, outcomes, (), {"seconds": {ATTACK: 100.0 * i}})
        record.save(folder / "leaderboards" / NAME / "records" / f"{entry['name']}.json")


def _protocol(folder: Path, samples: int) -> dict[str, Any]:
    data = {"name": "cifar10", "split": "test", "n": samples, "sample_ids_sha256": hashlib.sha256(b"").hexdigest()}
    attack = resolve_attack(_workspace(folder), ATTACK, "linf")
    head = {"profile": "full", "criterion": "untargeted", "norm": "linf", "eps": [8 / 255], "precision": "fp32"}
    return {**head, "attacks": {ATTACK: attack}, "data": data}


def _workspace(folder: Path) -> Workspace:
    return Workspace((builtin_layer(), folder))


def _outcomes(robust: np.ndarray, noise: np.random.Generator) -> tuple[Outcome, ...]:
    """An outcome per sample: one in twenty is misclassified, the others that are not robust fall to one of LANES."""
    by = noise.choice(list(LANES), len(robust), p=list(LANES.values()))
    target = noise.integers(0, 10, len(robust))
    forwards = noise.integers(5, 9000, len(robust))
    distance = (8 / 255 * (1 - noise.random(len(robust)) ** 8)).astype(np.float32)
    wrong = noise.random(len(robust)) < 0.05
    return tuple(
        Outcome(
            f"cifar10:{i}",
            ATTACK,
            "linf",
            8 / 255,
            "untargeted",
            *_fate(bool(wrong[i]), bool(robust[i]), str(by[i]), int(target[i]), float(distance[i])),
            forwards=1 if wrong[i] else int(forwards[i]),
            backwards=0 if wrong[i] else int(forwards[i]) // 3,
        )
        for i in range(len(robust))
    )


def _fate(wrong: bool, robust: bool, by: str, target: int, distance: float) -> tuple[Any, ...]:
    """An outcome's fields from the status to the distance."""
    if wrong or robust:
        return Status.MISCLASSIFIED if wrong else Status.SURVIVED, None, None, None, None
    return Status.BROKEN, by, 0, target, distance


def work(folder: Path) -> dict[str, float]:
    """Seconds from the records to the table in every format; those of the processor, and the peak, since the start."""
    began = time.perf_counter()
    workspace = _workspace(folder)
    board = workspace.board(NAME)
    records = load_records(board_folder(board) / "records")
    loaded = time.perf_counter()
    table = build_table(board, workspace, records)
    built = time.perf_counter()
    for form in FORMATS:
        render(table, form)
    return {
        "load": loaded - began,
        "table": built - loaded,
        "render": time.perf_counter() - built,
        "processor": time.process_time(),
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The largest resident memory of this process so far; as in `memory`, which imports torch."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(kib)


def measure(quick: bool) -> dict[str, Any]:
    """The board's size, and what every round took; `wall` counts the start of Python and the imports in."""
    entries, samples = (10, 1000) if quick else (ENTRIES, SAMPLES)
    with tempfile.TemporaryDirectory() as name:
        write_board(Path(name), entries, samples)
        size = sum(path.stat().st_size for path in Path(name).rglob("*.json"))
        rounds = [_round(name) for _ in range(1 if quick else ROUNDS)]
    return {"entries": entries, "samples": samples, "bytes": size, "formats": list(FORMATS), "rounds": rounds}


def _round(folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.speed.boards", folder]
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = {"wall": time.perf_counter() - began, **json.loads(done.stdout)}
    print({name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


def section(found: Mapping[str, Any]) -> list[str]:
    """Its lines of the page."""
    middle = {name: statistics.median(one[name] for one in found["rounds"]) for name in found["rounds"][0]}
    worst = {name: max(one[name] for one in found["rounds"]) for name in ("wall", "peak_bytes")}
    kept = worst["wall"] < GOAL_SECONDS and worst["peak_bytes"] < GOAL_BYTES
    cells = [f"{middle[name]:.2f}" for name in ("load", "table", "render", "wall", "processor")]
    return [
        "## A big board",
        "",
        f"A board of {found['entries']:,} entries with {found['samples']:,} samples each under {ATTACK}'s"
        f" {len(LANES)} lanes, made up: {found['bytes'] / 2**20:.0f} MiB",
        f"of records, to its table in every format ({', '.join(found['formats'])}). Seconds, medians",
        f"of {len(found['rounds'])} processes: of the wall, which other work on the machine stretches, for each part"
        " and for the whole",
        "with the start of Python and the imports; and of the processor, for the whole.",
        "",
        "| load | table | render | whole | processor | peak memory, MiB |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| {' | '.join(cells)} | {middle['peak_bytes'] / 2**20:.0f} |",
        "",
        f"The goal is less than {GOAL_SECONDS:g} s and {GOAL_BYTES / 2**30:g} GiB:"
        f" {'every process keeps to it' if kept else 'missed'}, the slowest took {worst['wall']:.1f} s.",
        "",
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(work(Path(sys.argv[1]))))
