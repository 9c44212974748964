"""Which samples a sheet shows, and what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.data import Dataset
from robustbench_vit.engine.verify import Verifier
from robustbench_vit.errors import InputError
from robustbench_vit.records import Outcome, Record, Status

CHANCE = 1e-3
"""Margins up to this times the largest logit may change sign on another machine."""


@dataclass(frozen=True)
class Answer:
    """The class a model names and how sure it says it is."""

    label: int
    confidence: float  # softmax of the logits, in [0, 1]


@dataclass(frozen=True)
class Shown:
    """One sample of a sheet."""

    outcome: Outcome
    true: int
    clean: Tensor  # (c, h, w) in [0, 1]
    adversarial: Tensor | None  # none was found, or none was needed
    clean_answer: Answer
    adversarial_answer: Answer | None

    @property
    def change(self) -> Tensor | None:
        """(c, h, w): adversarial less clean."""
        return None if self.adversarial is None else self.adversarial - self.clean


@dataclass(frozen=True)
class Held:
    """The outcomes whose images a record keeps: of its last attack at its first eps."""

    attack: str
    eps: float
    norm: str
    outcomes: Sequence[Outcome]
    images: np.ndarray  # float32 (n, c, h, w)
    random: bool  # the model answers at random, so one draw may contradict the record


def held_images(record: Record, data: Dataset) -> Held:
    """The outcomes with images; raises InputError for records without images, and for other samples or images."""
    attack, eps = list(record.protocol["attacks"])[-1], record.protocol["eps"][0]
    if record.images is None:
        raise InputError(
            "the record has no images beside it (NAME.images.safetensors), so there is nothing to show;"
            " records published with a board leave theirs out: run the board, or evaluate with adversarials=True"
        )
    outcomes = list(record.at(attack, eps, record.protocol["criterion"]).outcomes)
    if tuple(o.sample for o in outcomes) != data.sample_ids:
        raise InputError(f"{data.name}/{data.split} holds other samples than the record, or in another order")
    if record.images.shape != data.x.shape:
        raise InputError(
            f"the images have the shape {record.images.shape}, the record's samples {data.x.shape}:"
            " they belong to another record"
        )
    if left := sum(o.status is Status.NOT_RUN for o in outcomes):
        raise InputError(f"{left} of the record's {len(outcomes)} samples were not run; finish the run first")
    return Held(attack, eps, record.protocol["norm"], outcomes, record.images, record.policy == "B")


def choose(outcomes: Sequence[Outcome], n: int) -> list[int]:
    """Positions of at most n samples: broken ones (one of each lane in turn), then robust, then misclassified ones."""
    broken: dict[str | None, list[int]] = {}
    for i, outcome in enumerate(outcomes):
        if outcome.status is Status.BROKEN:
            broken.setdefault(outcome.by, []).append(i)
    in_turn = [i for i in chain.from_iterable(zip_longest(*broken.values())) if i is not None]
    robust = [i for i, o in enumerate(outcomes) if o.robust]
    others = [i for i, o in enumerate(outcomes) if not o.robust and o.status is not Status.BROKEN]
    return [*in_turn, *robust, *others][:n]


def shown(held: Held, model: Any, data: Dataset, n: int) -> list[Shown]:
    """The chosen samples with the model's answers; raises InputError when those contradict the record."""
    positions = choose(held.outcomes, n)
    x, y = torch.from_numpy(data.x[positions]), torch.from_numpy(data.y[positions])
    images = torch.from_numpy(held.images[positions])
    outcomes = [held.outcomes[i] for i in positions]
    verifier, where = Verifier(model, NORMS[held.norm]), device_of(model)
    clean, adversarial = (verifier.logits(asked.to(where)).cpu() for asked in (x, images))
    if not held.random:
        _check_answers(outcomes, clean, adversarial, y)
    before, after = _answers(clean), _answers(adversarial)
    return [
        Shown(o, int(y[i]), x[i], images[i], before[i], after[i])
        if o.status is Status.BROKEN
        else Shown(o, int(y[i]), x[i], None, before[i], None)
        for i, o in enumerate(outcomes)
    ]


def device_of(model: Any) -> torch.device:
    """Where a module's parameters are."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _check_answers(outcomes: Sequence[Outcome], clean: Tensor, adversarial: Tensor, y: Tensor) -> None:
    """Raises InputError unless the model answers as the record says, up to rounding."""
    before, after = _margins(clean, y).tolist(), _margins(adversarial, y).tolist()
    near = (CHANCE * torch.stack([clean, adversarial]).abs().amax((0, 2))).tolist()
    for i, outcome in enumerate(outcomes):
        wrong = outcome.status is Status.MISCLASSIFIED
        contradicted = before[i] > near[i] if wrong else before[i] < -near[i]
        if contradicted or (outcome.status is Status.BROKEN and after[i] > near[i]):
            which = "clean" if contradicted else "adversarial"
            raise InputError(
                f"not the record's model, or not its images: of sample {outcome.sample} the record says"
                f" '{outcome.verdict}', but this model's answer to the {which} image is class"
                f" {int((clean if contradicted else adversarial)[i].argmax())}, the true one {int(y[i])}"
            )


def _margins(logits: Tensor, y: Tensor) -> Tensor:
    """(n,): the true class's logit less the largest other one."""
    if int(y.max()) >= logits.shape[1]:
        raise InputError(f"the model has {logits.shape[1]} classes and the samples a label {int(y.max())}")
    true = logits.gather(1, y[:, None])[:, 0]
    return true - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def _answers(logits: Tensor) -> list[Answer]:
    sure, label = logits.softmax(1).max(1)
    return [Answer(int(c), float(p)) for c, p in zip(label, sure, strict=True)]
