"""What has been measured, section by section; each keeps the machine it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import machine
from robustbench_vit.storage import write_atomic

PATH = Path(__file__).resolve().parents[1] / "results" / "speed.json"


def load() -> dict[str, Any]:
    """All sections measured so far."""
    return json.loads(PATH.read_text()) if PATH.is_file() else {}


def keep(section: str, found: Any) -> None:
    """Writes one section's results; the others stay."""
    done = {**load(), section: {"machine": machine(), "found": found}}
    write_atomic(PATH, (json.dumps(done, indent=1, sort_keys=True) + "\n").encode())
