"""Settings and data shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data; tests that need it are skipped in a checkout without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no test data at ../{SHARED.parent.name}/{SHARED.name} beside the repository")
    return SHARED
