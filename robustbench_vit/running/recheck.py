"""A stored record checked again: its model is asked anew about its images, as they are and rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.data import Dataset
from robustbench_vit.engine.verify import Checked, Verifier
from robustbench_vit.errors import InputError
from robustbench_vit.plan import VERIFICATION
from robustbench_vit.provenance import provenance
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.records.rows import MAJORITY
from robustbench_vit.running.rebuild import check_data
from robustbench_vit.subject import placed

GREY_LEVEL = 1 / 255
"""Between two neighbouring values of an 8-bit pixel, in units of images in [0, 1]."""
CHANCE = 1e-3
"""A random model's rechecks contradict its record when they would differ so much with at most this probability."""
ON_GRID = 1e-3
"""Of a grey level: pixels this close to one count as 8-bit pixels (float32 is off by at most 3e-5 of it)."""


@dataclass(frozen=True)
class Failure:
    """A sample of which the record says what isn't so."""

    sample: str
    reason: str  # a few words, equal for equal faults
    detail: str  # the numbers


@dataclass(frozen=True)
class Rounded:
    """What is left of the images counted as broken when they are stored with 8 bits, round(255 x) / 255."""

    misclassified: int
    inside: int  # in the budget itself
    near: int  # in the budget enlarged by `tolerance`
    hold: int  # misclassified and inside
    nearly_hold: int  # misclassified and near
    tolerance: float  # half a grey level, in the norm's unit
    on_grid: bool  # whether the clean pixels are 8-bit pixels


@dataclass(frozen=True)
class Recheck:
    """What came of checking a record again."""

    attack: str  # the one whose images the record keeps
    norm: str
    eps: float
    n: int  # samples
    counted: int  # as broken, by the record
    broken: tuple[Failure, ...]  # counted samples whose image doesn't hold
    clean: tuple[Failure, ...]  # samples whose clean answer, or stored clean image, isn't what the record says
    rounded: Rounded
    differences: tuple[str, ...]  # of this machine and its packages from the record's

    @property
    def hold(self) -> int:
        """Counted samples whose image holds."""
        return self.counted - len(self.broken)

    @property
    def passed(self) -> bool:
        """Whether everything is as the record says; rounded images are no part of that."""
        return not self.broken and not self.clean

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "hold": self.hold, "passed": self.passed}


def recheck(record: Record, model: Any, data: Dataset, device: torch.device) -> Recheck:
    """What becomes of a record's claims when `model` is asked again about `data` and the stored images.

    Every sample counted as broken must hold by the engine's rule (see `Verifier`); every other's clean answer must be
    what the record says. Images that adaptive attacks found are not kept, so their outcomes are not rechecked. Raises
    InputError for records without images or with unfinished outcomes, and for other data.
    """
    attack, eps, outcomes = _kept(record)
    check_data(record, data)
    images = _images(record, data, outcomes)
    broken = torch.tensor([o.status is Status.BROKEN for o in outcomes])
    x0, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    draws = int(VERIFICATION["draws"]) if MAJORITY in record.criteria else 1
    verifier = Verifier(model, NORMS[record.protocol["norm"]], draws)
    with placed(model, device):
        asked = _Asked(verifier, x0[broken].to(device), y[broken].to(device), eps)
        failures = asked.failures(images[broken].to(device), [o for o in outcomes if o.status is Status.BROKEN])
        rounded = asked.rounded(images[broken].to(device), x0)
        answers = _clean_answers(verifier, outcomes, x0.to(device), y.to(device))
    return Recheck(
        attack=attack,
        norm=record.protocol["norm"],
        eps=eps,
        n=len(outcomes),
        counted=int(broken.sum()),
        broken=tuple(failures),
        clean=(*answers, *_changed(outcomes, images, x0)),
        rounded=rounded,
        differences=tuple(differences(record, device)),
    )


def _kept(record: Record) -> tuple[str, float, list[Outcome]]:
    """The attack and eps whose images a record keeps, the last and the first, with their outcomes."""
    attack, eps = list(record.protocol["attacks"])[-1], record.protocol["eps"][0]
    found = list(record.at(attack, eps, record.protocol["criterion"]).outcomes)
    if left := sum(o.status is Status.NOT_RUN for o in found):
        raise InputError(f"{left} of the record's {len(found)} samples were not run; finish the run first")
    return attack, eps, found


def _images(record: Record, data: Dataset, outcomes: Sequence[Outcome]) -> Tensor:
    """The record's images; raises InputError unless there is one for each sample, in the data's order."""
    if record.images is None:
        raise InputError(
            "the record has no images beside it (NAME.images.safetensors), so there is nothing to recheck;"
            " records published with a board leave theirs out: run the board, or evaluate with adversarials=True"
        )
    if tuple(o.sample for o in outcomes) != data.sample_ids:
        raise InputError("damaged record: its outcomes are not those of its samples, in their order")
    images = torch.from_numpy(record.images)
    if images.shape != data.x.shape or images.dtype != torch.float32:
        raise InputError(
            f"the images are {images.dtype} {tuple(images.shape)}; the record's samples need"
            f" torch.float32 {tuple(data.x.shape)}: they belong to another record"
        )
    return images


