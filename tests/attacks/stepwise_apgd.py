"""The states that the reference's APGD goes through, as states of ours."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.attacks.apgd import APGDState
from robustbench_vit.attacks.apgd_l1 import APGDL1State
from robustbench_vit.attacks.rows import Start

RUN = "attack_single_run"


@dataclass(frozen=True)
class Seen:
    """The reference's local variables at a call of the model."""

    run: int  # which attack_single_run, from 0
    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.values[name]

    @property
    def asked(self) -> int:
        """Points asked about earlier in this run."""
        return self.values.get("i", -1) + 1


class Watched(nn.Module):
    """A model that notes the local variables of the run that calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Seen] = []
        self.runs: list[FrameType] = []

    def forward(self, x: Tensor) -> Tensor:
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != RUN:
            frame = frame.f_back
        if frame is not None:
            values = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in frame.f_locals.items()}
            values["eps"] = frame.f_locals["self"].eps
            if not self.runs or self.runs[-1] is not frame:
                self.runs.append(frame)
            self.seen.append(Seen(len(self.runs) - 1, values))
        return self.model(x)


def full(value: float, start: Start) -> Tensor:
    """(row,) of one value; whole numbers stay whole."""
    dtype = torch.int64 if isinstance(value, int) else start.x0.dtype
    return torch.full((len(start.y),), value, dtype=dtype)


def books(seen: Seen, start: Start) -> dict[str, Tensor]:
    """What both states keep of the best point and of the last misclassified one."""
    robust = seen.acc
    return {
        "x_best": seen.x_best,
        "grad_best": seen.grad_best,
        "loss_best": seen.loss_best,
        "adversarial": torch.where(robust.view(-1, 1, 1, 1), start.x0, seen.x_best_adv),
        "found": ~robust,
    }


def state(seen: Seen, start: Start) -> APGDState:
    """Our state (linf, l2) in place of the reference's; not of its first call, before which it has none."""
    history = torch.cat([torch.zeros_like(seen.loss_steps[:1]), seen.loss_steps[: seen.i]])
    rises = (history[1:] > history[:-1])[seen.i - seen.counter3 :].sum(0)
    return APGDState(
        x0=start.x0,
        y=start.y,
        target=start.target,
        eps=start.eps,
        x=seen.x_adv,
        x_previous=seen.x_adv_old,
        step_size=seen.step_size.flatten(),
        asked=full(seen.asked, start),
        loss_previous=history[-1],
        rises=rises,
        window=full(seen.k, start),
        since=full(seen.counter3, start),
        halved=seen.reduced_last_check.bool(),
        loss_best_checkpoint=seen.loss_best_last_check,
        **books(seen, start),
    )


def state_l1(seen: Seen, start: Start, stages: int, first_share: float | None) -> APGDL1State:
    """Our state (l1) in place of the reference's. What it finds counts for it in the last stage only."""
    if seen.asked == 0:
        moved, pixels = (seen.x_adv != start.x0).flatten(1).sum(1).double(), start.x0[0].numel()
        share = moved / pixels / 1.5 if first_share is None else full(first_share, start)
        moved = moved if first_share is None else full(float(pixels), start)
        nothing = {name: torch.zeros_like(start.x0) for name in ("x_best", "grad_best")}
        books_ = {**nothing, "loss_best": full(0.0, start)}
        size, since = full(float(seen.eps), start), 0
    else:
        books_, size, since = books(seen, start), seen.step_size.flatten(), seen.counter3
        share, moved = seen.topk, seen.sp_old.double()
    if seen.asked == 0 or seen.run < stages - 1:
        books_ |= {"adversarial": start.x0, "found": full(0, start).bool()}
    return APGDL1State(
        x0=start.x0,
        y=start.y,
        target=start.target,
        eps=start.eps,
        x=seen.x_adv,
        stage=full(seen.run, start),
        asked=full(seen.asked, start),
        since=full(since, start),
        step_size=size,
        share=share,
        moved=moved,
        **books_,
    )
