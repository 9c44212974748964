"""The section on what regularisers cost: rendered from made-up measurements, with its verdict."""

from __future__ import annotations

from benchmarks.speed import regularisers


def measured(added: float) -> dict:
    return {"added": [added - 0.02, added, added + 0.02], "step_ms": 7.5}


def test_a_cost_over_the_goal_is_named():
    found = {"digits_cnn/norm-decay": measured(0.08), "digits_cnn/norm-decay-l1": measured(0.16)}
    lines = regularisers.section(found)
    assert lines[0] == "## Regularisers"
    assert "| digits_cnn | norm-decay | 8.0 (7.0 to 9.0) | 7.5 |" in lines
    assert "The goal for norm decay on the CNN is at most 15 %. Over it: digits_cnn/norm-decay-l1." in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_other_cards_are_shown_and_not_judged():
    lines = regularisers.section({"digits_cnn/svc": measured(0.4), "digits_cnn/norm-decay": measured(0.1)})
    assert any(line.endswith("Both norms keep to it.") for line in lines)


def test_the_other_side_is_the_recipe_without_regularisers():
    full, bare = (regularisers.case("digits_cnn", "svc", regularised) for regularised in (True, False))
    assert len(full.recipe.regularisers) == 1
    assert bare.recipe.regularisers == ()
    assert full.recipe.card == bare.recipe.card
    assert full.steps == regularisers.STEPS
