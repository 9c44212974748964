"""T2T-ViT: sizes, shapes and equalities of arXiv:2101.11986."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustbench_vit.errors import InputError, WeightsError
from robustbench_vit.models.author_keys.t2t_vit import from_authors
from robustbench_vit.models.build import build_model
from robustbench_vit.models.t2t_tokens import PerformerLayer, TransformerLayer
from robustbench_vit.models.t2t_vit import sinusoid
from robustbench_vit.models.weights import load_weights, save_weights

IMAGENET = {  # name: (width, depth, heads, MLP ratio)
    "t2t_vit_7": (256, 7, 4, 2),
    "t2t_vit_10": (256, 10, 4, 2),
    "t2t_vit_12": (256, 12, 4, 2),
    "t2t_vit_14": (384, 14, 6, 3),
    "t2t_vit_19": (448, 19, 7, 3),
    "t2t_vit_24": (512, 24, 8, 3),
    "t2t_vit_t_14": (384, 14, 6, 3),
    "t2t_vit_t_19": (448, 19, 7, 3),
    "t2t_vit_t_24": (512, 24, 8, 3),
    "t2t_vit_14_resnext": (384, 14, 32, 3),
    "t2t_vit_14_wide": (768, 4, 12, 3),
}
PARAMETERS = {
    "t2t_vit_7": 4_310_222,
    "t2t_vit_14": 21_545_550,
    "t2t_vit_t_14": 21_541_070,
    "t2t_vit_14_wide": 25_156_302,
    "digits_t2t_vit": 120_748,
    "small_t2t_vit": 882_816,
}
PUBLISHED_MILLIONS = {
    **{"t2t_vit_7": 4.3, "t2t_vit_10": 5.9, "t2t_vit_12": 6.9, "t2t_vit_14": 21.5, "t2t_vit_19": 39.2},
    **{"t2t_vit_24": 64.1, "t2t_vit_t_14": 21.5, "t2t_vit_t_19": 39.2, "t2t_vit_t_24": 64.1},
}
GIGA_MACS = {"t2t_vit_7": 1.1469, "t2t_vit_14": 4.7835, "t2t_vit_t_14": 6.0887}
INPUTS = {"digits_t2t_vit": (1, 8, 8), "small_t2t_vit": (3, 32, 32)}


def made(name: str, **args: Any) -> Any:
    """The model, as what pyright asks nothing of."""
    return build_model(name, **args)


def seeded(name: str, seed: int = 0, **args: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, **args)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# ---- sizes ----


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = made(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    features = {f"patch_embed.layers.{i}.w" for i in range(2)} if "_t_" not in name else set()
    assert frozen == {"pos_embed", *features}
    assert frozen <= set(model.state_dict())
    assert model.no_weight_decay() == {"cls_token", *frozen}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_the_published_sizes(name):
    model = made(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PUBLISHED_MILLIONS[name]


@pytest.mark.parametrize("name", IMAGENET)
def test_the_blocks(name):
    width, depth, heads, ratio = IMAGENET[name]
    model = made(name, device="meta")
    assert (model.embed_dim, len(model.blocks)) == (width, depth)
    for block in model.blocks:
        assert (block.attn.num_heads, block.attn.scale) == (heads, (width // heads) ** -0.5)
        assert block.attn.qkv.bias is None
        assert block.attn.proj.bias is not None
        assert block.mlp.fc1.out_features == ratio * width
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    layer = TransformerLayer if "_t_" in name else PerformerLayer
    assert [type(module) for module in model.patch_embed.layers] == [layer, layer]


@pytest.mark.parametrize("name", GIGA_MACS)
def test_multiply_accumulates(name):
    model, x = made(name, device="meta"), torch.empty(1, 3, 224, 224, device="meta")
    with FlopCounterMode(display=False) as counted:
        model(x)
    assert round(counted.get_total_flops() / 2e9, 4) == GIGA_MACS[name]


def test_the_closed_form_of_a_blocks_multiply_accumulates():
    model, n, d, ratio = made("t2t_vit_7", device="meta"), 197, 256, 2
    with FlopCounterMode(display=False) as counted:
        model.blocks[0](torch.empty(1, n, d, device="meta"))
    assert counted.get_total_flops() == 2 * (3 * n * d**2 + 2 * n**2 * d + n * d**2 + 2 * ratio * n * d**2)


# ---- positions ----


def test_the_table_of_positions():
    table = sinusoid(197, 256)
    torch.testing.assert_close(
        table[0, 1, :4], torch.tensor([0.841471, 0.540302, 0.801962, 0.597375]), atol=1e-6, rtol=0
    )
    assert torch.equal(table[0, 0], torch.tensor([0.0, 1.0]).repeat(128))
    assert table[0, 196, 9] == pytest.approx(math.cos(196 / 10000 ** (8 / 256)), abs=1e-6)
    assert torch.equal(seeded("t2t_vit_7").pos_embed, table)


@pytest.mark.parametrize(("size", "tokens"), [(288, 324), ((160, 224), 140)])
def test_for_other_resolutions_the_table_is_interpolated(size, tokens):
    model = made("t2t_vit_7", img_size=size, depth=1)
    assert model.pos_embed.shape == (1, 1 + tokens, 256)
    assert not model.pos_embed.requires_grad
    native = sinusoid(197, 256)
    assert torch.equal(model.pos_embed[:, 0], native[:, 0])  # the class token's
    torch.testing.assert_close(model.pos_embed[0, 1:].mean(0), native[0, 1:].mean(0), atol=0.02, rtol=0)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert model(images(1, 3, height, width)).shape == (1, 1000)


def test_a_trained_model_takes_another_resolution():
    model = seeded("small_t2t_vit")
    model.set_input_size((28, 28))
    other = seeded("small_t2t_vit", img_size=28)
    x = images(2, 3, 28, 28)
    torch.testing.assert_close(model(x), other(x))
    dynamic = seeded("small_t2t_vit", dynamic_img_size=True)
    torch.testing.assert_close(dynamic(x), other(x))
    assert dynamic(images(2, 3, 32, 32)).shape == (2, 10)
    assert made("small_t2t_vit", img_size=28, in_chans=1)(images(2, 1, 28, 28)).shape == (2, 10)


# ---- timm's habits, and being attacked ----


@pytest.mark.parametrize("name", INPUTS)
def test_timms_habits(name):
    model, x = made(name, num_classes=7), images(2, *INPUTS[name])
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="avg")
    assert model(x).shape == (2, 3)
    assert model.get_classifier().out_features == 3
    assert made(name, num_classes=0)(x).shape == (2, model.num_features)
    cfg = model.pretrained_cfg
    assert (cfg["input_size"], cfg["architecture"], cfg["classifier"]) == (INPUTS[name], name, "head")
    maps = timm.create_model(name, features_only=True)(x)
    assert [m.shape[2] for m in maps] == [model.patch_embed.grid_size[0]] * 3


def test_preprocessing_of_the_imagenet_models():
    for name in IMAGENET:
        cfg: Any = timm.get_pretrained_cfg(name)
        assert (cfg.input_size, cfg.crop_pct, cfg.interpolation) == ((3, 224, 224), 0.9, "bicubic")
        assert cfg.mean == IMAGENET_DEFAULT_MEAN
        assert made(name, device="meta", depth=1).pretrained_cfg["architecture"] == name


@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_gradient_checkpointing_changes_no_gradient(tokens):
    model, x = seeded("digits_t2t_vit", tokens=tokens), images(2, 1, 8, 8).requires_grad_()
    plain = torch.autograd.grad(model(x)[:, 0].sum(), x)[0]
    model.set_grad_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(model(x)[:, 0].sum(), x)[0], plain)


def test_training_moves_everything_but_what_is_frozen():
    model = seeded("digits_t2t_vit").train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    wanted = [p for p in model.parameters() if p.requires_grad]
    step = torch.optim.SGD(wanted, lr=0.1)
    torch.nn.functional.cross_entropy(model(images(8, 1, 8, 8)), torch.arange(8)).backward()
    step.step()
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert still == {"pos_embed", "patch_embed.layers.0.w", "patch_embed.layers.1.w"}


def test_the_small_models_tokens_are_not_drowned_by_the_table():
    for name, shape in INPUTS.items():
        model = seeded(name)
        assert model.patch_embed(images(8, *shape)).std(0).mean() > 0.2 * model.pos_embed.std()


# ---- weights ----


def authors_state(name: str) -> dict[str, Tensor]:
    """Names and shapes as in the authors' checkpoints."""
    width, depth, _, ratio = IMAGENET[name]
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width)}
    for i, inputs in ((1, 147), (2, 576)):
        at = f"tokens_to_token.attention{i}"
        shapes |= linear(f"{at}.norm1", inputs) | linear(f"{at}.norm2", 64)
        if "_t_" in name:
            shapes |= {f"{at}.attn.qkv.weight": (192, inputs)} | linear(f"{at}.attn.proj", 64, 64)
            shapes |= linear(f"{at}.mlp.fc1", 64, 64) | linear(f"{at}.mlp.fc2", 64, 64)
        else:
            shapes |= {f"{at}.w": (32, 64)} | linear(f"{at}.kqv", 192, inputs) | linear(f"{at}.proj", 64, 64)
            shapes |= linear(f"{at}.mlp.0", 64, 64) | linear(f"{at}.mlp.2", 64, 64)
    shapes |= linear("tokens_to_token.project", width, 576)
    for block in range(depth):
        at = f"blocks.{block}"
        shapes |= linear(f"{at}.norm1", width) | linear(f"{at}.norm2", width) | linear(f"{at}.attn.proj", width, width)
        shapes |= {f"{at}.attn.qkv.weight": (3 * width, width)}
        shapes |= linear(f"{at}.mlp.fc1", ratio * width, width) | linear(f"{at}.mlp.fc2", width, ratio * width)
    shapes |= linear("norm", width) | linear("head", 1000, width)
    return {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(shapes.items())}


