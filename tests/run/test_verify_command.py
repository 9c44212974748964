"""`rbvit verify`: what a record counts as broken is checked again, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from robustbench_vit.data import load_dataset
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record, Status
from robustbench_vit.running.recheck import recheck

Rbvit = Callable[..., Any]
CNN = "leaderboards/small/weights/cnn-pgd-at.safetensors"
VIT = "leaderboards/small/weights/vit-standard.safetensors"
N = 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cards: Path) -> dict[str, Path]:
    """Records of a model on digits by name and on an .npz file, with their images; at 0.15 some fall."""
    from robustbench_vit.cards import open_workspace
    from robustbench_vit.evaluation import evaluate
    from robustbench_vit.running.single import ModelChoice, choose_model

    workspace, paths = open_workspace(cards), {}
    choice = ModelChoice("digits_cnn", cards / CNN, None, None, None)
    for name in ("digits", str(cards / "samples.npz")):
        data = load_dataset(name).first(N)
        model, about = choose_model(choice, data, workspace)
        record = evaluate(
            model, data, attack="short-apgd", eps=[0.15, 0.05], workspace=workspace, entry=about, reliability=False
        )
        paths[Path(name).stem] = record.save(tmp_path_factory.mktemp("made") / f"{Path(name).stem}.json")
    return paths


@pytest.fixture
def record(made: dict[str, Path], folder: Path) -> Path:
    """A copy, in the workspace, of the record on digits; its weights lie beside the board `small`."""
    return copied(made["digits"], folder)


def copied(path: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for file in (path, images_of(path)):
        shutil.copy(file, to)
    return to / path.name


def by_status(path: Path, status: Status) -> list[int]:
    """The positions of the samples with this outcome at the first eps."""
    return [i for i, o in enumerate(Record.load(path).at(eps=0.15).outcomes) if o.status is status]


def images_of(path: Path) -> Path:
    return path.with_suffix(".images.safetensors")


def tamper(path: Path, change: Callable[[np.ndarray], None]) -> None:
    """Rewrites the images after `change` altered them in place."""
    images = load_file(images_of(path))["adversarials"].copy()
    change(images)
    save_file({"adversarials": images}, images_of(path))


def test_a_record_from_the_command_line_verifies(rbvit: Rbvit, folder: Path) -> None:
    attack = ["attack", "digits_cnn", "--data", "digits", "--weights", CNN, "--attack", "short-apgd"]
    ran = rbvit(*attack, "--eps", "0.15", "--n", str(N), "--smoke", "--out", "made")
    assert ran.code == 0
    (path,) = Path("made").glob("*.json")
    assert rbvit("verify", str(path), "--weights", CNN).code == 0
    found = json.loads(rbvit("verify", str(path), "--weights", CNN, "--json").out)
    assert found["passed"]
    assert found["hold"] == found["counted"] > 0
    assert (found["attack"], found["norm"], found["eps"], found["n"]) == ("short-apgd", "linf", 0.15, N)


def test_it_says_what_holds(rbvit: Rbvit, record: Path) -> None:
    counted = len(by_status(record, Status.BROKEN))
    assert 0 < counted < N - 2  # or there is nothing to tell apart
    ran = rbvit("verify", str(record), "--weights", CNN)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(
        f"digits_cnn: short-apgd, linf, eps 0.15, {N} samples\n"
        f"counted as broken  {counted}\n"
        f"hold               {counted}\n"
        "do not hold        0\n"
        f"clean as recorded  {N} of {N}\n"
        f"rounded to 8 bits, of {counted}: "
    )
    assert "the clean pixels are no multiples of 1/255 (pixels / 16)" in ran.out
    assert ran.out.endswith("everything is as the record says\n")


def test_every_tampered_image_is_named(rbvit: Rbvit, record: Path) -> None:
    data = load_dataset("digits").first(N)
    first, second, third, fourth = by_status(record, Status.BROKEN)[:4]
    robust = by_status(record, Status.SURVIVED)[0]

    def change(images: np.ndarray) -> None:
        images[first] = np.clip(images[first] + 0.01 * np.sign(images[first] - data.x[first]), 0, 1)  # too far
        images[second] = data.x[second]
        images[third, 0, 0, 0] = np.nan
        images[fourth, 0, 0, 0] = -0.01
        images[robust, 0, 0, 0] += 0.01

    tamper(record, change)
    ran = rbvit("verify", str(record), "--weights", CNN)
    assert (ran.code, ran.err) == (1, "")
    ids = data.sample_ids
    for reason, sample in {
        "outside the budget": f"{ids[first]} (distance 0.1",
        "not misclassified": f"{ids[second]} (margin ",
        "not finite": f"{ids[third]} (1 pixels are NaN or infinite)",
        "outside [0, 1]": f"{ids[fourth]} (pixels from -0.01 to ",
        "stored image is not the clean one": f"{ids[robust]} (the record says survived)",
    }.items():
        assert f"  {reason}: 1: {sample}" in ran.out
    assert "do not hold        4\n" in ran.out
    assert ran.out.endswith("not everything is as the record says\n")
    found = json.loads(rbvit("verify", str(record), "--weights", CNN, "--json").out)
    assert {fault["sample"] for fault in found["broken"]} == {ids[i] for i in (first, second, third, fourth)}
    assert not found["passed"]


def test_an_outcome_that_was_turned_is_noticed(rbvit: Rbvit, record: Path) -> None:
    """A robust sample called misclassified, a broken one called robust."""
    raw = Record.load(record)
    survived, broken = by_status(record, Status.SURVIVED)[0], by_status(record, Status.BROKEN)[0]
    turned = list(raw.outcomes)
    turned[survived] = replace(turned[survived], status=Status.MISCLASSIFIED)
    turned[broken] = replace(turned[broken], status=Status.SURVIVED, by=None)
    replace(raw, outcomes=tuple(turned)).save(record)
    ran = rbvit("verify", str(record), "--weights", CNN)
    assert ran.code == 1
    assert f"  clean image is classified correctly: 1: {turned[survived].sample} (margin " in ran.out
    assert f"  stored image is not the clean one: 1: {turned[broken].sample} (the record says survived)" in ran.out


def test_other_weights_are_refused(rbvit: Rbvit, record: Path) -> None:
    ran = rbvit("verify", str(record), "--weights", VIT)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: other weights than the record's, which are cnn-pgd-at.safetensors with the sha")
    assert VIT in ran.err


def test_weights_are_looked_for(rbvit: Rbvit, record: Path, tmp_path: Path) -> None:
    """Beside the record, then in the current folder; a moved record is as good as before."""
    ran = rbvit("verify", str(record))
    assert ran.code == 2
    assert "error: no weights file cnn-pgd-at.safetensors with the sha256 " in ran.err
    assert ran.err.endswith("give it as --weights FILE\n")
    moved = copied(record, tmp_path / "elsewhere")
    shutil.copy(CNN, moved.parent)
    assert rbvit("verify", str(moved)).code == 0
    shutil.copy(VIT, moved.parent / Path(CNN).name)
    assert "elsewhere" in rbvit("verify", str(moved)).err
    shutil.copy(CNN, Path.cwd())
    assert rbvit("verify", str(moved)).code == 0


def test_a_board_s_records_verify(rbvit: Rbvit, folder: Path, given: list[str]) -> None:
    """Their weights lie in the board's folder, wherever the records are."""
    assert rbvit("run", "small", "--smoke", "--entry", "cnn").code == 0
    path = "runs/small-smoke/records/cnn.json"
    assert "the record was made on the file samples.npz: give it as --data" in rbvit("verify", path).err
    ran = rbvit("verify", path, "--data", "samples.npz")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("cnn: short, linf, eps 0.1, 32 samples\n")
    assert rbvit("verify", path, "--data", "samples.npz", "--board", "small").code == 0
    elsewhere = rbvit("verify", path, "--data", "samples.npz", "--board", "digits-linf")
    assert elsewhere.code == 0  # the same weights, under the same name
    Path(CNN).unlink()
    assert rbvit("verify", path, "--data", "samples.npz", "--board", "small").code == 2


