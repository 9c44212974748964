"""Other people's attacks, run as they are on fixed chunks of samples; for now pyautoattack, the authors' AutoAttack."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, StrictInt, StrictStr
from torch import Tensor

from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Cost
from robustbench_vit.errors import InputError

_NORMS = {"linf": "Linf", "l2": "L2"}
_PASSES = {"apgd-ce": (101, 101), "apgd-t": (909, 909), "fab-t": (1800, 900), "square": (5001, 0)}


@algorithms.register("pyautoattack")
@settings
class PyAutoAttack:
    """Lanes of the authors' AutoAttack (PyPI: pyautoattack). Outcomes may depend on the chunk: it draws per batch."""

    lane: ClassVar[Literal["batch"]] = "batch"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    algorithm_version: ClassVar[int] = 1

    norm: NormName
    attacks: Annotated[list[Literal["apgd-ce", "apgd-t", "fab-t", "square"]], Field(min_length=1)]
    package: StrictStr  # the release the numbers belong to
    chunk: Annotated[StrictInt, Field(ge=1)]  # samples handed over together

    def cost(self, num_classes: int) -> Cost:
        forwards, backwards = (sum(_PASSES[name][i] for name in self.attacks) for i in (0, 1))
        return Cost(forwards + 1, backwards)

    def run(self, model: Any, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        """Images (n, c, h, w) that the reference returns for x and y."""
        reference = self._package()
        self._require_classes(model, x)
        attack = reference.AutoAttack(
            model, norm=_NORMS[self.norm], eps=eps, version="standard", seed=seed, device=str(x.device)
        )
        attack.attacks_to_run = list(self.attacks)  # with the settings of the standard version
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # it seeds the global generator
            adversarial, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        return adversarial

    def _require_classes(self, model: Any, x: Tensor) -> None:
        """Raises InputError where the reference would crash: its targeted lanes take nine target classes."""
        targeted = [name for name in self.attacks if name.endswith("-t")]
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if targeted and classes < 10:
            raise InputError(f"pyautoattack's {', '.join(targeted)} needs at least 10 classes, the model has {classes}")

    def _package(self) -> Any:
        try:
            from importlib.metadata import version

            import pyautoattack
        except ImportError as error:
            raise InputError(
                "algorithm 'pyautoattack' needs the extra 'reference': pip install 'robustbench_vit[reference]'"
            ) from error
        if version("pyautoattack") != self.package:
            raise InputError(f"the card asks for pyautoattack {self.package}, installed is {version('pyautoattack')}")
        return pyautoattack
