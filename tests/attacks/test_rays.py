"""RayS: the distances of sign directions in closed form, decisions only, and models that have no useful gradient."""

from __future__ import annotations

import dataclasses
import gzip
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rays import LOST_AFTER, _blocks, _pace
from robustbench_vit.attacks.rows import Access, Oracles, Start, take
from robustbench_vit.errors import CardError

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
BOXED = {"linf": 0.3, "l2": 2.0, "l1": 15.0}


class OnlyDecisions:
    """A view with nothing but `decisions`, which counts the queries of every row."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        self.model, self.queries = model, torch.zeros(rows, dtype=torch.int64)

    @torch.no_grad()
    def decisions(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
        self.queries[torch.arange(len(x)) if rows is None else rows] += 1
        return self.model(x).argmax(1)


class Quantised(nn.Module):
    """Rounds its input to eight levels and answers with a one-hot class: gradients are zero, scores say nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model((7 * x).round() / 7)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)


class Constant(nn.Module):
    """Always answers class 0 of two."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.new_ones(len(x)), x.new_zeros(len(x))], 1)


def begin(x: Tensor, y: Tensor, eps: float | Tensor, restart: int = 0) -> Start:
    radius = torch.as_tensor(eps, dtype=x.dtype).expand(len(x)).clone()
    return Start(x, y, torch.full_like(y, -1), radius, torch.full_like(y, restart))


def linear(shape: tuple[int, int, int], distance: float, norm: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Two classes and grey images; the best sign direction reaches class 1 at about `distance` from the nearest."""
    generator = torch.Generator().manual_seed(5)
    pixels = shape[0] * shape[1] * shape[2]
    weight = torch.randn(pixels, generator=generator)
    x = 0.45 + 0.1 * torch.rand(4, *shape, generator=generator)
    layer = nn.Linear(pixels, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(pixels), weight]))
        reach = distance * weight.abs().sum() / NORMS[norm].size(torch.ones(1, *shape))
        layer.bias.copy_(torch.stack([torch.zeros(()), -(x.flatten(1) @ weight).max() - reach.squeeze()]))
    return nn.Sequential(nn.Flatten(), layer), x, torch.zeros(4, dtype=torch.int64)


def sign_distance(model: nn.Sequential, x: Tensor, norm: str) -> Tensor:
    """(row,) distance of the boundary along sign(w): |f(x)| / ‖w‖₁, times the norm of a vector of ones."""
    lines = next(model.parameters()).detach()
    weight = lines[1] - lines[0]
    logits = model(x).detach()
    return (logits[:, 0] - logits[:, 1]) / weight.abs().sum() * NORMS[norm].size(torch.ones_like(x))


@norms
@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 9, 4)])
def test_the_distance_along_the_best_sign_direction_is_approached(build, drive, norm, shape):
    attack = build("rays", norm, queries=1500)
    ones = float(NORMS[norm].size(torch.ones(1, *shape)))
    model, x, y = linear(shape, 0.06 * ones, norm)
    nearest = sign_distance(model, x, norm)
    best = attack.best(drive(attack, model, begin(x, y, nearest / 2)))
    assert best.found.tolist() == [False] * 4, "half of the distance is no budget to succeed in"
    torch.testing.assert_close(best.distance, NORMS[norm].size(best.x - x))
    assert bool((model(best.x).argmax(1) == 1).all())
    assert bool((best.distance <= 1.005 * nearest).all())
    if norm == "linf":  # elsewhere pixels may stop at a wall, which brings the boundary nearer
        assert bool((best.distance >= 0.9999 * nearest).all())


def test_pixels_at_a_wall_cost_nothing_in_l2(build, drive):
    """Half of the pixels are black and useless; a direction that pushes them further into the wall leaves them be."""
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    x[..., 2:] = 0
    layer = nn.Linear(16, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(16), (x.flatten() > 0).float()]))
        layer.bias.copy_(torch.tensor([0.0, -4.0 - 8 * 0.2]))
    model = nn.Sequential(nn.Flatten(), layer)
    attack = build("rays", "l2", queries=600)
    distance = float(attack.best(drive(attack, model, begin(x, y, 1e-3))).distance)
    assert distance == pytest.approx(0.2 * 8**0.5, rel=5e-3)
    assert distance < 0.8 * 0.2 * 16**0.5


