"""Small boards with made-up records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.plan import resolve_attack
from robustbench_vit.records import Outcome, Record, Status

BOARD = """version: 1
about: Made-up numbers.
reference: none
data: {name: digits, split: test, samples: all}
norm: linf
eps: EPS
attacks: [pgd-40, autoattack]
precision: fp32
seed: 0
confidence: 0.95
interval: wilson
alpha: 0.05
columns: [entry, model, clean, pgd-40, 'autoattack:interval', 'autoattack:survivors', 'autoattack:forwards', seconds]
entries:
  - {name: weak, model: digits_cnn, defense: standard, weights: weights/weak.safetensors}
  - {name: strong, model: digits_vit, defense: pgd-at, weights: weights/strong.safetensors}
  - {name: absent, model: digits_cnn, defense: pgd-at, weights: weights/absent.safetensors}
"""


@dataclass(frozen=True)
class Made:
    """A user's workspace with one board in it."""

    folder: Path
    workspace: Workspace
    board: Loaded[BoardCard]

    def save(self, *records: Record) -> None:
        """Puts the records where the board keeps them."""
        for record in records:
            record.save(self.folder / "leaderboards" / "made" / "records" / f"{record.entry['name']}.json")


@pytest.fixture
def make_board(tmp_path: Path) -> Callable[..., Made]:
    """Writes the board, with replacements in its card, and opens its workspace."""

    def make(*replacements: tuple[str, str], eps: str = "0.2") -> Made:
        text = BOARD.replace("EPS", eps)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "leaderboards").mkdir(exist_ok=True)
        (tmp_path / "leaderboards" / "made.yaml").write_text(text, encoding="utf-8")
        workspace = Workspace((builtin_layer(), tmp_path))
        return Made(tmp_path, workspace, workspace.board("made"))

    return make


@pytest.fixture
def made(make_board: Callable[..., Made]) -> Made:
    """The board as it stands above."""
    return make_board()


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A record of ten samples: `wrong` misclassified, and as many broken by each lane as `broken` says.

    Or a record of as many samples as `robust` has digits: 1 robust, 0 broken by the first lane.
    """

    def make(
        made: Made,
        name: str,
        wrong: int = 1,
        broken: tuple[int, ...] = (2, 1, 0, 0),
        robust: str | None = None,
        **over: Any,
    ) -> Record:
        entry = next(e for e in made.board.card.entries if e.name == name)
        protocol = {**protocol_of(made), **over.pop("protocol", {})}
        outcomes: list[Outcome] = []
        for eps in made.board.card.eps:
            for attack in made.board.card.attacks:
                lanes = [lane.name for lane in made.workspace.lanes(attack, made.board.card.norm)]
                if robust is None:
                    outcomes += _outcomes(attack, eps, wrong, _broken_by(wrong, broken, lanes))
                else:
                    outcomes += _outcomes(attack, eps, 0, [None if digit == "1" else lanes[0] for digit in robust])
        said = {
            "name": name,
            "model": entry.model,
            "defense": entry.defense,
            "parameters": 12345,
            **over.pop("entry", {}),
        }
        return Record(said, protocol, tuple(outcomes), (), {"seconds": {"pgd-40": 1.25, "autoattack": 250.5}}, **over)

    return make


def protocol_of(made: Made) -> dict[str, Any]:
    """A protocol that fits the board."""
    card, workspace = made.board.card, made.workspace
    return {
        "profile": "full",
        "norm": card.norm,
        "eps": list(card.eps),
        "precision": card.precision[0],
        "attacks": {name: resolve_attack(workspace, name, card.norm) for name in card.attacks},
        "data": {"name": "digits", "split": "test", "n": 10, "sample_ids_sha256": hashlib.sha256(b"").hexdigest()},
    }


def _broken_by(wrong: int, broken: tuple[int, ...], lanes: list[str]) -> list[str | None]:
    """For each of ten samples the lane that broke it; pgd-40 breaks what the first lane of autoattack breaks."""
    by = [lane for lane, count in zip(lanes, broken, strict=False) for _ in range(count)]
    return [*[None] * wrong, *by, *[None] * (10 - wrong - len(by))]


def _outcomes(attack: str, eps: float, wrong: int, by: list[str | None]) -> list[Outcome]:
    """The first `wrong` samples are misclassified, the others broken by a lane or robust."""
    status = [Status.SURVIVED if lane is None else Status.BROKEN for lane in by]
    status[:wrong] = [Status.MISCLASSIFIED] * wrong
    return [
        Outcome(f"digits:{i}", attack, "linf", eps, "untargeted", s, by=b, forwards=100 * i, backwards=i)
        for i, (s, b) in enumerate(zip(status, by, strict=True))
    ]
