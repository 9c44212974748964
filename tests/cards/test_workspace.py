"""Layers of cards: names, overlays, inheritance."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from robustbench_vit.cards import AlgorithmCard, CascadeCard, Loaded, Workspace, open_workspace
from robustbench_vit.cards.workspace import FOLDERS, builtin_layer, resolved
from robustbench_vit.errors import CardError, InputError, UnknownNameError

PGD = """version: 1
about: Three steps.
reference: none
algorithm: pgd
loss: ce
steps: 3
step_size: 0.5
random_start: false
restarts: 1
"""


def put(layer: Path, kind: str, name: str, text: str) -> Path:
    path = layer / FOLDERS[kind] / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in FOLDERS for name in Workspace((builtin_layer(),)).names(kind)]
)
def test_every_built_in_card_loads(kind: str, name: str) -> None:
    loaded = getattr(Workspace((builtin_layer(),)), kind)(name)
    assert loaded.name == name
    assert loaded.shown == f"{FOLDERS[kind]}/{name}.yaml"


def test_autoattack_is_the_standard_cascade() -> None:
    lanes = Workspace((builtin_layer(),)).lanes("autoattack", "linf")
    assert [lane.name for lane in lanes] == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_a_users_cards_are_laid_over_the_built_in_ones(tmp_path: Path) -> None:
    put(tmp_path, "attack", "pgd-3", PGD)
    workspace = open_workspace(tmp_path)
    assert workspace.attack("pgd-3").card.settings["steps"] == 3
    assert workspace.attack("pgd-3").shown == "attacks/pgd-3.yaml"
    assert {"pgd-3", "pgd-40"} <= set(workspace.names("attack"))


def test_a_name_standing_twice_names_both_files(tmp_path: Path) -> None:
    mine = put(tmp_path, "attack", "pgd-40", PGD)
    workspace = open_workspace(tmp_path)
    theirs = builtin_layer() / "attacks" / "pgd-40.yaml"
    message = f"attack 'pgd-40' stands twice: {theirs} and {mine.resolve()}; rename one of them"
    with pytest.raises(CardError) as caught:
        workspace.attack("autoattack")
    assert str(caught.value) == message
    cards, faults = workspace.load_all("attack")
    assert faults == [message]
    assert "autoattack" in {card.name for card in cards}


def test_the_current_folder_is_a_workspace_when_it_holds_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_workspace().layers == (builtin_layer(),)
    put(tmp_path, "attack", "pgd-3", PGD)
    assert open_workspace().layers == (builtin_layer(), tmp_path.resolve())


def test_the_repository_is_not_laid_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(builtin_layer())
    assert open_workspace().layers == (builtin_layer(),)


def test_a_folder_without_cards_is_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_workspace(tmp_path)
    expected = f"{tmp_path} is no workspace: it has none of the folders attacks, defenses, leaderboards"
    assert str(caught.value) == expected


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    workspace = Workspace((builtin_layer(),))
    with pytest.raises(UnknownNameError) as caught:
        workspace.attack("autoatack")
    assert str(caught.value) == "unknown attack 'autoatack'; did you mean 'autoattack'?"
    with pytest.raises(UnknownNameError) as caught:
        workspace.defense("standrad", "leaderboards/mine.yaml")
    assert str(caught.value) == "leaderboards/mine.yaml: unknown defense 'standrad'; did you mean 'standard'?"
    with pytest.raises(InputError, match=r"no board file at nowhere\.yaml; known boards: cifar10-linf, digits-l2, "):
        workspace.board("nowhere.yaml")


def test_a_board_by_path_is_the_board_by_name() -> None:
    workspace = Workspace((builtin_layer(),))
    by_path = workspace.board(str(builtin_layer() / "leaderboards" / "digits-linf.yaml"))
    assert by_path.card == workspace.board("digits-linf").card
    assert by_path.shown == "leaderboards/digits-linf.yaml"


def test_extends_lays_fields_over_those_of_another_card(tmp_path: Path) -> None:
    put(tmp_path, "attack", "pgd-3", PGD)
    put(tmp_path, "attack", "pgd-4", "extends: pgd-3\nversion: 2\nsteps: 4\n")
    put(tmp_path, "attack", "pgd-5", "extends: pgd-4\nsteps: 5\n")
    card = Workspace((tmp_path,)).attack("pgd-5").card
    assert (card.version, card.settings["steps"], card.settings["step_size"]) == (2, 5, 0.5)


def test_a_fault_of_the_extended_card_names_its_file(tmp_path: Path) -> None:
    put(tmp_path, "attack", "parent", "version: 1\nversion: 2\n")
    put(tmp_path, "attack", "child", "extends: parent\nsteps: 4\n")
    with pytest.raises(CardError) as caught:
        Workspace((tmp_path,)).attack("child")
    assert str(caught.value) == "attacks/parent.yaml, line 2: field 'version' is written twice; keep one"


def test_dates_are_text(tmp_path: Path) -> None:
    put(tmp_path, "attack", "pgd-3", PGD.replace("Three steps.", "2026-01-31").replace("none", "2026-13-45"))
    card = Workspace((tmp_path,)).attack("pgd-3").card
    assert (card.about, card.reference) == ("2026-01-31", "2026-13-45")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"about: \x00"])
def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "attack", "bytes", "").write_bytes(content)
    _, faults = Workspace((tmp_path,)).load_all("attack")
    assert len(faults) == 1
    assert faults[0].startswith("attacks/bytes.yaml: ")


def test_cards_are_frozen() -> None:
    card = Workspace((builtin_layer(),)).attack("pgd-40").card
    with pytest.raises(ValidationError, match="frozen"):
        card.algorithm = "apgd"


def test_prose_decides_nothing(tmp_path: Path) -> None:
    fields = {"version": 1, "algorithm": "pgd", "steps": 3}
    one = AlgorithmCard(about="a", reference="b", **fields)  # type: ignore[arg-type]
    other = AlgorithmCard(about="c", reference="d", **fields)  # type: ignore[arg-type]
    cascade = CascadeCard(version=1, about="e", reference="f", lanes=["lane"])
    assert resolved(cascade, [Loaded("lane", tmp_path, "x", one)]) == resolved(
        cascade, [Loaded("lane", tmp_path, "y", other)]
    )
    changed = AlgorithmCard(about="a", reference="b", **{**fields, "steps": 4})  # type: ignore[arg-type]
    assert resolved(cascade, [Loaded("lane", tmp_path, "x", one)]) != resolved(
        cascade, [Loaded("lane", tmp_path, "x", changed)]
    )


def test_a_card_given_as_a_value_is_found_first() -> None:
    workspace = Workspace((builtin_layer(),))
    card = AlgorithmCard(version=1, about="a", reference="b", algorithm="pgd")
    with_it = workspace.with_attack(Loaded("mine", Path("<card>"), "<card>", card))
    assert with_it.attack("mine").card is card
    assert with_it.attack("pgd-40").name == "pgd-40"
    with pytest.raises(UnknownNameError):
        workspace.attack("mine")
