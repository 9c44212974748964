"""An attack on models that drop tokens: it first drives the tokens out that the clean image's class token attends to.

Which tokens stay is piecewise constant in the image (EViT, arXiv:2202.07800), so the gradient of a loss on the logits
says nothing about a token that could be evicted. The class token's attention has a gradient, and decides who stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.pgd import PGD, Asked, PGDState
from robustbench_vit.attacks.registry import algorithms, settings
from robustbench_vit.attacks.rows import Access, AttendedBlock, AttendedObjective, Cost, Oracles, Start, positions
from robustbench_vit.cards import Number


@dataclass(frozen=True)
class EvictState(PGDState):
    """State of rows of `AttentionEvict`."""

    stayed: Tensor  # int8 (row, h · w) in how many dropping blocks patch i of the clean image stays; -1 before a look


@algorithms.register("attention-evict")
@settings
class AttentionEvict(PGD):
    """PGD whose first `evict_share` of the steps lower the attention to the patches that stay of the clean image.

    In each dropping block Σ a_i over those of its tokens that are such patches is divided by Σ a_i over all; the sum of
    that over the blocks is lowered. The other steps increase the loss: both at once does worse.
    """

    access: ClassVar[Access] = Access.INTERNALS
    algorithm_version: ClassVar[int] = 1

    evict_share: Annotated[Number, Field(gt=0, le=1)]  # of the steps

    @property
    def evicting_steps(self) -> int:
        """How many steps lower attention."""
        return round(self.evict_share * self.steps)

    def cost(self, num_classes: int) -> Cost:
        own = super().cost(num_classes)
        return Cost(own.forwards + self.restart_count, own.backwards)

    def init(self, start: Start, noise: Noise) -> EvictState:
        own = super().init(start, noise)
        fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
        rows, _, height, width = start.x0.shape
        unseen = torch.full((rows, height * width), -1, dtype=torch.int8, device=start.x0.device)
        return EvictState(**fields, stayed=unseen)

    def step(self, state: EvictState, oracles: Oracles, noise: Noise) -> EvictState:
        """A step of PGD; rows at their first one look at their clean image before."""
        if len(new := positions(state.stayed[:, 0] < 0)):
            patches = state.stayed.shape[1]
            _, stayed = oracles.target.attended(state.x0[new], lambda seen: times_stayed(seen, patches), new)
            state = dataclasses.replace(state, stayed=state.stayed.index_copy(0, new, stayed))
        return super().step(state, oracles, noise)

    def ask(self, state: EvictState, oracles: Oracles) -> Asked:
        wrong, grad = torch.zeros_like(state.found), torch.zeros_like(state.x)
        last = state.steps_taken >= self.steps
        if len(at := positions(last)):
            wrong[at] = oracles.target.decisions(state.x[at], at) != state.y[at]
        if len(at := positions(~last)):
            answer = oracles.target.gradient_attended(state.x[at], self._two_goals(state, at), at)
            wrong[at], grad[at] = answer.logits.argmax(1) != state.y[at], answer.grad
        return Asked(wrong, grad)

    def _two_goals(self, state: EvictState, at: Tensor) -> AttendedObjective:
        """Of the rows `at`: fewer tokens that stay, or a larger loss, each row by its number of steps."""
        loss, stayed = self.objective(state.y[at]), state.stayed[at]
        evicting = state.steps_taken[at] < self.evicting_steps

        def value(logits: Tensor, seen: Sequence[AttendedBlock], which: Tensor) -> Tensor:
            return torch.where(evicting[which], -attention_to(stayed[which], seen), loss(logits, which))

        return value


def times_stayed(seen: Sequence[AttendedBlock], patches: int) -> Tensor:
    """int8 (m, patches): in how many of the blocks each patch stays."""
    times = torch.zeros(len(seen[0].a), patches, dtype=torch.int8, device=seen[0].a.device)
    for block in seen:
        kept = block.kept_patches
        times.scatter_add_(1, kept.clamp_min(0), (kept >= 0).to(torch.int8))
    return times


def attention_to(stayed: Tensor, seen: Sequence[AttendedBlock]) -> Tensor:
    """(m,): the share of attention that goes to patches which stay there on the clean image, summed over the blocks.

    `stayed` is int8 (m, patches): patch i stays in the first stayed[i] blocks.
    """
    shares = []
    for place, block in enumerate(seen):
        stays = (stayed.gather(1, block.patches.clamp_min(0)) > place) & (block.patches >= 0)
        shares.append((block.a * stays).sum(1) / block.a.sum(1))
    return torch.stack(shares).sum(0)
