"""Writes the report; exits with 1 when a criterion fails. `--side NAME` computes one side only, and writes no page."""

from __future__ import annotations

import sys

from benchmarks.parity.report import REPORT, report
from benchmarks.parity.results import compute, load
from robustbench_vit.storage import write_atomic


def main() -> None:
    """See the package's docstring."""
    if "--side" in sys.argv:
        side = sys.argv[sys.argv.index("--side") + 1]
        compute([side], seeds=(0,)) if side == "torchattacks" else compute([side])
        return
    quick = "--check" in sys.argv or "--page" in sys.argv
    page, holds = report(load() if quick else compute(("ours", "reference")))
    if "--check" not in sys.argv:
        write_atomic(REPORT, page.encode())
        print(page)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
