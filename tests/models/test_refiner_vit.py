"""Facts about Refiner-ViT as a whole (arXiv:2106.03714), and its manners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustbench_vit as rbv
from robustbench_vit.engine.intake import intake
from robustbench_vit.errors import InputError, ModelError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.refiner_attention import (
    DistributedLocalAttention,
    HandingAttention,
    RefiningAttention,
)
from robustbench_vit.models.weights import load_weights, save_weights
from tests.models.refiner_made import digits, images, maps, on_meta, seeded

TRAINABLE = ("digits_refiner_vit", "small_refiner_vit")
INPUTS = {"digits_refiner_vit": (1, 8, 8), "small_refiner_vit": (3, 32, 32)}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("refiner_vit_s", {"dense_head": True}, 25_408_656),
        ("refiner_vit_s", {}, 25_023_656),
        ("digits_refiner_vit", {}, 99_370),
        ("small_refiner_vit", {}, 961_342),
    ],
)
def test_parameters(name, settings, expected):
    assert parameters(on_meta(name, **settings)) == expected


@pytest.mark.parametrize(
    ("name", "blocks", "width", "heads", "millions"),
    [
        ("refiner_vit_s", 16, 384, 12, 25),
        ("refiner_vit_m", 32, 420, 12, 55),
        ("refiner_vit_l", 32, 512, 16, 81),
    ],
)
@pytest.mark.parametrize("dense_head", [False, True])
def test_the_published_sizes(name, blocks, width, heads, millions, dense_head):
    model = on_meta(name, dense_head=dense_head)
    assert (len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads) == (blocks, width, heads)
    assert round(parameters(model) / 1e6) == millions


def test_the_parameters_of_the_two_blocks():
    model = on_meta("refiner_vit_s")
    for i, block in enumerate(model.blocks):
        assert parameters(block) == (1_185_252 if i % 2 else 1_479_552)
        assert isinstance(block.attn, RefiningAttention if i % 2 else HandingAttention)
    assert parameters(DistributedLocalAttention(12)) == 1_356


def test_multiply_accumulates():
    model = on_meta("refiner_vit_s")
    with FlopCounterMode(display=False) as flops:
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert flops.get_total_flops() / 2 == pytest.approx(6.7415e9, abs=5e4)


def test_shapes():
    model = on_meta("refiner_vit_s")
    x = torch.zeros(2, 3, 224, 224, device="meta")
    assert model.patch_embed.conv3(model.patch_embed.conv2(model.patch_embed.conv1(x))).shape == (2, 128, 112, 112)
    assert model.patch_embed(x).shape == (2, 196, 384)
    assert model.pos_embed.shape == (1, 197, 384)
    assert model.forward_features(x).shape == (2, 197, 384)
    assert model(x).shape == (2, 1000)
    assert [out.shape for _, out in maps(model, x)] == [(2, 12, 197, 197)] * 16


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("n", [1, 2])
def test_forward_and_input_gradient(name, n):
    model = build_model(name, dense_head=True)
    x = images(n, INPUTS[name]).float().requires_grad_()
    logits = model(x)
    assert logits.shape == (n, 10)
    assert torch.equal(logits, model(x))
    gradient = torch.autograd.grad(logits[:, 0].sum(), x)[0]
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_a_full_size_model_gives_gradients():
    model = build_model("refiner_vit_s", depth=2, num_classes=5, dense_head=True)
    x = torch.rand(1, 3, 224, 224, generator=seeded(), requires_grad=True)
    gradient = torch.autograd.grad(model(x)[0, 0], x)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_in_eval_mode_batch_normalisation_ties_no_rows_together():
    model = digits()
    x = images(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    together = model(x)
    assert torch.allclose(together, torch.cat([model(row[None]) for row in x]))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.train()
    assert not torch.allclose(model(x)[:1], model(x[:2])[:1])


def test_an_attack_sees_the_model_in_eval_mode_and_leaves_its_statistics():
    model, x, y = digits().float(), images(4).float(), torch.arange(4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rbv.evaluate(model, x, y, attack="fgsm", norm="linf", eps=0.1)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ModelError, match="train"):
        rbv.evaluate(model.train(), x, y, attack="fgsm", norm="linf", eps=0.1)


def test_intake_lets_it_pass():
    torch.manual_seed(0)
    report = intake(build_model("digits_refiner_vit"), images(40).float(), torch.arange(40) % 10)
    assert report.policy == "A"


@pytest.mark.parametrize("name", TRAINABLE)
def test_bf16_autocast(name):
    model = build_model(name, dense_head=True)
    x = images(2, INPUTS[name]).float().requires_grad_()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)
    gradient = torch.autograd.grad(rough.float().sum(), x)[0]
    assert gradient.isfinite().all()
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_it_can_be_compiled():
    model = digits(dense_head=True, depth=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images().requires_grad_()
    assert torch.allclose(compiled(x), model(x))
    ours, plain = (torch.autograd.grad(m(x)[:, 0].sum(), x)[0] for m in (compiled, model))
    assert torch.allclose(ours, plain)


def test_gradient_checkpointing_changes_no_gradient():
    model, x = digits(), images().requires_grad_()
    plain = torch.autograd.grad(model(x)[:, 0].sum(), x)[0]
    model.set_grad_checkpointing()
    assert torch.allclose(torch.autograd.grad(model(x)[:, 0].sum(), x)[0], plain)


def test_grey_images_of_28_pixels():
    model: Any = build_model("small_refiner_vit", img_size=28, in_chans=1, num_classes=7)
    assert model.patch_embed.grid_size == (7, 7)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("dense_head", [False, True])
def test_timms_habits(dense_head):
    model: Any = timm.create_model("digits_refiner_vit", num_classes=3, in_chans=2, dense_head=dense_head)
    model.eval()
    x = torch.rand(2, 2, 8, 8, generator=seeded())
    tokens = model.forward_features(x)
    assert torch.equal(model.forward_head(tokens), model(x))
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 0])
    heads = model.get_classifier() if dense_head else (model.get_classifier(),)
    assert [head.out_features for head in heads] == [3] * len(heads)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0, global_pool="avg")
    assert torch.equal(model(x), tokens[:, 1:].mean(1))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), tokens)
    model.reset_classifier(4, "")
    assert model(x).shape == (2, 17, 4)
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["refiner_vit_s", "refiner_vit_m", "refiner_vit_l", *TRAINABLE])
def test_the_pretrained_cfg(name):
    model = on_meta(name)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert not cfg.get("url")
    assert cfg["num_classes"] == model.num_classes
    assert (cfg["input_size"][0], *model.patch_embed.img_size) == cfg["input_size"]
    assert len(cfg["mean"]) == len(cfg["std"]) == cfg["input_size"][0]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0]


def test_drop_path_grows_with_depth():
    model: Any = build_model("digits_refiner_vit", drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert not digits(drop_path_rate=0.3, drop_rate=0.5, attn_drop_rate=0.5, proj_drop_rate=0.5).training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": 9}, "img_size 9×9 must be a multiple of the patch size, 2, in both sides"),
        ({"img_size": (8, 7)}, "img_size 8×7 must be a multiple"),
        ({"img_size": 0}, "img_size 0×0 must be a multiple"),
        ({"num_heads": 5}, "num_heads=5 must divide the width, embed_dim=48"),
        ({"num_heads": 0}, "num_heads=0 must divide the width"),
        ({"depth": 0}, "depth=0: a model has one block or more"),
        ({"stem_stride": 3}, "patch_size=2 must be a multiple of the stem's stride, 3"),
        ({"global_pool": "max"}, "global_pool is 'token', 'avg' or '' (no pooling), got 'max'"),
        ({"heads": 4}, "digits_refiner_vit has no setting 'heads'"),
        ({"features_only": True}, "digits_refiner_vit has no setting 'features_only'"),
        ({"pretrained": True}, "digits_refiner_vit has no pretrained weights"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError) as caught:
        timm.create_model("digits_refiner_vit", **settings)
    assert message in str(caught.value)


def test_images_of_another_size():
    with pytest.raises(InputError, match="the images are 8×10, this model was built for 8×8; see img_size="):
        build_model("digits_refiner_vit")(torch.rand(1, 1, 8, 10))


def test_weights_of_another_depth(tmp_path: Path):
    save_weights(build_model("digits_refiner_vit", depth=3), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="weights of another model than this RefinerViT; missing: blocks"):
        load_weights(build_model("digits_refiner_vit"), tmp_path / "w.safetensors")
