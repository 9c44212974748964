"""Teachers: trained classifiers whose answers take part in the training of another one."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from robustbench_vit.cards import Workspace
from robustbench_vit.defenses.recipe import apply_architecture
from robustbench_vit.defenses.registry import settings
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.errors import CardError, InputError, UnknownNameError
from robustbench_vit.models.build import build_model, register_models
from robustbench_vit.models.weights import load_weights


@settings
class Teacher:
    """Which classifier teaches: a model by name, the defense card it was trained by, and its weights.

    `weights` is a path from the folder of a workspace, the user's before the built-in one; an absolute one works too.
    """

    model: str
    model_args: dict[str, Any]
    defense: str
    weights: str


def weights_digest(teacher: Teacher, workspace: Workspace, where: str) -> str:
    """sha256 of the teacher's weights file; raises CardError or UnknownNameError for a teacher that isn't there."""
    register_models()
    if not timm.is_model(teacher.model):
        raise UnknownNameError("model", teacher.model, timm.list_models(), f"{where}: field 'loss.teacher.model'")
    workspace.defense(teacher.defense, f"{where}: field 'loss.teacher.defense'")
    return hashlib.sha256(_weights_file(teacher, workspace, where).read_bytes()).hexdigest()


def load_teacher(teacher: Teacher, workspace: Workspace, where: str) -> nn.Module:
    """The teacher in eval mode, its weights loaded strictly; none of its parameters wants a gradient.

    Raises what `weights_digest` does, and WeightsError for weights of another model.
    """
    path = _weights_file(teacher, workspace, where)
    card = workspace.defense(teacher.defense, f"{where}: field 'loss.teacher.defense'").card
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and thrown away
        model = apply_architecture(card, build_model(teacher.model, **teacher.model_args))
    load_weights(model, path)
    return model.eval().requires_grad_(False)


def require_same_classes(teacher: nn.Module, model: nn.Module, image: Tensor) -> nn.Module:
    """A copy of the teacher on the device of `image` (1, c, h, w), an input of both.

    Raises InputError unless the two answer with equally many classes.
    """
    taught, training = copy.deepcopy(teacher).to(image.device), model.training
    with torch.no_grad():
        try:
            theirs, ours = _classes(taught, image), _classes(model.eval(), image)
        finally:
            model.train(training)
    if theirs != ours:
        raise InputError(
            f"the teacher tells {theirs} classes apart and the model {ours};"
            " name a teacher that was trained on the same classes"
        )
    return taught


def _classes(model: nn.Module, image: Tensor) -> int:
    try:
        return unwrap(model(image)).shape[1]
    except RuntimeError as error:
        shape = "×".join(map(str, image.shape[1:]))
        raise InputError(f"{type(model).__name__} doesn't take images of shape {shape}: {error}") from error


def _weights_file(teacher: Teacher, workspace: Workspace, where: str) -> Path:
    """The file, in the user's layer before the built-in one."""
    found = [path for layer in reversed(workspace.layers) if (path := layer / teacher.weights).is_file()]
    if not found:
        raise CardError(
            f"{where}: field 'loss.teacher.weights': no weights file at {teacher.weights} in the workspace;"
            f" `rbvit train {teacher.defense} --model {teacher.model}` makes one"
        )
    return found[0]
