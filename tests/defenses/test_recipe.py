"""From defense cards to recipes: every card loads, and every fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.defenses.recipe import apply_architecture, build_recipe, defense_faults
from robustbench_vit.errors import CardError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.ic_layer import IC
from tests.defenses.conftest import FIELDS, PGD_AT

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", open_workspace(ROOT).names("defense"))
def test_every_card_is_a_recipe(workspace: Workspace, name: str):
    loaded = workspace.defense(name)
    assert defense_faults(loaded, workspace) == []
    recipe = build_recipe(loaded, workspace)
    assert recipe.name == name
    assert len(recipe.regularisers) == len(loaded.card.regularisers)
    assert 0 < recipe.schedule.at(1.0, loaded.card.epochs) <= 1


def test_the_cards_of_the_board_are_there(workspace: Workspace):
    cards = {"standard", "pgd-at", "norm-decay", "norm-decay-l1", "ic-layer", "ic-pgd-at-norm-decay"}
    assert cards <= set(workspace.names("defense"))


def changed(part: str, **changes):
    """A component of the test card with some settings changed; None removes one."""
    return {k: v for k, v in {**FIELDS[part], **changes}.items() if v is not None}


BROKEN = [
    (
        {"loss": {**PGD_AT, "eps_warm_epochs": 3}},
        ["defenses/test.yaml: unknown field 'loss.eps_warm_epochs'; did you mean 'eps_warmup_epochs'?"],
    ),
    (
        {"optimiser": changed("optimiser", wieght_decay=0.1)},
        ["defenses/test.yaml: unknown field 'optimiser.wieght_decay'; did you mean 'weight_decay'?"],
    ),
    (
        {"optimiser": changed("optimiser", lr=-1, beta1=None)},
        [
            "defenses/test.yaml: field 'optimiser.lr': should be greater than 0, got -1",
            "defenses/test.yaml: missing field 'optimiser.beta1'; a card states every setting",
        ],
    ),
    (
        {"regularisers": [{"name": "norm-decay", "norm": "l2", "beta": 1e-3, "mu": 0.5}]},
        ["defenses/test.yaml: field 'regularisers.0.norm': should be 'l1' or 'linf', got 'l2'"],
    ),
    (
        {"regularisers": [{"name": "norm-decay", "norm": "l1", "bta": 1e-3, "mu": 0.5}]},
        [
            "defenses/test.yaml: missing field 'regularisers.0.beta'; a card states every setting",
            "defenses/test.yaml: unknown field 'regularisers.0.bta'; did you mean 'beta'?",
        ],
    ),
    (
        {"schedule": {"name": "cosinus"}},
        ["defenses/test.yaml: field 'schedule.name': unknown schedule 'cosinus'; did you mean 'cosine'?"],
    ),
    (
        {"loss": {**PGD_AT, "attack": "pgd-10-trian"}},
        ["defenses/test.yaml: field 'loss.attack': unknown attack 'pgd-10-trian'; did you mean 'pgd-10-train'?"],
    ),
    (
        {"loss": {**PGD_AT, "attack": "autoattack"}},
        ["defenses/test.yaml: field 'loss.attack': the inner attack is a card of algorithm 'pgd', not 'autoattack'"],
    ),
    (
        {"weight_average": 1.5},
        ["defenses/test.yaml: field 'weight_average': should lie between 0 and 1, got 1.5"],
    ),
]


@pytest.mark.parametrize(("changes", "faults"), BROKEN)
def test_every_fault_is_named(card, workspace, changes, faults):
    loaded = card(**changes)
    assert sorted(defense_faults(loaded, workspace)) == sorted(faults)
    with pytest.raises(CardError) as caught:
        build_recipe(loaded, workspace)
    assert sorted(caught.value.faults) == sorted(faults)


def test_faults_of_all_parts_come_together(card, workspace):
    loaded = card(schedule={"name": "none"}, optimiser=changed("optimiser", lr="fast"))
    assert len(defense_faults(loaded, workspace)) == 2


def test_the_digest_is_of_the_settings_and_not_of_the_prose(recipe):
    plain = recipe().digest
    assert recipe(about="in other words").digest == plain
    assert recipe(epochs=4).digest != plain
    assert recipe(optimiser=changed("optimiser", lr=0.02)).digest != plain


def test_the_digest_knows_the_inner_attack(recipe):
    assert recipe(loss=PGD_AT).digest != recipe(loss={**PGD_AT, "attack": "pgd-20"}).digest


def test_a_card_alone_is_enough_to_rebuild_the_architecture(card, recipe):
    ic = {"name": "ic-layer", "dropout": 0.1}
    by_card = apply_architecture(card(architecture=ic).card, build_model("digits_cnn"))
    by_recipe = apply_architecture(recipe(architecture=ic), build_model("digits_cnn"))
    assert list(by_card.state_dict()) == list(by_recipe.state_dict())
    model = build_model("digits_cnn")
    assert apply_architecture(card().card, model) is model


def test_the_architecture_is_rebuilt(recipe):
    plain, changed_recipe = recipe(), recipe(architecture={"name": "ic-layer", "dropout": 0.1})
    assert not any(isinstance(m, IC) for m in apply_architecture(plain, build_model("digits_cnn")).modules())
    model = apply_architecture(changed_recipe, build_model("digits_cnn"))
    layers = [m for m in model.modules() if isinstance(m, IC)]
    assert len(layers) == 7
    assert {layer.dropout.p for layer in layers} == {0.1}
    assert apply_architecture(changed_recipe, model) is model  # a model with IC layers stays as it is
    assert isinstance(model, nn.Module)