@dataclass(frozen=True)
class _Asked:
    """The samples counted as broken, on the device, and who answers."""

    verifier: Verifier
    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    eps: float

    def failures(self, images: Tensor, outcomes: Sequence[Outcome]) -> list[Failure]:
        """The rows whose image doesn't hold, each with its first fault."""
        if not len(images):
            return []
        found = self.verifier.check(images, self.x0, self.y, self._radii())
        inside, wrong = found.inside.tolist(), found.wrong_draws.tolist()
        return [
            Failure(o.sample, *self._fault(found, i, images[i]))
            for i, o in enumerate(outcomes)
            if not inside[i] or not self._believable(wrong[i], o.k_of_m, len(outcomes))
        ]

    def _believable(self, wrong: int, recorded: tuple[int, int] | None, rows: int) -> bool:
        """Whether as many wrong draws fit the record: of a random model, Fisher's exact test over all rows together."""
        if recorded is None:
            return wrong > 0
        from scipy.stats import fisher_exact

        k, m = recorded
        test: Any = fisher_exact([[wrong, self.verifier.draws - wrong], [k, m - k]])
        return test.pvalue >= CHANCE / rows

    def _fault(self, found: Checked, i: int, image: Tensor) -> tuple[str, str]:
        """Reason and detail of row i."""
        if not found.finite[i]:
            return "not finite", f"{int((~image.isfinite()).sum())} pixels are NaN or infinite"
        if not found.in_box[i]:
            return "outside [0, 1]", f"pixels from {float(image.min()):g} to {float(image.max()):g}"
        if not found.in_budget[i]:
            return "outside the budget", f"distance {float(found.distance[i]):.7g}, eps {self.eps:.7g}"
        if self.verifier.draws > 1:
            wrong = int(found.wrong_draws[i])
            return "not misclassified", f"wrong in {wrong} of {self.verifier.draws} draws, unlike the record"
        y = self.y[i : i + 1]
        return "not misclassified", f"margin {float(_margins(self.verifier.answers(image[None], y)[0], y)):.3g}"

    def rounded(self, images: Tensor, x0: Tensor) -> Rounded:
        """The same after rounding to 8 bits, as a count; `x0` are all clean images."""
        found = self.verifier.check(_eight_bits(images), self.x0, self.y, self._radii()) if len(images) else None
        off_grid = float((x0 - _eight_bits(x0)).abs().max()) if len(x0) else 0.0
        grid, half = off_grid <= ON_GRID * GREY_LEVEL, GREY_LEVEL / 2
        if found is None:
            return Rounded(0, 0, 0, 0, 0, half, grid)
        wrong, valid = found.wrong_draws > 0, found.finite & found.in_box
        near = valid & (found.distance <= self.eps + half + float(VERIFICATION["budget_tolerance"]) * max(self.eps, 1))
        counts = (wrong & found.finite, found.inside, near, wrong & found.inside, wrong & near)
        return Rounded(*(int(which.sum()) for which in counts), tolerance=half, on_grid=grid)

    def _radii(self) -> Tensor:
        return torch.full((len(self.y),), self.eps, dtype=self.x0.dtype, device=self.x0.device)


def _eight_bits(x: Tensor) -> Tensor:
    return (x * 255).round() / 255


def _margins(logits: Tensor, y: Tensor) -> Tensor:
    """(n,): the true class's logit less the largest other one; negative where misclassified."""
    true = logits.gather(1, y[:, None])[:, 0]
    return true - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def _clean_answers(verifier: Verifier, outcomes: Sequence[Outcome], x0: Tensor, y: Tensor) -> list[Failure]:
    """Samples whose clean answer isn't what the record says."""
    logits, wrong = verifier.answers(x0, y)
    margins = _margins(logits, y).tolist()
    # The record doesn't say how many clean draws were wrong; only an all but unanimous answer contradicts a vote.
    surely_right = (wrong <= 0.05 * verifier.draws).tolist()
    surely_wrong = (wrong >= 0.95 * verifier.draws).tolist()
    faults = []
    for outcome, yes, no, margin in zip(outcomes, surely_right, surely_wrong, margins, strict=True):
        if outcome.status is Status.MISCLASSIFIED and yes:
            faults.append(Failure(outcome.sample, "clean image is classified correctly", f"margin {margin:.3g}"))
        elif outcome.status in (Status.BROKEN, Status.SURVIVED, Status.CERTIFIED) and no:
            faults.append(Failure(outcome.sample, "clean image is misclassified", f"margin {margin:.3g}"))
    return faults


def _changed(outcomes: Sequence[Outcome], images: Tensor, x0: Tensor) -> list[Failure]:
    """Samples not counted as broken whose stored image isn't their clean one."""
    same = (images == x0).flatten(1).all(1).tolist()
    return [
        Failure(o.sample, "stored image is not the clean one", f"the record says {o.status.value}")
        for o, equal in zip(outcomes, same, strict=True)
        if o.status is not Status.BROKEN and not equal
    ]


def differences(record: Record, device: torch.device) -> Iterator[str]:
    """In what this machine, its packages and its rule of verification differ from the record's, in words."""
    then, now = record.provenance, {**provenance(), "device": str(device)}
    flat = [(key, then.get(key), now[key]) for key in ("platform", "device", "python", "git_commit")]
    versions = then.get("packages", {})
    flat += [(name, versions.get(name), version) for name, version in now["packages"].items()]
    for name, recorded, here in flat:
        if recorded != here:
            yield f"{name} {here}, recorded with {recorded}"
    if record.protocol["verification"] != VERIFICATION:
        yield "another rule of verification than the record's"
