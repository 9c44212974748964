"""Weights files: good ones load strictly, bad ones say what is wrong and leave the model alone."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from robustbench_vit.errors import StorageError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights, save_weights


def model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_what_is_saved_is_loaded_and_hashed(tmp_path: Path):
    path = tmp_path / "new" / "w.safetensors"
    written = save_weights(model(1), path, {"defense": "standard"})
    target = model(2)
    assert load_weights(target, path) == written == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(target, model(1))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"defense": "standard"}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]  # no temporary file stays


def test_the_same_weights_are_the_same_bytes(tmp_path: Path):
    words = {f"key{i}": str(i) for i in range(20)}
    hashes = {save_weights(model(1), tmp_path / f"{i}.safetensors", words) for i in range(5)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    ],
    ids=["plain", "state_dict", "model", "module."],
)
def test_pt_files_may_be_nested_and_prefixed(tmp_path: Path, wrap):
    torch.save(wrap(model(1).state_dict()), tmp_path / "w.pt")
    target = model(2)
    load_weights(target, tmp_path / "w.pt")
    assert same(target, model(1))


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def html(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><html>404</html>")


def cut_short(path: Path) -> None:
    save_file(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-7])


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\x01garbage" * 10)


def code(path: Path) -> None:
    torch.save({"state_dict": Bomb(path.parent / "exploded")}, path)


def raw_pickle_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded")))


def zip_cut_short(path: Path) -> None:
    torch.save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:300])


def no_state(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_finite(path: Path) -> None:
    state = model().state_dict()
    state["0.weight"][0, 0] = float("nan")
    save_file(state, path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("w.safetensors", None, "no weights file at"),
        ("w.safetensors", html, "this is a web page, not weights"),
        ("w.pt", html, "this is a web page, not weights"),
        ("w.safetensors", cut_short, "damaged or cut short"),
        ("w.safetensors", garbage, "damaged or cut short"),
        ("w.pt", garbage, "damaged, or not a file that torch.save wrote"),
        ("w.pth", zip_cut_short, "damaged, or not a file that torch.save wrote"),
        ("w.pt", code, "loading this file would run code stored in it, which is refused"),
        ("w.pt", raw_pickle_code, "loading this file would run code stored in it, which is refused"),
        ("w.pt", no_state, "holds no state dict"),
        ("w.safetensors", empty, "the file is empty"),
        ("w.safetensors", not_finite, "holds NaN or infinite weights in 0.weight"),
        ("w.bin", garbage, "weights are .safetensors, .pt or .pth files, not '.bin'"),
    ],
)
def test_bad_files(tmp_path: Path, name, make, message):
    if make is not None:
        make(tmp_path / name)
    target = model()
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / name)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert same(target, model())
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_model_name_every_difference(tmp_path: Path):
    state = model(1).state_dict()
    state["9.weight"] = state.pop("2.weight")
    state["0.weight"] = torch.zeros(4, 5)
    save_file(state, tmp_path / "w.safetensors")
    target = model()
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "weights of another model than this Sequential; " in message
    assert "missing: 2.weight; unexpected: 9.weight" in message
    assert "wrong shapes: 0.weight is (4, 5), the model has (4, 3)" in message
    assert same(target, model())


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_weights(model(), tmp_path / "file" / "w.safetensors")


def test_files_with_the_authors_names_load(tmp_path: Path) -> None:
    made = build_model("digits_t2t_vit")
    theirs = {_as_t2t_authors_name(key): value.clone() for key, value in made.state_dict().items()}
    assert "tokens_to_token.project.weight" in theirs
    save_file(theirs, tmp_path / "theirs.safetensors")
    other = build_model("digits_t2t_vit")
    load_weights(other, tmp_path / "theirs.safetensors")
    assert same(made, other)
    theirs["tokens_to_token.project.wide"] = torch.zeros(1)
    save_file(theirs, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected: patch_embed\.proj\.wide"):
        load_weights(other, tmp_path / "wide.safetensors")


def _as_t2t_authors_name(key: str) -> str:
    for ours, theirs in (
        ("patch_embed.proj.", "tokens_to_token.project."),
        ("patch_embed.layers.0.", "tokens_to_token.attention1."),
        ("patch_embed.layers.1.", "tokens_to_token.attention2."),
    ):
        if key.startswith(ours):
            return theirs + key.removeprefix(ours).replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.2.")
    return key
