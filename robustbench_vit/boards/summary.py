"""What one record says, in a few lines or as JSON values."""

from __future__ import annotations

from typing import Any

from robustbench_vit.boards.columns import show_number
from robustbench_vit.records import Record


def summary(record: Record, attack: str) -> dict[str, Any]:
    """Clean accuracy, and per eps what survived the attack, its interval, lanes and passes."""
    return {
        "model": record.entry["name"],
        "attack": attack,
        "norm": record.protocol["norm"],
        "n": record.n,
        "protocol_id": record.protocol_id,
        "profile": record.protocol["profile"],
        "clean_accuracy": record.clean_accuracy,
        "curve": [_point(record.at(attack, eps), attack, eps) for eps in record.protocol["eps"]],
    }


def _point(record: Record, attack: str, eps: float) -> dict[str, Any]:
    smoke = record.protocol["profile"] == "smoke"
    return {
        "eps": eps,
        "survived" if smoke else "robust_accuracy": record.robust_accuracy,
        **({} if smoke else {"interval_95": list(record.interval(0.95))}),
        "survivors": record.survivors(attack, eps),
        "forwards_per_sample": sum(o.forwards for o in record.outcomes) / record.n,
        "backwards_per_sample": sum(o.backwards for o in record.outcomes) / record.n,
    }


def summary_lines(record: Record, attack: str) -> list[str]:
    """The same in words; a smoke profile only says that it ran."""
    said = summary(record, attack)
    if said["profile"] == "smoke":
        left = said["curve"][0]["survived"] * said["n"]
        return [
            f"smoke profile: it runs; {left:.0f} of {said['n']} samples survived shortened attacks, which means nothing"
        ]
    lines = [f"clean accuracy            {100 * said['clean_accuracy']:5.1f} %   (n = {said['n']})"]
    for point in said["curve"]:
        low, high = (100 * bound for bound in point["interval_95"])
        lines.append(
            f"robust accuracy           {100 * point['robust_accuracy']:5.1f} %   [{low:.1f}, {high:.1f}]"
            f"   {attack}, {said['norm']} {show_number(point['eps'])}"
        )
        if len(point["survivors"]) > 1:
            lanes = ", ".join(f"{left} after {lane}" for lane, left in point["survivors"].items())
            lines.append(f"  robust samples: {lanes}")
        passes = f"{point['forwards_per_sample']:.0f} forward, {point['backwards_per_sample']:.0f} backward"
        lines.append(f"  passes per sample: {passes}")
    return lines
