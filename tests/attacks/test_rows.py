"""What every row attack promises the pool: pure steps, rows that can be taken apart, budgets, declared access."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_vit.attacks import algorithms
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Access, Gradient, Oracles, Start, concatenate, probe, take
from robustbench_vit.cards import AlgorithmCard, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.engine.oracle import Oracle
from tests.attacks.attending import asking, two_blocks

checked = settings(deadline=None, max_examples=8, derandomize=True, database=None)
CASES = [
    (loaded.name, norm)
    for loaded in Workspace((builtin_layer(),)).load_all("attack")[0]
    if isinstance(loaded.card, AlgorithmCard) and algorithms.get(loaded.card.algorithm).lane == "rows"
    for norm in algorithms.get(loaded.card.algorithm).norms
]
attacks = pytest.mark.parametrize(("name", "norm"), CASES)
SHAPE = (2, 5, 4)


class InBox(nn.Module):
    """Passes images on after checking that no attack asks about anything outside [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        assert float(x.detach().min()) >= 0
        assert float(x.detach().max()) <= 1
        return self.model(x)


def rows(model: nn.Module, n: int, attack: Any, seed: int = 0, largest: float = 0.5) -> Start:
    """Images with the model's own decisions as labels, pixels at the walls among them, and a radius for each row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)
    ranking = model(x).argsort(dim=1, descending=True)
    target = ranking[:, 1] if attack.targets(ranking.shape[1]) else torch.full((n,), -1)
    eps = torch.rand(n, generator=generator) * largest + 1e-3
    return Start(x, ranking[:, 0], target, eps, torch.zeros_like(target))


def tensors(state: Any) -> dict[str, Tensor]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    return all(torch.equal(one, tensors(b)[name]) for name, one in tensors(a).items())


@attacks
@checked
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 12), largest=st.sampled_from([1e-3, 0.1, 1.0]))
def test_what_is_found_is_inside_the_budget_and_the_box(build, drive, bumpy, name, norm, seed, steps, largest):
    attack, model = build(name, norm), bumpy(SHAPE)
    start = rows(model, 4, attack, seed, largest)
    found = attack.best(drive(attack, InBox(model), start, steps, seed))
    size = NORMS[norm].size(found.x - start.x0)
    assert bool((size <= start.eps + 1e-6)[found.found].all())
    if found.distance is not None:
        torch.testing.assert_close(found.distance[found.found], size[found.found], rtol=0, atol=1e-6)
    assert float(found.x.min()) >= 0
    assert float(found.x.max()) <= 1
    assert bool((model(found.x).argmax(1) != start.y)[found.found].all())


@attacks
def test_the_attack_finds_something_at_a_large_radius_and_nothing_at_none(build, drive, bumpy, name, norm):
    attack, model = build(name, norm), bumpy(SHAPE)
    start = rows(model, 8, attack)
    for eps, least, most in (({"linf": 1.5, "l2": 1.5, "l1": 8.0}[norm], 2, 8), (1e-7, 0, 0)):
        begin = dataclasses.replace(start, eps=torch.full((8,), eps))
        assert least <= int(attack.best(drive(attack, model, begin, 110)).found.sum()) <= most


@attacks
def test_steps_change_neither_the_state_they_are_given_nor_its_start(build, noise, bumpy, name, norm):
    attack, model, draws = build(name, norm), bumpy(SHAPE), noise(6)
    start, (oracle, oracles) = rows(model, 6, attack), asking(attack, model)
    given_start = {f.name: getattr(start, f.name).clone() for f in dataclasses.fields(start)}
    state = attack.init(start, draws)
    for _ in range(4):
        oracle.count(6)
        before = {name: value.clone() for name, value in tensors(state).items()}
        after = attack.step(state, oracles, draws)
        changed = [name for name, value in before.items() if not torch.equal(value, tensors(state)[name])]
        assert not changed, f"step wrote into {changed}"
        assert not equal(state, after), "a step moves on"
        state = after
    assert all(torch.equal(value, getattr(start, name)) for name, value in given_start.items())


@attacks
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_rows_can_be_taken_apart_and_put_together(build, drive, noise, bumpy, name, norm, steps):
    attack, model = build(name, norm), bumpy(SHAPE)
    start = rows(model, 7, attack)
    state = drive(attack, model, start, steps) if steps else attack.init(start, noise(7))
    assert all(len(value) == 7 for value in tensors(state).values())
    pieces = [take(state, torch.tensor(part)) for part in ([0, 1, 2], [3], [4, 5, 6])]
    assert equal(concatenate(pieces), state)
    order = torch.tensor([6, 2, 0, 5, 1, 3, 4])
    assert equal(take(take(state, order), order.argsort()), state)
    mask = torch.tensor([True, False] * 3 + [True])
    assert equal(take(state, mask), take(state, mask.nonzero().flatten()))
    assert len(attack.finished(take(state, torch.tensor([], dtype=torch.int64)))) == 0


@attacks
def test_a_row_that_joins_later_goes_the_way_it_goes_alone(build, drive, noise, bumpy, name, norm):
    longer = {"steps": 20} if "steps" in build(name, norm).__dataclass_fields__ else {}
    attack, model, draws = build(name, norm, **longer), bumpy(SHAPE), noise(5)
    start, (oracle, oracles) = rows(model, 5, attack), asking(attack, model)
    late, early = torch.tensor([3, 4]), torch.tensor([0, 1, 2])

    def part(index: Tensor) -> Start:
        return take(start, index)

    state, keys = attack.init(part(early), draws.take(early)), early
    for step in range(9):
        if step == 4:
            state = concatenate([state, attack.init(part(late), draws.take(late))])
            keys = torch.cat([early, late])
        oracle.count(len(keys))
        state = attack.step(state, oracles, draws.take(keys))
    whole = drive(attack, model, start, 5)
    for name_, value in tensors(take(state, torch.tensor([3, 4]))).items():
        torch.testing.assert_close(value, tensors(whole)[name_][late], rtol=0, atol=1e-5, msg=f"{name}: {name_}")


@attacks
def test_finished_rows_stay_finished_and_the_passes_are_those_promised(build, noise, bumpy, name, norm):
    smaller = {k: v for k, v in (("steps", 6), ("queries", 30)) if k in build(name, norm).__dataclass_fields__}
    attack, model, draws = build(name, norm, **smaller), bumpy(SHAPE), noise(5)
    start, (oracle, oracles) = rows(model, 5, attack, largest=1e-4), asking(attack, model)
    state = attack.init(start, draws)
    passes = torch.zeros(2, 5, dtype=torch.int64)
    turns = attack.restarts() * max(attack.targets(5), 1)
    for _ in range(50):
        ended = attack.finished(state)
        if bool(ended.all()):
            break
        oracle.count(5)
        state = attack.step(state, oracles, draws)
        passes += torch.stack([oracle.passes.forwards, oracle.passes.backwards])
        assert bool((attack.finished(state) | ~ended).all()), "a finished row came back"
    assert bool(attack.finished(state).all())
    cost, most = attack.cost(5), passes.amax(1) * turns
    if attack.access >= Access.GRADIENT or oracles.surrogate:
        assert most.tolist() == [cost.forwards, cost.backwards]
    else:  # a query that cannot change the image is not asked
        assert 0 < int(most[0]) <= cost.forwards
        assert int(most[1]) == cost.backwards == 0


@attacks
def test_what_was_found_stays_found(build, noise, bumpy, name, norm):
    attack, model, draws = build(name, norm), bumpy(SHAPE), noise(8)
    start, (oracle, oracles) = rows(model, 8, attack), asking(attack, model)
    start = dataclasses.replace(start, eps=torch.full((8,), {"linf": 0.5, "l2": 2.0, "l1": 9.0}[norm]))
    state, found = attack.init(start, draws), torch.zeros(8, dtype=torch.bool)
    for _ in range(110 if norm == "l1" else 25):
        oracle.count(8)
        state = attack.step(state, oracles, draws)
        best = attack.best(state)
        assert bool((best.found | ~found).all())
        assert bool((model(best.x).argmax(1) != start.y)[best.found].all())
        found = best.found
    assert bool(found.any())


class Wavering:
    """A model's view that answers wrong once: all rows in the given call."""

    def __init__(self, wrong_call: int, y: Tensor) -> None:
        self.calls, self.wrong_call, self.y = 0, wrong_call, y
        self.shown: dict[int, Tensor] = {}

    def whole(self, n: int) -> int:
        return n

    computed = whole

    def scores(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        rows = torch.arange(len(x)) if rows is None else rows
        self.calls += 1
        if self.calls == self.wrong_call:
            self.shown = {int(row): image for row, image in zip(rows, x.detach().clone(), strict=True)}
        answer = torch.zeros(len(x), 3).scatter(1, self.y[rows].unsqueeze(1), 1.0)
        return answer + 1e-3 * x.flatten(1)[:, :3] if self.calls != self.wrong_call else 1 - answer

    def decisions(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.scores(x, rows).argmax(1)

    def gradient(self, x: Tensor, objective: Any, rows: Tensor | None = None, draws: int = 1) -> Gradient:
        at = torch.arange(len(x))
        logits = self.scores(x, rows)
        return Gradient(logits, objective(logits, at), torch.ones_like(x))

    def attended(self, x: Tensor, read: Any, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(x), 3), read(two_blocks(x))

    def gradient_attended(self, x: Tensor, objective: Any, rows: Tensor | None = None) -> Gradient:
        return self.gradient(x, lambda z, at: objective(z, two_blocks(x), at), rows)


@attacks
@pytest.mark.parametrize("wrong_call", [2, 6])
def test_one_wrong_answer_is_remembered_with_its_image(build, noise, name, norm, wrong_call):
    longer = {"steps": 20} if "steps" in build(name, norm).__dataclass_fields__ else {}
    attack, draws, y = build(name, norm, **longer), noise(3), torch.tensor([0, 1, 2])
    if name == "fab":  # untargeted, it asks for two planes before it asks for the class
        wrong_call = -(-wrong_call // 3) * 3
    x0 = 0.25 + 0.5 * torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    state, view = (
        attack.init(Start(x0, y, (y + 1) % 3, torch.full((3,), 99.0), torch.zeros_like(y)), draws),
        Wavering(wrong_call, y),
    )
    surrogates = {name: Wavering(0, y) for name in getattr(attack, "surrogates", ())}
    for _ in range(10):
        state = attack.step(state, Oracles(view, surrogates), draws)
    best = attack.best(state)
    assert view.shown
    assert best.found.tolist() == [row in view.shown for row in range(3)]
    for row, image in view.shown.items():
        assert torch.equal(best.x[row], image)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_keeps_the_nearest_image_it_saw(build, noise, bumpy, norm):
    attack, model, draws = build("fab-t", norm), bumpy(SHAPE), noise(8)
    start, (oracle, oracles) = rows(model, 8, attack), asking(attack, model)
    state, distance = attack.init(start, draws), torch.full((8,), torch.inf)
    for _ in range(40):
        oracle.count(8)
        state = attack.step(state, oracles, draws)
        assert bool((state.distance <= distance).all())
        distance = state.distance
    torch.testing.assert_close(NORMS[norm].size(state.adversarial - state.x0), distance)


@attacks
def test_an_attack_gets_by_with_the_access_it_declares(build, noise, bumpy, name, norm):
    fewer = {"steps": 4} if "steps" in build(name, norm).__dataclass_fields__ else {}
    attack, model, draws = build(name, norm, **fewer), bumpy(SHAPE), noise(3)
    start, (oracle, oracles) = rows(model, 3, attack), asking(attack, model)
    view = oracle.view(attack.access)
    assert hasattr(view, "gradient") == (attack.access >= Access.GRADIENT)
    assert hasattr(view, "scores") == (attack.access >= Access.SCORES)
    below = oracle.view(Access(attack.access - 1)) if attack.access > Access.DECISIONS else object()

    def steps(target: Any) -> None:
        state = attack.init(start, draws)
        for _ in range(4):
            oracle.count(3)
            state = attack.step(state, Oracles(target, oracles.surrogate), draws)

    steps(view)
    with pytest.raises(AttributeError, match="has no attribute"):
        steps(below)


def test_square_sees_scores_and_no_gradient(build):
    for norm in NORMS:
        assert build("square", norm).access is Access.SCORES


def test_a_probe_spends_backwards_only_on_the_rows_that_want_them(bumpy):
    model, x = bumpy(SHAPE), torch.rand(5, *SHAPE)
    oracle = Oracle(model)
    wanted = torch.tensor([True, False, True, False, False])
    y = torch.tensor([0, 1, 2, 3, 4])

    def objective(logits: Tensor, at: Tensor) -> Tensor:
        return logits.gather(1, y[at].unsqueeze(1)).squeeze(1)

    oracle.count(5)
    mixed = probe(oracle.view(Access.GRADIENT), x, objective, wanted)
    assert oracle.passes.forwards.tolist() == [1] * 5
    assert oracle.passes.backwards.tolist() == [1, 0, 1, 0, 0]
    whole = probe(oracle.view(Access.GRADIENT), x, objective, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(mixed.logits, whole.logits)
    torch.testing.assert_close(mixed.value, whole.value)
    torch.testing.assert_close(mixed.grad[wanted], whole.grad[wanted])
    assert bool((mixed.grad[~wanted] == 0).all())
    none = probe(oracle.view(Access.GRADIENT), x, objective, torch.zeros(5, dtype=torch.bool))
    torch.testing.assert_close(none.logits, whole.logits)
