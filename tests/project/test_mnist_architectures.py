"""The page on small architectures on MNIST, and what it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import mnist_architectures as page
from benchmarks.mnist_architectures import CASES, RADII, REPORT, RESULTS, measured, report, samples
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.models.build import build_model


@pytest.mark.parametrize("name", CASES)
def test_every_case_builds_for_the_images(name: str) -> None:
    model = CASES[name].build().eval()
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert CASES[name].recipe.card.epochs <= 10


def test_the_plain_vit_is_as_large_as_the_one_that_drops_tokens() -> None:
    plain, dropping = (sum(p.numel() for p in CASES[name].build().parameters()) for name in ("plain ViT", "small_evit"))
    assert plain == dropping


def test_what_is_evaluated_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("digits", "train")
    monkeypatch.setattr(page, "load_dataset", lambda *_: data)
    monkeypatch.setattr(page, "FIRST_TRAINED", 400)
    trained, evaluated = samples(page.Case("ic_resnet20", samples=500))
    assert (len(trained), len(evaluated)) == (500, page.EVALUATED)
    assert not {*trained.sample_ids} & {*evaluated.sample_ids}


def test_the_real_images(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(shared_data / "mnist"))
    trained, evaluated = samples(CASES["plain ViT"])
    assert trained.x.shape == (3000, 1, 28, 28)
    assert not {*trained.sample_ids} & {*evaluated.sample_ids}


def test_counts_are_of_all_radii() -> None:
    data: Dataset = load_dataset("digits", "test").first(6)
    found = measured(build_model("digits_cnn").eval(), data)
    assert {*found["robust"]} == {str(eps) for eps in RADII}
    assert all(count <= found["correct"] <= 6 for count in found["robust"].values())
    assert found["parameters"] == 38_058


def test_the_page() -> None:
    case = {"defense": "standard", "epochs": 10, "samples": 3000, "parameters": 12345}
    good = {**case, "correct": 285, "robust": {"0.1": 30, "0.3": 0}}
    poor = {**case, "defense": "pgd-at", "correct": 200, "robust": {"0.1": 150, "0.3": 9}}
    found = {"machine": "a CPU", "n": 300, "attack": "pgd-40", "cases": {"a": good, "b": good}}
    text = report(found)
    assert "| a | standard | 3,000 | 10 | 12,345 | 95.0 [91.9, 96.9] | 10.0 [7.1, 13.9] | 0.0 [0.0, 1.3] |" in text
    assert "All 2 reach a clean accuracy above 80 %, interval included." in text
    found["cases"]["b, pgd-at"] = poor
    text = report(found)
    assert "| b | pgd-at | " in text
    assert "2 of 3 reach a clean accuracy above 80 %, interval included; not so `b, pgd-at`." in text


def test_unknown_cases_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mnist_architectures", "small"])
    with pytest.raises(SystemExit, match="no case small; there are: small_refiner_vit, "):
        page.main()


def test_the_committed_page_is_fresh() -> None:
    if not RESULTS.is_file():
        pytest.skip("nothing measured yet; `python -m benchmarks.mnist_architectures` does it")
    assert REPORT.read_text(encoding="utf-8") == report(json.loads(RESULTS.read_text(encoding="utf-8")))
