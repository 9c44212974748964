"""The formulae of Refiner's parts (arXiv:2106.03714), each written out once more."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_vit.models.build import build_model
from robustbench_vit.models.refiner_attention import (
    DistributedLocalAttention,
    HandingAttention,
    RefinerBlock,
    RefiningAttention,
)
from tests.models.refiner_made import digits, images, lively, maps, seeded


def test_the_stem():
    stem = digits().patch_embed
    z = images()
    for layer in (stem.conv1, stem.conv2, stem.conv3):
        assert layer.conv.bias is None
        bn = layer.bn
        z = F.conv2d(z, layer.conv.weight, padding=1)
        z = F.relu(F.batch_norm(z, bn.running_mean, bn.running_var, bn.weight, bn.bias))
    patches = z.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, -1)
    expected = patches @ stem.proj.weight.flatten(1).T + stem.proj.bias
    assert torch.allclose(stem(images()), expected)


def test_distributed_local_attention():
    layer = lively(DistributedLocalAttention(4))
    attention = 3 * torch.randn(2, 4, 9, 9, generator=seeded(), dtype=torch.float64)

    def normed(part: Any, x: Tensor, **conv: Any) -> Tensor:
        bn = part.bn
        return F.batch_norm(F.conv2d(x, part.conv.weight, **conv), bn.running_mean, bn.running_var, bn.weight, bn.bias)

    hidden = F.relu6(normed(layer.expand, attention))
    hidden = F.relu6(normed(layer.local, hidden, padding=1, groups=12))
    assert torch.allclose(layer(attention), attention + normed(layer.reduce, hidden))


def test_the_map_is_handed_on():
    model, x = digits(), images()
    seen = maps(model, x)
    assert seen[0][0] is None
    for (_, out), (handed, _) in pairwise(seen):
        assert handed is out
    assert seen[1][0] is seen[1][1]
    assert seen[3][0] is seen[3][1]


def test_a_handed_map_is_added_at_the_scale_of_a_head():
    model, x = digits(), images()
    layer, tokens = model.blocks[2].attn, torch.randn(2, 17, 48, generator=seeded(), dtype=torch.float64)
    handed = maps(model, x)[1][1]
    _, alone = layer(tokens, None)
    _, both = layer(tokens, handed)
    assert torch.allclose(both, alone + 12**-0.5 * handed)
    assert torch.allclose(alone.sum(-1), torch.ones(2, 4, 17, dtype=torch.float64))
    assert torch.allclose(both.sum(-1), torch.full((2, 4, 17), 1 + 12**-0.5, dtype=torch.float64))


def test_the_output_of_a_handing_attention():
    layer = lively(HandingAttention(12, 3))
    x = torch.randn(2, 5, 12, generator=seeded(), dtype=torch.float64)
    v = (x @ layer.qkv.weight[24:].T + layer.qkv.bias[24:]).view(2, 5, 3, 4).transpose(1, 2)
    out, attention = layer(x, torch.rand(2, 3, 5, 5, generator=seeded(), dtype=torch.float64))
    assert torch.allclose(out, layer.proj((attention @ v).transpose(1, 2).reshape(2, 5, 12)))


def test_the_output_of_a_refining_attention():
    layer = lively(RefiningAttention(12, 3))
    x = torch.randn(2, 5, 12, generator=seeded(), dtype=torch.float64)
    handed = torch.rand(2, 3, 5, 5, generator=seeded(), dtype=torch.float64)
    norm = layer.norm
    refined = F.batch_norm(layer.refine(handed), norm.running_mean, norm.running_var, norm.weight, norm.bias) / 2
    v = layer.v(x).view(2, 5, 3, 4).transpose(1, 2)
    out, on = layer(x, handed)
    assert torch.allclose(out, layer.proj((refined @ v).transpose(1, 2).reshape(2, 5, 12)))
    assert on is handed


def test_rows_of_a_refined_map_do_not_sum_to_one():
    model, x = digits(), images()
    handed = maps(model, x)[0][1]
    assert torch.allclose(handed.sum(-1), torch.ones(2, 4, 17, dtype=torch.float64))
    refined = model.blocks[1].attn.refined(handed)
    assert (refined.sum(-1) - 1).abs().min() > 0.01
    assert refined.min() < 0


@pytest.mark.parametrize("kind", [HandingAttention, RefiningAttention])
def test_the_residuals(kind):
    block = lively(RefinerBlock(12, kind(12, 3), 3.0, 1e-5))
    x = torch.randn(2, 5, 12, generator=seeded(), dtype=torch.float64)
    handed = torch.rand(2, 3, 5, 5, generator=seeded(), dtype=torch.float64)
    attended, on = block.attn(F.layer_norm(0.5 * x, (12,), block.norm1.weight, block.norm1.bias, 1e-6), handed)
    y = x + 2 * attended
    scaled = block.ls2.gamma * block.mlp(F.layer_norm(0.5 * y, (12,), block.norm2.weight, block.norm2.bias, 1e-6))
    out, handed_on = block(x, handed)
    assert torch.allclose(out, y + 2 * scaled)
    assert torch.equal(handed_on, on)


def test_the_mlp_starts_small():
    model: Any = build_model("digits_refiner_vit")
    for block in model.blocks:
        assert torch.equal(block.ls2.gamma, torch.full((48,), 1e-5))
        assert block.mlp.fc1.out_features == 3 * 48


def test_the_dense_head_adds_half_of_its_strongest_patch():
    model = digits(dense_head=True)
    tokens = model.forward_features(images())
    strongest = torch.stack([model.aux_head(tokens[:, i]) for i in range(1, 17)]).max(0).values
    assert torch.allclose(model(images()), model.head(tokens[:, 0]) + 0.5 * strongest)
    assert torch.equal(model.train().forward_head(tokens), model.eval().forward_head(tokens))


def test_a_logit_of_the_dense_head_sees_one_patch():
    model = digits(dense_head=True)
    tokens = model.forward_features(images(1)).detach().requires_grad_()
    gradient = torch.autograd.grad(model.forward_head(tokens)[0, 3], tokens)[0][0]
    strongest = 1 + int(model.aux_head(tokens[0, 1:])[:, 3].argmax())
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == {0, strongest}
