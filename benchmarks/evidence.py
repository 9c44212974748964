"""`make evidence`: the long runs behind the claims of the documents, most of them resumable; hours on two cores.

torchattacks' column of the parity page needs packages that don't fit beside ours: `make peers` computes it first.
"""

from __future__ import annotations

import subprocess
import sys

REPORTS = (
    "benchmarks.parity",
    "benchmarks.ground_truth",
    "benchmarks.retraining",
    "benchmarks.checks",
    "benchmarks.sequential",
    "benchmarks.gate",
    "benchmarks.vit_recipe",
    "benchmarks.digits_vit",
    "benchmarks.mnist_architectures",
)


def main() -> None:
    """Runs every report; exits with 1 when one of them says that a claim doesn't hold."""
    failed = [name for name in REPORTS if subprocess.run([sys.executable, "-m", name], check=False).returncode]
    if failed:
        sys.exit(f"these reports say that a claim does not hold (or failed): {', '.join(failed)}")


if __name__ == "__main__":
    main()
