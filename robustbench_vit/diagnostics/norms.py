"""The norms of all layers of a model, and several models side by side."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustbench_vit.diagnostics.layers import BATCH_NORMS, Placed, survey
from robustbench_vit.diagnostics.operator_norm import ORDERS, Order, operator_norm
from robustbench_vit.errors import InputError


@dataclass(frozen=True)
class LayerNorms:
    """The norms of one layer."""

    layer: str  # its path in the model
    kind: str
    input_size: tuple[int, ...]  # spatial; () for Linear and batch normalisation
    norms: dict[Order, float]
    weighted: bool  # Linear or Conv, not batch normalisation

    @property
    def size(self) -> str:
        """'8x8', or '' where the norms don't depend on the input's size."""
        return "x".join(map(str, self.input_size))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"layer": self.layer, "kind": self.kind, "input": self.size, **self.norms}


@dataclass(frozen=True)
class ModelNorms:
    """The norms of a model's layers in the order in which they run."""

    name: str
    layers: tuple[LayerNorms, ...]
    left_out: dict[str, str]  # path: why its norms are not known

    def weighted(self, order: Order) -> list[float]:
        """The norms of Linear and Conv layers."""
        return [each.norms[order] for each in self.layers if each.weighted]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "layers": [each.to_dict() for each in self.layers], "left_out": self.left_out}


def model_norms(model: nn.Module, image: Tensor, name: str, orders: Sequence[Order] = ORDERS) -> ModelNorms:
    """The norms of every Linear, Conv and batch normalisation that runs on `image` (1, c, h, w), in eval mode.

    The model's mode comes back. Raises InputError when there is no such layer, or weights are not finite.
    """
    found = survey(model, image)
    if not found.placed:
        raise InputError(f"{name}: this {type(model).__name__} has no layer whose norms are known")
    return ModelNorms(name, tuple(_measured(place, orders) for place in found.placed), found.left_out)


def _measured(place: Placed, orders: Sequence[Order]) -> LayerNorms:
    layer, size = place.layer, place.input_size
    try:
        norms: dict[Order, float] = {order: operator_norm(layer, size, order) for order in orders}
    except InputError as error:
        raise InputError(f"layer '{place.path}': {error}") from error
    return LayerNorms(place.path, type(layer).__name__, size, norms, not isinstance(layer, BATCH_NORMS))


def table(found: ModelNorms) -> Iterator[str]:
    """The model's layers as lines of words."""
    orders = list(found.layers[0].norms)
    rows = [["layer", "kind", "input", *orders]]
    rows += [[e.layer, e.kind, e.size, *(f"{e.norms[order]:.4g}" for order in orders)] for e in found.layers]
    yield f"{found.name}: {len(found.layers)} layers"
    yield from aligned(rows, words=3)
    for path, reason in found.left_out.items():
        yield f"left out: '{path}': {reason}"


def comparison(models: Sequence[ModelNorms]) -> Iterator[str]:
    """A line for each model: median and largest norm of its Linear and Conv layers."""
    orders = list(models[0].layers[0].norms)
    rows = [["model", "layers", *(f"{order} {what}" for order in orders for what in ("median", "largest"))]]
    for found in models:
        values = [value for order in orders for value in _summary(found.weighted(order))]
        rows.append([found.name, str(sum(each.weighted for each in found.layers)), *values])
    yield "Linear and Conv layers"
    yield from aligned(rows, words=1)


def _summary(norms: list[float]) -> list[str]:
    return [f"{value:.4g}" for value in (statistics.median(norms), max(norms))] if norms else ["", ""]


def aligned(rows: Sequence[Sequence[str]], words: int) -> Iterator[str]:
    """Rows as lines with columns under each other: the first `words` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def csv_text(models: Sequence[ModelNorms]) -> str:
    """CSV with a line for each layer of each model; numbers in full."""
    text = io.StringIO()
    fields = ["model", "layer", "kind", "input", *models[0].layers[0].norms]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"model": found.name, **each.to_dict()} for found in models for each in found.layers)
    return text.getvalue()
