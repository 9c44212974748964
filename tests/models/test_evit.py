"""EViT (arXiv:2202.07800): the paper's figures, its checkpoints' names, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from robustbench_vit.errors import InputError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.evit import evit
from robustbench_vit.models.evit_block import forward_attention, keep_most_attended, tokens_kept
from robustbench_vit.models.evit_schedule import keep_rate_at
from robustbench_vit.models.weights import load_weights, save_weights
from tests.models.evit_made import images, on_meta

# ---- the paper's figures ----


@pytest.mark.parametrize("keep_rate", [1.0, 0.5])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("evit_tiny_patch16_224", 5_717_416),
        ("evit_small_patch16_224", 22_050_664),
        ("evit_base_patch16_224", 86_567_656),
        ("small_evit", 1_076_106),
        ("digits_evit", 136_138),
    ],
)
def test_parameters(name, parameters, keep_rate):
    assert sum(p.numel() for p in on_meta(name, keep_rate=keep_rate).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "keep_rate", "fuse", "expected"),
    [
        ("evit_small_patch16_224", 1.0, True, [197] * 12),
        ("evit_small_patch16_224", 0.7, True, [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3),
        ("evit_small_patch16_224", 0.5, True, [197] * 3 + [100] * 3 + [52] * 3 + [28] * 3),
        ("evit_small_patch16_224", 0.5, False, [197] * 3 + [99] * 3 + [50] * 3 + [26] * 3),
        ("digits_evit", 0.7, True, [17, 14, 12, 10]),
        ("digits_evit", 0.5, True, [17, 10, 7, 5]),
    ],
)
def test_tokens_that_enter_the_ffn(name, keep_rate, fuse, expected):
    model = on_meta(name, keep_rate=keep_rate, fuse_token=fuse)
    entered: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, args: entered.append(args[0].shape[1]))
    model(torch.empty(1, *model.pretrained_cfg["input_size"], device="meta"))
    assert entered == expected


@pytest.mark.parametrize(
    ("name", "keep_rate", "macs"),
    [
        ("evit_small_patch16_224", 1.0, 4.5989e9),
        ("evit_small_patch16_224", 0.7, 3.0293e9),
        ("evit_small_patch16_224", 0.5, 2.3088e9),
        ("evit_base_patch16_224", 0.7, 11.6100e9),
    ],
)
def test_multiply_accumulates(name, keep_rate, macs):
    model = on_meta(name, keep_rate=keep_rate)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    # Weighting the fused token's parts is no product of matrices: nothing else is counted than in the paper.
    assert counter.get_total_flops() / 2 == pytest.approx(macs, abs=0.5e5)


def test_the_worked_example():
    tokens = torch.tensor([[(9.0, 9.0), (1, 1), (2, 0), (0, 4), (3, 3)]])
    a = torch.tensor([[0.32, 0.08, 0.24, 0.16]])
    x, kept = keep_most_attended(tokens, a, tokens_kept(0.5, 4), prefix=1, fuse=True)
    assert kept.tolist() == [[0, 2]]  # the first and the third
    torch.testing.assert_close(x, torch.tensor([[(9.0, 9.0), (1, 1), (0, 4), (0.64, 0.48)]]))
    bare, _ = keep_most_attended(tokens, a, 2, prefix=1, fuse=False)
    assert torch.equal(bare, x[:, :3])


def test_of_equally_attended_tokens_the_first_stay():
    x, kept = keep_most_attended(images(2, 9, 3), torch.full((2, 8), 0.1), 3, prefix=1, fuse=True)
    assert kept.tolist() == [[0, 1, 2]] * 2
    assert x.shape == (2, 5, 3)


@pytest.mark.parametrize(
    ("rate", "tokens", "kept"),
    [(0.7, 196, 138), (0.7, 139, 98), (0.5, 99, 50), (1.0, 196, 196), (0.55, 100, 55), (0.01, 16, 1), (0.99, 16, 16)],
)
def test_how_many_tokens_stay(rate, tokens, kept):
    assert tokens_kept(rate, tokens) == kept


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1), (9.99, 1), (10, 1), (35, 0.95607), (60, 0.85), (110, 0.7), (300, 0.7)]
)
def test_the_schedule(epoch, rate):
    assert keep_rate_at(epoch, 0.7) == pytest.approx(rate, abs=1e-5)


def test_the_schedule_for_other_lengths():
    assert keep_rate_at(3, 0.5, start=2, length=2) == pytest.approx(0.75)
    assert keep_rate_at(1, 1.0) == 1.0


# ---- weights ----


def authors_state(depth: int, width: int, classes: int) -> dict[str, Tensor]:
    """Names and shapes as in the authors' checkpoints, which are DeiT's."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        for name, shape in layers.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def test_the_authors_checkpoints_load(tmp_path):
    torch.save({"model": authors_state(12, 192, 1000), "epoch": 299}, tmp_path / "evit.pth")
    model: Any = build_model("evit_tiny_patch16_224")
    load_weights(model, tmp_path / "evit.pth")
    assert not model.head.weight.any()


