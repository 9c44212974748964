"""Too little memory: batches and pools shrink, nothing that was computed is lost, and results stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vit.attacks.losses import LOSSES
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.engine import width
from robustbench_vit.engine.oracle import Oracle, out_of_memory
from robustbench_vit.engine.pool import Pool
from robustbench_vit.engine.verify import Verifier
from robustbench_vit.engine.waiting import PoolSettings
from robustbench_vit.errors import OutOfMemoryError

CPU = torch.device("cpu")


class Tight:
    """A model that has memory for so many images at a time."""

    def __init__(self, model: nn.Module, most: int) -> None:
        self.model, self.most, self.refused = model, most, 0
        self.seen: list[int] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(len(x))
        return self.model(x)


def results(pool: Any) -> dict[tuple[str, int], Any]:
    return {(row.key.sample, row.key.turn): row for rows in pool.run() for row in rows}


def test_a_batch_is_halved_until_it_fits_and_the_answers_stay(model, samples):
    tight = Tight(model, 8)
    oracle, y = Oracle(tight, largest=32), samples.y
    oracle.count(20)
    answer = oracle.gradient(samples.x, lambda z, at: LOSSES["ce"](z, y[at], y[at]))
    roomy = Oracle(model, largest=8)
    roomy.count(20)
    expected = roomy.gradient(samples.x, lambda z, at: LOSSES["ce"](z, y[at], y[at]))
    assert torch.equal(answer.grad, expected.grad)
    assert torch.equal(answer.value, expected.value)
    assert tight.seen == [8, 8, 8]
    assert tight.refused == 1, "24, then at most 12, so 8"
    assert oracle.passes.forwards.tolist() == oracle.passes.backwards.tolist() == [1] * 20
    assert oracle.passes.padding == 8, "four images forth and back"
    oracle.logits(samples.x)
    assert tight.refused == 2, "more images may fit without a gradient, so that is tried"
    oracle.logits(samples.x)
    oracle.gradient(samples.x, lambda z, at: LOSSES["ce"](z, y[at], y[at]))
    assert tight.refused == 2, "what did not fit is not tried again"


def test_other_errors_are_not_taken_for_it(samples):
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    oracle = Oracle(broken, largest=32)
    oracle.count(20)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        oracle.logits(samples.x)
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    assert not out_of_memory(ValueError("out of memory"))


def tight_pool(attack: Any, model: Any, samples: Any, target: Any) -> Pool:
    settings = PoolSettings(20, 0)
    return Pool(
        attack, "algorithm", "lane", samples, 0.06, 0, Oracle(target), Verifier(model, NORMS["linf"]), settings
    )  # fmt: skip


@pytest.mark.parametrize("name", ["apgd-t", "fab-t", "square"])
def test_a_pool_without_memory_for_a_step_puts_rows_aside(build, pool, model, samples, monkeypatch, name):
    """The attack's own arithmetic runs out of memory, not the model: fewer rows at a time, the others wait."""
    attack = build(name, **{"square": {"queries": 60}}.get(name, {"steps": 8, "targets": 3}))
    step, widths = type(attack).step, []

    def hungry(self: Any, state: Any, oracles: Any, noise: Any) -> Any:
        rows = len(state.x0)
        if rows > 8 and len(widths) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        widths.append(rows)
        return step(self, state, oracles, noise)

    expected = results(pool(attack, samples, 0.06, 20))
    monkeypatch.setattr(type(attack), "step", hungry)
    tight = tight_pool(attack, model, samples, model)
    assert results(tight) == expected
    assert max(widths[:4]) == 20
    assert max(widths[4:]) <= 8


def test_rows_that_cannot_start_wait(build, pool, model, samples, monkeypatch):
    attack = build("apgd-t", steps=4, targets=3)
    init = type(attack).init

    def hungry(self: Any, start: Any, noise: Any) -> Any:
        if len(start.y) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return init(self, start, noise)

    expected = results(pool(attack, samples, 0.06, 20))
    monkeypatch.setattr(type(attack), "init", hungry)
    assert results(tight_pool(attack, model, samples, model)) == expected


def test_eight_rows_must_fit(build, model, samples):
    with pytest.raises(OutOfMemoryError, match="too little memory for 8 images of this model at a time; free some"):
        results(tight_pool(build("apgd-ce", steps=3), model, samples, Tight(model, 7)))


def test_the_width_follows_the_free_memory(model, monkeypatch):
    image, each = torch.rand(1, 6, 5), width.bytes_per_image(model, torch.rand(1, 6, 5), CPU)
    # GELU keeps its 6×6×5 inputs, the last layer its 180 inputs as part of its weights only; and x itself.
    assert 4 * (180 + 30) <= each <= 4 * (2 * 180 + 3 * 30)
    needed = each + 16 * 30 * 4
    for free, expected in (
        (2 * 64 * needed, width.Width(64, 64, 64)),
        (2 * 64 * needed - 2, width.Width(64, 32, 64)),
        (2 * 64 * (needed - each // 2), width.Width(64, 32, 64)),
        (10**12, width.Width(256, 256, 256)),
        (0, width.Width(8, 8, 8)),
    ):
        monkeypatch.setattr(width, "free_bytes", lambda device, free=free: free)
        assert width.automatic_width(model, image, CPU) == expected
    monkeypatch.setattr(width, "free_bytes", lambda device: 2 * 64 * needed)
    assert width.automatic_width(model, image, CPU, processes=2) == width.Width(32, 32, 32)
    assert width.automatic_width(lambda x: torch.zeros(len(x), 2), image, CPU).rows >= 8, "a model without a gradient"


def test_large_images_run_eight_at_a_time_on_a_cpu(monkeypatch):
    monkeypatch.setattr(width, "free_bytes", lambda device: 10**12)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert width.automatic_width(model, torch.rand(3, 224, 224), CPU).rows == 8
    assert width.automatic_width(model, torch.rand(3, 32, 32), CPU).rows == 256


def test_no_memory_for_eight_images_is_said_before_any_work():
    with pytest.raises(OutOfMemoryError, match="cpu has too little memory for 8 images of this model"):
        width.automatic_width(Tight(nn.Identity(), 7), torch.rand(1, 4, 4), CPU)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(width, "CONTROL_GROUP", tmp_path)
    unlimited = width.free_bytes(CPU)
    assert unlimited > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert width.free_bytes(CPU) > 5000
    (tmp_path / "memory.max").write_text("5000\n")
    assert width.free_bytes(CPU) == 4000
