"""The record of one evaluated model: outcomes with the protocol and the provenance that explain them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.records.outcome import Outcome, Status
from robustbench_vit.records.reliability import Reliability
from robustbench_vit.storage import write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FORMAT = "robustbench_vit/record/2"
PASSES = ("forwards", "backwards")
"""What of the passes a mean can be asked of."""


@dataclass(frozen=True)
class Finding:
    """What intake noticed about a model."""

    check: str
    level: str  # pass, warn or refuse
    message: str


@dataclass(frozen=True)
class Judgement:
    """How far the robust accuracy under one attack and eps can be trusted."""

    attack: str
    eps: float
    reliability: Reliability


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits; equal ids may share a table."""
    return hashlib.sha256(canonical(protocol).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """Everything an evaluation found; summaries are recomputed from the outcomes each time they are asked for."""

    entry: Mapping[str, Any]  # name, model, defense, weights_sha256, parameters, …
    protocol: Mapping[str, Any]  # what was asked; see plan.py
    outcomes: tuple[Outcome, ...]
    findings: tuple[Finding, ...]
    provenance: Mapping[str, Any]  # git commit, versions, device, width, seed, seconds, …; never compared
    images: np.ndarray | None = None  # float32 (n, c, h, w): broken samples' adversarial images, else the clean ones
    policy: str = "A"  # A deterministic and differentiable, B answers at random, C no useful gradient
    judgements: tuple[Judgement, ...] = ()  # how far numbers can be trusted

    @property
    def protocol_id(self) -> str:
        """See `records.protocol_id`."""
        return protocol_id(self.protocol)

    def at(self, attack: str | None = None, eps: float | None = None, criterion: str | None = None) -> Record:
        """This record with the outcomes of one attack, eps and criterion only; raises InputError when there are none.

        Random models have outcomes by two criteria: 'untargeted' (one wrong draw suffices, as AutoAttack counts) and
        'majority' (more than half of the draws).
        """
        asked = (("attack", attack), ("eps", eps), ("criterion", criterion))
        kept = tuple(o for o in self.outcomes if all(v is None or getattr(o, name) == v for name, v in asked))
        if not kept:
            held = sorted({(o.attack, o.eps) for o in self.outcomes})
            by = f" by criterion {criterion!r}" if criterion else ""
            raise InputError(f"no outcomes for attack {attack!r} at eps {eps}{by}; the record holds {held}")
        judged = tuple(j for j in self.judgements if attack in (None, j.attack) and eps in (None, j.eps))
        return dataclasses.replace(self, outcomes=kept, judgements=judged)

    def _single(self) -> tuple[Outcome, ...]:
        held = sorted({(o.attack, o.eps) for o in self.outcomes})
        if len(held) != 1:
            raise InputError(
                f"the record holds several attacks or budgets, {held}; choose with record.at(attack=…, eps=…)"
            )
        by = {o.criterion for o in self.outcomes}
        return tuple(o for o in self.outcomes if len(by) == 1 or o.criterion == self.protocol["criterion"])

    @property
    def criteria(self) -> list[str]:
        """How outcomes were judged, the headline's criterion first."""
        return list(dict.fromkeys(o.criterion for o in self.outcomes))

    @property
    def reliability(self) -> Reliability | None:
        """How far the robust accuracy can be trusted; None where it was not looked into."""
        self._single()
        return self.judgements[0].reliability if self.judgements else None

    def ran_as(self, attack: str) -> str:
        """The card that ran: the attack's own, or its stand-in under the record's policy."""
        return self._resolved(attack).get("name", attack)

    def lanes(self, attack: str) -> list[str]:
        """The lanes that ran: those of the attack's card, or of its stand-in under the record's policy."""
        return [lane["name"] for lane in self._resolved(attack)["lanes"]]

    def _resolved(self, attack: str) -> Mapping[str, Any]:
        resolved = self.protocol["attacks"][attack]
        return resolved.get("stand_ins", {}).get(self.policy, resolved)

    def custom(self, attack: str) -> list[str]:
        """The fields in which an attack differs from the published protocol whose name it bears."""
        own, ran = self.protocol["attacks"][attack], self._resolved(attack)
        return list(dict.fromkeys([*own.get("custom", []), *ran.get("custom", [])]))

    @property
    def n(self) -> int:
        """Samples evaluated."""
        return len({o.sample for o in self.outcomes})

    @property
    def clean_accuracy(self) -> float:
        """Share of samples classified correctly without an attack."""
        wrong = {o.sample for o in self.outcomes if o.status is Status.MISCLASSIFIED}
        return 1 - len(wrong) / self.n

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that no lane broke."""
        outcomes = self._single()
        return sum(o.robust for o in outcomes) / len(outcomes)

    @property
    def samples(self) -> list[str]:
        """The ids of the samples, in the order of `robust` and `verdicts`."""
        return [o.sample for o in self._single()]

    @property
    def robust(self) -> np.ndarray:
        """bool (n,): whether no lane broke the sample."""
        return np.array([o.robust for o in self._single()], bool)

    def mean(self, part: str) -> float:
        """Model passes per sample, a mean over all samples; misclassified ones cost one forward pass."""
        if part not in PASSES:
            raise InputError(f"no mean of '{part}'; there are: {', '.join(PASSES)}")
        outcomes = self._single()
        return sum(getattr(o, part) for o in outcomes) / len(outcomes)

    def interval(self, confidence: float = 0.95, method: str = "wilson") -> tuple[float, float]:
        """The interval of the robust accuracy over the draw of the test samples, by one of statistics.INTERVALS."""
        from robustbench_vit.statistics import INTERVALS

        if method not in INTERVALS:
            raise InputError(f"no interval '{method}'; there are: {', '.join(INTERVALS)}")
        robust = self.robust
        return INTERVALS[method](int(robust.sum()), len(robust), confidence)

    @property
    def verdicts(self) -> list[str]:
        """One string per sample: 'misclassified', 'robust' or the name of the lane that broke it."""
        return [o.verdict for o in self._single()]

    @property
    def adversarials(self) -> Tensor:
        """(n, c, h, w) float32: the broken samples' adversarial images, the others' clean ones."""
        if self.images is None:
            raise InputError("this record kept no images; evaluate with adversarials=True")
        import torch

        return torch.from_numpy(self.images)

    def survivors(self, attack: str, eps: float) -> dict[str, int]:
        """Samples still robust after each lane of an attack, in the order of its lanes."""
        outcomes = self.at(attack, eps)._single()
        left = sum(o.status is not Status.MISCLASSIFIED for o in outcomes)
        after = {}
        for lane in self.lanes(attack):
            left -= sum(o.by == lane for o in outcomes)
            after[lane] = left
        return after

    def to_frame(self) -> pd.DataFrame:
        """A line per outcome."""
        import pandas as pd

        frame = pd.DataFrame([{**dataclasses.asdict(o), "verdict": o.verdict} for o in self.outcomes])
        first = ["sample", "attack", "norm", "eps", "verdict", "by", "forwards", "backwards", "distance"]
        return frame.reindex(columns=[*first, *(c for c in frame.columns if c not in first)])

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values; outcomes by column."""
        columns = {f.name: [getattr(o, f.name) for o in self.outcomes] for f in dataclasses.fields(Outcome)}
        return {
            "format": FORMAT,
            "entry": dict(self.entry),
            "protocol_id": self.protocol_id,
            "protocol": dict(self.protocol),
            "policy": self.policy,
            "findings": [dataclasses.asdict(f) for f in self.findings],
            "reliability": [{"attack": j.attack, "eps": j.eps, **j.reliability.to_dict()} for j in self.judgements],
            "outcomes": _folded(columns),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the record as JSON to `path`, images beside it as .images.safetensors; atomic. Returns the path."""
        path = Path(path)
        if self.images is not None:
            from safetensors.numpy import save

            write_atomic(_images_beside(path), save({"adversarials": np.ascontiguousarray(self.images)}))
        else:
            _images_beside(path).unlink(missing_ok=True)  # of an older record
        write_atomic(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Record:
        """The record saved at `path`; raises InputError when it isn't one or was altered."""
        path = Path(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable record: {error}") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise InputError(f'{path}: not a record of this version; expected "format": "{FORMAT}"')
        try:
            record, claimed = _from_dict(raw), raw["protocol_id"]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{path}: damaged record: {error!r}") from error
        if record.protocol_id != claimed:
            raise InputError(
                f"{path}: the protocol does not match its id {claimed} (it hashes to {record.protocol_id});"
                " the file was altered"
            )
        images = _images_beside(path)
        return dataclasses.replace(record, images=_load_images(images)) if images.is_file() else record


def _images_beside(path: Path) -> Path:
    """Where a record's images lie; not NAME.safetensors, which may be the model's weights."""
    return path.with_suffix(".images.safetensors")


def _load_images(path: Path) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)["adversarials"]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: not the images of a record: {error}") from error


def _folded(columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Columns whose values are all equal as one value: {"n": …, "same": {…}, "each": {…}}."""
    n = len(next(iter(columns.values())))
    same = {k: v[0] for k, v in columns.items() if n and all(item == v[0] for item in v)}
    return {"n": n, "same": same, "each": {k: v for k, v in columns.items() if k not in same}}


def _from_dict(raw: Mapping[str, Any]) -> Record:
    folded = raw["outcomes"]
    rows = [{**folded["same"], **{k: v[i] for k, v in folded["each"].items()}} for i in range(folded["n"])]
    return Record(
        entry=raw["entry"],
        protocol=raw["protocol"],
        outcomes=tuple(_outcome(row) for row in rows),
        findings=tuple(Finding(**f) for f in raw["findings"]),
        provenance=raw["provenance"],
        policy=raw["policy"],
        judgements=tuple(Judgement(j["attack"], j["eps"], Reliability.from_dict(j)) for j in raw["reliability"]),
    )


def _outcome(row: dict[str, Any]) -> Outcome:
    pair = row["k_of_m"]
    return Outcome(**{**row, "status": Status(row["status"]), "k_of_m": tuple(pair) if pair else None})


def same_verdicts(a: Iterable[Outcome], b: Iterable[Outcome]) -> dict[str, list[str]]:
    """Per attack, the samples whose verdict differs between two sets of outcomes (missing ones differ)."""

    def by_key(outcomes: Iterable[Outcome]) -> dict[tuple[str, float, str, str], str]:
        return {(o.attack, o.eps, o.criterion, o.sample): o.verdict for o in outcomes}

    left, right = by_key(a), by_key(b)
    differing: dict[str, list[str]] = {}
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            attack, _, _, sample = key
            differing.setdefault(attack, []).append(sample)
    return differing
