"""Facts about DMAE's classifiers and checkpoints (arXiv:2210.06983)."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from robustbench_vit.errors import InputError, WeightsError
from robustbench_vit.models.author_keys.dmae import from_authors, load_encoder
from robustbench_vit.models.build import build_model
from robustbench_vit.models.dmae import position_table
from robustbench_vit.models.dmae_pretrainer import DMAEPretrainer, dmae_pretrain_small_vit
from robustbench_vit.models.weights import load_weights, save_weights

SIZES = {
    "dmae_vit_base": 86_567_656,
    "dmae_vit_large": 304_326_632,
    "small_dmae_vit": 1_205_898,
    "digits_dmae_vit": 102_666,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def authors_block(i: str, d: int) -> dict[str, Tensor]:
    shapes = {
        "norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
        "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
    }  # fmt: skip
    return {f"{i}.{key}": torch.rand(shape) for key, shape in shapes.items()}


def authors_encoder(d: int = 128, depth: int = 6, side: int = 4, patches: int = 64) -> dict[str, Tensor]:
    state = {"cls_token": torch.rand(1, 1, d), "pos_embed": torch.rand(1, patches + 1, d)}
    state |= {"patch_embed.proj.weight": torch.rand(d, 3, side, side), "patch_embed.proj.bias": torch.rand(d)}
    for i in range(depth):
        state |= authors_block(f"blocks.{i}", d)
    return state


def authors_pretrained(d: int = 128, decoder: int = 64) -> dict[str, Tensor]:
    """A pretraining checkpoint's names and shapes, at the size of the small model."""
    state = authors_encoder(d) | {"norm.weight": torch.rand(d), "norm.bias": torch.rand(d)}
    state |= {"mask_token": torch.rand(1, 1, decoder), "decoder_pos_embed": torch.rand(1, 65, decoder)}
    state |= {"decoder_embed.weight": torch.rand(decoder, d), "decoder_embed.bias": torch.rand(decoder)}
    for i in range(2):
        state |= authors_block(f"decoder_blocks.{i}", decoder)
    state |= {"decoder_norm.weight": torch.rand(decoder), "decoder_norm.bias": torch.rand(decoder)}
    return state | {"decoder_pred.weight": torch.rand(48, decoder), "decoder_pred.bias": torch.rand(48)}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_parameters_of_the_classifiers(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == SIZES[name]


def test_positions_are_maes():
    table = position_table((2, 3), 8)[0]
    assert table.shape == (7, 8)
    assert torch.equal(table[0], torch.zeros(8))
    row, column = 1.0, 2.0  # of the last patch
    angles = [(p, p / 100) for p in (column, row)]  # 10000^(1/2) = 100
    expected = [f(torch.tensor(a)) for pair in angles for f in (torch.sin, torch.cos) for a in pair]
    assert torch.allclose(table[6], torch.stack(expected), atol=1e-7)
    model = dmae_pretrain_small_vit()
    assert torch.equal(model.pos_embed, position_table((8, 8), 128))
    assert torch.equal(model.decoder_pos_embed, position_table((8, 8), 64))
    assert torch.equal(build_model("small_dmae_vit").pos_embed, model.pos_embed)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("small_dmae_vit", (3, 32, 32)), ("digits_dmae_vit", (1, 8, 8)), ("dmae_vit_base", (3, 224, 224))],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_it_runs_has_gradients_and_repeats_itself(name, shape, batch):
    model = build_model(name, **({"depth": 1} if name == "dmae_vit_base" else {}))
    x = torch.rand(batch, *shape, generator=generator()).requires_grad_()
    logits = model(x)
    assert logits.shape == (batch, model.num_classes)
    assert torch.equal(logits, model(x))
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_it_is_timms_vit_behind_a_normalisation():
    """Same state dict; the class token is left out of the mean, and `fc_norm` comes after it."""
    model = build_model("small_dmae_vit", depth=2)
    vit = VisionTransformer(
        img_size=32, patch_size=4, num_classes=10, embed_dim=128, depth=2, num_heads=4, global_pool="avg", fc_norm=True
    ).eval()
    vit.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 32, 32, generator=generator())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = vit((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert not torch.allclose(model(x), vit(x), atol=1e-2)
    tokens = model.forward_features(x)
    pooled = model.fc_norm(tokens[:, 1:].mean(1))
    assert torch.allclose(model.forward_head(tokens, pre_logits=True), pooled)
    assert model.pretrained_cfg["mean"] == (0.0, 0.0, 0.0)


def test_timms_habits():
    model = build_model("small_dmae_vit", img_size=28, in_chans=1, num_classes=4)
    x = torch.rand(2, 1, 28, 28)
    assert model(x).shape == (2, 4)
    assert (model.patch_embed.mean.flatten().tolist(), model.patch_embed.std.flatten().tolist()) == ([0.5], [0.5])
    model.set_grad_checkpointing()
    model.train()(x).sum().backward()
    model.eval().reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.no_weight_decay() >= {"pos_embed", "cls_token"}
    model.set_input_size((32, 32))
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 7)
    features = timm.create_model("small_dmae_vit", features_only=True)
    assert features(torch.rand(1, 3, 32, 32))[-1].shape == (1, 128, 8, 8)


def test_the_authors_names_are_ours():
    """Strictly, for a pretraining checkpoint and a fine-tuned one."""
    assert dmae_pretrain_small_vit().load_state_dict(authors_pretrained()).missing_keys == []
    tuned = authors_encoder() | {"fc_norm.weight": torch.rand(128), "fc_norm.bias": torch.rand(128)}
    tuned |= {"head.weight": torch.rand(10, 128), "head.bias": torch.rand(10)}
    build_model("small_dmae_vit").load_state_dict(from_authors(tuned))


def test_the_authors_names_at_the_size_of_vit_base():
    with torch.device("meta"):
        model, state = timm.create_model("dmae_vit_base"), authors_encoder(768, 12, 16, 196)
    assert {key: value.shape for key, value in model.state_dict().items() if key in state} == {
        key: value.shape for key, value in state.items()
    }
    assert set(model.state_dict()) - set(state) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_a_pretrained_encoder_goes_into_the_classifier():
    state = authors_pretrained()
    model = build_model("small_dmae_vit")
    head, norm = model.head.weight.clone(), model.fc_norm.weight.clone()
    load_encoder(model, state)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in authors_encoder().items() if key not in state)
    assert all(torch.equal(loaded[key], state[key]) for key in from_authors(state))
    assert (torch.equal(model.head.weight, head), torch.equal(model.fc_norm.weight, norm)) == (True, True)
    ours = dmae_pretrain_small_vit()
    load_encoder(model, ours.state_dict())
    x = torch.rand(1, 3, 32, 32)
    tokens = model.forward_features(x)
    assert torch.allclose(ours.norm(tokens), _all_seen(ours, x), atol=1e-5)


