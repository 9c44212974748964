"""From the rows of a run to its record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robustbench_vit.data import Dataset
from robustbench_vit.engine.cascade import Stage, build_stages
from robustbench_vit.plan import Plan
from robustbench_vit.provenance import provenance
from robustbench_vit.records import Finding, Judgement, Outcome, Record, Reliability, Status
from robustbench_vit.records.journal import Known
from robustbench_vit.records.rows import MAJORITY, UNTARGETED, breaking_row, outcome

RELIABILITY_VERSION = 1
"""Of the checks behind a reliability verdict; a new one has old runs judged anew."""


def outcomes_of(plan: Plan, known: Known) -> tuple[Outcome, ...]:
    """The outcomes that retired rows amount to; what hasn't run yet is 'not_run'."""
    if not all(sample in known.clean for sample in plan.samples):
        return tuple(
            Outcome(sample, attack.name, plan.norm, eps, criterion, Status.NOT_RUN)
            for eps in plan.eps
            for attack in plan.all_attacks
            for criterion in criteria(plan)
            for sample in plan.samples
        )
    return tuple(
        found
        for eps in plan.eps
        for stage in build_stages(plan)
        for criterion in criteria(plan)
        for found in _outcomes(plan, stage, eps, criterion, known)
    )


def criteria(plan: Plan) -> tuple[str, ...]:
    """How samples are judged; those of a random model twice."""
    return (UNTARGETED, MAJORITY) if plan.random else (UNTARGETED,)


def _outcomes(plan: Plan, stage: Stage, eps: float, criterion: str, known: Known) -> Iterator[Outcome]:
    specs = stage.specs(classes_of(known))
    for sample in plan.samples:
        clean = known.clean[sample]
        yield outcome(stage.plan.name, plan.norm, specs, eps, clean, known.rows, criterion, plan.draws)


def classes_of(known: Known) -> int:
    """How many classes the model has."""
    return len(next(iter(known.clean.values())).logits) // 4


def ran(plan: Plan, known: Known) -> bool:
    """Whether every sample is decided."""
    return all(o.status is not Status.NOT_RUN for o in outcomes_of(plan, known))


def judgement_key(plan: Plan, attack: str, eps: float) -> str:
    """Where the journal keeps the reliability of one number."""
    return f"reliability {RELIABILITY_VERSION}/{plan.protocol_id}/{plan.policy}/{attack}/{eps!r}/{plan.surrogate}"


def judged_attacks(plan: Plan) -> list[tuple[str, float]]:
    """The numbers that get a reliability verdict: the protocol's last attack at every eps; none in a smoke profile."""
    return [] if plan.smoke else [(plan.attacks[-1].name, eps) for eps in plan.eps]


def complete(plan: Plan, known: Known) -> bool:
    """Whether nothing is left to compute."""
    judged = all(judgement_key(plan, attack, eps) in known.notes for attack, eps in judged_attacks(plan))
    return judged and ran(plan, known)


def make_record(
    plan: Plan,
    subject_entry: Mapping[str, Any],
    data: Dataset,
    known: Known,
    findings: Sequence[Finding],
    run: Mapping[str, Any],
    images: bool,
) -> Record:
    """The record of a finished run; `run` adds to its provenance (device, width, workers, …)."""
    return Record(
        entry=subject_entry,
        protocol=plan.protocol,
        outcomes=outcomes_of(plan, known),
        findings=tuple(findings),
        policy=plan.policy,
        judgements=_judgements(plan, known),
        provenance={
            **provenance(),
            **run,
            "seed": plan.seed,
            "seconds": {name: round(seconds, 2) for name, seconds in known.seconds.items()},
            "wasted_passes": dict(known.wasted),
        },
        images=_images(plan, data, known) if images else None,
        evidence={
            attack.name: {**attack.resolved, "algorithm_versions": attack.algorithm_versions}
            for attack in plan.evidence
        },
    )


def _judgements(plan: Plan, known: Known) -> tuple[Judgement, ...]:
    keys = [(attack, eps, judgement_key(plan, attack, eps)) for attack, eps in judged_attacks(plan)]
    return tuple(
        Judgement(attack, eps, Reliability.from_dict(json.loads(known.notes[key])))
        for attack, eps, key in keys
        if key in known.notes
    )


def _images(plan: Plan, data: Dataset, known: Known) -> np.ndarray:
    """(n, c, h, w): adversarial images under the protocol's last attack and first eps, else clean ones."""
    specs = build_stages(plan)[len(plan.attacks) - 1].specs(classes_of(known))
    images = data.x.copy()
    for i, sample in enumerate(plan.samples):
        row = breaking_row(specs, plan.eps[0], sample, known.rows) if known.clean[sample].correct else None
        if row is not None and row.image is not None:
            images[i] = np.frombuffer(row.image, np.float32).reshape(images[i].shape)
    return images
