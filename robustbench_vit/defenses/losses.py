"""What a model is trained to make small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.attacks.losses import LOSSES
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.pgd import PGD
from robustbench_vit.attacks.registry import NormName, build_attack
from robustbench_vit.attacks.rows import Start, spread
from robustbench_vit.cards import AlgorithmCard, Loaded, Number, Workspace
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings
from robustbench_vit.engine.oracle import frozen, unwrap
from robustbench_vit.errors import CardError


@register("loss", "cross-entropy")
@settings
class CrossEntropy:
    """Cross-entropy on clean images, with label smoothing in [0, 1)."""

    label_smoothing: Annotated[Number, Field(ge=0, lt=1)]

    def attack_card(self, workspace: Workspace, where: str) -> None:
        """None: no attack takes part."""

    def bind(self, workspace: Workspace, where: str) -> CrossEntropy:
        return self

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        logits = unwrap(model(batch.x))
        loss = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        return LossValue(loss, _correct(logits, batch.y), None)


@register("loss", "pgd-at")
@settings
class PGDAdversarialTraining:
    """Cross-entropy at the last point of an inner PGD attack (arXiv:1706.06083).

    The attack's radius grows linearly from 0 to `eps` over `eps_warmup_epochs`, because small models otherwise learn a
    constant. `mode` is the mode the model is in while it is attacked; eval keeps dropout and batch statistics out.
    """

    attack: str
    norm: NormName
    eps: Annotated[Number, Field(gt=0)]
    eps_warmup_epochs: Annotated[Number, Field(ge=0)]
    mode: Literal["eval", "train"]

    def attack_card(self, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
        """The inner attack's card; raises CardError unless it is a PGD."""
        loaded = workspace.attack(self.attack, f"{where}: field 'loss.attack'")
        if not isinstance(loaded.card, AlgorithmCard) or loaded.card.algorithm != "pgd":
            raise CardError(
                f"{where}: field 'loss.attack': the inner attack is a card of algorithm 'pgd', not '{self.attack}'"
            )
        return loaded

    def bind(self, workspace: Workspace, where: str) -> AdversarialLoss:
        return AdversarialLoss(self, build_attack(self.attack_card(workspace, where), self.norm))

    def radius(self, epochs_done: float) -> float:
        """The attack's eps after this much training."""
        return self.eps * min(epochs_done / self.eps_warmup_epochs, 1.0) if self.eps_warmup_epochs else self.eps


@dataclass(frozen=True)
class AdversarialLoss:
    """`PGDAdversarialTraining` with its attack."""

    settings: PGDAdversarialTraining
    attack: PGD

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        x, clean_correct = self._adversarial(model, batch)
        logits = unwrap(model(x))
        loss = F.cross_entropy(logits, batch.y)
        return LossValue(loss, clean_correct, _correct(logits, batch.y))

    def _adversarial(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The attacked images (row, c, h, w), and how many clean ones are classified right; the mode comes back."""
        training = model.training
        model.train(self.settings.mode == "train")
        try:
            x = perturb(self.attack, model, batch, self.settings.radius(batch.epochs_done))
            model.eval()
            with torch.no_grad():
                return x, _correct(unwrap(model(batch.x)), batch.y)
        finally:
            model.train(training)


def perturb(attack: PGD, model: nn.Module, batch: Batch, eps: float) -> Tensor:
    """The last points (row, c, h, w) of `attack` with radius `eps` against the model in its present mode.

    They are what the attack's own steps reach, to the bit on batches that the engine wouldn't pad. Here the batch is a
    whole: no row is done before the others, none is looked at on the way, and nobody asks about the last point, because
    the training step does.
    """
    x0, y, loss, ball = batch.x, batch.y, LOSSES[attack.loss], NORMS[attack.norm]
    radius = x0.new_full((len(x0),), eps)
    x = attack.init(Start(x0, y, torch.full_like(y, -1), radius, torch.zeros_like(y)), batch.noise).x
    step_size = spread(attack.step_size * radius, x0)
    with frozen(model):
        for _ in range(attack.steps):
            at = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(loss(unwrap(model(at)), y, y).sum(), at)
            x = ball.project(x + step_size * ball.steepest_from(x, grad), x0, radius)
    return x


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    """How many (int64 scalar)."""
    return (logits.argmax(1) == y).sum()