def test_samples_from_a_file(rbvit: Rbvit, made: dict[str, Path], folder: Path) -> None:
    path = str(copied(made["samples"], folder))
    with_weights = ["verify", path, "--weights", CNN]
    assert "give it as --data" in rbvit(*with_weights).err
    assert rbvit(*with_weights, "--data", "samples.npz").code == 0
    other = rbvit(*with_weights, "--data", "digits")
    assert (other.code, other.out) == (2, "")
    shutil.copy("samples.npz", "renamed.npz")
    renamed = rbvit(*with_weights, "--data", "renamed.npz")
    assert renamed.code == 2
    assert "it was called samples.npz" in renamed.err
    with np.load("samples.npz") as held:
        np.savez("samples.npz", **{**held, "y": (held["y"] + 1) % 10})
    changed = rbvit(*with_weights, "--data", "samples.npz")
    assert changed.code == 2
    assert "other data than the record's: npz/samples.npz has the sha256 " in changed.err


def test_without_images_there_is_nothing_to_recheck(rbvit: Rbvit, record: Path) -> None:
    images_of(record).unlink()
    ran = rbvit("verify", str(record), "--weights", CNN)
    assert (ran.code, ran.out) == (2, "")
    assert "error: the record has no images beside it (NAME.images.safetensors)" in ran.err


def test_images_of_another_record_or_none_at_all(rbvit: Rbvit, record: Path) -> None:
    save_file({"adversarials": np.zeros((N - 1, 1, 8, 8), np.float32)}, images_of(record))
    assert "they belong to another record" in rbvit("verify", str(record), "--weights", CNN).err
    images_of(record).write_bytes(b"cut short")
    assert "not the images of a record" in rbvit("verify", str(record), "--weights", CNN).err


