"""The page's section on other tools, from made-up measurements; and what is said where those tools are absent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.speed import peers
from robustbench_vit.cards import open_workspace
from robustbench_vit.errors import InputError
from robustbench_vit.evaluation import arrays_dataset


def a_run(seconds: float, forwards: float, backwards: float, robust: float) -> dict[str, float]:
    return {"seconds": seconds, "forwards": forwards, "backwards": backwards, "robust": robust}


@pytest.fixture
def found() -> dict[str, Any]:
    """Two rounds on one model: the second round of the peer takes longer."""
    ours = [a_run(1, 10, 5, 0.5), a_run(1, 10, 5, 0.25)]
    theirs = [a_run(2, 40, 40, 0.5), a_run(3, 40, 40, 0.5)]
    case = {"model": "cnn-standard", "n": 16, "eps": 2 / 255, "sides": {peers.OURS: ours, "foolbox": theirs}}
    return {"autoattack": [case], "pgd": [case, case], "versions": {"foolbox": "3.3.4"}}


def test_a_line_holds_means_medians_and_the_spread_of_ratios(found: dict[str, Any]) -> None:
    """Robust (50 + 25) / 2 beside 50; (40 + 2 · 40) / (10 + 2 · 5) = 6 times the passes; 2 and 3 times the time."""
    given = "| cnn-standard | 0.00784 | 16 | foolbox |"
    line = f"{given} 37.5 | 50.0 | 10 + 5 | 40 + 40 | 6.00 (6.00 to 6.00) | 2.50 (2.00 to 3.00) |"
    assert peers.section(found).count(line) == 3


def test_the_section_has_its_heading_and_every_row_as_many_cells_as_its_head(found: dict[str, Any]) -> None:
    lines = peers.section(found)
    assert lines[0] == "## Beside torchattacks, foolbox and ART"
    assert sum(line.startswith("## ") for line in lines) == 1
    assert {line.count("|") for line in lines if line.startswith("|")} == {peers.HEAD[0].count("|")}
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))
    assert "2 rounds" in "\n".join(lines)
    assert "foolbox 3.3.4" in "\n".join(lines)


def test_a_spread_is_the_median_with_smallest_and_largest() -> None:
    assert peers.spread([3.0, 1.0, 1.5]) == "1.50 (1.00 to 3.00)"


def test_absent_tools_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "NEEDED", {"torch": "torch", "no_such_tool": "no-such-tool"})
    with pytest.raises(InputError, match=r"no-such-tool not installed in .*make \.venv-peers/stamp"):
        peers.measure(quick=True)


def test_pgd_of_the_peers_takes_the_steps_of_our_card() -> None:
    (loaded,) = open_workspace().lanes(peers.PGD_CARD, "linf")
    budget = peers.Budget(eps=0.2, seed=0)
    assert (budget.steps, budget.step_size) == (loaded.card.settings["steps"], 0.2 * loaded.card.settings["step_size"])
    assert loaded.card.settings["restarts"] == 1
    assert loaded.card.settings["random_start"] is True


def test_a_run_is_counted_rechecked_and_leaves_no_gradients_behind() -> None:
    layer = nn.Linear(4, 2, bias=False)
    model = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]]))
    data = arrays_dataset(torch.full((3, 1, 2, 2), 0.1), torch.zeros(3, dtype=torch.int64))

    def cheat(counted: nn.Module, x: torch.Tensor, y: torch.Tensor, budget: peers.Budget) -> torch.Tensor:
        counted(x).sum().backward()
        counted(x[:2])
        return x

    measured = peers.run(cheat, model, data, peers.Budget(0.2, 0))
    assert (measured.forwards, measured.backwards) == (5 / 3, 1)
    assert measured.robust == [True] * 3
    assert layer.weight.grad is None
