"""Attacks on models that drop tokens: what they lower, whom they ask, and that they see what they say they see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.attacks.attention_evict import attention_to, times_stayed
from robustbench_vit.attacks.rows import Access, Oracles, Start
from robustbench_vit.cards import open_workspace
from robustbench_vit.data.dataset import Dataset
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.errors import AttackError, InputError
from robustbench_vit.evaluation import arrays_dataset
from robustbench_vit.models.evit_block import forward_attention, recording
from robustbench_vit.models.inside import inside_of
from robustbench_vit.models.normalise import normalised
from tests.attacks.attending import Saw
from tests.models.evit_made import images, seeded

SAME = {"steps": 10, "step_size": 0.1}
ADAPTIVE = ["keep-1-transfer", "keep-1-start", "attention-evict"]


@pytest.fixture(scope="module")
def evit() -> nn.Module:
    """Several classes are near one another."""
    model = seeded("digits_evit", keep_rate=0.5).eval()
    with torch.no_grad():
        model.head.bias -= model(images(40, 1, 8, 8, seed=1)).mean(0)
    return model


@pytest.fixture(scope="module")
def digits(evit) -> Dataset:
    """Images with the model's own decisions as labels."""
    x = images(7, 1, 8, 8)
    with torch.no_grad():
        return arrays_dataset(x, evit(x).argmax(1))


def start_of(data: Dataset, eps: float = 0.2) -> Start:
    y = torch.from_numpy(data.y)
    return Start(torch.from_numpy(data.x), y, torch.full_like(y, -1), torch.full((len(y),), eps), torch.zeros_like(y))


def two_blocks() -> list[Saw]:
    """One image of four patches: the first block keeps 1 and 3; the second sees them and a token made of the others."""
    first = Saw(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.arange(4)[None], torch.tensor([[1, 3]]))
    second = Saw(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[1, 3, -1]]), torch.tensor([[1, -1]]))
    return [first, second]


def test_how_often_a_patch_stays_is_counted_block_by_block():
    assert times_stayed(two_blocks(), 6).tolist() == [[0, 2, 0, 1, 0, 0]]


def test_the_attention_to_patches_that_stayed_is_that_of_the_formula():
    stayed = torch.tensor([[0, 2, 0, 1]], dtype=torch.int8)
    # (.4 + .3) / 1 in the first block; in the second 3 did not stay, and the token made of others never counts: .5 / 1
    torch.testing.assert_close(attention_to(stayed, two_blocks()), torch.tensor([1.2]))


def steps_on(attack: Any, model: nn.Module, start: Start, noise: Any, steps: int) -> Any:
    """The state after some steps on a model that drops tokens, with its own surrogate and recorder."""
    inside, draws = inside_of(model), noise(len(start.y))
    assert inside is not None
    oracle = Oracle(model, recorder=inside.recorder)
    surrogates = {name: oracle.beside(make()).view(Access.GRADIENT) for name, make in inside.surrogates.items()}
    state = attack.init(start, draws)
    for _ in range(steps):
        oracle.count(len(start.y))
        state = attack.step(state, Oracles(oracle.view(attack.access), surrogates), draws)
    return state


def test_evicting_lowers_the_attention_to_what_stayed_and_has_other_patches_stay(build, noise, evit, digits):
    attack, start = build("attention-evict", "linf", steps=40, evict_share=1, random_start=False), start_of(digits)
    state = steps_on(attack, evit, start, noise, 40)
    before, after = (forward_attention(evit, x)[1] for x in (start.x0, state.x))
    assert torch.equal(state.stayed, times_stayed(before, 64))
    assert bool((attention_to(state.stayed, after) < attention_to(state.stayed, before)).all())
    pairs = zip(before[0].kept_patches.tolist(), after[0].kept_patches.tolist(), strict=True)
    gone = [len(set(was) - set(now)) for was, now in pairs]
    assert sum(gone) >= len(gone), "at least one patch of the first block on average"


def test_what_stayed_is_that_of_the_clean_image_though_the_search_starts_elsewhere(build, noise, evit, digits):
    start = start_of(digits)
    state = steps_on(build("attention-evict", "linf", random_start=True), evit, start, noise, 1)
    assert not torch.allclose(state.x, start.x0, atol=0.05)
    assert torch.equal(state.stayed, times_stayed(forward_attention(evit, start.x0)[1], 64))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_evicting_steps_it_is_pgd(build, drive, noise, evit, digits, norm):
    start = start_of(digits)
    state = steps_on(build("attention-evict", norm, evict_share=1e-3, **SAME), evit, start, noise, 6)
    assert torch.equal(state.x, drive(build("pgd-100", norm, **SAME), evit, start, 6).x)


