"""What is compared: a trained model, samples and a budget."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from benchmarks import public_nets
from benchmarks.side_by_side import board, entry_names, load_entry
from robustbench_vit.data import Dataset
from robustbench_vit.running.entries import chosen, weights_path


@dataclass(frozen=True)
class Case:
    """A model of the digits board or a public net, under one budget."""

    model: str
    norm: str
    eps: float
    n: int
    masked: bool = False  # the net hides its gradients, so that Square's luck decides many samples

    @property
    def public(self) -> bool:
        """Whether the model lies beside the repository, not in it."""
        return self.model in public_nets.NAMES

    @property
    def budget(self) -> str:
        """In words."""
        return f"{self.norm} {self.eps:.3g}"

    def load(self) -> tuple[Any, Dataset]:
        """The model in eval mode, and the samples."""
        if self.public:
            return public_nets.load_net(self.model), public_nets.net_samples(self.model, self.n)
        return load_entry(self.model, self.n)

    def key(self, side: str, seed: int) -> str:
        """Where a result stands; changed weights need new results."""
        if self.public:
            weights = public_nets.weights_file(self.model)
        else:
            (entry,) = chosen(board(), [self.model])
            weights = weights_path(board(), entry)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        return f"{self.model}/{digest}/{self.norm}/{self.eps:.6g}/{self.n}/{side}/{seed}"


def cases() -> list[Case]:
    """All of them; those of public nets only where the nets are."""
    card = board().card
    own = [Case(name, card.norm, card.eps[0], 500) for name in entry_names()]
    own += [Case(name, "l2", 0.6, 500) for name in ("cnn-pgd-at", "vit-pgd-at", "ic-cnn-pgd-at")]
    own += [Case(name, "l1", 1.0, 500) for name in ("cnn-pgd-at", "vit-pgd-at", "cnn-ic-pgd-at-norm-decay")]
    return own + (PUBLIC if public_nets.available() else [])


PUBLIC = [
    Case("convex-mnist", "linf", 0.15, 400, masked=True),
    Case("convex-mnist", "l2", 1.0, 100),
    Case("convex-mnist", "l1", 5.0, 100),
    Case("colt-mnist", "linf", 0.15, 100),
    Case("cnn-a-adv", "linf", 2 / 255, 100),
    Case("vit-pgd-2-3-16", "linf", 2 / 255, 100),
    Case("vit-pgd-2-3-16", "l2", 0.25, 100),
]
