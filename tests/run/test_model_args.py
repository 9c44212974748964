"""`--model-arg NAME=VALUE`: settings of a model, given to `rbvit attack` and `rbvit train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import save_weights
from robustbench_vit.records import Record
from robustbench_vit.running.single import builder_args


def test_values_are_read_as_yaml():
    texts = ["keep_rate=0.5", "fuse_token=false", "drop_layers=[1, 2]", "unit=ic-conv-relu", "name=a=b"]
    assert builder_args(texts) == {
        "keep_rate": 0.5,
        "fuse_token": False,
        "drop_layers": [1, 2],
        "unit": "ic-conv-relu",
        "name": "a=b",
    }
    assert builder_args([]) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["keep_rate"], "--model-arg: expected NAME=VALUE, got 'keep_rate'"),
        (["=1"], "--model-arg: expected NAME=VALUE, got '=1'"),
        (["keep rate=1"], "--model-arg: expected NAME=VALUE, got 'keep rate=1'"),
        (["p=1", "p=2"], "--model-arg: 'p' is given twice"),
        (["p=[1"], "--model-arg p: not a value: [1"),
    ],
)
def test_what_is_no_argument_is_refused(texts: list[str], message: str):
    with pytest.raises(InputError) as caught:
        builder_args(texts)
    assert str(caught.value) == message


def test_a_record_says_with_which_arguments_its_model_was_built(rbvit, tmp_path: Path):
    save_weights(build_model("digits_evit"), tmp_path / "w.safetensors")
    common = ["attack", "digits_evit", "--data", "digits", "--weights", str(tmp_path / "w.safetensors"), "--n", "8"]
    common += ["--attack", "fgsm", "--eps", "0.1"]
    for keep in ("0.5", "1.0"):
        assert rbvit(*common, "--out", str(tmp_path / keep), "--model-arg", f"keep_rate={keep}").code == 0
        (path,) = (tmp_path / keep).glob("*.json")
        assert Record.load(path).entry["model_args"] == {"in_chans": 1, "num_classes": 10, "keep_rate": float(keep)}
    ran = rbvit(*common, "--model-arg", "keep_rate=1.5")
    assert (ran.code, ran.err) == (2, "error: the keep rate is a share of the image tokens in (0, 1], got 1.5\n")
    ran = rbvit(*common, "--model-arg", "keeprate=1")
    assert (ran.code, ran.err) == (2, "error: digits_evit has no setting 'keeprate'\n")


def test_a_training_run_is_one_of_its_arguments(rbvit, tmp_path: Path):
    train = ["train", "standard", "--model", "digits_evit", "--data", "digits", "--epochs", "1"]
    train += ["--out", str(tmp_path / "run"), "--model-arg"]
    assert rbvit(*train, "keep_rate=0.5").code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model_args"] == {"keep_rate": 0.5}
    ran = rbvit(*train, "keep_rate=0.7")
    assert ran.code == 2
    assert "holds a training run with another model_args" in ran.err