def linear(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """A layer's weight of that shape and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_wide"])
def test_the_authors_checkpoints_load(name):
    theirs = authors_state(name)
    model = made(name)
    model.load_state_dict(from_authors(theirs))  # strict
    layer = model.patch_embed.layers[1]
    second = layer.mlp.fc2.weight[0, 0]
    assert second == theirs[f"tokens_to_token.attention2.mlp.{'fc2' if '_t_' in name else 2}.weight"][0, 0]
    assert model.patch_embed.proj.weight[0, 0] == theirs["tokens_to_token.project.weight"][0, 0]
    assert model.pos_embed[0, 0, 0] == theirs["pos_embed"][0, 0, 0]


def test_our_own_state_dicts_pass_through():
    ours = seeded("digits_t2t_vit").state_dict()
    assert from_authors(ours).keys() == ours.keys()


def test_the_random_features_travel_with_the_weights(tmp_path: Path):
    save_weights(seeded("digits_t2t_vit", seed=1), tmp_path / "w.safetensors")
    model, x = seeded("digits_t2t_vit", seed=2), images(2, 1, 8, 8)
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model(x), seeded("digits_t2t_vit", seed=1)(x))


def test_weights_of_another_depth(tmp_path: Path):
    save_weights(made("digits_t2t_vit", depth=2), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"another model than this T2TViT; missing: blocks\.2\.norm1\.weight"):
        load_weights(made("digits_t2t_vit"), tmp_path / "w.safetensors")


# ---- what cannot be built ----


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("t2t_vit_7", {"img_size": 225}, "img_size 225×225 is not a multiple of the tokenizer's stride 16"),
        ("digits_t2t_vit", {"img_size": (8, 1)}, "img_size 8×1 is not a multiple of the tokenizer's stride 2"),
        ("t2t_vit_7", {"num_heads": 3}, "3 heads don't divide a width of 256"),
        ("t2t_vit_7", {"tokens": "perfomer"}, "tokens is one of performer, transformer, got 'perfomer'"),
        ("t2t_vit_7", {"keep_rate": 0.7}, "has no setting 'keep_rate'"),
        ("t2t_vit_7", {"class_token": False}, "has no setting 'class_token'"),
    ],
)
def test_bad_settings(name, args, message):
    with pytest.raises(InputError) as caught:
        made(name, **args)
    assert message in str(caught.value)


def test_there_are_no_pretrained_weights():
    with pytest.raises(InputError, match="t2t_vit_7 has no pretrained weights"):
        timm.create_model("t2t_vit_7", pretrained=True)


def test_images_that_dont_fit():
    model = made("small_t2t_vit")
    with pytest.raises(InputError, match="the images are 28×28, the model takes 32×32"):
        model(images(1, 3, 28, 28))
    with pytest.raises(InputError, match="the images have 1 channels, the model takes 3"):
        model(images(1, 1, 32, 32))
    with pytest.raises(InputError, match="30×30 is not a multiple of the tokenizer's stride 4"):
        made("small_t2t_vit", dynamic_img_size=True)(images(1, 3, 30, 30))
    with pytest.raises(InputError, match="the tokenizer's stride is 4; its patch_size cannot be 8"):
        model.set_input_size((32, 32), patch_size=8)
