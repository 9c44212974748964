"""Which row starts next: whatever the order of events, the verdict is that of running turns one after another."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vit.engine.turns import Turns
from robustbench_vit.records.rows import LaneSpec, RowKey, RowResult, credited

checked = settings(deadline=None, max_examples=400, derandomize=True, database=None)


def row(sample: int, turn: int, found: bool) -> RowResult:
    return RowResult(RowKey("lane", 0.1, str(sample), turn), turn, None, found, None, turn + 1, 0)


@dataclass
class Simulation:
    """Rows that retire in an order somebody else chooses."""

    wins: list[list[bool]]  # by sample, by turn: would it succeed?
    rows: dict[RowKey, RowResult] = field(default_factory=dict)
    running: list[tuple[int, int]] = field(default_factory=list)
    started: list[tuple[int, int]] = field(default_factory=list)

    def turns(self) -> Turns:
        """A scheduler that knows what has retired so far."""
        known = [(int(key.sample), key.turn, result.found) for key, result in self.rows.items()]
        return Turns(len(self.wins), len(self.wins[0]), known)

    def start(self, turns: Turns, width: int, speculate_to: int) -> None:
        """Fills the free slots."""
        while len(self.running) < width:
            begun = turns.start(speculate=len(self.running) < speculate_to)
            if begun is None:
                return
            assert begun not in self.started, "a row started twice"
            assert RowKey("lane", 0.1, str(begun[0]), begun[1]) not in self.rows, "a known row started"
            self.running.append(begun)
            self.started.append(begun)

    def retire(self, turns: Turns, which: int) -> None:
        """One running row comes to its end."""
        sample, turn = self.running.pop(which % len(self.running))
        found = self.wins[sample][turn]
        result = row(sample, turn, found)
        self.rows[result.key] = result
        cancelled = turns.report(sample, turn, found)
        assert cancelled == [] or found
        assert all((sample, other) in self.running and other > turn for other in cancelled)
        self.running = [r for r in self.running if r[0] != sample or r[1] not in cancelled]

    def verdict(self, sample: int) -> tuple[list[int], bool | None]:
        counted, broken = credited(LaneSpec("l", "lane", len(self.wins[0])), 0.1, str(sample), self.rows)
        return [result.key.turn for result in counted], broken

    def expected(self, sample: int) -> tuple[list[int], bool]:
        """Of running the turns one after another."""
        wins = self.wins[sample]
        first = wins.index(True) if True in wins else None
        return list(range(len(wins) if first is None else first + 1)), first is not None


outcomes = st.integers(1, 6).flatmap(
    lambda turns: st.lists(st.lists(st.booleans(), min_size=turns, max_size=turns), min_size=1, max_size=8)
)
order = st.lists(st.integers(0, 50), min_size=60, max_size=60)


@checked
@given(wins=outcomes, order=order, width=st.integers(1, 12), speculate_to=st.integers(0, 12))
def test_the_verdict_is_the_sequential_one(wins, order, width, speculate_to):
    simulation = Simulation(wins)
    turns = simulation.turns()
    for which in order:
        simulation.start(turns, width, speculate_to)
        if not simulation.running:
            break
        simulation.retire(turns, which)
    assert not simulation.running, "nothing is lost, and it ends"
    assert turns.start(speculate=True) is None
    for sample in range(len(wins)):
        assert simulation.verdict(sample) == simulation.expected(sample)
    if speculate_to == 0:
        assert len(simulation.started) == sum(len(simulation.expected(s)[0]) for s in range(len(wins)))


@checked
@given(wins=outcomes, order=order, width=st.integers(1, 12), stops=st.lists(st.integers(1, 20), max_size=3))
def test_interruptions_change_nothing(wins, order, width, stops):
    simulation = Simulation(wins)
    turns = simulation.turns()
    for event, which in enumerate(order):
        if event in stops:  # rows that were running are forgotten and start again
            simulation.started = [r for r in simulation.started if r not in simulation.running]
            simulation.running = []
            turns = simulation.turns()
        simulation.start(turns, width, width)
        if not simulation.running:
            break
        simulation.retire(turns, which)
    turns = simulation.turns()
    for _ in range(60):
        simulation.start(turns, 1, 1)
        if not simulation.running:
            break
        simulation.retire(turns, 0)
    for sample in range(len(wins)):
        assert simulation.verdict(sample) == simulation.expected(sample)


def test_a_waiting_sample_goes_before_a_later_turn_of_a_running_one():
    turns = Turns(3, 2)
    assert [turns.start(speculate=True) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert turns.start(speculate=False) is None
    assert turns.start(speculate=True) == (0, 1)
    assert turns.report(0, 0, True) == [1]
    assert turns.report(1, 0, False) == []
    assert turns.start(speculate=False) == (1, 1)


@pytest.mark.parametrize("known", [[(0, 0, True), (0, 2, False)], [(0, 2, False), (0, 0, True)]])
def test_a_speculated_row_that_outlived_an_earlier_success_is_no_trouble_on_resumption(known):
    assert Turns(1, 3, known).start(speculate=True) is None


def test_known_rows_do_not_start_again():
    turns = Turns(2, 3, [(0, 1, False), (1, 0, False), (1, 1, True)])
    assert turns.start(speculate=False) == (0, 0)
    assert turns.start(speculate=False) is None
    turns.report(0, 0, False)
    assert turns.start(speculate=False) == (0, 2)
    assert turns.start(speculate=True) is None


def test_a_sample_that_claims_a_success_starts_nothing_early():
    turns = Turns(2, 3)
    assert [turns.start(speculate=False) for _ in range(2)] == [(0, 0), (1, 0)]
    turns.hold([0])
    assert turns.held(0)
    assert not turns.held(1)
    assert [turns.start(speculate=True) for _ in range(3)] == [(1, 1), (1, 2), None]
    turns.release()
    assert turns.start(speculate=True) == (0, 1)


def test_a_start_can_be_taken_back():
    turns = Turns(2, 2)
    assert [turns.start(speculate=True) for _ in range(3)] == [(0, 0), (1, 0), (0, 1)]
    turns.put_back(0, 1)
    assert turns.start(speculate=False) is None
    assert turns.start(speculate=True) == (0, 1)
    turns.put_back(1, 0)
    assert turns.start(speculate=False) == (1, 0)
    assert turns.start(speculate=True) == (1, 1)
    assert turns.start(speculate=True) is None


def test_the_chance_of_a_success_follows_what_was_reported():
    turns = Turns(98, 1)
    assert turns.chance == 0.5
    for sample in range(98):
        turns.start(speculate=False)
        turns.report(sample, 0, found=sample < 4)
    assert turns.chance == 0.05
