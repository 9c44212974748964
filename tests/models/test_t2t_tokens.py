"""The tokenizer of T2T-ViT (arXiv:2101.11986, section 3.1): shapes, attention layers, precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.models.build import build_model
from robustbench_vit.models.t2t_tokens import PerformerLayer, Split, T2TTokens, TransformerLayer, soft_split

INPUTS = {"digits_t2t_vit": (1, 8, 8), "small_t2t_vit": (3, 32, 32)}


def seeded(name: str, **args: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(name, **args)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_shapes_in_the_tokenizer(name):
    model, seen = seeded(name, depth=1), []
    tokens = model.patch_embed
    for module in (*tokens.layers, tokens.proj):
        module.register_forward_hook(lambda _m, args, out: seen.append((args[0].shape[1:], out.shape[1:])))
    with torch.no_grad():
        features = model.forward_features(images(1, 3, 224, 224))
    width = model.embed_dim
    assert seen == [((3136, 147), (3136, 64)), ((784, 576), (784, 64)), ((196, 576), (196, width))]
    assert features.shape == (1, 197, width)


def test_a_soft_splits_channels_are_ordered_as_in_a_convolution():
    x, weight = images(2, 3, 8, 8), images(5, 3, 3, 3)
    tokens = soft_split(x, Split(3, 2, 1))
    convolved = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
    torch.testing.assert_close(tokens @ weight.flatten(1).T, convolved.flatten(2).transpose(1, 2))


def test_the_random_features_are_orthogonal():
    for layer in seeded("t2t_vit_7").patch_embed.layers:
        assert layer.w.shape == (32, 64)
        torch.testing.assert_close(layer.w @ layer.w.T, 32 * torch.eye(32), atol=1e-4, rtol=0)


def test_a_performer_layer_is_what_the_paper_says():
    layer, x = PerformerLayer(9, 16).double().eval(), normal(2, 5, 9).double()
    k, q, v = layer.kqv(layer.norm1(x)).split(16, dim=-1)
    expected = torch.zeros(2, 5, 16, dtype=torch.float64)
    for n in range(2):
        for t in range(5):
            a = torch.stack([(phi(layer.w, q[n, t]) * phi(layer.w, k[n, s])).sum() for s in range(5)])
            out = v[n, t] + layer.proj((a[:, None] * v[n]).sum(0) / (a.sum() + 1e-8))
            expected[n, t] = out + layer.mlp(layer.norm2(out))
    torch.testing.assert_close(layer(x), expected)


def phi(w: Tensor, z: Tensor) -> Tensor:
    return torch.exp(w @ z - z.square().sum() / 2) / math.sqrt(len(w))


def test_constant_values_are_returned():
    layer = PerformerLayer(9, 16)
    nn.init.zeros_(layer.kqv.weight[32:])
    nn.init.constant_(layer.kqv.bias[32:], 0.7)
    v, attended = layer.attend(normal(2, 50, 9))
    torch.testing.assert_close(v, torch.full((2, 50, 16), 0.7))
    torch.testing.assert_close(attended, v, atol=1e-4, rtol=0)


def test_a_transformer_layer_is_what_the_paper_says():
    layer, x = TransformerLayer(9, 16).double(), normal(2, 5, 9).double()
    q, k, v = layer.qkv(layer.norm1(x)).split(16, dim=-1)
    out = v + layer.proj((q @ k.transpose(1, 2) * 9**-0.5).softmax(-1) @ v)
    torch.testing.assert_close(layer(x), out + layer.mlp(layer.norm2(out)))
    assert layer.qkv.bias is None


def test_dropout_acts_in_training_only():
    layer, x = PerformerLayer(9, 16), normal(1, 5, 9)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert {m.p for m in layer.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_tokenizer_stays_in_float32(name, dtype):
    model, x = seeded(name), images(2, *INPUTS[name]).requires_grad_()
    with torch.autocast("cpu", dtype):
        tokens, logits = model.patch_embed(x), model(x)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, model.patch_embed(x))
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), model(x), atol=0.05, rtol=0.05)
    assert torch.autograd.grad(logits.float().sum(), x)[0].isfinite().all()
    half = model.patch_embed(x.to(dtype))
    assert half.dtype == torch.float32


def test_large_activations_give_finite_gradients():
    layer, x = PerformerLayer(9, 16).eval(), normal(1, 50, 9).requires_grad_()
    nn.init.normal_(layer.kqv.weight, std=100)
    assert layer.random_features(layer.kqv(layer.norm1(x)).chunk(3, -1)[0]).max() == 0  # underflow
    assert torch.autograd.grad(layer(x).sum(), x)[0].isfinite().all()


def test_a_tokenizer_stands_by_itself():
    tokens = T2TTokens((8, 16), 2, 1, 24, layer="performer", token_dim=16, splits=(Split(3, 1, 1), Split(3, 2, 1)))
    assert tokens.feat_ratio() == 2
    assert tokens.dynamic_feat_size((12, 8)) == (6, 4)
    assert tokens(images(2, 1, 8, 16)).shape == (2, 32, 24)
