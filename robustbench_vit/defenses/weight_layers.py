"""The layers that a regulariser acts on, looked up before training."""

from __future__ import annotations

from torch import Tensor, nn

from robustbench_vit.diagnostics.layers import BATCH_NORMS, Placed, measurable_fault, survey
from robustbench_vit.errors import InputError


def weight_layers(model: nn.Module, image: Tensor, regulariser: str) -> list[Placed]:
    """Every Linear of the model, and every Conv with the size of its input when the model runs on `image` (1, c, h, w).

    Raises InputError when there is none, and for layers whose matrix is not known or whose weight is computed from
    other parameters: nothing is left out in silence. `regulariser` names who asks.
    """
    found = survey(model, image)
    placed = list(found.weight_layers)
    for path, reason in found.left_out.items():
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Linear) and measurable_fault(layer, ()) is None:
            placed.append(Placed(path, layer, ()))  # called in training only, it may be
        elif not isinstance(layer, BATCH_NORMS):
            raise InputError(f"{regulariser} cannot act on '{path}': {reason}")
    if not placed:
        raise InputError(f"{regulariser} acts on Linear and Conv layers, and this {type(model).__name__} has none")
    for place in placed:
        if not isinstance(place.layer.weight, nn.Parameter):
            raise InputError(f"{regulariser} cannot act on '{place.path}': its weight is made of other parameters")
    return placed
