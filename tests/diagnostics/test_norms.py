"""Norms of whole models: the survey of layers, tables, CSV, and the picture."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_vit.diagnostics import norms_plot, operator_norm
from robustbench_vit.diagnostics.layers import survey
from robustbench_vit.diagnostics.norms import comparison, csv_text, model_norms, table
from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model

IMAGE = torch.zeros(1, 1, 8, 8)


class Odd(nn.Module):
    """A model with layers of every fate."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(1, 1, 3)
        self.unused = nn.Linear(2, 2)
        self.circular = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.circular(self.twice(self.twice(x))))
        tokens = x.flatten(2)
        return self.attention(tokens, tokens, tokens)[0]


def fresh(name: str, scale: float = 1.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(name)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def test_sizes_come_from_one_forward_and_nothing_of_the_model_changes():
    model = fresh("digits_cnn").train()
    model.head.eval()
    sizes = {place.path: place.input_size for place in survey(model, IMAGE).placed}
    assert sizes["stem"] == (8, 8)
    assert sizes["blocks.1.shortcut"] == (8, 8)
    assert sizes["blocks.2.conv1"] == (4, 4)
    assert sizes["head"] == ()
    assert next(iter(sizes)) == "stem"
    assert list(sizes)[-1] == "head"
    assert model.training
    assert not model.head.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_go_and_the_mode_comes_back_when_the_model_fails():
    model = fresh("digits_cnn").train()
    with pytest.raises(RuntimeError):
        survey(model, torch.zeros(1, 2, 8, 8))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_runs_twice_counts_with_its_larger_input_and_others_are_named():
    found = survey(Odd(), torch.zeros(1, 1, 6, 6))
    assert [(place.path, place.input_size) for place in found.placed] == [("twice", (6, 6)), ("norm", ())]
    assert [place.path for place in found.weight_layers] == ["twice"]
    reasons = found.left_out
    assert set(reasons) == {"unused", "circular", "attention", "attention.out_proj"}
    assert reasons["unused"] == "this Linear is not called when the model runs"
    assert "pads with 'circular'" in reasons["circular"]
    assert "not for MultiheadAttention" in reasons["attention"]


@pytest.mark.parametrize("name", ["digits_vit", "digits_ic_cnn"])
def test_every_layer_has_the_norms_of_operator_norm(name):
    model = fresh(name)
    found = model_norms(model, IMAGE, "a")
    kinds = nn.Linear | nn.Conv2d | nn.BatchNorm1d
    assert {each.layer for each in found.layers} == {p for p, m in model.named_modules() if isinstance(m, kinds)}
    for each in found.layers:
        layer = model.get_submodule(each.layer)
        assert each.weighted == (not isinstance(layer, nn.BatchNorm1d))
        expected = {f"l{ord:g}": operator_norm(layer, each.input_size, ord) for ord in (1, 2, math.inf)}
        assert each.norms == expected
    assert found.left_out == {}


def test_tables_name_every_layer_and_what_is_left_out():
    lines = list(table(model_norms(Odd(), torch.zeros(1, 1, 6, 6), "odd", ["l1", "linf"])))
    assert lines[0] == "odd: 2 layers"
    assert lines[1].split() == ["layer", "kind", "input", "l1", "linf"]
    assert lines[2].split()[:3] == ["twice", "Conv2d", "6x6"]
    assert "left out: 'unused': this Linear is not called when the model runs" in lines


def test_models_are_compared_by_their_weight_layers():
    one, ten = (model_norms(fresh("digits_vit", scale), IMAGE, name) for name, scale in (("one", 1), ("ten", 10)))
    lines = [line.split() for line in comparison([one, ten])]
    assert lines[1] == ["model", "layers", *(w for o in ("l1", "l2", "linf") for w in (o, "median", o, "largest"))]
    assert lines[2][:2] == ["one", "14"]
    assert np.allclose(np.array(lines[3][2:], float), 10 * np.array(lines[2][2:], float), rtol=1e-3)


def test_csv_holds_every_norm_in_full():
    found = [model_norms(fresh("digits_cnn"), IMAGE, name, ["l2"]) for name in ("a", "b")]
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [row["model"] for row in rows] == ["a"] * 9 + ["b"] * 9
    assert set(rows[0]) == {"model", "layer", "kind", "input", "l2"}
    assert float(rows[0]["l2"]) == found[0].layers[0].norms["l2"]


def test_a_model_without_layers_and_one_with_nan_are_refused():
    with pytest.raises(InputError, match="a: this Flatten has no layer whose norms are known"):
        model_norms(nn.Flatten(), IMAGE, "a")
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    nn.init.constant_(model[0].weight, math.nan)
    with pytest.raises(InputError, match="layer '0': this Conv2d holds NaN or infinite values"):
        model_norms(model, IMAGE, "a")


def test_densities_are_densities_per_decade():
    at = np.linspace(-3, 5, 4001)
    for norms in ([1.0, 10.0, 30.0, 0.0], [2.0, 2.0], [5.0]):
        curve = norms_plot.density(norms, at)
        assert curve.sum() * (at[1] - at[0]) == pytest.approx(1, abs=1e-3)
        centre = (curve * at).sum() / curve.sum()
        assert centre == pytest.approx(np.log10([n for n in norms if n > 0]).mean(), abs=1e-3)
    assert not norms_plot.density([0.0], at).any()


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setattr(norms_plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"plots need matplotlib: pip install 'robustbench_vit\[plots\]'"):
        norms_plot.require_matplotlib()


def test_the_picture_is_a_png_that_repeats_itself():
    pytest.importorskip("matplotlib")
    found = [model_norms(fresh(name), IMAGE, name, ["linf"]) for name in ("digits_cnn", "digits_ic_cnn")]
    drawn = norms_plot.density_plot(found)
    assert drawn.startswith(b"\x89PNG")
    assert norms_plot.density_plot(found) == drawn


def test_nothing_to_plot_is_said():
    pytest.importorskip("matplotlib")
    found = model_norms(fresh("digits_cnn", 0.0), IMAGE, "zeros", ["l1"])
    with pytest.raises(InputError, match="no Linear or Conv layer has a norm above 0"):
        norms_plot.density_plot([found])
