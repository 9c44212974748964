"""The only caller of the model: physical batches, access, counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_vit.attacks.rows import Access
from robustbench_vit.engine.oracle import SMALLEST, Oracle, frozen, ladder, pieces

checked = settings(deadline=None, max_examples=200, derandomize=True, database=None)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Watched(nn.Module):
    """A model that notes the size of every batch it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.batches = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.model(x)


@dataclass
class Wrapped:
    """What Hugging Face models return."""

    logits: Tensor


def true_logit(y: Tensor):
    return lambda z, at: z.gather(1, y[at].unsqueeze(1)).squeeze(1)


@checked
@given(rows=st.integers(0, 3000), largest=st.integers(1, 600), device=st.sampled_from([CPU, CUDA]))
def test_pieces_cover_the_rows_with_sizes_of_the_ladder(rows, largest, device):
    sizes = ladder(device, largest)
    cut = pieces(rows, sizes)
    assert sum(held for held, _ in cut) == rows
    assert all(0 < held <= physical for held, physical in cut)
    assert all(physical in sizes and SMALLEST <= physical <= max(largest, SMALLEST) for _, physical in cut)
    padding = sum(physical - held for held, physical in cut)
    assert padding <= max(rows // 16, SMALLEST)
    assert all(held == physical for held, physical in cut[:-1]), "only the last piece is padded"


def test_ladders():
    assert ladder(CPU, 32) == [8, 16, 24, 32]
    assert ladder(CUDA, 100) == [8, 16, 32, 64]
    assert ladder(CPU, 1) == ladder(CUDA, 3) == [8]


@pytest.mark.parametrize(("rows", "cut"), [(5, [(5, 8)]), (64, [(64, 64)]), (65, [(64, 64), (1, 8)]), (20, [(20, 24)])])
def test_how_batches_are_cut_on_a_cpu(rows, cut):
    assert pieces(rows, ladder(CPU, 64)) == cut


@pytest.mark.parametrize("n", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("largest", [8, 16, 64])
def test_answers_are_those_of_the_model_whatever_the_physical_batch(model, samples, n, largest):
    x, y = samples.x[:n], samples.ranking[:n, 1]
    watched = Watched(model)
    oracle = Oracle(watched, largest=largest)
    oracle.count(n)
    torch.testing.assert_close(oracle.logits(x), model(x), rtol=1e-5, atol=1e-5)
    whole = x.clone().requires_grad_()
    value = true_logit(y)(model(whole), torch.arange(n))
    (expected,) = torch.autograd.grad(value.sum(), whole)
    answer = oracle.gradient(x, true_logit(y))
    torch.testing.assert_close(answer.grad, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.value, value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.logits, model(x).detach(), rtol=1e-5, atol=1e-5)
    assert not answer.grad.requires_grad
    assert not answer.logits.requires_grad
    assert set(watched.batches) <= set(ladder(CPU, largest))
    assert oracle.passes.padding == sum(watched.batches) // 2 * 3 - 3 * n, "a backward's padding counts too"


def test_a_row_s_answer_is_the_same_to_the_bit_whoever_is_with_it(model, samples):
    oracle = Oracle(model)
    oracle.count(20)
    together = oracle.gradient(samples.x, true_logit(samples.y))
    for n in (1, 3, 9):
        alone = oracle.gradient(samples.x[:n], true_logit(samples.y))
        assert torch.equal(alone.logits, together.logits[:n])
        assert torch.equal(alone.grad, together.grad[:n])


def test_passes_are_counted_for_the_rows_that_asked(model, samples):
    oracle = Oracle(model)
    oracle.count(6)
    view = oracle.view(Access.GRADIENT)
    view.scores(samples.x[:6])
    view.scores(samples.x[:2], torch.tensor([4, 1]))
    view.decisions(samples.x[:1], torch.tensor([4]))
    view.gradient(samples.x[:3], true_logit(samples.y), torch.tensor([0, 4, 5]))
    assert oracle.passes.forwards.tolist() == [2, 2, 1, 1, 4, 2]
    assert oracle.passes.backwards.tolist() == [1, 0, 0, 0, 1, 1]
    oracle.count(2)
    assert oracle.passes.forwards.tolist() == [0, 0]


def test_a_row_that_asks_several_times_at_once_pays_several_times(model, samples):
    oracle = Oracle(model)
    oracle.count(3)
    oracle.view(Access.SCORES).scores(samples.x[:4], torch.tensor([1, 1, 1, 2]))
    assert oracle.passes.forwards.tolist() == [0, 3, 1]


def test_objectives_see_the_rows_of_their_piece(model, samples):
    oracle = Oracle(model, largest=8)
    oracle.count(20)
    seen = []

    def objective(logits: Tensor, at: Tensor) -> Tensor:
        assert len(logits) == len(at)
        seen.extend(at.tolist())
        return logits[:, 0]

    oracle.gradient(samples.x, objective)
    assert seen == list(range(20))


def test_views_have_nothing_beyond_their_access(model):
    oracle = Oracle(model)
    public = {a: {n for n in dir(oracle.view(a)) if not n.startswith("_")} for a in Access}
    assert public[Access.DECISIONS] == {"decisions", "whole", "computed"}
    assert public[Access.SCORES] == {"decisions", "whole", "computed", "scores", "discard"}
    assert public[Access.GRADIENT] == {"decisions", "whole", "computed", "scores", "discard", "gradient"}
    assert public[Access.GRADIENT] <= public[Access.INTERNALS]


def test_decisions_are_the_largest_logits(model, samples):
    oracle = Oracle(model)
    oracle.count(20)
    assert oracle.view(Access.DECISIONS).decisions(samples.x).tolist() == samples.y.tolist()


def test_outputs_that_carry_logits_are_unwrapped(model, samples):
    oracle = Oracle(lambda x: Wrapped(model(x)))
    oracle.count(20)
    assert oracle.view(Access.SCORES).scores(samples.x).shape == (20, 5)
    assert oracle.gradient(samples.x, true_logit(samples.y)).grad.shape == samples.x.shape


def test_queries_leave_the_images_and_the_parameters_alone(model, samples):
    oracle = Oracle(model)
    oracle.count(20)
    x = samples.x.clone()
    oracle.gradient(x, true_logit(samples.y))
    oracle.logits(x)
    assert torch.equal(x, samples.x)
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_frozen_gives_back_what_parameters_asked_for():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].bias.requires_grad_(False)
    wanted = [p.requires_grad for p in net.parameters()]
    with frozen(net):
        assert not any(p.requires_grad for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == wanted == [True, False, True, True]
