"""What a model returns must be finite logits for enough classes, and the model must be in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from robustbench_vit.records import Finding

SUM_TOLERANCE = 1e-3
"""How close to 1 the (exponentials of) outputs of every row must sum to be taken for (log-)probabilities."""
NAN = "the model returns NaN or infinite logits on clean images"

_CHANGED_BY_TRAINING = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.RReLU,
)


def eval_mode(model: Any) -> Finding:
    """Refuses a module any part of which is in train mode; names the layers that behave differently there."""
    if isinstance(model, nn.Module):
        training = {name: module for name, module in model.named_modules() if module.training}
        if training:
            named = _acting(training) or [name or type(model).__name__ for name in training]
            shown = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
            return Finding(
                "eval-mode",
                "refuse",
                f"the model is in train mode ({shown}): dropout and batch statistics would be on; call model.eval()",
            )
    return Finding("eval-mode", "pass", "no module is in train mode")


def _acting(training: dict[str, nn.Module]) -> list[str]:
    """'path: Type' of the layers that train mode changes; an IC layer stands for its parts."""
    acting = [name for name, module in training.items() if _changed_by_training(module)]
    return [
        f"{name or 'the model'}: {type(training[name]).__name__}"
        for name in acting
        if not any(name.startswith(f"{outer}.") for outer in acting)
    ]


def _changed_by_training(module: nn.Module) -> bool:
    # By name: layers of timm (DropPath) and of this package (IC), neither of which the engine imports.
    kind = type(module).__name__
    return isinstance(module, _CHANGED_BY_TRAINING) or kind == "IC" or kind.startswith("Drop")


def is_logits(output: Any, n: int) -> Finding:
    """Refuses what isn't a floating-point tensor (n, classes)."""
    if isinstance(output, (tuple, list, dict)):
        return _no_logits(
            f"the model returns a {type(output).__name__}; expected logits (n, classes). Wrap it: lambda x: model(x)[0]"
        )
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != n:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        return _no_logits(f"the model returns {got} for {n} images; expected logits of shape ({n}, classes)")
    if not output.is_floating_point():
        return _no_logits(f"the model returns {output.dtype}; expected floating-point logits, not decisions")
    return Finding("logits", "pass", f"logits for {output.shape[1]} classes")


def _no_logits(message: str) -> Finding:
    return Finding("logits", "refuse", message)


def meaning(output: Tensor, y: Tensor) -> Iterator[Finding]:
    """Findings on the values of logits (n, classes), and on the labels (all of them) that they are compared with."""
    yield finite(output)
    yield _classes(output, y)
    yield _not_probabilities(output)


def finite(output: Tensor) -> Finding:
    """Refuses NaN and infinities."""
    if not bool(output.isfinite().all()):
        return Finding("finite", "refuse", NAN)
    return Finding("finite", "pass", "finite logits")


def _classes(output: Tensor, y: Tensor) -> Finding:
    classes, smallest, largest = output.shape[1], int(y.min()), int(y.max())
    if classes < 2:
        message = "the model has one output; expected logits for at least two classes"
        return Finding("classes", "refuse", message)
    if largest >= classes:
        message = f"the model has {classes} classes, but the labels go up to {largest}: wrong model or wrong data"
        hint = " (are they numbered from 1? subtract 1)" if smallest == 1 and largest == classes else ""
        return Finding("classes", "refuse", message + hint)
    return Finding("classes", "pass", f"labels 0..{largest} fit {classes} classes")


def _not_probabilities(output: Tensor) -> Finding:
    check = "not-probabilities"
    if bool(((output >= 0) & (output <= 1)).all()):
        if _sum_to_one(output):
            message = (
                "the model returns probabilities; gradients of saturated ones vanish. Return logits: drop the softmax"
            )
            return Finding(check, "refuse", message)
        message = (
            f"all outputs lie in [0, 1] ({output.min():.3g} to {output.max():.3g}) and their rows don't sum to 1;"
            " if the last layer is a sigmoid, drop it"
        )
        return Finding(check, "warn", message)
    if bool((output <= 0).all()) and _sum_to_one(output.exp()):
        # Attacks see differences of logits and their softmax; both are the same for log-softmax outputs.
        return Finding(check, "pass", "outputs are log-probabilities, which are logits up to a shift of each row")
    return Finding(check, "pass", "outputs are not probabilities")


def _sum_to_one(output: Tensor) -> bool:
    return bool(((output.sum(1) - 1).abs() < SUM_TOLERANCE).all())
