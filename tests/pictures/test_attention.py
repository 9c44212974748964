"""Attention is read as the model computes it, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.errors import ModelError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.evit import evit
from robustbench_vit.models.evit_block import forward_attention
from robustbench_vit.pictures.attention import Attention, NoAttention, read_attention

SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}


def vit(**settings: Any) -> Any:
    """A small random ViT whose attention isn't uniform."""
    torch.manual_seed(0)
    cls: Any = VisionTransformerDistilled if settings.pop("distilled", False) else VisionTransformer
    model = cls(**{**SMALL, **settings}).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(40)
    return model


def images(n: int, *size: int) -> Tensor:
    return torch.rand(n, 1, *(size or (8, 8)), generator=torch.Generator().manual_seed(1))


def last_map(model: Any, x: Tensor) -> Tensor:
    """(n, token, token): the last block's softmax(q·k / √d), mean over heads, from its parameters."""
    z = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    for block in model.blocks[:-1]:
        z = block(z)
    z, attn = model.blocks[-1].norm1(z), model.blocks[-1].attn
    q, k, _ = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in attn.qkv(z).chunk(3, 2))
    return (q @ k.mT / 8**0.5).softmax(-1).mean(1)


def read(model: nn.Module, x: Tensor) -> Attention:
    found = read_attention(model, x)
    assert isinstance(found, Attention), found
    return found


@pytest.mark.parametrize(
    ("settings", "prefix", "asking", "whose"),
    [
        ({}, 1, slice(0, 1), "of the class token"),
        ({"reg_tokens": 3}, 4, slice(0, 1), "of the class token"),
        ({"distilled": True}, 2, slice(0, 2), "of the class and distillation tokens"),
        ({"class_token": False, "global_pool": "avg"}, 0, slice(None), "of all patches, on average,"),
        ({"reg_tokens": 2, "global_pool": "avg"}, 3, slice(3, None), "of all patches, on average,"),
        ({"global_pool": "avg", "pool_include_prefix": True}, 1, slice(None), "of all tokens, on average,"),
    ],
)
def test_the_map_is_what_the_parameters_give(settings: dict, prefix: int, asking: slice, whose: str) -> None:
    model, x = vit(**settings), images(3)
    with torch.no_grad():
        shares = last_map(model, x)[:, asking].mean(1)[:, prefix:]
    found = read(model, x)
    torch.testing.assert_close(found.shares.flatten(1), shares / shares.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert (found.shares.shape, found.whose, found.where) == ((3, 4, 4), whose, "blocks.1.attn")
    assert found.shares.max() > 1.5 / 16  # or a uniform map would do
    assert found.passed is None


def test_patches_of_images_that_are_no_squares_lie_where_they_are() -> None:
    model = vit(img_size=(4, 12), class_token=False, global_pool="avg")
    assert read(model, images(2, 4, 12)).shares.shape == (2, 2, 6)


def test_many_images_give_what_each_gives_alone() -> None:
    model, x = vit(), images(11)
    alone = torch.cat([read(model, image[None]).shares for image in x])
    torch.testing.assert_close(read(model, x).shares, alone)


def test_a_normalised_model_is_read_through_its_wrapper() -> None:
    model, x = vit(), images(2)
    wrapped = rbv.normalised(model, [0.2], [0.5])
    torch.testing.assert_close(read(wrapped, x).shares, read(model, (x - 0.2) / 0.5).shares)


def state(model: nn.Module) -> list[tuple[object, ...]]:
    """What reading could leave behind in the modules."""
    return [(m.training, vars(m).get("fused_attn"), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("bad", [False, True])
def test_the_model_is_left_as_it_was(bad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = vit(), images(2)
    model.blocks[0].train()
    model.blocks[1].attn.fused_attn = False
    model.blocks[0].attn.fused_attn = True
    before, answers = state(model), model(x)
    if bad:
        monkeypatch.setattr(model, "forward_head", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read_attention(model, x)
    else:
        read(model, x)
        assert torch.equal(model(x), answers)
    assert state(model) == before


class Deaf(nn.Module):
    """Attention by a fused kernel whatever `fused_attn` says."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop, self.fused_attn = nn.Dropout(0.0), True

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(1)


def test_hooks_that_never_fire_are_an_error() -> None:
    model = nn.Sequential(Deaf(), nn.Linear(1, 3))
    with pytest.raises(
        ModelError, match=r"could not be read: it has 1 attention modules \(0\) and none handed its map"
    ):
        read_attention(model, images(2))
    assert model[0].fused_attn


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=2, in_chans=1, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1)
    )


def xcit() -> nn.Module:
    return Xcit(img_size=32, patch_size=8, in_chans=1, embed_dim=16, depth=1, cls_attn_layers=1, num_heads=2)


def resnet() -> nn.Module:
    return timm.create_model("resnet10t", in_chans=1)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (swin, "SwinTransformer: its attention stays within windows of an image"),
        (xcit, "Xcit attends between channels (cross-covariance), not between patches"),
        (resnet, "ResNet has no attention modules of timm's kind"),
    ],
)
def test_models_without_a_map_of_patches_say_why(build: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    assert read_attention(build().eval(), images(1, 32, 32)) == NoAttention(reason)


def test_a_function_has_no_attention() -> None:
    assert isinstance(read_attention(lambda x: x.flatten(1), images(1)), NoAttention)


@pytest.mark.parametrize("name", ["digits_t2t_vit", "digits_refiner_vit"])
def test_our_other_transformers_are_read(name: str) -> None:
    torch.manual_seed(0)
    found = read(build_model(name), images(2))
    assert (found.shares.shape, found.whose) == ((2, 4, 4), "of the class token")


@pytest.mark.parametrize("fuse", [False, True])
def test_kept_patches_are_those_that_pass_every_dropping_block(fuse: bool) -> None:
    model, x = evit(vit(depth=4), keep_rate=0.6, fuse_token=fuse, drop_layers=(1, 3)), images(9)
    found = read(model, x)
    with torch.no_grad():
        seen = forward_attention(model, x)[1]
    assert found.passed is not None
    assert found.places == 2
    for i, passed in enumerate(found.passed.flatten(1)):
        for places in (1, 2):
            kept = set(seen[places - 1].kept_patches[i].tolist()) - {-1}
            assert kept == set((passed >= places).nonzero().flatten().tolist())
    assert 0 < (found.passed == 2).sum() < (found.passed >= 1).sum() < 9 * 16
    torch.testing.assert_close(found.shares.flatten(1), seen[0].a / seen[0].a.sum(1, keepdim=True))
    assert found.where == "block 1, the first that drops tokens"


def test_a_model_that_keeps_everything_shows_no_kept_patches() -> None:
    assert read(evit(vit(), keep_rate=1.0, drop_layers=(1,)), images(1)).passed is None
