"""Keyed randomness: Philox4x32-10 (Salmon et al., SC 2011) on integer tensors.

A draw is a function of (seed, sample id, algorithm, restart, target rank, stream, step, position), so neither batch
size nor order nor interruption can change it. The radius of the budget is not in the key: curves share their draws.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words (as int64 tensors) from a 128-bit counter and a 64-bit key, ten rounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit products wrap in int64; masking after the shift removes the sign's copies.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def row_key(seed: int, sample_id: str, algorithm: str, restart: int, target_rank: int) -> tuple[int, int]:
    """The 64-bit key of a row as two 32-bit words: a hash of what identifies it."""
    text = f"{seed}\0{sample_id}\0{algorithm}\0{restart}\0{target_rank}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True)
class Noise:
    """Draws for a batch of rows, each from its own key."""

    keys: Tensor  # int64 (row, 2), 32-bit words

    def uniform(self, shape: tuple[int, ...], stream: int, step: Tensor | int = 0) -> Tensor:
        """float32 (row, *shape), uniform on [0, 1) in multiples of 2⁻²⁴; `step` may differ from row to row."""
        return self._words(math.prod(shape), stream, step).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], stream: int, step: Tensor | int = 0) -> Tensor:
        """float32 (row, *shape), standard normal (Box-Muller)."""
        n = math.prod(shape)
        words = self._words(2 * n, stream, step)
        radius = torch.sqrt(-2 * torch.log1p(-words[:, :n]))  # 1 - u lies in (0, 1]
        return (radius * torch.cos(2 * math.pi * words[:, n:])).view(-1, *shape)

    def signs(self, shape: tuple[int, ...], stream: int, step: Tensor | int = 0) -> Tensor:
        """float32 (row, *shape), -1 or +1 with equal chance."""
        return torch.where(self.uniform(shape, stream, step) < 0.5, -1.0, 1.0)

    def uniform_ahead(self, shape: tuple[int, ...], stream: int, first: Tensor, steps: int) -> Tensor:
        """float32 (row, steps, *shape): what `uniform` gives for the steps first (row,), first + 1, … in one go."""
        step = first.unsqueeze(1) + torch.arange(steps, device=first.device)
        keys = self.keys.repeat_interleave(steps, dim=0)
        return Noise(keys).uniform(shape, stream, step.flatten()).view(len(first), steps, *shape)

    def take(self, rows: Tensor) -> Noise:
        """The draws of some of the rows (int64 positions)."""
        return Noise(self.keys[rows])

    def _words(self, n: int, stream: int, step: Tensor | int) -> Tensor:
        rows, device = len(self.keys), self.keys.device
        blocks = (n + 3) // 4
        position = torch.arange(blocks, device=device).expand(rows, blocks)
        steps = torch.as_tensor(step, device=device).expand(rows).unsqueeze(1).expand(rows, blocks)
        streams = torch.full_like(position, stream)
        key = (self.keys[:, :1], self.keys[:, 1:])
        words = philox((position, steps, streams, torch.zeros_like(position)), key)
        drawn = torch.stack(words, dim=2).reshape(rows, 4 * blocks)[:, :n]
        return (drawn >> 8).float() * 2.0**-24