def test_weights_of_another_depth_do_not(tmp_path):
    save_weights(build_model("digits_evit", depth=5), tmp_path / "deep.safetensors")
    with pytest.raises(WeightsError, match=r"weights of another model than this EViT; unexpected: blocks\.4\."):
        load_weights(build_model("digits_evit"), tmp_path / "deep.safetensors")


# ---- bad input ----


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"keep_rate": 0}, r"the keep rate is a share of the image tokens in \(0, 1\], got 0"),
        ({"keep_rate": 1.01}, "got 1.01"),
        ({"keep_rate": float("nan")}, "got nan"),
        ({"keep_rate": True}, "got True"),
        ({"keep_rate": "0.7"}, "got '0.7'"),
        ({"fuse_token": "no"}, "fuse_token is true or false, got 'no'"),
        ({"drop_layers": [1, 4]}, "drop layer 4 is not a block of this model: it has 4, 0 to 3"),
        ({"drop_layers": [-1]}, "drop layer -1 is not a block"),
        ({"drop_layers": [1.0]}, "drop layer 1.0 is not a block"),
        ({"drop_layers": [1, 1]}, r"drop_layers lists one or more blocks, each once, got \[1, 1\]"),
        ({"drop_layers": []}, "drop_layers lists one or more blocks"),
        ({"drop_layers": 2}, "drop_layers lists one or more blocks, each once, got 2"),
        ({"img_size": 9}, "9"),
        ({"num_heads": 3}, "3 heads don't divide a width of 64"),
        ({"class_token": False, "global_pool": "avg"}, "token dropping needs a class token"),
        ({"keep": 0.5}, "digits_evit has no setting 'keep'"),
        ({"features_only": True}, "digits_evit has no feature maps"),
        ({"block_fn": ResPostBlock}, "block 1 is a ResPostBlock; tokens are dropped in"),
        ({"attn_layer": "diff"}, "block 1 is a block with DiffAttention"),
    ],
)
def test_settings_that_are_refused(args, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("digits_evit", **args)


def test_there_are_no_pretrained_weights():
    with pytest.raises(InputError, match="digits_evit has no pretrained weights; load a file"):
        timm.create_model("digits_evit", pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_cnn", "token dropping needs one of timm's Vision Transformers, got a DigitsCNN"),
        ("digits_vit", "token dropping needs a class token, whose attention says which tokens stay"),
        ("digits_evit", r"this model drops tokens already; set_keep_rate\(\) changes its keep rate"),
    ],
)
def test_models_that_cannot_drop_tokens(name, message):
    with pytest.raises(InputError, match=message):
        evit(build_model(name), drop_layers=(1,))


def test_a_refused_model_is_unchanged():
    model = build_model("vit_tiny_patch16_224", img_size=32, depth=4)
    with pytest.raises(InputError, match="drop layer 6"):
        evit(model)
    with pytest.raises(InputError, match="this VisionTransformer has no block that drops tokens"):
        forward_attention(model, images(1, 3, 32, 32))


@pytest.mark.parametrize("args", [{"epoch": -1}, {"start": -1}, {"length": 0}, {"keep_rate": 0}])
def test_schedules_that_are_refused(args):
    with pytest.raises(InputError):
        keep_rate_at(**{"epoch": 1, "keep_rate": 0.5, **args})
