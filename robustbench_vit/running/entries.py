"""From an entry of a board to a model with its weights, and to a plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.recipe import apply_architecture
from robustbench_vit.engine.cascade import build_stages
from robustbench_vit.engine.intake import Declared
from robustbench_vit.errors import InputError, ModelError, RobustbenchError, UnknownNameError
from robustbench_vit.evaluation import algorithm_versions, examine, examine_surrogate, planned, run_key
from robustbench_vit.models.build import build_model
from robustbench_vit.models.normalise import normalised
from robustbench_vit.models.weights import load_weights
from robustbench_vit.plan import SMOKE_SAMPLES, Plan, make_plan, with_evidence
from robustbench_vit.records import Finding
from robustbench_vit.subject import Subject, make_subject


@dataclass(frozen=True)
class Prepared:
    """An entry that passed every check and may run."""

    name: str
    subject: Subject
    plan: Plan
    data: Dataset
    findings: tuple[Finding, ...]

    @property
    def key(self) -> str:
        """Identifies its rows in the journal."""
        return run_key(self.subject, self.plan)


def entry_subject(board: Loaded[BoardCard], entry: Entry, workspace: Workspace) -> Subject:
    """The entry's model: built, its defense's architecture applied, weights loaded strictly, in eval mode."""
    card = workspace.defense(entry.defense).card
    model = apply_architecture(card, build_model(entry.model, **entry.model_args))
    path = weights_path(board, entry)
    sha256 = load_weights(model, path)
    if entry.normalise is not None:
        model = normalised(model, entry.normalise.mean, entry.normalise.std)
    about = {
        "name": entry.name,
        "model": entry.model,
        "model_args": dict(entry.model_args),
        "defense": entry.defense,
        "defense_version": card.version,
        "weights": entry.weights,
        "weights_sha256": sha256,
        "normalise": entry.normalise.model_dump() if entry.normalise else None,
    }
    return make_subject(model.eval(), about, Declared(entry.randomness, entry.clean_accuracy, _listed(board, entry)))


def _listed(board: Loaded[BoardCard], entry: Entry) -> int | None:
    """On how many samples the card's clean accuracy was measured: all of the board's."""
    choice = board.card.data
    if entry.clean_accuracy is None or choice.samples != "all":
        return None if entry.clean_accuracy is None else int(choice.samples)
    return len(load_dataset(choice.name, choice.split))


def weights_path(board: Loaded[BoardCard], entry: Entry) -> Path:
    """Where the entry's weights lie: beside the board, in the folder of its name."""
    return Path(os.path.normpath(board.path.parent / board.name / entry.weights))  # '..' also where no folder is yet


def board_plan(
    board: Loaded[BoardCard], workspace: Workspace, n: int | None, smoke: bool, data: Dataset | None = None
) -> tuple[Plan, Dataset]:
    """What every entry of the board runs, and on which samples; `n` takes the first n of them."""
    card = board.card
    data = data or load_dataset(card.data.name, card.data.split)
    data = data.first(None if card.data.samples == "all" else card.data.samples)
    if smoke:
        n = min(n or SMOKE_SAMPLES, SMOKE_SAMPLES, len(data))
    data = data.first(n)
    versions = algorithm_versions(workspace, card.attacks, card.norm, board.shown)
    plan = make_plan(workspace, card.attacks, card.norm, card.eps, data, card.seed, versions, board.shown, smoke)
    return plan.in_precision(card.precision[0]), data


def chosen(board: Loaded[BoardCard], names: Sequence[str]) -> list[Entry]:
    """The entries of these names in the board's order, all when none is named; raises UnknownNameError.

    A board without entries, which shows what papers report, is an InputError.
    """
    known = [entry.name for entry in board.card.entries]
    if not known:
        raise InputError(f"{board.shown} has no entries, so there is nothing to run; it shows what papers report")
    for name in names:
        if name not in known:
            raise UnknownNameError("entry", name, known, board.shown)
    return [entry for entry in board.card.entries if not names or entry.name in names]


def prepare(board: Loaded[BoardCard], entry: Entry, workspace: Workspace, plan: Plan, data: Dataset) -> Prepared:
    """The entry, built and looked at; errors name the board and the entry."""
    try:
        plan = entry_plan(entry, workspace, plan)
        subject = entry_subject(board, entry, workspace)
        cpu = torch.device("cpu")
        seen = examine(subject, data, cpu)
        other = surrogate_model(board, entry, workspace)
        plan = planned(plan, seen, subject, None if other is None else examine_surrogate(other, data, cpu))
    except ModelError as error:
        raise ModelError(f"{board.shown}, entry '{entry.name}': {error}", error.findings) from error
    except RobustbenchError as error:
        named = RobustbenchError(f"{board.shown}, entry '{entry.name}': {error}")
        named.exit_code = error.exit_code
        raise named from error
    return Prepared(entry.name, subject, plan, data, seen.findings)


def entry_plan(entry: Entry, workspace: Workspace, plan: Plan) -> Plan:
    """The board's plan with the entry's adaptive attacks; raises UnknownNameError, CardError and InputError."""
    if not entry.adaptive:
        return plan
    versions = algorithm_versions(workspace, entry.adaptive, plan.norm)
    plan = with_evidence(plan, workspace, entry.adaptive, versions)
    build_stages(plan)  # so that a bad setting is found before any work
    return plan


def surrogate_model(board: Loaded[BoardCard], entry: Entry, workspace: Workspace) -> Any | None:
    """The model of the entry's surrogate, if it names one; raises InputError when that is the entry itself."""
    if entry.surrogate is None:
        return None
    if entry.surrogate == entry.name:
        raise InputError("an entry cannot be its own surrogate")
    (other,) = chosen(board, [entry.surrogate])
    return entry_subject(board, other, workspace).model
