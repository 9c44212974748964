"""Sections on training, memory and linear cost: rendered from made-up measurements, with their verdicts."""

from __future__ import annotations

import pytest

from benchmarks.speed import lanes, linear, memory, training

MIB = 2**20
IMAGE = 3 * 224 * 224 * 4


def trained(share: float) -> dict:
    return {"shares": [share - 0.02, share, share + 0.02], "step_ms": 12.34, "checkpoint_steps": 0.5}


def peaks(raw: int, **lanes: int) -> dict:
    """Peaks that grow by so many bytes per row."""
    slopes = {memory.RAW: raw, **lanes}
    return {"image": IMAGE, "peaks": {k: {str(n): 10**8 + n * v for n in (8, 16, 24)} for k, v in slopes.items()}}


def runs(*seconds: float) -> dict:
    one = {"passes": 30.0, "robust": 0.955}
    return {str(10**k): [{"seconds": s, **one}] * 3 for k, s in enumerate(seconds, start=2)}


def test_training_names_what_is_below_the_goal():
    lines = training.section({"digits_vit/pgd-at": trained(0.96), "digits_cnn/standard": trained(0.93)})
    assert lines[0] == "## Training"
    assert "| digits_vit | pgd-at | 0.960 (0.950 to 0.970) | 12.3 | 0.5 |" in lines
    assert f"The goal is 0.95. Below it: digits_cnn/standard. {training.LIMIT}" in lines
    assert "The goal is 0.95. All reach it." in training.section({"digits_vit/pgd-at": trained(0.95)})


def test_memory_counts_images_beyond_the_raw_calls():
    found = {memory.JUDGED: peaks(20 * MIB, apgd=20 * MIB + 4 * IMAGE, fab=20 * MIB + 17 * IMAGE)}
    assert memory.extras(found[memory.JUDGED]) == pytest.approx({"apgd": 4, "fab": 17})
    lines = memory.section(found)
    assert lines[0] == "## Memory per row"
    assert "| vit-tiny-224 | 20.0 | apgd | 22.3 | 4.0 |" in lines
    assert any("Over it: fab (17.0)." in line for line in lines)


def test_memory_is_judged_at_224_only():
    found = {memory.JUDGED: peaks(MIB, apgd=MIB), "small": peaks(MIB, apgd=MIB + 99 * IMAGE)}
    assert any("Every lane keeps to it." in line for line in memory.section(found))


def test_lanes_are_cut_and_nothing_else():
    lane = lanes.lane_of("apgd-t", "linf", 2)
    settings = lane.plan.loaded.card.settings
    assert (settings["steps"], settings["targets"], lane.attack.steps) == (2, 1, 2)


def test_linear_compares_the_two_largest_numbers():
    flat, steep = runs(0.004, 0.002, 0.0021), runs(0.002, 0.002, 0.003)
    assert linear.growth(flat) == pytest.approx(1.05)
    lines = linear.section({"robust": runs(0.004, 0.002, 0.002), "fallen": steep})
    assert lines[0] == "## Cost over the number of samples"
    assert any(line.startswith("| robust | 95.5 | 4.00 | 2.00 | 2.00 | 30.0 |") for line in lines)
    assert any("Over it: fallen." in line for line in lines)
    assert linear.section({}) == []


def test_every_row_of_a_table_has_its_heads_columns():
    sections = [
        training.section({"a/b": trained(1.0)}),
        memory.section({memory.JUDGED: peaks(MIB, apgd=MIB)}),
        linear.section({"robust": runs(1, 1, 1)}),
    ]
    for lines in sections:
        assert len({line.count("|") for line in lines if line.startswith("|")}) == 1, lines
