"""What a run says about the records that are committed with its board."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.cards import BoardCard, Loaded, open_workspace
from robustbench_vit.records import Record, Status
from robustbench_vit.running.committed import compare_with_committed


@pytest.fixture
def board(copied: Path, folder: Path) -> Loaded[BoardCard]:
    return open_workspace(folder).board("small")


@pytest.fixture
def fresh(board: Loaded[BoardCard], copied: Path) -> Record:
    """A record of the run."""
    return Record.load(copied / "records" / "cnn.json")


@pytest.fixture
def line(board: Loaded[BoardCard], fresh: Record, folder: Path) -> Callable[[Record | str | None], str]:
    """What is said of the fresh record when this one is committed."""

    def said(committed: Record | str | None) -> str:
        path = folder / "leaderboards" / "small" / "records" / "cnn.json"
        if isinstance(committed, Record):
            committed.save(path)
        elif committed is not None:
            path.parent.mkdir()
            path.write_text(committed, encoding="utf-8")
        lines = compare_with_committed(board, {"cnn": fresh})
        assert list(lines) == ["cnn"]
        return lines["cnn"]

    return said


def changed(record: Record, attack: str, number: int, **fields: Any) -> Record:
    """The record with other outcomes of the first `number` broken samples of an attack."""
    outcomes = list(record.outcomes)
    places = [i for i, o in enumerate(outcomes) if o.attack == attack and o.status is Status.BROKEN][:number]
    assert len(places) == number
    for place in places:
        outcomes[place] = dataclasses.replace(outcomes[place], **fields)
    return dataclasses.replace(record, outcomes=tuple(outcomes))


def test_none(line: Any) -> None:
    assert line(None) == "no committed record"


def test_equal(line: Any, fresh: Record) -> None:
    """Provenance and images may differ."""
    elsewhere = dataclasses.replace(fresh, provenance={"seconds": {}}, images=None)
    assert line(elsewhere) == "equals the committed record"


def test_equal_in_every_verdict(line: Any, fresh: Record) -> None:
    other = changed(fresh, "short", 2, forwards=7, distance=0.01)
    assert line(other) == "equals the committed record in every verdict (passes or distances differ)"


def test_other_verdicts(line: Any, fresh: Record) -> None:
    other = changed(changed(fresh, "short", 2, status=Status.SURVIVED, by=None), "fgsm", 1, status=Status.SURVIVED)
    assert line(other) == "differs from the committed record in the verdicts of fgsm: 1 of 48, short: 2 of 48 samples"


def test_broken_by_another_lane(line: Any, fresh: Record) -> None:
    other = changed(fresh, "short", 1, by="short-fab")
    assert line(other) == "differs from the committed record in the verdicts of short: 1 of 48 samples"


def test_fewer_samples(line: Any, fresh: Record) -> None:
    other = dataclasses.replace(fresh, outcomes=fresh.outcomes[:-3])
    assert line(other) == "differs from the committed record in the verdicts of short: 3 of 48 samples"


def test_other_weights(line: Any, fresh: Record) -> None:
    other = dataclasses.replace(fresh, entry={**fresh.entry, "weights_sha256": "0" * 64})
    assert line(other) == "other weights than the committed record's"


def test_other_protocol(line: Any, fresh: Record) -> None:
    other = dataclasses.replace(fresh, protocol={**fresh.protocol, "eps": [0.2]})
    assert line(other) == (
        f"other protocol than the committed record's ({fresh.protocol_id}, committed {other.protocol_id})"
    )


def test_unreadable(line: Any, folder: Path) -> None:
    said = line("{}")
    path = folder / "leaderboards" / "small" / "records" / "cnn.json"
    assert said.startswith(f"the committed record cannot be read: {path}: not a record of this version")


def test_a_run_says_it_of_every_entry(copied: Path, folder: Path, given: list[str], rbvit: Callable[..., Any]) -> None:
    """Published, the next run equals; with an altered record, it differs; part of a board says nothing."""
    assert rbvit("run", "small").out.endswith("\nvit: no committed record\ncnn: no committed record\n")
    published = rbvit("run", "small", "--publish")
    assert (published.code, published.err) == (0, "")
    again = rbvit("run", "small")
    assert "\ncnn: equals the committed record\n" in again.out
    assert "\nvit: equals the committed record\n" in again.out
    path = folder / "leaderboards" / "small" / "records" / "cnn.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["entry"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert "\ncnn: other weights than the committed record's\n" in rbvit("run", "small").out
    assert given == []
    assert "committed record" not in rbvit("run", "small", "--n", "10").out
    assert given == ["vit", "cnn"], "no row runs again, but other samples are another number to judge"
