"""RobustBench's `model_info` format: a JSON file for each model, read strictly and written from records.

The format is RobustBench's (arXiv:2010.09670, https://github.com/RobustBench/robustbench, folder model_info): numbers
are text, accuracies are percent, `external` is the robust accuracy under the best known attack where one is stronger
than AutoAttack. The norm is not in the file but in the name of its folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from robustbench_vit.cards import BoardCard, parse_number
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.cards.schema import PRECISIONS
from robustbench_vit.errors import InputError
from robustbench_vit.records import Evidence, Record

ATTACK = "autoattack"
NORMS = ("linf", "l2")
"""Of which RobustBench has boards with AutoAttack."""

_EPS_TOLERANCE = 1e-9


def _percent_or_none(value: Any) -> float | None:
    """Empty text is a missing percentage."""
    return None if value is None or value == "" else _percent(value)


def _percent(value: Any) -> float:
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)?", value):
        raise ValueError('should be a percentage as text, such as "57.71"')
    if float(value) > 100:
        raise ValueError("should lie between 0 and 100 percent")
    return float(value)


def _budget(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError('should be a budget as text, such as "8/255"')
    eps = parse_number(value)
    if eps <= 0:
        raise ValueError("should be a positive budget")
    return eps


Percent = Annotated[float | None, BeforeValidator(_percent_or_none)]
Text = Annotated[StrictStr, Field(min_length=1)]


class ModelInfo(BaseModel):
    """One model's row; percentages as numbers, None where the file has none."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Text  # the paper's title
    dataset: Text
    architecture: Text
    eps: Annotated[float, BeforeValidator(_budget)]
    autoattack_acc: Annotated[float, BeforeValidator(_percent)]
    clean_acc: Percent = None
    reported: Percent = None  # by the model's authors, under their own attacks
    external: Percent = None  # under the best known attack
    link: StrictStr | None = None
    authors: StrictStr | None = None
    venue: StrictStr | None = None
    additional_data: StrictBool | None = None
    number_forward_passes: Annotated[StrictInt, Field(ge=1)] | None = None
    unreliable: StrictBool | None = None
    footnote: StrictStr | None = None

    @property
    def best_known(self) -> float:
        """Percent that the strongest known attack leaves: `external` where there is one, else AutoAttack's."""
        return self.autoattack_acc if self.external is None else self.external

    @property
    def author_list(self) -> list[str]:
        """The authors one by one."""
        return [name.strip() for name in re.split(r",| and ", self.authors or "") if name.strip()]

    @property
    def unknown(self) -> list[str]:
        """Fields that this version doesn't know, and doesn't use."""
        return sorted(self.model_extra or {})


def read_model_info(path: Path) -> ModelInfo:
    """The file's row; raises InputError, naming the file and every fault, when it isn't one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f'{path}: not a model_info file of RobustBench: expected fields such as "autoattack_acc"')
    try:
        info = ModelInfo.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {_fault(fault)}" for fault in error.errors())) from error
    if faults := _contradictions(info):
        raise InputError("\n".join(f"{path}: {fault}" for fault in faults))
    return info


def _fault(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f'missing field "{name}"'
    message = re.sub(r"^(Value error, |Input |String )", "", fault["msg"])
    return f'field "{name}": {message}, got {json.dumps(fault["input"], ensure_ascii=False, default=str)}'


def _contradictions(info: ModelInfo) -> list[str]:
    faults = []
    if info.external is not None and info.external > info.autoattack_acc:
        faults.append(
            f'"external" ({info.external:g}) is above "autoattack_acc" ({info.autoattack_acc:g}); it is what the best'
            " known attack leaves, so it cannot be"
        )
    if info.clean_acc is not None and info.autoattack_acc > info.clean_acc:
        faults.append(
            f'"autoattack_acc" ({info.autoattack_acc:g}) is above "clean_acc" ({info.clean_acc:g}); an attack cannot'
            " make a model better"
        )
    return faults


def require_board(info: ModelInfo, card: BoardCard, where: str, path: Path) -> None:
    """Raises InputError unless the row is of the board's data set and of one of its budgets."""
    if info.dataset != card.data.name:
        raise InputError(f"{path}: is about the data set '{info.dataset}', {where} about '{card.data.name}'")
    if not any(math.isclose(info.eps, eps, rel_tol=_EPS_TOLERANCE) for eps in card.eps):
        known = ", ".join(show_number(eps) for eps in card.eps)
        raise InputError(f"{path}: has eps {show_number(info.eps)}, {where} has {known}; such numbers don't compare")