def test_an_altered_protocol_is_refused(rbvit: Rbvit, record: Path) -> None:
    raw = json.loads(record.read_text())
    raw["protocol"]["eps"][0] = 0.3
    record.write_text(json.dumps(raw))
    ran = rbvit("verify", str(record), "--weights", CNN)
    assert ran.code == 2
    assert "the file was altered" in ran.err


def test_a_record_of_a_python_model_is_rechecked_in_python(rbvit: Rbvit, record: Path) -> None:
    loaded, data = Record.load(record), load_dataset("digits").first(N)
    replace(loaded, entry={"name": "mine"}).save(record)
    ran = rbvit("verify", str(record), "--weights", CNN)
    assert ran.code == 2
    assert "names no model and weights to build from" in ran.err
    told = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = recheck(loaded, told, data, CPU)
    assert not found.passed
    assert found.clean
    with pytest.raises(InputError, match="other sample ids than the record's"):
        recheck(loaded, told, data.first(3), CPU)


def test_unfinished_records_are_refused(record: Path) -> None:
    loaded = Record.load(record)
    first = replace(loaded.outcomes[0], status=Status.NOT_RUN)
    with pytest.raises(InputError, match=f"1 of the record's {N} samples were not run"):
        recheck(replace(loaded, outcomes=(first, *loaded.outcomes[1:])), nn.Identity(), load_dataset("digits"), CPU)


def test_what_differs_from_the_record_s_machine_is_said(rbvit: Rbvit, record: Path) -> None:
    loaded = Record.load(record)
    older = {**loaded.provenance["packages"], "torch": "1.0"}
    replace(loaded, provenance={**loaded.provenance, "packages": older, "platform": "AmigaOS"}).save(record)
    out = rbvit("verify", str(record), "--weights", CNN).out
    assert f"differs here: torch {torch.__version__.split('+')[0]}" in out
    assert ", recorded with 1.0\n" in out
    assert ", recorded with AmigaOS\n" in out
    assert "device" not in out


class Steep(nn.Module):
    """Class 1 when the mean is above one half by anything at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


@pytest.mark.parametrize(
    ("norm", "moved", "inside", "near"),
    [("linf", 0.4, True, True), ("linf", 0.6, False, True), ("l2", 0.4, True, True), ("l2", 0.6, False, False)],
)
def test_rounding_can_undo_an_attack_and_leave_the_budget(norm: str, moved: float, inside: bool, near: bool) -> None:
    """One image, grey level 127 everywhere, moved by a share of a level: rounded it is back, or a whole level away."""
    from robustbench_vit.data.dataset import Dataset
    from robustbench_vit.evaluation import evaluate

    pixels = np.full((1, 1, 2, 2), 127 / 255, np.float32)
    data = Dataset("grey", "test", pixels, np.zeros(1, np.int64), ("one",), "0" * 64, "pixels / 255", 2)
    size = moved / 255 * (1 if norm == "linf" else 2)  # l2 over four pixels
    record = evaluate(Steep().eval(), data, attack="fgsm", norm=norm, eps=size + 1e-9, reliability=False)
    images = pixels + np.float32(moved / 255)
    broken = replace(record.outcomes[0], status=Status.BROKEN, by="fgsm")
    found = recheck(replace(record, outcomes=(broken,), images=images), Steep(), data, CPU).rounded
    assert found.on_grid
    assert found.misclassified == int(moved > 0.5)
    assert (found.inside, found.near) == (int(inside), int(near))
    assert (found.hold, found.nearly_hold) == (int(inside and moved > 0.5), int(near and moved > 0.5))


class Noisy(nn.Module):
    """Steep, with noise on its logits that no generator of ours knows of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = 100 * Steep()(x)
        return logits + 0.05 * torch.randn_like(logits)


def test_a_random_model_is_asked_often() -> None:
    """One image that falls in every draw, one that no draw can break."""
    from robustbench_vit.data.dataset import Dataset
    from robustbench_vit.evaluation import evaluate

    pixels = np.stack([np.full((1, 2, 2), level / 255, np.float32) for level in (120, 60)])
    data = Dataset("grey", "test", pixels, np.zeros(2, np.int64), ("near", "far"), "0" * 64, "pixels / 255", 2)
    model = Noisy().eval()
    record = evaluate(model, data, attack="fgsm", eps=0.1, randomness="noise on the logits", reliability=False)
    assert record.policy == "B"
    assert [o.status for o in record.at(criterion="untargeted").outcomes] == [Status.BROKEN, Status.SURVIVED]
    assert recheck(record, model, data, CPU).passed
    assert record.images is not None
    found = recheck(replace(record, images=data.x), model, data, CPU)
    assert [(f.sample, f.reason, f.detail) for f in found.broken] == [
        ("near", "not misclassified", "wrong in 0 of 20 draws, unlike the record")
    ]
