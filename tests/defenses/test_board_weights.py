"""The committed weights are what their names, their metadata and their cards say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from robustbench_vit.data import load_dataset
from robustbench_vit.defenses.recipe import apply_architecture, build_recipe
from robustbench_vit.defenses.train import accuracy
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights

FILES = sorted((Path(__file__).parents[2] / "leaderboards").glob("digits-*/weights/*.safetensors"))
MODELS = {
    "digits_vit": "vit",
    "digits_cnn": "cnn",
    "digits_ic_cnn": "ic-cnn",
    "digits_t2t_vit": "t2t",
    "digits_refiner_vit": "refiner",
    "digits_evit": "evit",
}
LEARNED = 0.93
"""Clean accuracy that every one of them reaches."""


def test_the_ten_of_the_board_are_there():
    assert len([path for path in FILES if path.parts[-3] == "digits-linf"]) >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_weights_come_from_the_recipe_of_their_name(workspace, path: Path):
    with safe_open(path, "pt") as file:
        about = file.metadata()
    name, _, seed = path.stem.partition(".seed-")
    args = ast.literal_eval(about.get("model_args", "{}"))
    assert name == f"{'-'.join([MODELS[about['model']], *map(str, args.values())])}-{about['defense']}"
    assert about["seed"] == (seed or "0")
    recipe = build_recipe(workspace.defense(about["defense"]), workspace)
    assert about["recipe"] == recipe.digest, "a card changed after training: train again, or undo the change"
    assert about["epoch"] == str(recipe.card.epochs)
    assert about["data"] == "digits/train"
    model = apply_architecture(recipe, build_model(about["model"], **args))
    load_weights(model, path)
    assert accuracy(model, load_dataset("digits", "test"), torch.device("cpu")) > LEARNED
