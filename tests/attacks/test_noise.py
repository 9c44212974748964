"""Keyed randomness."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from robustbench_vit.attacks.noise import Noise, philox, row_key

FULL = 0xFFFFFFFF
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL, FULL, FULL, FULL), (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""The published Random123 test vectors of philox4x32-10 (kat_vectors)."""


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(word) for word in words) == expected


def test_philox_works_on_many_counters_at_once():
    counters = tuple(torch.tensor([v[0][i] for v in VECTORS]) for i in range(4))
    keys = tuple(torch.tensor([v[1][i] for v in VECTORS]) for i in range(2))
    words = torch.stack(philox(counters, keys), dim=1)
    assert words.tolist() == [list(v[2]) for v in VECTORS]


def test_a_row_s_key_depends_on_everything_that_identifies_it_and_on_nothing_else():
    base = (0, "sample", "apgd", 0, 0)
    others = [(1, *base[1:]), (0, "other", "apgd", 0, 0), (0, "sample", "pgd", 0, 0), (*base[:3], 1, 0), (*base[:4], 1)]
    keys = [row_key(*arguments) for arguments in (base, *others)]
    assert len(set(keys)) == len(keys)
    assert row_key(*base) == keys[0]
    assert all(0 <= word <= FULL for key in keys for word in key)
    assert "eps" not in inspect.signature(row_key).parameters  # curves share their draws


def test_uniform_draws_fill_the_unit_interval_evenly(noise):
    u = noise(200).uniform((3, 7, 5), 0)
    assert u.shape == (200, 3, 7, 5)
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    assert len(u.unique()) > 0.99 * u.numel()
    counts = torch.histc(u, bins=16, min=0, max=1) / u.numel() * 16
    assert float((counts - 1).abs().max()) < 0.08


def test_normal_draws_are_standard_normal(noise):
    g = noise(200).normal((3, 7, 5), 0).flatten()
    assert bool(g.isfinite().all())
    assert float(g.mean()) == pytest.approx(0, abs=0.03)
    assert float(g.std()) == pytest.approx(1, abs=0.03)
    below = float((g < 1).float().mean())
    assert below == pytest.approx(0.5 * (1 + math.erf(1 / 2**0.5)), abs=0.01)


def test_signs_are_plus_and_minus_one_evenly(noise):
    signs = noise(200).signs((3, 7, 5), 0)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.03


@pytest.mark.parametrize("draw", ["uniform", "normal", "signs"])
def test_a_row_draws_the_same_whoever_is_with_it(noise, draw):
    together = noise(9)
    whole = getattr(together, draw)((2, 3), 1, 4)
    order = torch.tensor([7, 0, 3])
    assert torch.equal(getattr(together.take(order), draw)((2, 3), 1, 4), whole[order])
    for i in range(9):
        assert torch.equal(getattr(together.take(torch.tensor([i])), draw)((2, 3), 1, 4)[0], whole[i])


def test_streams_steps_and_rows_differ(noise):
    draws = [noise(2).uniform((40,), stream, step) for stream in (0, 1) for step in (0, 1)]
    rows = torch.cat(draws)
    assert len(rows.unique(dim=0)) == len(rows)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 0.6


def test_steps_may_differ_from_row_to_row(noise):
    steps = torch.tensor([5, 0, 70])
    mixed = noise(3).uniform((4,), 2, steps)
    for i, step in enumerate(steps.tolist()):
        assert torch.equal(mixed[i], noise(3).uniform((4,), 2, step)[i])


def test_draws_ahead_are_the_draws_step_by_step(noise):
    first = torch.tensor([0, 3, 1000])
    ahead = noise(3).uniform_ahead((2, 3), 1, first, 6)
    assert ahead.shape == (3, 6, 2, 3)
    for i in range(6):
        assert torch.equal(ahead[:, i], noise(3).uniform((2, 3), 1, first + i))


def test_a_longer_draw_begins_like_a_shorter_one_and_no_global_state_is_touched(noise):
    before = torch.get_rng_state()
    assert torch.equal(noise(2).uniform((9,), 0)[:, :5], noise(2).uniform((5,), 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(noise(2), Noise)
