"""The authors' names of Refiner-ViT's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch

from robustbench_vit.errors import WeightsError
from robustbench_vit.models.author_keys.refiner_vit import from_authors
from tests.models.refiner_made import on_meta, seeded


def authors_shapes(
    depth: int, width: int, heads: int, patches: int, classes: int = 1000, stem: tuple[int, ...] = (3, 32, 64, 128)
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the authors' state dict with dense head, from the description of their modules."""

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)

    def norm(name: str, features: int, batch: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", *(("running_mean", "running_var") if batch else ())):
            yield f"{name}.{part}", (features,)
        if batch:
            yield f"{name}.num_batches_tracked", ()

    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, patches + 1, width)
    for i, kernel in enumerate((7, 3, 3), start=1):
        yield f"patch_embed.conv{i}.weight", (stem[i], stem[i - 1], kernel, kernel)
        yield from norm(f"patch_embed.bn{i}", stem[i], batch=True)
    yield "patch_embed.proj.weight", (width, stem[3], 8, 8)
    yield "patch_embed.proj.bias", (width,)
    for i in range(depth):
        at = f"blocks.{i}"
        yield from norm(f"{at}.norm1", width)
        if i % 2:
            inside = 3 * heads
            yield f"{at}.attn.DLA.conv_exp.weight", (inside, heads, 1, 1)
            yield from norm(f"{at}.attn.DLA.bn1", inside, batch=True)
            yield f"{at}.attn.DLA.depth_sep_conv.weight", (inside, 1, 3, 3)
            yield from norm(f"{at}.attn.DLA.bn2", inside, batch=True)
            yield f"{at}.attn.DLA.conv_pro.weight", (heads, inside, 1, 1)
            yield from norm(f"{at}.attn.DLA.bn3", heads, batch=True)
            yield from norm(f"{at}.attn.adapt_bn", heads, batch=True)
        yield from linear(f"{at}.attn.qkv", width, width if i % 2 else 3 * width)
        yield from linear(f"{at}.attn.proj", width, width)
        yield from norm(f"{at}.norm2", width)
        yield f"{at}.mlp.scale_channel", (width,)
        yield from linear(f"{at}.mlp.fc1", width, 3 * width)
        yield from linear(f"{at}.mlp.fc2", 3 * width, width)
    yield from norm("norm", width)
    yield from linear("head", width, classes)
    yield from linear("aux_head", width, classes)


@pytest.mark.parametrize(
    ("name", "sizes", "settings"),
    [
        ("refiner_vit_s", (16, 384, 12, 196), {}),
        ("refiner_vit_m", (32, 420, 12, 196), {}),
        ("refiner_vit_l", (32, 512, 16, 784), {"img_size": 448}),
    ],
)
def test_the_authors_names_load_strictly(name, sizes, settings):
    state = {key: torch.empty(shape, device="meta") for key, shape in authors_shapes(*sizes)}
    model = on_meta(name, dense_head=True, **settings)
    model.load_state_dict(from_authors(state), strict=True, assign=True)
    plain = {key: value for key, value in state.items() if not key.startswith("aux_head")}
    on_meta(name, **settings).load_state_dict(from_authors(plain), strict=True, assign=True)


def test_the_authors_tensors_arrive_where_they_belong():
    stem = (3, 4, 6, 8)
    generator = seeded()
    shapes = dict(authors_shapes(4, 12, 3, 4, 5, stem))
    state = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
    sizes = {"embed_dim": 12, "depth": 4, "num_heads": 3, "stem_widths": stem[1:], "img_size": 32, "num_classes": 5}
    model: Any = timm.create_model("refiner_vit_s", dense_head=True, **sizes)
    model.load_state_dict(from_authors(state), strict=True)
    refine = model.blocks[3].attn.refine
    for ours, theirs in [
        (model.patch_embed.conv2.conv.weight, "patch_embed.conv2.weight"),
        (model.patch_embed.conv2.bn.running_var, "patch_embed.bn2.running_var"),
        (model.blocks[2].attn.qkv.weight, "blocks.2.attn.qkv.weight"),
        (model.blocks[3].attn.v.weight, "blocks.3.attn.qkv.weight"),
        (refine.expand.bn.weight, "blocks.3.attn.DLA.bn1.weight"),
        (refine.local.bn.weight, "blocks.3.attn.DLA.bn2.weight"),
        (refine.reduce.bn.weight, "blocks.3.attn.DLA.bn3.weight"),
        (model.blocks[3].attn.norm.running_mean, "blocks.3.attn.adapt_bn.running_mean"),
        (model.blocks[3].ls2.gamma, "blocks.3.mlp.scale_channel"),
    ]:
        assert torch.equal(ours, state[theirs]), theirs


def test_checkpoints_of_the_authors_first_version_are_refused():
    state = {key: torch.empty(shape, device="meta") for key, shape in authors_shapes(16, 384, 12, 196)}
    first = {key: value for key, value in state.items() if "scale_channel" not in key}
    with pytest.raises(WeightsError, match="it is of the authors' first version of Refiner-ViT"):
        from_authors(first)
