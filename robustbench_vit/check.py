"""Every fault of every card in a workspace, for `rbvit check`. Imports torch: algorithms and parts are code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from robustbench_vit.attacks.registry import NORM_NAMES, attack_faults, build_attack
from robustbench_vit.boards.columns import column_faults
from robustbench_vit.boards.reported import reported_rows
from robustbench_vit.cards import BoardCard, CascadeCard, Entry, Loaded, Workspace
from robustbench_vit.cards.workspace import FOLDERS
from robustbench_vit.errors import CardError, InputError, RobustbenchError, UnknownNameError
from robustbench_vit.plan import POLICIES
from robustbench_vit.running.entries import weights_path


def check_workspace(workspace: Workspace) -> tuple[int, list[str]]:
    """The number of cards, and a line for each fault."""
    from robustbench_vit.defenses.recipe import defense_faults

    checks: dict[str, Callable[[Loaded[Any]], list[str]]] = {
        "attack": lambda loaded: _attack_faults(loaded, workspace),
        "defense": lambda loaded: defense_faults(loaded, workspace),
        "board": lambda loaded: board_faults(loaded, workspace),
    }
    count, faults = 0, []
    for kind in FOLDERS:
        cards, unreadable = workspace.load_all(kind)
        count += len(cards)
        faults += unreadable
        for loaded in cards:
            faults += checks[kind](loaded)
    return count, list(dict.fromkeys(faults))


def _attack_faults(loaded: Loaded[Any], workspace: Workspace) -> list[str]:
    if not isinstance(loaded.card, CascadeCard):
        return attack_faults(loaded)
    return _caught(lambda: _require_cascade(loaded, workspace))


def _require_cascade(loaded: Loaded[CascadeCard], workspace: Workspace) -> None:
    """Every lane and stand-in exists, and every lane works in the norms it is listed for."""
    for norm, lanes in workspace.lanes_by_norm(loaded.name).items():
        for lane in lanes:
            if norm in NORM_NAMES:
                build_attack(lane, norm)
    for name in loaded.card.stand_ins.values():
        workspace.attack(name, loaded.shown)
        for norm in workspace.lanes_by_norm(loaded.name):
            if norm in NORM_NAMES:
                workspace.lanes(name, norm, loaded.shown)


def board_faults(board: Loaded[BoardCard], workspace: Workspace) -> list[str]:
    """Everything a board names that doesn't exist or doesn't fit."""
    card, where = board.card, board.shown
    faults = column_faults(card, where)
    if card.entries:  # what others report needs no data to be there, nor to be known here
        faults += _caught(lambda: _require_data(card, where))
    faults += _reported_faults(board)
    for attack in card.attacks:
        faults += _caught(lambda attack=attack: _require_attack(attack, card.norm, workspace, where))
    faults += [f"{where}: eps must be positive, got {eps:g}" for eps in card.eps if not eps > 0]
    if card.norm == "linf":
        faults += [
            f"{where}: eps {eps:g} is larger than the whole range of a pixel in [0, 1]; did you mean {eps:g}/255?"
            for eps in card.eps
            if eps > 1
        ]
    for name in ("confidence", "alpha"):
        if not 0 < (value := getattr(card, name)) < 1:
            faults.append(f"{where}: {name} lies between 0 and 1, got {value:g}")
    for entry in card.entries:
        faults += _entry_faults(entry, board, workspace)
    return faults


def _reported_faults(board: Loaded[BoardCard]) -> list[str]:
    """Rows that papers report and that don't fit the board; also a board that has neither entries nor such rows."""
    try:
        rows = reported_rows(board)
    except InputError as error:
        return str(error).splitlines()
    if board.card.entries or rows:
        return []
    return [f"{board.shown}: a board needs entries, or rows that papers report in {board.name}/reported/"]


def _caught(check: Callable[[], Any]) -> list[str]:
    """The faults that `check` raises, if any."""
    try:
        check()
    except CardError as error:
        return error.faults
    except RobustbenchError as error:
        return str(error).splitlines()
    return []


def _require_data(card: BoardCard, where: str) -> None:
    from robustbench_vit.data import datasets, load_dataset

    if card.data.name.endswith(".npz"):
        return
    datasets.get(card.data.name, where)
    try:
        samples = load_dataset(card.data.name, card.data.split)
        samples.first(None if card.data.samples == "all" else card.data.samples)
    except InputError as error:
        raise InputError(f"{where}: field 'data': {error}") from error


def _require_attack(attack: str, norm: str, workspace: Workspace, where: str) -> None:
    for policy in POLICIES:
        for lane in workspace.lanes(workspace.stand_in(attack, policy, where), norm, where):
            build_attack(lane, norm)


def _entry_faults(entry: Entry, board: Loaded[BoardCard], workspace: Workspace) -> list[str]:
    where = f"{board.shown}, entry '{entry.name}'"
    faults = _caught(lambda: _require_model(entry.model, where))
    faults += _caught(lambda: workspace.defense(entry.defense, where))
    if not weights_path(board, entry).is_file():
        shown = Path(board.shown).with_suffix("") / entry.weights
        faults.append(f"{where}: no weights file at {shown.as_posix()}; `rbvit train` makes one")
    names = [other.name for other in board.card.entries]
    for attack in entry.adaptive:
        faults += _caught(lambda attack=attack: _require_attack(attack, board.card.norm, workspace, where))
    if entry.surrogate is not None and entry.surrogate not in names:
        faults += [str(UnknownNameError("surrogate entry", entry.surrogate, names, where))]
    if (norm := entry.normalise) and len(norm.mean) != len(norm.std):
        faults.append(f"{where}: normalise has {len(norm.mean)} means and {len(norm.std)} standard deviations")
    return faults


def _require_model(name: str, where: str) -> None:
    from timm import list_models

    from robustbench_vit.models.build import register_models

    register_models()
    known: Iterable[str] = list_models()
    if name.partition(".")[0] not in known:
        raise UnknownNameError("model", name, known, where)
