"""EViT's forward pass: timm's at keep rate 1, the paper's below, and what attacks see of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from robustbench_vit.models.build import build_model
from robustbench_vit.models.evit import at_keep_rate, evit, set_keep_rate
from robustbench_vit.models.evit_block import (
    FUSED,
    Attended,
    attend,
    dropping_blocks,
    forward_attention,
    recording,
    tokens_kept,
)
from robustbench_vit.models.normalise import normalised
from tests.models.evit_made import images, on_meta, seeded, with_attention

# ---- timm's model ----


@pytest.mark.parametrize(
    ("ours", "timms"),
    [("evit_small_patch16_224", "deit_small_patch16_224"), ("evit_tiny_patch16_224", "vit_tiny_patch16_224")],
)
def test_at_keep_rate_one_it_is_timms_model(ours, timms):
    model, reference = build_model(ours, keep_rate=1.0), timm.create_model(timms).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference(x)
        assert (model(x) - expected).abs().max() < 2e-6
        set_keep_rate(model, 0.7)
        assert (model(x) - expected).abs().max() > 1e-4


HOSTS = [
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "init_values": 0.5, "qk_norm": True}),
]


@pytest.mark.parametrize(("name", "args"), HOSTS)
def test_any_timm_vit_becomes_one(name, args):
    host = seeded(name, img_size=64, depth=4, num_classes=7, **args)
    state, expected = copy.deepcopy(host.state_dict()), host(images(2, 3, 64, 64))
    model = evit(host, keep_rate=1.0, drop_layers=(1, 2))
    assert model is host
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(model(images(2, 3, 64, 64)), expected, atol=2e-6, rtol=1e-5)
    set_keep_rate(model, 0.5)
    logits, attended = forward_attention(model, images(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    assert [(step.block, step.a.shape[1]) for step in attended] == [(1, 16), (2, 9)]


def by_hand(model: Any, x: Tensor, layers: tuple[int, ...], rate: float, fuse: bool) -> Tensor:
    """The paper's forward pass of one image, with a list of tokens and explicit attention."""
    prefix = model.num_prefix_tokens
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for index, block in enumerate(model.blocks):
        maps: list[Tensor] = []
        handle = block.attn.attn_drop.register_forward_hook(lambda _, args, out, maps=maps: maps.append(args[0]))
        x = x + block.ls1(block.attn(block.norm1(x)))
        handle.remove()
        if index in layers:
            a = maps[0].mean(1)[0, 0, prefix:]
            count = tokens_kept(rate, len(a))
            stay = a >= a.sort(descending=True).values[count - 1]
            front, tokens = x[0, :prefix], x[0, prefix:]
            fused = [(a[~stay, None] * tokens[~stay]).sum(0, keepdim=True)] if fuse and count < len(a) else []
            x = torch.cat([front, tokens[stay], *fused])[None]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(("name", "args"), HOSTS)
def test_it_computes_what_the_paper_says(name, args, fuse):
    host = with_attention(seeded(name, img_size=64, depth=4, **args).double(), fused=False)
    x = images(3, 3, 64, 64).double()
    with torch.no_grad():
        expected = torch.cat([by_hand(host, row[None], (0, 2, 3), 0.6, fuse) for row in x])
        model = evit(host, keep_rate=0.6, fuse_token=fuse, drop_layers=(3, 0, 2))
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(with_attention(model, fused=True)(x), expected)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"scale_norm": True}, {"gated": True}])
def test_attention_is_timms_and_its_row_that_of_the_class_token(options, fused):
    attention: Any = Attention(12, num_heads=3, qkv_bias=True, norm_layer=nn.LayerNorm, **options)
    attention.fused_attn = False
    maps: list[Tensor] = []
    attention.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    x = 3 * images(2, 7, 12)
    expected = attention(x)
    attention.fused_attn = fused
    y, a = attend(attention, x, prefix=2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(a, maps[0].mean(1)[:, 0, 2:])
    assert a.std() > 1e-3


def test_timms_habits():
    model: Any = build_model("small_evit", num_classes=5, in_chans=1, img_size=28, keep_rate=0.5)
    x = images(2, 1, 28, 28)
    features = model.forward_features(x)
    assert features.shape == (2, 1 + tokens_kept(0.5, tokens_kept(0.5, 26) + 1) + 1, 128)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 128)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier() is model.head
    assert "pos_embed" in model.no_weight_decay()
    model.set_input_size((32, 32))
    assert model(images(1, 1, 32, 32)).shape == (1, 3)
    cfg = on_meta("evit_tiny_patch16_224", img_size=32).pretrained_cfg
    assert (cfg["input_size"], cfg["crop_pct"], cfg["classifier"]) == ((3, 224, 224), 0.9, "head")
    assert cfg["mean"] == (0.485, 0.456, 0.406)


