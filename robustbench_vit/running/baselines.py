"""The records that `rbvit gate` compares with: found, checked against the board's card, and narrowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from robustbench_vit.boards import board_folder
from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.comparing.sources import Source, load
from robustbench_vit.differences import ABSENT, Difference, differences
from robustbench_vit.errors import InputError, ProtocolMismatchError, UnknownNameError
from robustbench_vit.plan import Plan
from robustbench_vit.recording import criteria
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.running.entries import Prepared
from robustbench_vit.subject import Subject

IDENTITY = (
    "model",
    "model_args",
    "defense",
    "defense_version",
    "normalise",
    "randomness",
    "weights_sha256",
)
"""Of what a record says of a model: what decides its answers."""
OF_SAMPLES = ("n", "sample_ids_sha256")


def load_baseline(board: Loaded[BoardCard], workspace: Workspace, name: str | None) -> Source:
    """The records named, by default the board's own; raises InputError when there are none."""
    if name is not None:
        return load(name, workspace)
    folder = board_folder(board) / "records"
    if not folder.is_dir():
        raise InputError(
            f"{board.shown} has no records of its own to compare with; name a baseline (--baseline), or make them:"
            f" rbvit run {board.name} --publish"
        )
    return dataclasses.replace(load(str(folder), workspace), name=f"the records of {board.name}")


def baseline_record(source: Source, entry: Entry, alone: bool) -> Record:
    """The baseline of an entry; one record given as a file is that of the one entry asked for, whatever its name.

    Raises UnknownNameError, with the nearest name, where there is none.
    """
    if source.is_file and alone:
        return next(iter(source.records.values()))
    if entry.name not in source.records:
        raise UnknownNameError("baseline of entry", entry.name, source.records, source.name)
    return source.records[entry.name]


def require_baseline(record: Record, plan: Plan, precisions: Sequence[str], where: str, board: str) -> None:
    """Raises ProtocolMismatchError or InputError unless the record answers what the board's card asks, on its samples.

    A record of more samples will do; `precisions` are those that the board admits.
    """
    if found := differences(_comparable(plan.protocol, precisions), _comparable(record.protocol, precisions)):
        raise ProtocolMismatchError(_refusal(f"{board} and {where} don't belong together; they differ", found))
    outcomes = ranked(record, plan, None).outcomes
    if left := sum(outcome.status is Status.NOT_RUN for outcome in outcomes):
        raise InputError(f"{where} is incomplete: {left} of {len(outcomes)} samples were not run")
    held = {outcome.sample for outcome in outcomes}
    if missing := [sample for sample in plan.samples if sample not in held]:
        raise InputError(
            f"{where} lacks {len(missing)} of the board's {len(plan.samples)} samples, such as '{missing[0]}';"
            " evaluate the baseline on all of them"
        )


def _comparable(protocol: Mapping[str, Any], precisions: Sequence[str]) -> dict[str, Any]:
    """What must be equal: all but which samples were taken, and which of the admitted precisions."""
    data = {key: value for key, value in protocol.get("data", {}).items() if key not in OF_SAMPLES}
    precision = protocol.get("precision", ABSENT)
    admitted = {"precision": list(precisions)} if precision in precisions else {}
    return {**protocol, "data": data, **admitted}


def require_same_policy(record: Record, item: Prepared, where: str) -> None:
    """Raises ProtocolMismatchError when intake has other attacks run on the entry than on its baseline."""
    now = {"policy": item.plan.policy, "criteria": list(criteria(item.plan))}
    if found := differences({"policy": record.policy, "criteria": record.criteria}, now):
        message = f"{where} and the entry as it is now were not attacked alike (docs/intake.md); they differ"
        raise ProtocolMismatchError(_refusal(message, found))


def _refusal(message: str, found: Sequence[Difference]) -> str:
    return "\n".join([f"{message}:", *(f"  {difference}" for difference in found)])


def unchanged(record: Record, subject: Subject) -> bool:
    """Whether the record is of this very model: same architecture, arguments, normalisation and weights."""
    return not differences(*({k: v for k in IDENTITY if (v := said.get(k))} for said in (record.entry, subject.entry)))


def ranked(record: Record, plan: Plan, samples: Sequence[str] | None) -> Record:
    """The record with the outcomes that rank it: of the plan's last attack at its first eps; on these samples only."""
    attack, eps = plan.attacks[-1].name, plan.eps[0]
    outcomes: Sequence[Outcome] = record.at(attack, eps, plan.protocol["criterion"]).outcomes
    if samples is not None:
        by_sample = {outcome.sample: outcome for outcome in outcomes}
        outcomes = [by_sample[sample] for sample in samples]
    return dataclasses.replace(record, outcomes=tuple(outcomes), protocol=ranking_protocol(plan), images=None)


def ranking_protocol(plan: Plan) -> dict[str, Any]:
    """The plan's protocol, of the attack and the eps alone that rank."""
    attack = plan.attacks[-1].name
    return {**plan.protocol, "attacks": {attack: plan.protocol["attacks"][attack]}, "eps": [plan.eps[0]]}


def passes(outcomes: Sequence[Outcome]) -> int:
    """Model passes, forward and backward, that these outcomes took."""
    return sum(outcome.forwards + outcome.backwards for outcome in outcomes)
