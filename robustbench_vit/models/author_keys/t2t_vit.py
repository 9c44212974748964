"""T2T-ViT's checkpoints (arXiv:2101.11986, `tokens_to_token.*`): the authors' names of tensors, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

KEYS = (
    (r"^tokens_to_token\.project\.", "patch_embed.proj."),
    (r"^tokens_to_token\.attention1\.", "patch_embed.layers.0."),
    (r"^tokens_to_token\.attention2\.", "patch_embed.layers.1."),
    (r"^(patch_embed\.layers\.\d\.)attn\.", r"\1"),
    (r"^(patch_embed\.layers\.\d\.mlp\.)0\.", r"\1fc1."),
    (r"^(patch_embed\.layers\.\d\.mlp\.)2\.", r"\1fc2."),
)
"""(pattern, replacement), applied in this order; all other names are the same here."""


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names; a state dict with our names comes back as it is."""
    return {_ours(key): value for key, value in state.items()}


def _ours(key: str) -> str:
    for pattern, replacement in KEYS:
        key = re.sub(pattern, replacement, key)
    return key