def model_info(record: Record, eps: float | None = None, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A record's AutoAttack result in RobustBench's format; `about` has fields that a record cannot know.

    Raises InputError for a record that is not the published protocol's: another attack, a custom one, a model that
    answers at random or has no useful gradient, a smoke profile, a run that stopped early or is incomplete, several eps
    of which none is named.
    """
    if refused := _refusal(record):
        raise InputError(f"cannot be exported for RobustBench: {refused}")
    chosen = _chosen_eps(record, eps)
    judged = record.at(ATTACK, chosen)
    robust = _shown(judged.robust_accuracy)
    return {
        "link": None,
        "name": record.entry["name"],
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": record.protocol["data"]["name"],
        "venue": None,
        "architecture": record.entry.get("model") or record.entry["name"],
        "eps": show_number(chosen),
        "clean_acc": _shown(judged.clean_accuracy),
        "reported": robust,
        "autoattack_acc": robust,
        **_external(record, chosen),
        "footnote": _footnote(record, judged.n),
        "unreliable": any(found.reliability.evidence is Evidence.STRONG for found in judged.judgements),
        **(about or {}),
    }


def _external(record: Record, eps: float) -> dict[str, str]:
    """What adaptive attacks leave, where they break more than AutoAttack."""
    floor, best = record.at(ATTACK, eps).robust, record.best_known(ATTACK, eps)
    return {"external": _shown(float(best.mean()))} if best.sum() < floor.sum() else {}


def _refusal(record: Record) -> str | None:
    """Why the record's numbers are not those of AutoAttack as published, if they are not."""
    protocol = record.protocol
    if protocol["profile"] == "smoke":
        return "it is a smoke profile, whose numbers mean nothing"
    if protocol["profile"] != "full":
        return "it stopped early, on samples that others need not share; evaluate in full"
    if ATTACK not in protocol["attacks"]:
        return f"it has no attack '{ATTACK}', only {', '.join(protocol['attacks'])}"
    if record.policy != "A":
        return f"it ran under policy {record.policy}, where {record.ran_as(ATTACK)} replaces {ATTACK}"
    if custom := record.custom(ATTACK):
        return f"its '{ATTACK}' is custom, not the published protocol: {'; '.join(custom)}"
    if protocol["norm"] not in NORMS:
        return f"its norm is {protocol['norm']}; RobustBench has boards for {' and '.join(NORMS)}"
    if not record.complete:
        return "it is incomplete; run the same command again to finish it"
    return None


def _chosen_eps(record: Record, eps: float | None) -> float:
    held = list(record.protocol["eps"])
    shown = ", ".join(show_number(value) for value in held)
    if eps is None and len(held) > 1:
        raise InputError(f"the record holds several eps ({shown}); choose one with --eps")
    chosen = held[0] if eps is None else next((v for v in held if math.isclose(v, eps, rel_tol=_EPS_TOLERANCE)), None)
    if chosen is None:
        raise InputError(f"the record holds eps {shown}, not {show_number(eps or 0.0)}")
    return chosen


def _shown(share: float) -> str:
    return f"{100 * share:.2f}"


def _footnote(record: Record, n: int) -> str:
    """What RobustBench's own rows don't need to say: other code, and how many samples."""
    data, precision = record.protocol["data"], record.protocol["precision"]
    version = record.provenance.get("packages", {}).get("robustbench_vit")
    software = f"robustbench_vit {version}" if version else "robustbench_vit"
    searched = "" if precision == PRECISIONS[0] else f", searched in {precision}"
    on = f"{n} samples of {data['name']}/{data['split']}"
    return f"Measured by {software} on {on}{searched}; protocol {record.protocol_id}."