@norms
@pytest.mark.parametrize(("queries", "restart"), [(1, 0), (37, 0), (37, 1)])
def test_every_step_asks_every_row_for_one_decision_until_the_budget_is_spent(
    build, noise, bumpy, norm, queries, restart
):
    attack, model = build("rays", norm, queries=queries, restarts=2), bumpy((3, 4, 5))
    x = torch.rand(5, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    view, state = OnlyDecisions(model, 5), attack.init(begin(x, model(x).argmax(1), 0.01, restart), noise(5))
    for step in range(queries + 3):
        assert view.queries.tolist() == [min(step, queries)] * 5
        assert attack.finished(state).tolist() == [step >= queries] * 5
        state = attack.step(state, Oracles(view), noise(5))
    assert attack.access is Access.DECISIONS
    assert attack.cost(5).forwards == 2 * queries
    assert attack.cost(5).backwards == 0


@norms
def test_rows_of_different_age_share_a_step_and_only_those_with_queries_left_ask(build, noise, bumpy, norm):
    attack, model = build("rays", norm, queries=6), bumpy((1, 4, 4))
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    view, state = OnlyDecisions(model, 3), attack.init(begin(x, model(x).argmax(1), 1e-4), noise(3))
    state = dataclasses.replace(state, asked=torch.tensor([6, 4, 0]))
    before = attack.best(state)
    for _ in range(6):
        state = attack.step(state, Oracles(view), noise(3))
    assert view.queries.tolist() == [0, 2, 6]
    assert torch.equal(attack.best(state).x[0], before.x[0])


@norms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "classes", "rows"), [((1, 7, 7), 2, 1), ((3, 4, 6), 5, 4)])
def test_a_model_without_gradients_or_telling_scores_is_broken(build, noise, bumpy, norm, dtype, shape, classes, rows):
    model = Quantised(bumpy(shape, classes).to(dtype))
    x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    y = model(x).argmax(1)
    attack, view = build("rays", norm, queries=400), OnlyDecisions(model, rows)
    state = attack.init(begin(x, y, BOXED[norm]), noise(rows))
    for _ in range(400):
        state = attack.step(state, Oracles(view), noise(rows))
    best = attack.best(state)
    assert best.x.dtype == best.distance.dtype == dtype
    assert best.found.tolist() == [True] * rows
    assert bool((model(best.x).argmax(1) != y).all())
    assert bool((NORMS[norm].size(best.x - x) <= BOXED[norm] + 1e-6).all())


@norms
def test_a_model_that_cannot_be_fooled_survives(build, drive, norm):
    attack, x = build("rays", norm, queries=300), torch.rand(3, 1, 4, 4)
    best = attack.best(drive(attack, Constant(), begin(x, torch.zeros(3, dtype=torch.int64), 1e3)))
    assert not bool(best.found.any())
    assert bool(best.distance.isinf().all())
    assert torch.equal(best.x, x)


@norms
def test_a_row_goes_the_way_it_goes_alone(build, noise, bumpy, norm):
    attack, model = build("rays", norm, queries=60), bumpy((2, 5, 4)).double()
    x = torch.rand(4, 2, 5, 4, generator=torch.Generator().manual_seed(4)).double()
    start, draws = begin(x, model(x).argmax(1), 0.01, restart=1), noise(4)

    def run(rows: Tensor) -> Any:
        state = attack.init(take(start, rows), draws.take(rows))
        for _ in range(60):
            state = attack.step(state, Oracles(OnlyDecisions(model, len(rows))), draws.take(rows))
        return state

    together = run(torch.arange(4))
    for row in range(4):
        alone = run(torch.tensor([row]))
        for field in dataclasses.fields(alone):
            torch.testing.assert_close(getattr(alone, field.name)[0], getattr(together, field.name)[row])


