"""Every card in tests/bad_cards gives exactly the faults that its leading `#>` lines state."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.check import check_workspace

BAD = Path(__file__).parents[1] / "bad_cards"
CARDS = sorted(path.relative_to(BAD).as_posix() for path in BAD.glob("*/*.y*ml"))


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All faults of a workspace made of the bad cards, whose boards have their weights (one on purpose hasn't)."""
    layer = tmp_path_factory.mktemp("workspace")
    shutil.copytree(BAD, layer, dirs_exist_ok=True)
    for board in layer.glob("leaderboards/*.yaml"):
        if board.stem != "no-weights":
            board.with_suffix("").mkdir()
            (board.with_suffix("") / "a.safetensors").touch()
    return check_workspace(Workspace((builtin_layer(), layer)))[1]


def expected(card: str) -> list[str]:
    lines = (BAD / card).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#> ") for line in lines if line.startswith("#> ")]


@pytest.mark.parametrize("card", CARDS)
def test_a_broken_card_gives_its_exact_message(card: str, faults: list[str]) -> None:
    found = [fault for fault in faults if fault.startswith((f"{card}:", f"{card},"))]
    assert expected(card)
    assert found == expected(card)


def test_every_fault_names_its_file(faults: list[str]) -> None:
    ours = [fault for fault in faults if not fault.startswith("leaderboards/digits-linf.yaml")]
    assert sorted(ours) == sorted(line for card in CARDS for line in expected(card))


def test_cards_do_not_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("os.system", called.append)
    (tmp_path / "attacks").mkdir()
    shutil.copy(BAD / "attacks" / "runs-code.yaml", tmp_path / "attacks")
    cards, faults = Workspace((tmp_path,)).load_all("attack")
    assert cards == []
    assert len(faults) == 1
    assert called == []
