"""rbvit run --until: as few samples as it takes to know a robust accuracy within a given width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_vit.records import Record, Status
from robustbench_vit.records.journal import Journal
from robustbench_vit.running.sequential import follow
from robustbench_vit.running.until import NarrowEnough, Until
from robustbench_vit.statistics import sample_order

Rbvit = Callable[..., Any]
Finish = Callable[[str, bool], None]
WIDTH = ("--until", "0.2")


def records(folder: Path) -> dict[str, Record]:
    return {path.stem: Record.load(path) for path in sorted((folder / "records").glob("*.json"))}


@pytest.fixture
def stopped(folder: Path, given: list[str], rbvit: Rbvit) -> tuple[Any, Path]:
    """What the command said, and its folder."""
    ran = rbvit("run", "small", *WIDTH)
    assert (ran.code, ran.err, given) == (0, "", ["vit", "cnn"])
    return ran, folder / "runs" / "small-until"


def test_an_entry_stops_at_the_first_narrow_interval_in_the_seeds_order(
    stopped: tuple[Any, Path], finished: Any, given: list[str], rbvit: Rbvit, journalled: Callable[[Path], Any]
) -> None:
    ran, folder = stopped
    held = records(folder)
    for name, whole in records(finished.run).items():
        record, offered = held[name], whole.at("short", 0.1).samples
        order = [offered[position] for position in sample_order(offered, 0)]
        assert record.at("short", 0.1).samples == order[: record.n]
        assert record.n < len(order) == 48
        rule = Until(0.2, 0.95, 0).rule
        for sample, robust in zip(record.at("short", 0.1).samples, record.at("short", 0.1).robust, strict=True):
            assert not rule.over
            rule = rule.take(sample, bool(robust))
        assert rule.over
        assert rule.sequence.interval == record.at("short", 0.1).interval(0.95)
        assert f"{name}: {record.n} of 48 samples, short in [" in ran.out
        full = {(o.sample, o.attack): o for o in whole.outcomes}  # what it did evaluate, it evaluated as ever
        assert all(outcome == full[outcome.sample, outcome.attack] for outcome in record.outcomes)
        assert {o.attack for o in record.outcomes} == {"fgsm", "short"}
        assert all(o.status is not Status.NOT_RUN for o in record.outcomes)
    before = journalled(folder)
    again = rbvit("run", "small", *WIDTH)
    assert given == ["vit", "cnn"]
    assert again.out.count("already complete, nothing computed") == 2
    assert journalled(folder) == before


def test_rows_of_one_width_share_a_table_though_their_samples_differ(
    stopped: tuple[Any, Path], finished: Any, rbvit: Rbvit, folder: Path
) -> None:
    _, run = stopped
    held = records(run)
    assert len({record.protocol_id for record in held.values()}) == 1
    assert held["cnn"].protocol["profile"] == "until"
    assert held["cnn"].protocol["until"] == {"half_width": 0.2, "confidence": 0.95, "order_seed": 0}
    table = rbvit("table", "small", "--records", str(run / "records")).out
    assert table.startswith("n of 48 samples of samples.npz/")
    assert "; each row stopped when short was known within ± 20 points; " in table
    assert "[95 % confidence sequences]" in table
    for name, record in held.items():
        low, high = (100 * bound for bound in record.at("short", 0.1).interval(0.95))
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
        assert str(record.n) in [cell.strip() for cell in row.split("|")]
        assert f"[{low:.1f}, {high:.1f}]" in row
    records(finished.run)["vit"].save(run / "records" / "vit.json")
    mixed = rbvit("table", "small", "--records", str(run / "records"))
    assert mixed.code == 2
    assert 'profile: "full" / "until"' in mixed.err


def test_width_and_interruption_change_nothing(
    stopped: tuple[Any, Path], given: list[str], rbvit: Rbvit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = records(stopped[1])["cnn"].outcomes
    appended, count = Journal.append, iter(range(1000))

    def interrupted(self: Journal, run: int, batches: Any) -> None:
        appended(self, run, batches)
        if next(count) == 5:
            raise KeyboardInterrupt

    arguments = ("run", "small", *WIDTH, "--entry", "cnn", "--width", "7", "--out", "again")
    with monkeypatch.context() as interrupting:
        interrupting.setattr(Journal, "append", interrupted)
        assert rbvit(*arguments).code == 130
    assert rbvit(*arguments).code == 0
    assert records(Path("again"))["cnn"].outcomes == whole


def test_worker_processes_find_the_same(stopped: tuple[Any, Path], launch: Any, folder: Path) -> None:
    ran = launch(folder, "run", "small", *WIDTH, "--workers", "2", "--out", "two").wait()
    assert ran.code == 0
    there = records(folder / "two")
    assert {name: record.outcomes for name, record in records(stopped[1]).items()} == {
        name: record.outcomes for name, record in there.items()
    }


def test_all_samples_may_be_too_few(folder: Path, given: list[str], rbvit: Rbvit) -> None:
    ran = rbvit("run", "small", "--until", "0.02", "--entry", "cnn", "--n", "10")
    assert ran.code == 0
    assert records(folder / "runs" / "small-until")["cnn"].n == 10
    assert ran.out.endswith("%: not within ± 2, there are no more samples\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--until", "0.5"], "--until is half the interval's width, between 0 and 0.5, got 0.5; did you mean 0.005?"),
        (["--until", "2"], "--until is half the interval's width, between 0 and 0.5, got 2; did you mean 0.02?"),
        (["--until", "0"], "--until is half the interval's width, between 0 and 0.5, got 0"),
        (["--until", "0.1", "--publish"], "--publish needs the whole board, and --until stops early: leave one out"),
        (
            ["--until", "0.1", "--smoke"],
            "--smoke shows whether a board runs, --until how robust its entries are: leave one out",
        ),
    ],
)
def test_bad_options(folder: Path, given: list[str], rbvit: Rbvit, arguments: list[str], message: str) -> None:
    ran = rbvit("run", "small", *arguments)
    assert (ran.code, ran.out, ran.err, given) == (2, "", f"error: {message}\n", [])
    assert not (folder / "runs").exists()


def test_the_interval_covers_although_it_decides_when_to_stop() -> None:
    ids = [f"sample {i}" for i in range(400)]
    missed = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        robust = dict(zip(ids, (generator.random(len(ids)) < 0.05).tolist(), strict=True))

        def evaluate(chunk: Sequence[str], finish: Finish, robust: dict[str, bool] = robust) -> None:
            for sample in sorted(chunk, key=lambda sample: robust[sample]):  # robust ones take longest
                finish(sample, robust[sample])

        rule: NarrowEnough = follow(Until(0.08, 0.95, 0).rule, ids, evaluate, {}, width=64)
        low, high = rule.sequence.interval
        assert rule.over
        missed += not low <= 0.05 <= high
    assert missed <= 5
