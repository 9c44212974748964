"""Does the same question get the same answer, whatever is asked beside it and before it?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.engine.intake.asking import answer, reseed, strangers
from robustbench_vit.records import Finding

JITTER = 1e-3
"""Answers to one question that are further apart, in units of the logits' span, are random and no rounding."""
NEIGHBOURS = 1e-4
"""How far, in the same units, an answer may move when the other images of its batch are replaced."""
CALLS, CALLS_DECLARED = 3, 5
"""How often the same question is asked; more often of a model that is said to be random."""


@dataclass(frozen=True)
class Repeats:
    """Answers to the same question, compared."""

    images: int
    calls: int
    apart: float  # largest difference of a logit between two calls
    flipped: int  # images whose decision changed
    span: float  # largest minus smallest logit of an image, over all images and calls
    rounding: float  # of the model's floating-point type

    @property
    def random(self) -> bool:
        """Whether that is more than kernels' rounding."""
        return self.flipped > 0 or self.apart > max(JITTER, 4 * self.rounding) * self.span


def repeats(model: Any, x: Tensor, calls: int) -> Repeats:
    """What `calls` calls for the same images, one after the other, answer."""
    raw = [answer(model, x) for _ in range(calls)]
    answers = torch.stack([a.cpu().double() for a in raw])
    decisions = answers.argmax(2)
    return Repeats(
        images=len(x),
        calls=calls,
        apart=_largest(answers - answers[0]),
        flipped=int((decisions != decisions[0]).any(0).sum()),
        span=_largest(answers.amax(2) - answers.amin(2)),
        rounding=torch.finfo(raw[0].dtype).eps,
    )


def _largest(difference: Tensor) -> float:
    """The largest absolute value; infinite where there is a NaN, which would compare as no difference."""
    return float(difference.abs().nan_to_num(nan=torch.inf).max())


def untouched(x: Tensor, after: Tensor) -> Finding:
    """Refuses a model that wrote into its input."""
    changed = int((x != after).flatten(1).any(1).sum())
    if changed:
        message = (
            f"the model changes its input in place ({changed} of {len(x)} images by up to {_largest(x - after):.3g}):"
            " attacks would go on from images they never made; work on a copy, as in x = x.clone()"
        )
        return Finding("input-untouched", "refuse", message)
    return Finding("input-untouched", "pass", "the model leaves its input alone")


def state(model: Any) -> dict[str, tuple[int, int]]:
    """Which tensor each parameter and buffer is and how often it was written to; copies nothing."""
    if not isinstance(model, nn.Module):
        return {}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (id(value), 0 if value.is_inference() else value._version) for name, value in tensors}


def stateless(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> Finding:
    """Warns of a model that rewrites its own parameters or buffers while it answers."""
    written = [name for name, seen in before.items() if after.get(name) != seen]
    if written:
        shown = ", ".join(written[:3]) + (", …" if len(written) > 3 else "")
        message = (
            f"answering writes to the model's own tensors ({shown}): if answers depend on them, they depend on what was"
            " asked before; switch adaptation and counters off"
        )
        return Finding("stateless", "warn", message)
    return Finding("stateless", "pass", "answering writes to no parameter and no buffer")


def repeatable(seen: Repeats, declared: str | None) -> Finding:
    """Compares what is random with what was said to be."""
    check = "randomness"
    measured = (
        f"{seen.calls} calls for the same {seen.images} images gave logits up to {seen.apart:.3g} apart"
        f" (they span {seen.span:.3g}) and changed {seen.flipped} decisions"
    )
    if declared is not None:
        if seen.random:
            return Finding(check, "pass", f"declared random ({declared}): {measured}")
        message = f"declared random ({declared}), but {measured}: is that part switched off? else drop `randomness`"
        return Finding(check, "warn", message)
    if seen.random:
        message = (
            f"the model answers at random: {measured}. Declare what is random (randomness='…' in evaluate,"
            " `randomness:` on the card), or take it out"
        )
        return Finding(check, "refuse", message)
    if seen.apart > 0:
        message = f"{measured}: rounding of non-deterministic kernels; torch.use_deterministic_algorithms finds them"
        return Finding(check, "warn", message)
    return Finding(check, "pass", f"{seen.calls} calls for the same {seen.images} images gave the same logits")


def independent(model: Any, x: Tensor, seen: Repeats) -> Finding:
    """Refuses a model whose answer to an image moves with the other images of its batch; x is a probe batch.

    All batches have one size and every image keeps its place, so that equal work is done in equal order; a random model
    is asked from the same state of the generators each time.
    """
    check, layers = "rows", _batch_statistics(model)
    culprits = f" ({', '.join(layers[:3])}: BatchNorm without running statistics)" if layers else ""
    first = _seeded(model, x)
    unsteady = _largest(_seeded(model, x) - first)
    tolerance = max(NEIGHBOURS, 4 * seen.rounding) * seen.span
    if seen.random and unsteady > tolerance:
        message = "the model draws from a generator of its own: whether rows interact cannot be told"
        return Finding(check, "refuse" if layers else "warn", message + culprits)
    tolerance += 0 if seen.random else 4 * max(seen.apart, unsteady)
    moved = max(_largest(difference) for difference in _other_company(model, x, first, seen.random))
    if moved > tolerance:
        message = (
            f"rows interact: with other images in its batch the logits of an image move by up to {moved:.3g}"
            f" (tolerance {tolerance:.2g}, span {seen.span:.3g}){culprits}. A perturbed image would change the verdict"
            " of its neighbours; use running statistics and operations on single images"
        )
        return Finding(check, "refuse", message)
    if layers:
        message = f"answers don't depend on the batch, but batch statistics are there{culprits}: is the layer used?"
        return Finding(check, "warn", message)
    return Finding(check, "pass", f"answers don't depend on the batch (they move by {moved:.2g} ≤ {tolerance:.2g})")


def _other_company(model: Any, x: Tensor, first: Tensor, random: bool) -> Iterator[Tensor]:
    """Differences in the logits of images that kept their place while others were replaced, and of lone images."""
    others, even = strangers(x), torch.arange(len(x)) % 2 == 0
    for kept in (even, ~even):
        batch = torch.where(kept.view(-1, 1, 1, 1).to(x.device), x, others)
        yield (_seeded(model, batch) - first)[kept]
    alone = _seeded(model, x[:1].expand_as(x)) - first[0]
    yield alone[:1] if random else alone  # the draws of other places are other draws


def _seeded(model: Any, x: Tensor) -> Tensor:
    reseed(x.device)
    return answer(model, x).cpu().double()


def _batch_statistics(model: Any) -> list[str]:
    """Paths of the layers that take their statistics from the batch even in eval mode."""
    if not isinstance(model, nn.Module):
        return []
    modules = model.named_modules()
    return [name for name, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None]
