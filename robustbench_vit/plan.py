"""From cards to a plan: what will run on which samples, and the protocol that makes results comparable. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vit.cards import AlgorithmCard, Loaded, Policy, Workspace
from robustbench_vit.cards.frozen import deviations
from robustbench_vit.cards.schema import PRECISIONS, Precision, adaptive_fault
from robustbench_vit.cards.workspace import resolved
from robustbench_vit.data import Dataset
from robustbench_vit.errors import InputError
from robustbench_vit.records.record import canonical, protocol_id

VERIFICATION = {
    "precision": "IEEE float32",
    "physical_batch": 16,
    "budget_tolerance": 1e-6,  # times max(eps, 1), added to eps: rounding of x0 ± eps in float32
    "box": [0, 1],
    "criterion": "the largest logit belongs to another class than the label",
    "draws": 20,  # of a model that answers at random; a sample is broken by majority when more than half are wrong
}
"""How a counted adversarial example is rechecked; part of every protocol."""

POLICIES: tuple[Policy, ...] = ("A", "B", "C")
SMOKE_SAMPLES = 32
_SMOKE_LIMITS = {"steps": 4, "queries": 40, "targets": 2, "restarts": 1}


@dataclass(frozen=True)
class LanePlan:
    """A lane: an attack card in its place in a cascade."""

    loaded: Loaded[AlgorithmCard]
    resolved: Mapping[str, Any]
    algorithm_version: int
    norm: str

    @property
    def name(self) -> str:
        """The card's name."""
        return self.loaded.name

    @property
    def key(self) -> str:
        """A hash of everything about the lane that decides a row's result."""
        deciding = {**self.resolved, "algorithm_version": self.algorithm_version, "norm": self.norm}
        return hashlib.sha256(canonical(deciding).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AttackPlan:
    """An attack card and the lanes it stands for, under the policy of the plan."""

    name: str
    lanes: tuple[LanePlan, ...]
    resolved: Mapping[str, Any]
    by_policy: Mapping[Policy, tuple[LanePlan, ...]]

    @property
    def algorithm_versions(self) -> dict[str, int]:
        """The version of every algorithm that runs under some policy."""
        lanes = [lane for lanes in self.by_policy.values() for lane in lanes]
        return {lane.resolved["algorithm"]: lane.algorithm_version for lane in lanes}

    def under(self, policy: Policy) -> AttackPlan:
        """This attack with the lanes that run under the policy."""
        return dataclasses.replace(self, lanes=self.by_policy[policy])


@dataclass(frozen=True)
class Plan:
    """What one model is evaluated on: attacks × budgets × samples, in this order.

    `evidence` are adaptive attacks of this model alone. They are no part of the protocol, which all rows of a board
    share, and come after its attacks.
    """

    attacks: tuple[AttackPlan, ...]
    norm: str
    eps: tuple[float, ...]
    samples: tuple[str, ...]
    seed: int
    protocol: Mapping[str, Any]
    policy: Policy = "A"
    random: bool = False  # the model answers at random; under policy C too it may
    surrogate: str = "-"  # fingerprint of the model whose adversarial images are tried too
    evidence: tuple[AttackPlan, ...] = ()

    def under(self, policy: Policy, random: bool = False) -> Plan:
        """This plan for a model that intake put under `policy`: the same protocol, with the stand-ins' lanes."""
        attacks, evidence = (tuple(a.under(policy) for a in held) for held in (self.attacks, self.evidence))
        return dataclasses.replace(
            self, attacks=attacks, evidence=evidence, policy=policy, random=random or policy == "B"
        )

    def in_precision(self, precision: Precision) -> Plan:
        """This plan with adversarial images searched in `precision`; it was made for fp32."""
        return dataclasses.replace(self, protocol={**self.protocol, "precision": precision})

    @property
    def all_attacks(self) -> tuple[AttackPlan, ...]:
        """The protocol's attacks, then the adaptive ones."""
        return (*self.attacks, *self.evidence)

    @property
    def draws(self) -> int:
        """How often a model is asked about a candidate when it is rechecked."""
        return int(VERIFICATION["draws"]) if self.random else 1

    @property
    def protocol_id(self) -> str:
        """Equal ids may share a table."""
        return protocol_id(self.protocol)

    @property
    def smoke(self) -> bool:
        """Whether this is a smoke profile, whose numbers mean nothing."""
        return self.protocol["profile"] == "smoke"


def make_plan(
    workspace: Workspace,
    attacks: Sequence[str],
    norm: str,
    eps: Sequence[float],
    data: Dataset,
    seed: int,
    versions: Mapping[str, int],
    where: str | None = None,
    smoke: bool = False,
) -> Plan:
    """The plan for `data` under the named attack cards.

    `versions` maps algorithms to their versions (they are code, which this module doesn't import). Raises
    UnknownNameError for cards that don't exist and InputError for budgets that make no sense.
    """
    for radius in eps:
        check_eps(norm, radius, data.x[0].size)
    for what, values in (("eps", eps), ("attack", attacks)):
        if twice := sorted({str(value) for value in values if values.count(value) > 1}):
            raise InputError(f"{what} {', '.join(twice)} is named twice; name each once")
    plans = tuple(_attack_plan(workspace, name, norm, versions, where, smoke) for name in attacks)
    protocol = {
        "schema": 1,
        "profile": "smoke" if smoke else "full",
        "criterion": "untargeted",
        "norm": norm,
        "eps": list(eps),
        "precision": PRECISIONS[0],
        "attacks": {plan.name: plan.resolved for plan in plans},
        "algorithm_versions": {name: version for plan in plans for name, version in plan.algorithm_versions.items()},
        "data": data_protocol(data),
        "verification": VERIFICATION,
    }
    return Plan(plans, norm, tuple(eps), data.sample_ids, seed, protocol)


def with_evidence(
    plan: Plan, workspace: Workspace, adaptive: Sequence[str], versions: Mapping[str, int], where: str | None = None
) -> Plan:
    """The plan with these attack cards as adaptive attacks beside its own; its protocol stays as it is.

    Raises UnknownNameError for cards that don't exist, and InputError for an attack that the plan has already.
    """
    if fault := adaptive_fault(adaptive, [attack.name for attack in plan.attacks]):
        raise InputError(f"{where}: {fault}" if where else fault)
    found = (_attack_plan(workspace, name, plan.norm, versions, where, plan.smoke) for name in adaptive)
    return dataclasses.replace(plan, evidence=tuple(attack.under(plan.policy) for attack in found))


def data_protocol(data: Dataset) -> dict[str, Any]:
    """What identifies the samples."""
    return {
        "name": data.name,
        "split": data.split,
        "n": len(data),
        "sample_ids_sha256": hashlib.sha256("\n".join(data.sample_ids).encode()).hexdigest(),
        "source_sha256": data.source_sha256,
        "preprocessing": data.preprocessing,
    }


def _attack_plan(
    workspace: Workspace, name: str, norm: str, versions: Mapping[str, int], where: str | None, smoke: bool
) -> AttackPlan:
    resolved = resolve_attack(workspace, name, norm, where, smoke)
    by_policy: dict[Policy, tuple[LanePlan, ...]] = {}
    for policy in POLICIES:
        card = workspace.stand_in(name, policy, where)
        whole = resolved if card == name else resolved["stand_ins"][policy]
        lanes = _lanes(workspace, card, norm, where, smoke)
        by_policy[policy] = tuple(
            LanePlan(lane, step, versions[lane.card.algorithm], norm)
            for lane, step in zip(lanes, whole["lanes"], strict=True)
        )
    return AttackPlan(name, by_policy["A"], resolved, by_policy)


def resolve_attack(
    workspace: Workspace, name: str, norm: str, where: str | None = None, smoke: bool = False
) -> dict[str, Any]:
    """What of an attack card decides numbers, as protocols hold it: its lanes' settings and those of its stand-ins.

    A card that borrows the name of a published protocol without being it also says in which fields it differs.
    """
    whole = resolved(workspace.attack(name, where).card, _lanes(workspace, name, norm, where, smoke))
    others = {policy: workspace.stand_in(name, policy, where) for policy in POLICIES}
    stand_ins = {
        policy: {"name": card, **_resolved_lanes(workspace, card, norm, where, smoke)}
        for policy, card in others.items()
        if card != name
    }
    found = {**whole, "stand_ins": stand_ins} if stand_ins else dict(whole)
    differs = deviations(name, norm, whole["lanes"], {policy: own["name"] for policy, own in stand_ins.items()})
    return {**found, "custom": differs} if differs else found


def _resolved_lanes(workspace: Workspace, name: str, norm: str, where: str | None, smoke: bool) -> dict[str, Any]:
    """A stand-in's own lanes; the cards that would stand in for it never do."""
    whole = resolved(workspace.attack(name, where).card, _lanes(workspace, name, norm, where, smoke))
    differs = deviations(name, norm, whole["lanes"])
    return {**whole, "custom": differs} if differs else whole


def _lanes(workspace: Workspace, name: str, norm: str, where: str | None, smoke: bool) -> list[Loaded[AlgorithmCard]]:
    lanes = workspace.lanes(name, norm, where)
    return [_shortened(lane) for lane in lanes] if smoke else lanes


def _shortened(lane: Loaded[AlgorithmCard]) -> Loaded[AlgorithmCard]:
    """The lane with few steps, queries, targets and restarts, for a smoke profile."""
    card = lane.card
    cut = {k: min(v, _SMOKE_LIMITS[k]) for k, v in card.settings.items() if k in _SMOKE_LIMITS}
    return Loaded(lane.name, lane.path, lane.shown, card.model_copy(update=cut))


def check_eps(norm: str, eps: float, pixels: int) -> None:
    """Raises InputError unless `eps` is a sensible radius for images in [0, 1] with this many pixel values."""
    if not eps > 0:
        raise InputError(f"eps must be positive, got {eps:g}")
    if norm == "linf" and eps > 1:
        raise InputError(f"eps {eps:g} is larger than the whole range of a pixel in [0, 1]; did you mean {eps:g}/255?")
    if norm == "l2" and eps > pixels**0.5:
        raise InputError(
            f"eps {eps:g} in l2 reaches every image in [0, 1] with {pixels} pixel values; did you mean {eps:g}/255?"
        )
    if norm == "l1" and eps > pixels:
        raise InputError(f"eps {eps:g} in l1 reaches every image in [0, 1] with {pixels} pixel values")