def test_the_first_restart_begins_with_all_ones_and_others_at_random(build, noise):
    x, y = torch.full((3, 1, 6, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    attack = build("rays", "linf", restarts=3)
    ones, second = (attack.init(begin(x, y, 0.1, restart), noise(3)).sign for restart in (0, 1))
    assert torch.equal(ones, torch.ones_like(x))
    assert set(second.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(second[0], second[1])


def test_a_row_that_finds_nothing_goes_on_from_other_random_directions(build, noise):
    attack, x = build("rays", "linf"), torch.full((2, 1, 16, 16), 0.5)
    state = attack.init(begin(x, torch.zeros(2, dtype=torch.int64), 0.1), noise(2))
    signs = [state.sign]
    for _ in range(2 * LOST_AFTER + 1):
        state = attack.step(state, Oracles(OnlyDecisions(Constant(), 2)), noise(2))
        if not torch.equal(state.sign, signs[-1]):
            signs.append(state.sign)
            assert state.trial.tolist() == [0, 0]
    assert len(signs) == 3
    assert torch.equal(signs[0], torch.ones_like(x))
    assert not torch.equal(signs[1][0], signs[1][1])


def test_blocks_are_everything_then_halves_down_to_single_pixels():
    assert _blocks(5, "cpu").tolist() == [[0, 5], [0, 2], [2, 5], [0, 1], [1, 2], [2, 3], [3, 5], [3, 4], [4, 5]]
    assert _blocks(1, "cpu").tolist() == [[0, 1]]
    for pixels in (2, 7, 64, 784):
        blocks = _blocks(pixels, "cpu").tolist()
        assert len({tuple(block) for block in blocks}) == len(blocks)
        assert {begin for begin, end in blocks if end - begin == 1} == set(range(pixels))


@pytest.mark.parametrize("power", [1, 2])
def test_the_pace_spends_a_distance_exactly_or_all_the_room(power):
    room = torch.rand(6, 50, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    room[:, :10], room[0] = 0, 0
    full = room.pow(power).sum(1).pow(1 / power)
    for share in (1e-3, 0.2, 0.9, 0.999):
        pace = _pace(room, share * full, power)
        spent = room.minimum(pace.unsqueeze(1)).pow(power).sum(1).pow(1 / power)
        torch.testing.assert_close(spent, share * full)
    assert _pace(room, full.new_full((6,), torch.inf), power).tolist() == [1.0] * 6


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"tolerance": 0.5}, {"tolerance": 1e-9}, {"restarts": 0}])
def test_settings_out_of_range_are_refused(build, wrong):
    with pytest.raises(CardError, match=f"rays: field '{next(iter(wrong))}'"):
        build("rays", "linf", **wrong)


def test_a_certified_net_keeps_its_accuracy_at_its_radius_and_loses_it_at_three_times_that(shared_data, build, drive):
    """Twenty MNIST images: the net is proved at 0.1 for 94 %, and 0.3 is far outside."""
    from safetensors.torch import load_file

    layers = nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)).eval()
    model.load_state_dict(load_file(shared_data / "cnn" / "convex_mnist_eps0.1.safetensors"))
    files = [next((shared_data / "mnist").glob(name)) for name in ("*images*.gz", "*labels*.gz")]
    images, labels = (torch.tensor(list(gzip.decompress(file.read_bytes())[: 16 + 20 * 784])) for file in files)
    x, y = images[16 : 16 + 20 * 784].view(20, 1, 28, 28).float() / 255, labels[8:28].long()
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    attack = build("rays", "linf", queries=250)
    assert len(x) >= 18
    for eps, least, most in ((0.3, len(x) - 1, len(x)), (0.1, 0, 2)):
        best = attack.best(drive(attack, model, begin(x, y, eps)))
        assert least <= int(best.found.sum()) <= most
        assert bool((model(best.x).argmax(1) != y)[best.found].all())
