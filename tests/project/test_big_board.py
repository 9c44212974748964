"""The measurement of a big board: it runs on a small one, and says when its goal is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed import boards
from robustbench_vit.boards import FORMATS


def test_a_round_tells_what_every_part_took(tmp_path: Path) -> None:
    boards.write_board(tmp_path, entries=3, samples=40)
    assert len([*tmp_path.glob("leaderboards/big/records/*.json")]) == 3
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.speed import boards;"
        f"print(json.dumps([boards.work(Path({str(tmp_path)!r})), 'torch' in sys.modules, 'pandas' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=boards.ROOT, capture_output=True, text=True, check=True)
    found, *heavy = json.loads(done.stdout)
    assert heavy == [False, False], "they would count as the board's memory"
    assert list(found) == ["load", "table", "render", "processor", "peak_bytes"]
    assert all(value > 0 for value in found.values())
    assert found["peak_bytes"] < boards.GOAL_BYTES


def section(**last: Any) -> str:
    one = {"wall": 4.0, "load": 2.0, "table": 1.5, "render": 0.1, "processor": 3.0, "peak_bytes": 2**27}
    found = {"entries": 100, "samples": 10_000, "bytes": 2**26, "formats": [*FORMATS], "rounds": [one, {**one, **last}]}
    return "\n".join(boards.section(found))


def test_the_goal_is_for_every_round() -> None:
    assert "| 2.00 | 1.50 | 0.10 | 4.00 | 3.00 | 128 |" in section()
    assert "less than 10 s and 1 GiB: every process keeps to it, the slowest took 4.0 s." in section()
    assert "less than 10 s and 1 GiB: missed, the slowest took 10.5 s." in section(wall=10.5)
    assert "missed" in section(peak_bytes=2**30)
