"""The record of one evaluated model: outcomes with the protocol and the provenance that explain them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.records import adaptive, files
from robustbench_vit.records.outcome import Outcome, Status
from robustbench_vit.records.outcomes import Outcomes
from robustbench_vit.records.reliability import Judgement, Reliability

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PASSES = ("forwards", "backwards")
"""What of the passes a mean can be asked of."""


@dataclass(frozen=True)
class Finding:
    """What intake noticed about a model."""

    check: str
    level: str  # pass, warn or refuse
    message: str


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
    outcomes: Sequence[Outcome]  # any may be given; they are kept as `Outcomes`
    findings: tuple[Finding, ...]
    provenance: Mapping[str, Any]  # git commit, versions, device, width, seed, seconds, …; never compared
    images: np.ndarray | None = None  # float32 (n, c, h, w): broken samples' adversarial images, else the clean ones
    policy: str = "A"  # A deterministic and differentiable, B answers at random, C no useful gradient
    judgements: tuple[Judgement, ...] = ()  # how far numbers can be trusted
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings of adaptive attacks, by name

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcomes", Outcomes.of(self.outcomes))

    @property
    def _held(self) -> Outcomes:
        return cast(Outcomes, self.outcomes)

    @property
    def protocol_id(self) -> str:
        """See `records.protocol_id`."""
        return protocol_id(self.protocol)

    def at(self, attack: str | None = None, eps: float | None = None, criterion: str | None = None) -> Record:
        """This record with the outcomes of one attack, eps and criterion only; raises InputError when there are none.

        Random models have outcomes by two criteria: 'untargeted' (one wrong draw suffices, as AutoAttack counts) and
        'majority' (more than half of the draws).
        """
        asked = {"attack": attack, "eps": eps, "criterion": criterion}
        kept = self._held.where(**{name: value for name, value in asked.items() if value is not None})
        if not kept:
            by = f" by criterion {criterion!r}" if criterion else ""
            held = ", ".join(f"{name} at {radius:g}" for name, radius in sorted(self.budgets))
            raise InputError(f"no outcomes for attack {attack!r} at eps {eps}{by}; the record holds {held}")
        judged = tuple(j for j in self.judgements if attack in (None, j.attack) and eps in (None, j.eps))
        return dataclasses.replace(self, outcomes=kept, judgements=judged)

    def _single(self) -> Outcomes:
        if len(self.budgets) != 1:
            held = sorted(self.budgets)
            raise InputError(
                f"the record holds several attacks or budgets, {held}; choose with record.at(attack=…, eps=…)"
            )
        return self._held if len(self.criteria) == 1 else self._held.where(criterion=self.protocol["criterion"])

    @property
    def budgets(self) -> list[tuple[str, float]]:
        """Every attack and eps that there are outcomes of, in their order."""
        return self._held.budgets()

    @property
    def criteria(self) -> list[str]:
        """How outcomes were judged, the headline's criterion first."""
        return self._held.criterion.present()

    @property
    def complete(self) -> bool:
        """Whether every sample was run."""
        return not self._held.status.count(Status.NOT_RUN)

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

    @property
    def attacks(self) -> dict[str, Mapping[str, Any]]:
        """The settings of every attack that ran: those of the protocol, then the adaptive ones."""
        return {**self.protocol.get("attacks", {}), **self.evidence}

    def _resolved(self, attack: str) -> Mapping[str, Any]:
        resolved = self.attacks[attack]
        return resolved.get("stand_ins", {}).get(self.policy, resolved)

    def custom(self, attack: str) -> list[str]:
        """The fields in which an attack differs from the published protocol whose name it bears."""
        own, ran = self.attacks[attack], self._resolved(attack)
        return list(dict.fromkeys([*own.get("custom", []), *ran.get("custom", [])]))

    @property
    def n(self) -> int:
        """Samples evaluated."""
        return self._held.sample.distinct()

    @property
    def clean_accuracy(self) -> float:
        """Share of samples classified correctly without an attack."""
        wrong = self._held.where(status=Status.MISCLASSIFIED)
        return 1 - wrong.sample.distinct() / self.n

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that no lane broke."""
        robust = self.robust
        return int(robust.sum()) / len(robust)

    @property
    def samples(self) -> list[str]:
        """The ids of the samples, in the order of `robust` and `verdicts`."""
        return self._single().sample.tolist()

    @property
    def robust(self) -> np.ndarray:
        """bool (n,): whether no lane broke the sample."""
        return self._single().robust

    @property
    def correct(self) -> np.ndarray:
        """bool (n,): whether the sample is classified correctly without an attack."""
        return ~self._single().status.among(Status.MISCLASSIFIED)

    @property
    def verdicts(self) -> list[str]:
        """One string per sample: 'misclassified', 'robust' or the name of the lane that broke it."""
        return self._single().verdicts

    def mean(self, part: str) -> float:
        """Model passes ('forwards' or 'backwards') per sample, a mean over all; misclassified ones cost one forward."""
        if part not in PASSES:
            raise InputError(f"no mean of '{part}'; there are: {', '.join(PASSES)}")
        passes = getattr(self._single(), part).values
        return int(passes.sum()) / len(passes)

    def interval(self, confidence: float = 0.95, method: str = "wilson") -> tuple[float, float]:
        """The interval of the robust accuracy over the draw of the test samples, by one of statistics.INTERVALS.

        Of a record that stopped as soon as enough was known it is a confidence sequence, whatever the method.
        """
        return self.interval_of(self.robust, confidence, method)

    def interval_of(self, held: np.ndarray, confidence: float, method: str = "wilson") -> tuple[float, float]:
        """Like `interval`, of the share of samples for which something held: bool (n,), in the order of `samples`."""
        from robustbench_vit.statistics import INTERVALS, ConfidenceSequence

        if method not in INTERVALS:
            raise InputError(f"no interval '{method}'; there are: {', '.join(INTERVALS)}")
        if until := self.protocol.get("until"):
            return ConfidenceSequence(1 - confidence, until["half_width"]).take_many(held.tolist()).interval
        return INTERVALS[method](int(held.sum()), len(held), confidence)

    def best_known(self, attack: str | None = None, eps: float | None = None) -> np.ndarray:
        """bool (n,): whether neither the attack nor any adaptive one at that eps broke the sample.

        The attack is the protocol's last and eps its first unless they are named; samples are in the order of
        `record.at(attack, eps).samples`. Equal to its `robust` where no adaptive attack ran.
        """
        return adaptive.best_known(self, attack, eps)

    def only_adaptive(self, eps: float | None = None) -> dict[str, tuple[str, ...]]:
        """Samples that none of the protocol's attacks broke and an adaptive one did, with those that did, by sample.

        By them the protocol alone overstates the robustness. The eps is the first unless it is named.
        """
        return adaptive.only_adaptive(self, eps)

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
        left = len(outcomes) - outcomes.status.count(Status.MISCLASSIFIED)
        after = {}
        for lane in self.lanes(attack):
            left -= outcomes.by.count(lane)
            after[lane] = left
        return after

    def to_frame(self) -> pd.DataFrame:
        """A line per outcome."""
        import pandas as pd

        frame = pd.DataFrame({**self._held.lists(), "verdict": self._held.verdicts})
        first = ["sample", "attack", "norm", "eps", "verdict", "by", "forwards", "backwards", "distance"]
        return frame.reindex(columns=[*first, *(c for c in frame.columns if c not in first)])

    def _repr_html_(self) -> str:
        from robustbench_vit.records.html import card

        return card(self)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values; outcomes by column."""
        return {
            "format": files.FORMAT,
            "entry": dict(self.entry),
            "protocol_id": self.protocol_id,
            "protocol": dict(self.protocol),
            **({"evidence": dict(self.evidence)} if self.evidence else {}),
            "policy": self.policy,
            "findings": [dataclasses.asdict(f) for f in self.findings],
            "reliability": [{"attack": j.attack, "eps": j.eps, **j.reliability.to_dict()} for j in self.judgements],
            "outcomes": self._held.folded(),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the record as JSON to `path`, images beside it as .images.safetensors; atomic. Returns the path."""
        return files.write(path, self.to_dict(), self.images)

    @staticmethod
    def load(path: str | os.PathLike[str], images: bool = True) -> Record:
        """The record saved at `path`, with the images beside it where there are some, unless they are not wanted.

        Raises InputError when it isn't a record or was altered.
        """
        path = Path(path)
        raw = files.read(path)
        try:
            record, claimed = _from_dict(raw), raw["protocol_id"]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise InputError(f"{path}: damaged record: {error!r}") from error
        if record.protocol_id != claimed:
            raise InputError(
                f"{path}: the protocol does not match its id {claimed} (it hashes to {record.protocol_id});"
                " the file was altered"
            )
        kept = files.read_images(path) if images else None
        return record if kept is None else dataclasses.replace(record, images=kept)


def _from_dict(raw: Mapping[str, Any]) -> Record:
    return Record(
        entry=raw["entry"],
        protocol=raw["protocol"],
        outcomes=Outcomes.unfolded(raw["outcomes"]),
        findings=tuple(Finding(**f) for f in raw["findings"]),
        provenance=raw["provenance"],
        policy=raw["policy"],
        judgements=tuple(Judgement(j["attack"], j["eps"], Reliability.from_dict(j)) for j in raw["reliability"]),
        evidence={name: {**settings, "lanes": settings["lanes"]} for name, settings in raw.get("evidence", {}).items()},
    )
