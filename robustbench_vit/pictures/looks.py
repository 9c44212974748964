"""The columns on what a model looks at: attention before and after, patches kept before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.pictures import drawing
from robustbench_vit.pictures.attention import Attention, NoAttention, read_attention
from robustbench_vit.pictures.columns import Cell, Column, empty
from robustbench_vit.pictures.shown import Shown, device_of

Pair = tuple[Tensor, Tensor | None]
"""A map (rows, columns) of a clean image, and of its adversarial one if there is one."""


@dataclass(frozen=True)
class Looks:
    """What the model looks at, sample by sample."""

    about: Attention  # of the clean images
    shares: Sequence[Pair]
    passed: Sequence[Pair]  # dropping blocks that left a patch in; empty for a model that drops none


def look(model: Any, samples: Sequence[Shown]) -> Looks | NoAttention:
    """The model's attention on the samples' clean and adversarial images; raises what `read_attention` raises."""
    where = device_of(model)
    before = read_attention(model, torch.stack([s.clean for s in samples]).to(where))
    if isinstance(before, NoAttention):
        return before
    found = [s.adversarial for s in samples if s.adversarial is not None]
    after = read_attention(model, torch.stack(found).to(where)) if found else None
    if isinstance(after, NoAttention):
        return after
    shares = _paired(samples, before.shares, None if after is None else after.shares)
    if before.passed is None:
        return Looks(before, shares, [])
    return Looks(before, shares, _paired(samples, before.passed, None if after is None else after.passed))


def look_columns(samples: Sequence[Shown], looks: Looks) -> Iterator[Column]:
    """Attention on clean and adversarial images in the same colours; then the patches kept, where some are dropped."""
    cells = [_attended(sample, *pair) for sample, pair in zip(samples, looks.shares, strict=True)]
    yield Column("attention, clean", [before for before, _ in cells])
    yield Column("attention, adversarial", [after for _, after in cells])
    if looks.passed:
        cells = [_kept(sample, *pair, looks.about.places) for sample, pair in zip(samples, looks.passed, strict=True)]
        yield Column("patches kept, clean", [before for before, _ in cells])
        yield Column("patches kept, adversarial", [after for _, after in cells])


def look_notes(looks: Looks) -> Iterator[str]:
    """What these columns show, in words."""
    yield (
        f"Attention {looks.about.whose} in {looks.about.where}: mean over heads, shares of the patches, brighter for"
        " more (by the square root), in the same colours for clean and adversarial. 2 x even: twice what each patch"
        " would get if all got the same. Shared: the overlap of both maps, 100 % when they are equal."
    )
    if looks.passed:
        yield "Patches kept: blue ones were dropped, the stronger the earlier; the others stay to the end."


def _paired(samples: Sequence[Shown], before: Tensor, after: Tensor | None) -> list[Pair]:
    """The maps by sample; `after` holds those of samples with an adversarial image, in their order."""
    rest = iter([] if after is None else after.cpu())
    clean = before.cpu()
    return [(clean[i], None if s.adversarial is None else next(rest)) for i, s in enumerate(samples)]


def _attended(sample: Shown, before: Tensor, after: Tensor | None) -> tuple[Cell, Cell]:
    largest = max(float(shares.max()) for shares in (before, after) if shares is not None)
    clean = _heated(sample, before, largest, _peak(before))
    if after is None:
        return clean, empty(sample)
    shared = float(torch.minimum(before, after).sum())
    return clean, _heated(sample, after, largest, f"{_peak(after)}, {100 * shared:.0f} % shared")


def _heated(sample: Shown, shares: Tensor, largest: float, caption: str) -> Cell:
    return Cell(drawing.heat(shares.numpy(), largest, drawing.picture(sample.clean.numpy()).size), caption)


def _peak(shares: Tensor) -> str:
    return f"up to {float(shares.max()) * shares.numel():.1f} x even"


def _kept(sample: Shown, before: Tensor, after: Tensor | None, places: int) -> tuple[Cell, Cell]:
    stayed = before == places
    clean = _covered(sample.clean, before / places, f"{int(stayed.sum())} of {before.numel()}")
    if after is None or sample.adversarial is None:
        return clean, empty(sample)
    both = int((stayed & (after == places)).sum())
    caption = f"{int((after == places).sum())}, {both} of them as before"
    return clean, _covered(sample.adversarial, after / places, caption)


def _covered(image: Tensor, shares: Tensor, caption: str) -> Cell:
    return Cell(drawing.covered(drawing.picture(image.numpy()), shares.numpy()), caption)
