"""DMAE's checkpoints (arXiv:2210.06983): the authors' names are ours; a pretrained encoder for a classifier."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from robustbench_vit.errors import WeightsError

PRETRAINING = r"^(norm\.|mask_token$|decoder_)"
"""Tensors of a pretrained checkpoint that the classifier has no place for: the encoder's last norm and the decoder."""
FRESH = r"^(fc_norm|head)\."
"""Tensors of a classifier that pretraining doesn't make; fine-tuning starts from their initial values."""


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fine-tuned checkpoint as it is, of a pretrained one what the classifier takes: its encoder."""
    if "mask_token" not in state:
        return dict(state)
    return {key: value for key, value in state.items() if not re.match(PRETRAINING, key)}


def load_encoder(classifier: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts the encoder of a pretrained state dict (the authors' or DMAEPretrainer's) into a DMAE classifier.

    The classifier keeps its own `fc_norm` and `head`. Raises WeightsError unless all else fits exactly, naming what
    doesn't; the classifier is unchanged then.
    """
    encoder = from_authors(state)
    own = classifier.state_dict()
    wanted = {key: value for key, value in own.items() if not re.match(FRESH, key)}
    faults = [f"missing {key}" for key in wanted if key not in encoder]
    faults += [f"unexpected {key}" for key in encoder if key not in wanted]
    faults += [
        f"{key} is {tuple(encoder[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in encoder and encoder[key].shape != value.shape
    ]
    if faults:
        more = f", … ({len(faults)} in all)" if len(faults) > 5 else ""
        raise WeightsError("not the encoder of this classifier: " + ", ".join(faults[:5]) + more)
    classifier.load_state_dict({**own, **encoder})
