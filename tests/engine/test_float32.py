"""float32 means what the engine says, whatever a user has set, and what they set comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from robustbench_vit.engine.float32 import ieee_float32, tf32_float32

BACKENDS: Any = torch.backends  # torch's stubs don't know the newer switches


def switches() -> dict[str, Any]:
    """Every switch that can be read, as torch tells it."""
    readers: dict[str, Callable[[], Any]] = {
        "matmul": torch.get_float32_matmul_precision,
        "cuda.allow": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "cudnn.allow": lambda: BACKENDS.cudnn.allow_tf32,
        "cuda.matmul": lambda: BACKENDS.cuda.matmul.fp32_precision,
        "cudnn.conv": lambda: BACKENDS.cudnn.conv.fp32_precision,
        "mkldnn.matmul": lambda: BACKENDS.mkldnn.matmul.fp32_precision,
        "mkldnn.conv": lambda: BACKENDS.mkldnn.conv.fp32_precision,
    }
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except (RuntimeError, AttributeError):
            continue
    return found


def _nothing() -> None:
    pass


def _older() -> None:
    torch.set_float32_matmul_precision("medium")


def _allowed() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = True


def _newer() -> None:
    if not hasattr(BACKENDS, "fp32_precision"):
        pytest.skip("this torch has no newer switches")
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"


def _generic() -> None:
    if not hasattr(BACKENDS, "fp32_precision"):
        pytest.skip("this torch has no newer switches")
    BACKENDS.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    if hasattr(BACKENDS, "fp32_precision"):
        BACKENDS.fp32_precision = "none"
        for operation in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv):
            operation.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True


CHOICES = [_nothing, _older, _allowed, _newer, _generic]


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("meaning", [ieee_float32, tf32_float32])
def test_the_users_choice_comes_back_also_after_an_error(choose: Callable[[], None], meaning: Any) -> None:
    choose()
    before = switches()
    with pytest.raises(KeyError), meaning():
        raise KeyError
    assert switches() == before


@pytest.mark.parametrize("choose", CHOICES)
def test_ieee_means_it_on_every_backend(choose: Callable[[], None]) -> None:
    choose()
    with ieee_float32():
        found = switches()
    assert found["cuda.allow"] is False
    assert {found[name] for name in ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv") if name in found} <= {
        "ieee"
    }


@pytest.mark.parametrize("choose", CHOICES)
def test_tf32_means_it_on_cuda(choose: Callable[[], None]) -> None:
    choose()
    with tf32_float32():
        assert switches()["cuda.allow"] is True
        assert switches()["cudnn.allow"] is True


@pytest.mark.parametrize("outer", [ieee_float32, tf32_float32])
def test_one_inside_the_other(outer: Any) -> None:
    with outer():
        before = switches()
        with ieee_float32():
            assert switches()["cuda.allow"] is False
        assert switches() == before


def test_a_product_of_float32_matrices_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(256, 256, generator=generator) for _ in range(2))
    exact = (a.double() @ b.double()).float()
    torch.set_float32_matmul_precision("medium")  # some CPUs then multiply in bfloat16
    with ieee_float32():
        product = a @ b
    assert (product - exact).abs().max() < 1e-3
