"""Refiner-ViT's checkpoints (arXiv:2106.03714, models Refiner_ViT_S, _M, _L): the authors' names, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from robustbench_vit.errors import WeightsError

KEYS = (
    (r"^patch_embed\.conv(\d)\.", r"patch_embed.conv\1.conv."),
    (r"^patch_embed\.bn(\d)\.", r"patch_embed.conv\1.bn."),
    (r"^(blocks\.\d*[13579]\.attn\.)qkv\.", r"\1v."),
    (r"\.DLA\.conv_exp\.", ".refine.expand.conv."),
    (r"\.DLA\.bn1\.", ".refine.expand.bn."),
    (r"\.DLA\.depth_sep_conv\.", ".refine.local.conv."),
    (r"\.DLA\.bn2\.", ".refine.local.bn."),
    (r"\.DLA\.conv_pro\.", ".refine.reduce.conv."),
    (r"\.DLA\.bn3\.", ".refine.reduce.bn."),
    (r"\.adapt_bn\.", ".norm."),
    (r"\.mlp\.scale_channel$", ".ls2.gamma"),
)
"""(pattern, replacement), applied in this order; all other names are the same here. Odd blocks have values only."""

OURS = ".ls2.gamma"
"""How the name of a tensor ends that the authors call otherwise."""


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under our names; those with an `aux_head` are for a model with `dense_head=True`.

    A state dict with our names comes back as it is.

    Raises WeightsError for checkpoints of the authors' first version, whose forward pass was another one: its MLPs had
    no scale, and its head saw a class token that had been through no block.
    """
    if any(key.endswith(OURS) for key in state):
        return dict(state)
    if "blocks.0.mlp.fc1.weight" in state and "blocks.0.mlp.scale_channel" not in state:
        raise WeightsError(
            "no blocks.0.mlp.scale_channel in this state dict: it is of the authors' first version of Refiner-ViT, "
            "which computes something else; take weights of the later version"
        )
    return {_ours(key): value for key, value in state.items()}


def _ours(key: str) -> str:
    for pattern, replacement in KEYS:
        key = re.sub(pattern, replacement, key)
    return key
