"""DMAE's pretraining: a masked autoencoder that removes noise (arXiv:2210.06983, on arXiv:2111.06377)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.builder import require_heads, require_square_patches
from robustbench_vit.models.dmae import BASE, DIGITS, LARGE, SMALL, embedding, position_table

PIXEL_EPS = 1e-6
"""Added to a patch's variance, as MAE does."""


@dataclass(frozen=True)
class Draws:
    """What is random in a step of pretraining."""

    noise: Tensor  # (n, c, h, w) standard normal, at the images' own size
    scores: Tensor  # (n, patches); the patches with the lowest ones are seen


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of noisy, masked images."""

    loss: Tensor  # () mean squared error over all patches, hidden or seen
    prediction: Tensor  # (n, patches, values) normalised pixels, ordered (row, column, channel) within a patch
    hidden: Tensor  # bool (n, patches) patches the encoder didn't see
    latent: Tensor  # (n, 1 + seen patches, width) class token first


class DMAEPretrainer(nn.Module):
    """Encoder on some patches of the noisy image, decoder on all, loss against the clean image.

    Keys are the authors'. Images are in [0, 1]: noise of standard deviation `sigma` is added at their own size, then
    both images are resized to `img_size` (bicubic) and normalised. The target is the clean image, each patch with mean
    0 and variance 1. Nothing is drawn inside: `forward` takes `Draws`. `keep` is the share of patches that is seen.
    Raises InputError for what cannot be built.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        sigma: float = 0.25,
        keep: float = 0.25,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        require_square_patches("DMAEPretrainer", img_size, patch_size)
        require_heads("DMAEPretrainer", embed_dim, num_heads)
        require_heads("DMAEPretrainer", decoder_dim, decoder_heads)
        self.sigma = sigma
        self.patch_embed = embedding(in_chans, mean, std)(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim
        )
        grid = (img_size // patch_size, img_size // patch_size)
        self.seen = _seen(grid[0] * grid[1], sigma, keep)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(position_table(grid, embed_dim), requires_grad=False)
        self.blocks = _blocks(depth, embed_dim, num_heads, mlp_ratio)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(position_table(grid, decoder_dim), requires_grad=False)
        self.decoder_blocks = _blocks(decoder_depth, decoder_dim, decoder_heads, mlp_ratio)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, patch_size**2 * in_chans)
        self._initialise()

    def _initialise(self) -> None:
        """MAE's: Xavier for linear layers, the patch embedding taken as one, and 0.02 for the two tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.patch_embed.proj.out_channels, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def draw(self, x: Tensor, generator: torch.Generator) -> Draws:
        """Noise and scores for the images `x`, drawn on the generator's device."""
        noise = torch.randn(x.shape, generator=generator, device=generator.device)
        scores = torch.rand(len(x), self.patch_embed.num_patches, generator=generator, device=generator.device)
        return Draws(noise.to(x), scores.to(x.device))

    def forward(self, x: Tensor, draws: Draws) -> Reconstruction:
        """The reconstruction of the images `x`, (n, c, h, w) in [0, 1], and its loss."""
        order = draws.scores.argsort(dim=1, stable=True)
        latent = self.encode(self._resized(x + self.sigma * draws.noise), order)
        prediction = self.decode(latent, order)
        loss = F.mse_loss(prediction, self.target(x))
        return Reconstruction(loss, prediction, order.argsort(1) >= self.seen, latent)

    def encode(self, noisy: Tensor, order: Tensor) -> Tensor:
        """The latent of the first `seen` patches in each row's order, (n, 1 + seen, width)."""
        patches = self.patch_embed(noisy) + self.pos_embed[:, 1:]
        seen = patches.take_along_dim(order[:, : self.seen, None], 1)
        token = (self.cls_token + self.pos_embed[:, :1]).expand(len(seen), -1, -1)
        return self.norm(self.blocks(torch.cat([token, seen], 1)))

    def decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """The prediction for every patch, (n, patches, values)."""
        x = self.decoder_embed(latent)
        hidden = self.mask_token.to(x.dtype).expand(len(x), order.shape[1] - self.seen, -1)
        patches = torch.cat([x[:, 1:], hidden], 1).take_along_dim(order.argsort(1)[:, :, None], 1)
        x = torch.cat([x[:, :1], patches], 1) + self.decoder_pos_embed
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]

    def target(self, x: Tensor) -> Tensor:
        """What is to be predicted for the clean images `x`, (n, patches, values)."""
        patches = self.patches(self.patch_embed.normalise(self._resized(x)))
        variance, mean = torch.var_mean(patches, -1, keepdim=True)
        return (patches - mean) / (variance + PIXEL_EPS).sqrt()

    def patches(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) as patches (n, patches, values), values ordered (row, column, channel)."""
        side = int(self.patch_embed.patch_size[0])
        split = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (n, c, i, row, j, column)
        return split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _resized(self, x: Tensor) -> Tensor:
        """The images at the model's size. Small images are enlarged, where anti-aliasing has nothing to do."""
        size = self.patch_embed.img_size
        return x if x.shape[2:] == size else F.interpolate(x, size, mode="bicubic", align_corners=False)


def dmae_pretrain_vit_base(**settings: Any) -> DMAEPretrainer:
    """The autoencoder whose encoder `dmae_vit_base` is, 111,907,840 parameters with the fixed positions."""
    return DMAEPretrainer(**{**BASE, **settings})


def dmae_pretrain_vit_large(**settings: Any) -> DMAEPretrainer:
    """The autoencoder whose encoder `dmae_vit_large` is."""
    return DMAEPretrainer(**{**LARGE, **settings})


def dmae_pretrain_small_vit(**settings: Any) -> DMAEPretrainer:
    """The autoencoder whose encoder `small_dmae_vit` is, with a decoder of 2 blocks of width 64."""
    return DMAEPretrainer(**{**SMALL, "img_size": 32, **_DECODER, **settings})


def dmae_pretrain_digits_vit(**settings: Any) -> DMAEPretrainer:
    """The autoencoder whose encoder `digits_dmae_vit` is, with a decoder of 2 blocks of width 64."""
    return DMAEPretrainer(**{**DIGITS, "img_size": 8, "in_chans": 1, **_DECODER, **settings})


_DECODER = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 2}


def _blocks(depth: int, width: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    return nn.Sequential(*[Block(width, heads, mlp_ratio, qkv_bias=True) for _ in range(depth)])


def _seen(patches: int, sigma: float, keep: float) -> int:
    """How many patches the encoder sees."""
    if sigma < 0:
        raise InputError(f"sigma is a standard deviation of at least 0, got {sigma:g}")
    if not 0 < keep <= 1 or int(patches * keep) < 1:
        raise InputError(f"keep {keep:g} leaves none of {patches} patches; it is a share in (0, 1]")
    return int(patches * keep)
