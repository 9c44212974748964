"""Norms of the layers of one or several models as a picture (after arXiv:2009.08435, figures of densities)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustbench_vit.diagnostics.norms import ModelNorms
from robustbench_vit.diagnostics.operator_norm import Order
from robustbench_vit.errors import InputError

NARROWEST = 0.05
"""Decades: the smallest standard deviation of a kernel, so that layers of equal norm have a density too."""
TITLES: dict[Order, str] = {"l1": "l1 norm", "l2": "l2 norm (spectral)", "linf": "linf norm"}
STYLES = ("-", "--", ":", "-.")
COLOURS = 10  # of matplotlib's default cycle


def require_matplotlib() -> None:
    """Raises InputError where matplotlib, which plots need, is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'robustbench_vit[plots]'")


def density_plot(models: Sequence[ModelNorms]) -> bytes:
    """PNG: for each norm its density over the Linear and Conv layers of each model, and its value layer by layer.

    Raises InputError without matplotlib, and when no such layer has a norm above 0, as there is nothing to draw.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    orders = list(models[0].layers[0].norms)
    if not any(norm > 0 for found in models for order in orders for norm in found.weighted(order)):
        raise InputError("no Linear or Conv layer has a norm above 0, so there is nothing to plot")
    columns = len(orders)
    figure = Figure(figsize=(4.2 * columns + 0.4, 6.4 + 0.25 * _legend_rows(models, columns)), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for (above, below), order in zip(axes.T, orders, strict=True):
        _densities(above, models, order)
        _layer_by_layer(below, models, order)
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=_legend_columns(columns), frameon=False)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130, metadata={"Software": None})
    return held.getvalue()


def density(norms: Sequence[float], at: np.ndarray) -> np.ndarray:
    """Gaussian kernel density of log10 of the norms above 0, per decade, at norms of 10^`at`; Scott's bandwidth."""
    values = np.log10([norm for norm in norms if norm > 0])
    if not len(values):
        return np.zeros_like(at)
    width = max(float(values.std()) * len(values) ** -0.2, NARROWEST)
    kernels = np.exp(-0.5 * ((at[:, None] - values) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return kernels.mean(1)


def _densities(axes: Any, models: Sequence[ModelNorms], order: Order) -> None:
    """Curves of densities, and below them a mark for each layer."""
    norms = [norm for found in models for norm in found.weighted(order) if norm > 0] or [1.0]
    at = np.linspace(np.log10(min(norms)) - 0.6, np.log10(max(norms)) + 0.6, 400)
    curves = [density(found.weighted(order), at) for found in models]
    step = 0.035 * max(float(curve.max()) for curve in curves)
    for i, (found, curve) in enumerate(zip(models, curves, strict=True)):
        axes.plot(10**at, curve, label=found.name, **_look(i))
        marks = [norm for norm in found.weighted(order) if norm > 0]
        axes.plot(marks, [-(i + 1) * step] * len(marks), "|", color=_look(i)["color"], markersize=5)
    axes.set(xscale="log", xlabel=TITLES[order], ylabel="density per decade")
    axes.set_yticks([tick for tick in axes.get_yticks() if tick >= 0])
    axes.set_ylim(-(len(models) + 1) * step, None)
    _plain_ticks(axes.xaxis)
    axes.grid(alpha=0.3)


def _layer_by_layer(axes: Any, models: Sequence[ModelNorms], order: Order) -> None:
    """A point for each layer; hollow ones are batch normalisation."""
    for i, found in enumerate(models):
        points = [(k, each.norms[order], each.weighted) for k, each in enumerate(found.layers, start=1)]
        filled = [(k, norm) for k, norm, weighted in points if weighted and norm > 0]
        hollow = [(k, norm) for k, norm, weighted in points if not weighted and norm > 0]
        look = _look(i)
        axes.plot(*_split(filled), marker="o", markersize=3, alpha=0.9, **look)
        axes.plot(*_split(hollow), "o", markersize=4, markerfacecolor="none", color=look["color"])
    axes.set(yscale="log", xlabel="layer, in the order of the calls", ylabel=TITLES[order])
    axes.xaxis.get_major_locator().set_params(integer=True)
    _plain_ticks(axes.yaxis)
    axes.grid(alpha=0.3)


def _plain_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, …, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _split(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [k for k, _ in points], [norm for _, norm in points]


def _look(i: int) -> dict[str, Any]:
    return {"color": f"C{i % COLOURS}", "linestyle": STYLES[i // COLOURS % len(STYLES)], "linewidth": 1.4}


def _legend_columns(columns: int) -> int:
    return max(2 * columns - 1, 2)


def _legend_rows(models: Sequence[ModelNorms], columns: int) -> int:
    return -(-len(models) // _legend_columns(columns))
