"""What docs/statistics.md says in numbers and in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_vit.statistics import Decision, DropTest, Flips, drop_interval, wilson

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_its_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    samples = [f"digits:{number}" for number in range(400)]
    verdicts = np.random.default_rng(0).random((2, 400)) < 0.98
    names: dict[str, Any] = {
        "samples": samples,
        "baseline": verdicts[0],
        "candidate": verdicts[1],
        "robust_before": dict(zip(samples, verdicts[0], strict=True)),
        "finished": list(zip(samples, verdicts[1], strict=True)),
    }
    printed: list[tuple[Any, ...]] = []
    monkeypatch.setattr("builtins.print", lambda *words: printed.append(words))
    exec(code, names)
    assert names["test"].n == 400
    assert (names["test"].lost, names["test"].gained) == (names["seen"].lost, names["seen"].gained)
    assert len(printed) == 2


def test_its_numbers() -> None:
    low, high = wilson(300, 500)
    assert f"({low:.3f}, {high:.3f})" in PAGE
    assert f"still leave ± {100 * drop_interval(Flips(0, 0, 100))[1]:.1f} points" in PAGE.replace("\n", " ")
    for max_drop in (0.02, 0.05):
        test = DropTest(max_drop, 0.05)
        while test.decision is None:
            test = test.take(True, True)
        assert test.decision is Decision.NOT_WORSE
        assert re.search(rf"\b{test.n}\b", PAGE)