def _all_seen(pretrainer: DMAEPretrainer, x: Tensor) -> Tensor:
    pretrainer.seen = 64
    return pretrainer.encode(x, torch.arange(64).unsqueeze(0))


def test_an_encoder_of_another_depth_is_refused():
    model = build_model("small_dmae_vit", depth=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"unexpected blocks\.5\.norm1\.weight, .*… \(12 in all\)"):
        load_encoder(model, authors_pretrained())
    with pytest.raises(WeightsError, match=r"missing blocks\.3\.norm1\.weight"):
        load_encoder(model, {k: v for k, v in authors_pretrained().items() if "blocks.3" not in k})
    with pytest.raises(WeightsError, match=r"cls_token is \(1, 1, 64\), the model has \(1, 1, 128\)"):
        load_encoder(build_model("small_dmae_vit"), authors_pretrained(64))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_weights_of_another_depth_do_not_load(tmp_path):
    save_weights(build_model("digits_dmae_vit", depth=2), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing: blocks\.2\.norm1\.weight"):
        load_weights(build_model("digits_dmae_vit"), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"img_size": 30}, "an image of side 30 is not divisible into patches of side 4"),
        ({"num_heads": 3}, "3 heads don't divide a width of 128"),
        ({"mean": [0.5]}, "give a number for each of 3 channels, std above 0"),
        ({"std": [0.5, 0.5, 0]}, "std above 0"),
        ({"keep_rate": 0.5}, "small_dmae_vit has no setting 'keep_rate'"),
        ({"pretrained": True}, "small_dmae_vit has no pretrained weights; load a file"),
    ],
)
def test_bad_settings_of_a_classifier(args, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("small_dmae_vit", **args)
