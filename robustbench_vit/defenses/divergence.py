"""What is said when a training diverges: what happened, what is kept, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from robustbench_vit.cards import DefenseCard
from robustbench_vit.errors import InputError


def require_finite_loss(loss: float, card: DefenseCard, epoch: int) -> None:
    """Raises InputError for a loss that is infinite or NaN in that epoch, counted from 1."""
    if not math.isfinite(loss):
        raise _diverged(f"the loss became {loss}", card, epoch)


def require_finite_weights(model: nn.Module, card: DefenseCard, epoch: int) -> None:
    """Raises InputError when a weight is infinite or NaN at that epoch's end: the loss would show it too late."""
    floating = [value for value in model.state_dict().values() if value.is_floating_point()]
    if floating and not torch.stack([value.isfinite().all() for value in floating]).all():
        raise _diverged("the weights became infinite or NaN", card, epoch)


def _diverged(what: str, card: DefenseCard, epoch: int) -> InputError:
    kept = f"what was saved after epoch {epoch - 1} is kept" if epoch > 1 else "nothing was saved yet"
    return InputError(
        f"{what} in epoch {epoch}; {', or '.join(_advice(card))}. With such a card choose another folder; {kept}"
    )


def _advice(card: DefenseCard) -> Iterator[str]:
    """What to change of the card, each with its present value."""
    loss = {**card.loss.settings, **_inside(card.loss.settings)}
    yield f"lower the learning rate{_now('optimiser.lr', card.optimiser.settings, 'lr')}"
    if "warmup_epochs" in card.schedule.settings:
        yield f"lengthen its warm-up{_now('schedule.warmup_epochs', card.schedule.settings, 'warmup_epochs')}"
    if "eps_warmup_epochs" in loss:
        yield f"lengthen that of eps{_now('loss.eps_warmup_epochs', loss, 'eps_warmup_epochs')}"
    clip = card.gradient_clip
    yield "clip gradients (gradient_clip, now null)" if clip is None else f"clip more (gradient_clip, now {clip:g})"
    if card.precision != "fp32":
        yield f"train in fp32 (precision, now {card.precision})"


def _inside(loss: dict[str, Any]) -> dict[str, Any]:
    """The settings of a loss that another one goes around."""
    inner = loss.get("of")
    return inner if isinstance(inner, dict) else {}


def _now(place: str, settings: dict[str, Any], name: str) -> str:
    return f" ({place}, now {settings[name]})" if name in settings else ""