def test_following_the_surrogate_is_pgd_on_the_surrogate_and_then_on_the_target(build, drive, noise, evit, digits):
    inside, start = inside_of(evit), start_of(digits)
    assert inside is not None
    keep_all, plain = inside.surrogates["keep-1"](), build("pgd-100", "linf", **SAME)
    there = drive(plain, keep_all, start, 5)
    assert torch.equal(steps_on(build("keep-1-transfer", "linf", **SAME), evit, start, noise, 5).x, there.x)
    attack = build("keep-1-start", "linf", **SAME)
    assert torch.equal(steps_on(attack, evit, start, noise, 5).x, there.x)
    oracle = Oracle(evit)
    oracle.count(7)
    then = plain.step(there, Oracles(oracle.view(Access.GRADIENT)), noise(7))
    assert torch.equal(steps_on(attack, evit, start, noise, 6).x, then.x)


@pytest.mark.parametrize("attack", ADAPTIVE)
def test_a_model_that_keeps_every_token_is_refused(attack, digits):
    model = seeded("digits_evit", keep_rate=1.0).eval()
    with pytest.raises(InputError, match=f"attack '{attack}' needs .* only a model that drops tokens"):
        rbv.evaluate(model, digits, attack=attack, eps=0.2)


@pytest.mark.parametrize("attack", ADAPTIVE)
def test_rows_run_together_end_as_they_do_alone(attack, evit, digits):
    card = open_workspace().attack(attack).card.model_copy(update={"steps": 8, "step_size": 0.25})
    together = rbv.evaluate(evit, digits, attack=card, eps=0.03, reliability=False)
    alone = rbv.evaluate(evit, digits, attack=card, eps=0.03, width=1, reliability=False)
    assert together.verdicts == alone.verdicts
    torch.testing.assert_close(together.adversarials, alone.adversarials, rtol=0, atol=1e-5)
    assert 0 < together.robust_accuracy < 1


def test_attention_is_seen_through_a_normalisation_and_however_the_search_asks(evit, digits):
    wrapped = normalised(evit, [0.0], [1.0]).eval()
    card = open_workspace().attack("attention-evict").card.model_copy(update={"steps": 20, "step_size": 0.1})
    plain = rbv.evaluate(evit, digits, attack=card, eps=0.03, reliability=False)
    faster = {"precision": "bf16", "channels_last": True}
    seen = rbv.evaluate(wrapped, digits, attack=card, eps=0.03, reliability=False, **faster)
    torch.testing.assert_close(seen.adversarials, plain.adversarials)


def test_an_oracle_without_a_recorder_says_so(evit, digits):
    view, x = Oracle(evit).view(Access.INTERNALS), torch.from_numpy(digits.x)
    with pytest.raises(AttackError, match="show what they attend to"):
        view.attended(x, lambda seen: seen[0].a)


def test_blocks_that_are_never_asked_are_an_error_and_not_another_attack(evit, digits):
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.evit, self.linear = evit, nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))

    model, x = Bypassed(), torch.from_numpy(digits.x)
    oracle = Oracle(model, recorder=lambda: recording(model))
    oracle.count(7)
    with pytest.raises(AttackError, match="not part of its forward pass"):
        oracle.view(Access.INTERNALS).attended(x, lambda seen: seen[0].a)


def test_what_was_seen_of_padding_does_not_count(evit, digits):
    x = torch.from_numpy(digits.x)[:5]
    oracle = Oracle(evit, recorder=lambda: recording(evit))
    oracle.count(5)
    logits, a = oracle.view(Access.INTERNALS).attended(x, lambda seen: seen[0].a)
    assert (len(logits), len(a)) == (5, 5)
    assert oracle.passes.padding == 3
    torch.testing.assert_close(a, forward_attention(evit, x)[1][0].a.detach())


def test_the_surrogate_is_the_same_model_with_every_token(evit, digits):
    inside = inside_of(evit)
    assert inside is not None
    surrogate, x = inside.surrogates["keep-1"](), torch.from_numpy(digits.x)
    same = seeded("digits_evit", keep_rate=1.0).eval()
    same.load_state_dict(evit.state_dict())
    torch.testing.assert_close(surrogate(x), same(x))
    assert not torch.allclose(surrogate(x), evit(x))
    assert all(a is b for a, b in zip(surrogate.parameters(), evit.parameters(), strict=True))
