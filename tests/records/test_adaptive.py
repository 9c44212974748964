"""A record with adaptive attacks: the worst case sample by sample, and what the protocol alone would have hidden."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.errors import InputError
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.records.rows import MAJORITY, UNTARGETED

LETTERS = {"x": Status.MISCLASSIFIED, "0": Status.BROKEN, "1": Status.SURVIVED, "?": Status.NOT_RUN}


def lines(attack: str, eps: float, became: str, criterion: str = UNTARGETED, ids: str = "abcdef") -> list[Outcome]:
    """An outcome per letter, of the samples with these ids."""
    return [
        Outcome(sample, attack, "linf", eps, criterion, LETTERS[letter], by=attack if letter == "0" else None)
        for sample, letter in zip(ids, became, strict=True)
    ]


def lane(name: str) -> dict[str, Any]:
    return {"version": 1, "lanes": [{"name": name}]}


@pytest.fixture
def record() -> Record:
    """Six samples under two attacks of the protocol and two adaptive ones, at two eps."""
    protocol = {
        "criterion": UNTARGETED,
        "eps": [0.1, 0.2],
        "attacks": {"first": lane("first"), "last": lane("last")},
    }
    outcomes = [
        *lines("first", 0.1, "x10111"),
        *lines("last", 0.1, "x01111"),
        *lines("near", 0.1, "x11011"),
        *reversed(lines("far", 0.1, "x10001")),
        *lines("first", 0.2, "x10000"),
        *lines("last", 0.2, "x11110"),
        *lines("near", 0.2, "x11111"),
        *lines("far", 0.2, "x01111"),
    ]
    return Record(
        {"name": "made"}, protocol, tuple(outcomes), (), {}, evidence={"near": lane("near"), "far": lane("far")}
    )


def digits(robust: Any) -> str:
    return "".join("1" if value else "0" for value in robust)


def test_best_known_is_the_worst_case_of_the_last_attack_and_every_adaptive_one(record: Record) -> None:
    assert digits(record.best_known()) == "000001"
    assert digits(record.best_known(eps=0.2)) == "001110"
    assert digits(record.best_known("first")) == "010001"
    assert digits(record.best_known("near", 0.2)) == "001111"


def test_without_adaptive_attacks_it_is_the_floor(record: Record) -> None:
    plain = dataclasses.replace(record, evidence={})
    assert digits(plain.best_known()) == digits(plain.at("last", 0.1).robust) == "001111"
    assert plain.only_adaptive() == {}


def test_only_adaptive_names_samples_that_no_attack_of_the_protocol_broke(record: Record) -> None:
    assert record.only_adaptive() == {"d": ("near", "far"), "e": ("far",)}
    assert record.only_adaptive(0.2) == {"b": ("far",)}


def test_a_random_model_is_judged_by_the_protocols_criterion(record: Record) -> None:
    majority = [
        outcome
        for attack in ("first", "last", "near", "far")
        for eps in (0.1, 0.2)
        for outcome in lines(attack, eps, "x11111", MAJORITY)
    ]
    both = dataclasses.replace(record, outcomes=(*record.outcomes, *majority))
    assert (both.best_known() == record.best_known()).all()
    assert both.only_adaptive() == record.only_adaptive()


def test_it_knows_the_lanes_of_adaptive_attacks(record: Record) -> None:
    stand_ins = {"B": {"name": "other", **lane("averaged")}}
    near = {**lane("near"), "stand_ins": stand_ins, "custom": ["lanes.0.steps: 100 in autoattack, 7 here"]}
    record = dataclasses.replace(record, evidence={**record.evidence, "near": near})
    assert list(record.attacks) == ["first", "last", "near", "far"]
    assert record.survivors("near", 0.1) == {"near": 4}
    assert (record.ran_as("near"), record.lanes("far")) == ("near", ["far"])
    random = dataclasses.replace(record, policy="B")
    assert (random.ran_as("near"), random.lanes("near")) == ("other", ["averaged"])
    assert record.custom("near") == near["custom"]


def test_unfinished_evidence_leaves_the_record_incomplete(record: Record) -> None:
    assert record.complete
    assert not dataclasses.replace(record, outcomes=(*record.outcomes, *lines("far", 0.3, "??????"))).complete


def test_evidence_is_saved_and_no_part_of_the_protocol(record: Record, tmp_path: Path) -> None:
    path = record.save(tmp_path / "made.json")
    loaded = Record.load(path)
    assert loaded == record
    assert digits(loaded.best_known()) == "000001"
    assert loaded.protocol_id == dataclasses.replace(record, evidence={}).protocol_id
    assert set(loaded.to_frame()["attack"]) == {"first", "last", "near", "far"}


def test_a_record_without_the_field_has_none(record: Record, tmp_path: Path) -> None:
    path = dataclasses.replace(record, evidence={}).save(tmp_path / "made.json")
    assert "evidence" not in json.loads(path.read_text(encoding="utf-8"))
    assert Record.load(path).evidence == {}


@pytest.mark.parametrize("evidence", [["near"], {"near": "rays"}, {"near": {"version": 1}}, 3])
def test_damaged_evidence_is_refused(record: Record, tmp_path: Path, evidence: Any) -> None:
    path = record.save(tmp_path / "made.json")
    raw = {**json.loads(path.read_text(encoding="utf-8")), "evidence": evidence}
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(InputError, match=r"made\.json: damaged record: "):
        Record.load(path)


def test_what_was_not_run_at_an_eps_is_refused(record: Record) -> None:
    with pytest.raises(InputError, match=r"no outcomes for attack 'last' at eps 0\.3"):
        record.best_known(eps=0.3)
    with pytest.raises(InputError, match=r"no outcomes for attack 'near' at eps 0\.1"):
        record.at("last").best_known()