def test_gradient_checkpointing_changes_no_gradient():
    model, x = seeded("digits_evit", keep_rate=0.5), images(2, 1, 8, 8).requires_grad_()
    (plain,) = torch.autograd.grad(model(x).square().sum(), x)
    model.set_grad_checkpointing()
    logits, attended = forward_attention(model, x)
    (checked,) = torch.autograd.grad(logits.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(checked, plain)
    assert torch.autograd.grad(attended[-1].a[:, 0].sum(), x)[0].abs().sum() > 0


# ---- how it behaves under attack ----


@pytest.mark.parametrize("name", ["digits_evit", "small_evit"])
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_reach_the_image_and_nothing_is_random(name, n):
    model = seeded(name)
    x = images(n, *model.pretrained_cfg["input_size"]).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    assert torch.equal(model(x), model(x))


def test_rows_do_not_interact():
    model, x = seeded("digits_evit", keep_rate=0.5), images(5, 1, 8, 8)
    together, attended = forward_attention(model, x)
    for row in range(5):
        alone, steps = forward_attention(model, x[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])
        for one, many in zip(steps, attended, strict=True):
            assert torch.equal(one.kept[0], many.kept[row])


def test_when_all_tokens_stay_nothing_happens():
    model, x = seeded("digits_evit", keep_rate=0.99), images(3, 1, 8, 8)  # ⌈.99 · 16⌉ = 16
    logits, attended = forward_attention(model, x)
    assert torch.equal(logits, at_keep_rate(model, 1.0)(x))
    assert [step.a.shape for step in attended] == [(3, 16)] * 3
    assert all(torch.equal(step.kept_patches, torch.arange(16).expand(3, 16)) for step in attended)


def test_the_fused_token_counts_and_competes_at_the_next_location():
    fates: set[bool] = set()
    for seed in range(6):
        model = seeded("digits_evit", seed=seed, keep_rate=0.5)
        _, (first, second, third) = forward_attention(model, images(8, 1, 8, 8))
        assert [step.a.shape[1] for step in (first, second, third)] == [16, 9, 6]
        assert torch.equal(first.patches, torch.arange(16).expand(8, 16))
        assert torch.equal(second.patches[:, :-1], first.kept_patches)
        assert (second.patches[:, -1] == FUSED).all()
        assert torch.equal(third.patches, torch.cat([second.kept_patches, torch.full((8, 1), FUSED)], 1))
        stayed = (second.kept == 8).any(1)
        assert torch.equal(stayed, second.a[:, -1] >= second.a.sort(1, descending=True).values[:, 4])
        fates |= set(stayed.tolist())
    assert fates == {True, False}


def test_the_kept_tokens_are_the_most_attended_ones():
    _, attended = forward_attention(seeded("small_evit"), images(3, 3, 32, 32))
    for step in attended:
        kept = step.a.gather(1, step.kept)
        dropped = step.a.scatter(1, step.kept, -1)
        assert (kept.amin(1) >= dropped.amax(1)).all()
        assert (step.kept.diff(dim=1) > 0).all()


@pytest.mark.parametrize("fuse", [True, False])
def test_an_eviction_loss_evicts(fuse):
    """Signed steps on a alone drive the most attended patch out, which a loss on the logits doesn't aim at."""
    model = normalised(seeded("digits_evit", keep_rate=0.5, fuse_token=fuse), [0.5], [0.5])
    start = images(6, 1, 8, 8)
    _, (first, *_) = forward_attention(model, start)
    top = first.a.argmax(1, keepdim=True)
    x = start
    for _ in range(20):
        x = x.detach().requires_grad_()
        _, (first, *_) = forward_attention(model, x)
        (gradient,) = torch.autograd.grad(first.a.gather(1, top).sum(), x)
        x = (x - 0.05 * gradient.sign()).clamp(0, 1)
    _, (first, *_) = forward_attention(model, x)
    assert not (first.kept == top).any(1).all()


def test_recording_leaves_nothing_behind():
    model, x = seeded("digits_evit"), images(2, 1, 8, 8)
    logits, attended = forward_attention(model, x)
    assert torch.equal(logits, model(x))
    assert len(attended) == 3
    with pytest.raises(AssertionError, match="height"), recording(model) as seen:
        model(images(2, 1, 10, 10))  # timm refuses it in the midst of a forward pass
    model(x)
    assert not seen
    assert all(block.recorder is None for block in dropping_blocks(model))


def test_passes_are_told_apart():
    model = seeded("digits_evit", keep_rate=0.5)
    first, second = images(2, 1, 8, 8), images(3, 1, 8, 8, seed=1)
    with recording(model) as seen:
        model(first)
        with recording(model) as inner:
            model(second)
        model(second)
    assert [(step.block, len(step.a)) for step in seen] == [(b, n) for n in (2, 3) for b in (1, 2, 3)]
    assert [(step.block, len(step.a)) for step in inner] == [(b, 3) for b in (1, 2, 3)]
    same: list[tuple[Attended, Attended]] = list(zip(seen[3:], inner, strict=True))
    assert all(torch.equal(one.patches, other.patches) and torch.equal(one.a, other.a) for one, other in same)


def test_the_surrogate_shares_the_weights():
    model = normalised(seeded("digits_evit", keep_rate=0.5), [0.5], [0.25])
    surrogate, x = at_keep_rate(model, 1.0), images(2, 1, 8, 8)
    assert [block.keep_rate for block in dropping_blocks(model)] == [0.5] * 3
    pairs = zip(model.state_dict(keep_vars=True).values(), surrogate.state_dict(keep_vars=True).values(), strict=True)
    assert all(one is other for one, other in pairs)
    assert surrogate.mean is model.mean
    plain = timm.create_model("digits_evit", keep_rate=1.0).eval()
    plain.load_state_dict(model.model.state_dict())
    assert torch.equal(surrogate(x), normalised(plain, [0.5], [0.25])(x))
    assert not torch.allclose(surrogate(x), model(x))
