"""What one record says, in a few lines or as JSON values."""

from __future__ import annotations

from typing import Any

from robustbench_vit.boards.columns import show_number
from robustbench_vit.cards.schema import PRECISIONS
from robustbench_vit.records import Record, Reliability
from robustbench_vit.records.rows import MAJORITY

_POLICIES = {
    "A": "deterministic and differentiable",
    "B": "answers at random; one wrong draw breaks a sample, gradients are averaged over draws where the card says so",
    "C": "no useful gradient; attacked by scores and decisions, so the robust accuracy says little",
}


def summary(record: Record, attack: str) -> dict[str, Any]:
    """Clean accuracy, and per eps what survived the attack, its interval, lanes and passes."""
    return {
        "model": record.entry["name"],
        "attack": attack,
        "norm": record.protocol["norm"],
        "n": record.n,
        "protocol_id": record.protocol_id,
        "precision": record.protocol["precision"],
        "profile": record.protocol["profile"],
        "policy": record.policy,
        "ran_as": record.ran_as(attack),
        "custom": record.custom(attack),
        "findings": [{"check": f.check, "level": f.level, "message": f.message} for f in record.findings],
        "clean_accuracy": record.clean_accuracy,
        "curve": [_point(record.at(attack, eps), attack, eps) for eps in record.protocol["eps"]],
    }


def _point(record: Record, attack: str, eps: float) -> dict[str, Any]:
    smoke = record.protocol["profile"] == "smoke"
    return {
        "eps": eps,
        "survived" if smoke else "robust_accuracy": record.robust_accuracy,
        **({} if smoke else {"interval_95": list(record.interval(0.95))}),
        **({"by_majority": record.at(criterion=MAJORITY).robust_accuracy} if MAJORITY in record.criteria else {}),
        "survivors": record.survivors(attack, eps),
        "forwards_per_sample": record.mean("forwards"),
        "backwards_per_sample": record.mean("backwards"),
        "reliability": judged.to_dict(timed=False) if (judged := record.reliability) else None,
    }


def summary_lines(record: Record, attack: str) -> list[str]:
    """The same in words; a smoke profile only says that it ran."""
    said = summary(record, attack)
    if said["profile"] == "smoke":
        left = said["curve"][0]["survived"] * said["n"]
        return [
            f"smoke profile: it runs; {left:.0f} of {said['n']} samples survived shortened attacks, which means nothing"
        ]
    lines = [f"policy {record.policy}: {_POLICIES[record.policy]}"]
    if record.ran_as(attack) != attack:
        lines.append(f"{record.ran_as(attack)} ran in the place of {attack}")
    if said["precision"] != PRECISIONS[0]:
        lines.append(f"searched in {said['precision']}, every success rechecked in IEEE float32")
    lines += [f"{f.level}: {f.message}" for f in record.findings if f.level != "pass"]
    if said["custom"]:
        lines.append(f"'{attack}' is custom, not the published protocol: {'; '.join(said['custom'])}")
    lines += [f"clean accuracy            {100 * said['clean_accuracy']:5.1f} %   (n = {said['n']})"]
    for point in said["curve"]:
        low, high = (100 * bound for bound in point["interval_95"])
        lines.append(
            f"robust accuracy           {100 * point['robust_accuracy']:5.1f} %   [{low:.1f}, {high:.1f}]"
            f"   {attack}, {said['norm']} {show_number(point['eps'])}"
        )
        if "by_majority" in point:
            lines.append(f"  by majority of draws    {100 * point['by_majority']:5.1f} %")
        if len(point["survivors"]) > 1:
            lanes = ", ".join(f"{left} after {lane}" for lane, left in point["survivors"].items())
            lines.append(f"  robust samples: {lanes}")
        passes = f"{point['forwards_per_sample']:.0f} forward, {point['backwards_per_sample']:.0f} backward"
        lines.append(f"  passes per sample: {passes}")
        lines += _reliability_lines(record.at(attack, point["eps"]).reliability)
    return lines


def _reliability_lines(found: Reliability | None) -> list[str]:
    """The verdict on the number above, what speaks for it, and what to do."""
    if found is None:
        return []
    ran = sum(reason.evidence is not None for reason in found.reasons)
    lines = [f"  evidence of masked gradients: {found.evidence} ({ran} checks)"]
    lines += [f"    {reason.evidence}, {reason.check}: {reason.message}" for reason in found.against]
    return lines + [f"    advice: {sentence}" for sentence in found.advice]
