"""Trainings of a board's entries: what is trained where, and which weights are written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from benchmarks import board_training
from benchmarks.board_training import Training, board_trainings, lacking, write
from robustbench_vit.cards import BoardCard, Loaded, Workspace, open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.errors import InputError

BOARD = """extends: digits-linf
version: 1
entries:
  - {name: here, model: digits_evit, model_args: {keep_rate: 0.5}, defense: DEFENSE, weights: weights/here.safetensors,
     family: evit, training_seed: 4}
  - {name: there, model: digits_evit, defense: DEFENSE, weights: ../digits-linf/weights/absent.safetensors,
     family: evit, training_seed: 5}
"""


@pytest.fixture
def board(tmp_path: Path) -> Loaded[BoardCard]:
    (tmp_path / "leaderboards").mkdir()
    text = BOARD.replace("DEFENSE", "standard")
    (tmp_path / "leaderboards" / "made.yaml").write_text(text, encoding="utf-8")
    return Workspace((builtin_layer(), tmp_path)).board("made")


def test_every_entry_is_trained_as_its_card_says(board: Loaded[BoardCard], tmp_path: Path) -> None:
    trainings = board_trainings(board, folder=tmp_path)
    assert [(t.entry.name, t.data, t.seed, t.out) for t in trainings] == [
        ("here", "digits", 4, tmp_path / "made" / "here"),
        ("there", "digits", 5, tmp_path / "made" / "there"),
    ]
    assert [t.entry.name for t in board_trainings(board, ("there",))] == ["there"]
    assert pickle.loads(pickle.dumps(trainings[0])) == trainings[0]  # it goes to a worker process


def test_the_model_is_built_with_the_entrys_settings(
    board: Loaded[BoardCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    monkeypatch.setattr(
        "robustbench_vit.defenses.train.train_defense", lambda *given, **named: seen.update(named, given=given)
    )
    board_trainings(board, folder=tmp_path)[0](lambda *_: None)
    assert seen["given"][:6] == ("standard", "digits_evit", "digits", tmp_path / "made" / "here", 4, "cpu")
    assert seen["model_args"] == {"keep_rate": 0.5}


def test_only_weights_that_the_boards_own_folder_lacks_are_written(board: Loaded[BoardCard], tmp_path: Path) -> None:
    trainings = board_trainings(board, folder=tmp_path / "runs")
    place = tmp_path / "leaderboards" / "made" / "weights" / "here.safetensors"
    places = lacking(board, trainings)
    assert places == {place: trainings[0]}
    trainings[0].weights.parent.mkdir(parents=True)
    trainings[0].weights.write_bytes(b"weights")
    write(places)
    assert place.read_bytes() == b"weights"
    assert lacking(board, trainings) == {}


def test_an_entry_without_a_seed_cannot_be_trained_again() -> None:
    with pytest.raises(InputError, match=r"leaderboards/digits-linf.yaml, entry 'vit-pgd-at': no 'training_seed'"):
        board_trainings(open_workspace(builtin_layer()).board("digits-linf"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-vitt"], "error: unknown board 'digits-vitt'; did you mean 'digits-vit'?"),
        (["digits-vit", "vit"], "error: leaderboards/digits-vit.yaml: unknown entry 'vit'"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        board_training.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("name", ["digits-vit", "digits-seeds"])
def test_the_boards_weights_can_be_made(name: str) -> None:
    board = open_workspace(builtin_layer()).board(name)
    trainings = board_trainings(board)
    assert len({training.out for training in trainings}) == len(board.card.entries)
    own = {training.entry.weights for training in trainings if not training.entry.weights.startswith("../")}
    assert own == {f"weights/{t.entry.name}.safetensors" for t in trainings if t.entry.weights in own}


def test_a_training_says_where_its_weights_lie(tmp_path: Path) -> None:
    entry = open_workspace(builtin_layer()).board("digits-vit").card.entries[0]
    assert Training(entry, "digits", 0, tmp_path).weights == tmp_path / "weights.safetensors"
