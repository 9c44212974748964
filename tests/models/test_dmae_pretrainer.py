"""Facts about DMAE's pretraining (arXiv:2210.06983)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.dmae_pretrainer import (
    DMAEPretrainer,
    Draws,
    dmae_pretrain_digits_vit,
    dmae_pretrain_small_vit,
    dmae_pretrain_vit_base,
    dmae_pretrain_vit_large,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(model: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def seeded(build, **settings) -> DMAEPretrainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**settings)


@pytest.mark.parametrize(
    ("build", "total", "trainable"),
    [(dmae_pretrain_vit_base, 111_907_840, 111_655_680), (dmae_pretrain_vit_large, 329_541_888, 329_239_296)],
)
def test_parameters_of_the_pretrainers(build, total, trainable):
    with torch.device("meta"):
        model = build()
    assert (parameters(model), parameters(model, trainable=True)) == (total, trainable)


def test_shapes_of_the_base_pretrainer():
    with torch.device("meta"):
        model, x = dmae_pretrain_vit_base(), torch.rand(2, 3, 32, 32)
        made = model(x, Draws(torch.rand_like(x), torch.rand(2, 196)))
        assert model.target(x).shape == (2, 196, 768)
    assert made.latent.shape == (2, 50, 768)
    assert made.prediction.shape == (2, 196, 768)
    assert made.loss.shape == ()
    shallow = dmae_pretrain_vit_base(depth=1, decoder_depth=1, embed_dim=48, decoder_dim=32)
    x = torch.rand(2, 3, 32, 32)
    assert shallow(x, shallow.draw(x, generator())).hidden.sum(1).tolist() == [147, 147]


def test_patches_are_ordered_row_column_channel():
    x = torch.arange(2 * 3 * 32 * 32).float().view(2, 3, 32, 32)
    patches = dmae_pretrain_small_vit().patches(x)
    assert patches.shape == (2, 64, 48)
    row, column = 5, 3  # of a patch
    cut = x[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    assert torch.equal(patches[1, 8 * row + column], cut.permute(1, 2, 0).flatten())


def test_the_loss_is_over_all_patches_against_the_clean_ones():
    model = seeded(dmae_pretrain_small_vit, in_chans=1, mean=[0.2], std=[0.5])
    x = torch.rand(3, 1, 32, 32, generator=generator())
    made = model(x, model.draw(x, generator(1)))
    raw = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(3, 64, 16)
    target = (raw - raw.mean(-1, keepdim=True)) / raw.var(-1, keepdim=True).sqrt()
    assert torch.allclose(model.target(x), target, atol=1e-3)  # whatever the normalisation
    assert torch.allclose(made.loss, (made.prediction - target).square().mean(), atol=1e-4)
    assert made.loss.item() != pytest.approx((made.prediction - target).square()[made.hidden].mean().item(), abs=1e-4)


def test_the_encoder_sees_a_quarter_of_the_noisy_image():
    model = seeded(dmae_pretrain_small_vit)
    x = torch.rand(2, 3, 32, 32, generator=generator())
    draws = model.draw(x, generator(1))
    made = model(x, draws)
    assert model.seen == 16
    assert made.latent.shape == (2, 17, 128)
    lowest = draws.scores.argsort(1)[:, :16]
    assert not made.hidden.gather(1, lowest).any()
    assert made.hidden.sum(1).tolist() == [48, 48]
    elsewhere = made.hidden.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = Draws(torch.where(elsewhere, 5.0, draws.noise), draws.scores)
    assert torch.equal(model(x, other).prediction, made.prediction)
    louder = Draws(draws.noise * 1.1, draws.scores)
    assert not torch.allclose(model(x, louder).prediction, made.prediction)


def test_noise_is_added_at_the_images_own_size():
    model = seeded(dmae_pretrain_small_vit, sigma=0.5)
    x = torch.rand(1, 3, 16, 16, generator=generator())
    draws = model.draw(x, generator(1))
    assert draws.noise.shape == x.shape
    noisy = nn.functional.interpolate(x + 0.5 * draws.noise, (32, 32), mode="bicubic")
    expected = model.encode(noisy, draws.scores.argsort(1))
    assert torch.allclose(model(x, draws).latent, expected, atol=1e-6)
    assert model.target(x).shape == (1, 64, 48)


def test_draws_come_from_the_generator_alone():
    model = dmae_pretrain_digits_vit()
    x = torch.rand(4, 1, 8, 8)
    first, again, other = (model.draw(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, other.scores)
    before = torch.get_rng_state()
    model.train()(x, first)
    assert torch.equal(before, torch.get_rng_state())


def test_pretraining_learns_to_denoise():
    """After some steps it predicts images it wasn't trained on from a quarter of each, under noise."""
    rows, columns = torch.meshgrid(torch.arange(8) - 3.5, torch.arange(8) - 3.5, indexing="ij")
    angle = 2 * torch.pi * torch.rand(256, 1, 1, generator=generator())
    x = (0.5 + (angle.sin() * rows + angle.cos() * columns) / 10).unsqueeze(1)  # slopes: a seen patch tells them all
    model, draws = seeded(dmae_pretrain_digits_vit), generator(1)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    held_out, drawn = x[192:], model.draw(x[192:], generator(2))
    for step in range(50):
        batch = x[:192][step % 3 * 64 :][:64]
        loss = model(batch, model.draw(batch, draws)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        loss, of_zeros = model(held_out, drawn).loss, model.target(held_out).square().mean()
    assert loss < 0.7 * of_zeros


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"img_size": 30}, "an image of side 30 is not divisible into patches of side 4"),
        ({"num_heads": 3}, "3 heads don't divide a width of 128"),
        ({"decoder_heads": 3}, "3 heads don't divide a width of 64"),
        ({"embed_dim": 6, "num_heads": 2}, "a width of 6 doesn't divide into"),
        ({"keep": 0.0}, r"keep 0 leaves none of 64 patches; it is a share in \(0, 1\]"),
        ({"keep": 1.5}, "keep 1.5"),
        ({"keep": 0.01}, "leaves none of 64 patches"),
        ({"sigma": -1.0}, "sigma is a standard deviation of at least 0, got -1"),
    ],
)
def test_bad_settings_of_a_pretrainer(args, message):
    with pytest.raises(InputError, match=message):
        dmae_pretrain_small_vit(**args)
