"""rbvit gate: decided in a fixed order on as few samples as it takes, and wrong no more often than promised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_vit.comparing.judge import conclude
from robustbench_vit.records import Record
from robustbench_vit.records.journal import Journal
from robustbench_vit.running.not_worse import NotWorse
from robustbench_vit.running.sequential import SMALLEST_CHUNK, follow
from robustbench_vit.statistics import Decision, mcnemar, sample_order

Rbvit = Callable[..., Any]
Finish = Callable[[str, bool], None]
IDS = [f"sample {i}" for i in range(80)]


def verdicts(generator: np.random.Generator, flips: float, drop: float) -> tuple[dict[str, bool], dict[str, bool]]:
    """Baseline and candidate: of all samples a share `flips` differs, and the candidate is robust on `drop` fewer."""
    u = generator.random(len(IDS))
    lost, gained = u < (flips + drop) / 2, u > 1 - (flips - drop) / 2
    base = generator.random(len(IDS)) < 0.5
    before, after = (base | lost) & ~gained, (base & ~lost) | gained
    return dict(zip(IDS, before.tolist(), strict=True)), dict(zip(IDS, after.tolist(), strict=True))


def engine(generator: np.random.Generator, robust: dict[str, bool]) -> Callable[[Sequence[str], Finish], None]:
    """Finishes the samples of a chunk as the engine does: broken ones as their lane breaks them, robust ones last."""

    def evaluate(chunk: Sequence[str], finish: Finish) -> None:
        lane = np.where([robust[sample] for sample in chunk], 4, generator.integers(0, 4, len(chunk)))
        for position in np.lexsort((generator.random(len(chunk)), lane)):
            sample = str(chunk[int(position)])
            finish(sample, robust[sample])

    return evaluate


def gated(seed: int, flips: float, drop: float, max_drop: float, alpha: float = 0.05) -> tuple[str, int]:
    """What a gate concludes, and after how many samples."""
    generator = np.random.default_rng(seed)
    before, after = verdicts(generator, flips, drop)
    order = [IDS[position] for position in sample_order(IDS, seed)]
    rule = follow(NotWorse.at(before, max_drop, alpha), order, engine(generator, after), {}, width=64)
    if rule.decision is not None:
        return rule.decision.value, rule.test.n
    return conclude(rule.test.flips, mcnemar(rule.test.flips), max_drop, alpha).value, rule.test.n


RUNS = 2000
TOO_MANY = 0.05 * RUNS


def test_no_more_than_alpha_false_alarms_while_it_looks_after_every_sample() -> None:
    found = [gated(seed, flips=0.24, drop=0.0, max_drop=0.2)[0] for seed in range(RUNS)]
    assert found.count("worse") <= TOO_MANY
    assert found.count("not worse") > RUNS / 2  # it isn't silent either


def test_no_more_than_alpha_drops_are_overlooked_while_it_looks_after_every_sample() -> None:
    found = [gated(seed, flips=0.24, drop=0.2, max_drop=0.2)[0] for seed in range(RUNS)]
    assert found.count("not worse") <= TOO_MANY


def test_hearing_of_samples_as_they_finish_would_cry_wolf() -> None:
    """Why finished samples wait: the broken ones come first, so losses are heard of before gains."""

    def hasty(seed: int) -> str | None:
        generator = np.random.default_rng(seed)
        before, after = verdicts(generator, 0.24, 0.0)
        rule = NotWorse.at(before, 0.2, 0.05)
        heard: list[str] = []
        engine(generator, after)(IDS, lambda sample, robust: heard.append(sample))
        for sample in heard:
            if not rule.over:
                rule = rule.take(sample, after[sample])
        return rule.decision

    assert [hasty(seed) for seed in range(60)].count(Decision.WORSE) > 10


def test_chunks_width_and_what_was_known_change_nothing() -> None:
    for seed in range(12):
        generator = np.random.default_rng(seed)
        before, after = verdicts(generator, 0.2, 0.1 * (seed % 2))
        order = [IDS[position] for position in sample_order(IDS, seed)]
        rule = NotWorse.at(before, 0.1, 0.05, entries=3)
        whole = follow(rule, order, engine(generator, after), {}, width=1000)
        for width in (1, 40, 64):
            known = {sample: after[sample] for sample in generator.permutation(IDS)[:30]}
            assert follow(rule, order, engine(generator, after), known, width) == whole


def test_it_stops_in_the_middle_of_a_chunk() -> None:
    finished: list[str] = []

    def evaluate(chunk: Sequence[str], finish: Finish) -> None:
        for sample in chunk:
            finished.append(sample)
            finish(sample, False)

    rule = follow(NotWorse.at(dict.fromkeys(IDS, True), 0.02, 0.05), IDS, evaluate, {}, width=64)
    assert rule.decision is Decision.WORSE
    assert len(finished) == rule.test.n < SMALLEST_CHUNK


def test_a_known_decision_evaluates_nothing() -> None:
    def evaluate(chunk: Sequence[str], finish: Finish) -> None:
        pytest.fail(f"evaluated {len(chunk)} samples")

    known = dict.fromkeys(IDS, False)
    rule = follow(NotWorse.at(dict.fromkeys(IDS, True), 0.02, 0.05), IDS, evaluate, known, width=64)
    assert rule.decision is Decision.WORSE


def test_false_alarms_of_several_entries_do_not_add_up() -> None:
    one, four = (NotWorse.at({}, 0.02, 0.05, entries) for entries in (1, 4))
    assert (one.test.alpha, one.strict.alpha) == (0.025, 0.025)
    assert (four.test.alpha, four.strict.alpha) == (0.025, 0.00625)


def test_the_look_ahead_is_when_it_ends_without_another_flip() -> None:
    rule = NotWorse.at(dict.fromkeys(IDS, True), 0.1, 0.05)
    for sample in IDS[:20]:
        rule = rule.take(sample, sample != IDS[3])
    ahead = rule.ahead()
    for sample in IDS[20 : 20 + ahead]:
        assert not rule.over
        rule = rule.take(sample, True)
    assert rule.over


@dataclass(frozen=True)
class Gate:
    """A workspace with the records of a finished run as its board's own."""

    folder: Path
    rbvit: Rbvit

    def __call__(self, *arguments: str) -> Any:
        return self.rbvit("gate", "small", *arguments)

    def json(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code and content; nothing on stderr."""
        ran = self(*arguments, "--json")
        assert ran.err == ""
        return ran.code, json.loads(ran.out)

    @property
    def records(self) -> Path:
        return self.folder / "leaderboards" / "small" / "records"

    def change(self, name: str, **changes: Any) -> None:
        """Replaces fields of a committed record."""
        path = self.records / f"{name}.json"
        replace(Record.load(path), **changes).save(path)


@pytest.fixture
def gate(folder: Path, rbvit: Rbvit, finished: Any, given: list[str]) -> Gate:
    own = Gate(folder, rbvit)
    shutil.copytree(finished.run / "records", own.records)
    return own


@pytest.fixture
def weaker(gate: Gate) -> Gate:
    """The same, but the weights of `cnn` on the card are those of the undefended network."""
    folder = gate.folder / "leaderboards" / "small"
    from robustbench_vit.cards.workspace import builtin_layer

    trained = builtin_layer() / "leaderboards" / "digits-linf" / "weights" / "cnn-standard.safetensors"
    shutil.copy(trained, folder / "weights" / "cnn-pgd-at.safetensors")
    return gate


def only(found: dict[str, Any]) -> dict[str, Any]:
    (item,) = found["items"]
    return item


def test_equal_weights_are_reported_and_nothing_is_evaluated(gate: Gate, given: list[str]) -> None:
    ran = gate()
    assert (ran.code, ran.err, given) == (0, "", [])
    assert ran.out.count("the weights are the baseline's, so nothing was evaluated") == 2
    assert not (gate.folder / "runs").exists()
    code, found = gate.json()
    assert code == 0
    assert [(item["conclusion"], item["decided_by"], item["used"], item["of"]) for item in found["items"]] == [
        ("not worse", "equal weights", 0, 48)
    ] * 2
    assert all(cost["passes"] == 0 < cost["passes_saved"] for cost in found["cost"].values())


@pytest.mark.parametrize("field", ["defense_version", "normalise", "model_args"])
def test_equal_weights_in_another_model_are_evaluated(gate: Gate, given: list[str], field: str) -> None:
    entry = {**Record.load(gate.records / "cnn.json").entry, field: {"changed": 1}}
    gate.change("cnn", entry=entry)
    assert gate("--entry", "cnn", "--max-drop", "0.3").code == 0
    assert given == ["cnn"]


def test_always_evaluates_and_stops_early(gate: Gate, given: list[str], finished: Any) -> None:
    code, found = gate.json("--always", "--entry", "cnn", "--max-drop", "0.25")
    item = only(found)
    assert (code, given, found["command"]) == (0, ["cnn"], "rbvit gate")
    assert (item["conclusion"], item["decided_by"], item["attack"], item["eps"]) == (
        "not worse",
        "sequential test",
        "short",
        0.1,
    )
    assert item["used"] == item["flips"]["n"] < item["of"] == 48
    assert item["flips"]["lost"] == item["flips"]["gained"] == 0  # the same weights, evaluated again
    assert found["cost"]["cnn"]["passes"] > 0
    again = gate.json("--always", "--entry", "cnn", "--max-drop", "0.25")
    assert given == ["cnn"]  # nothing was left to do
    assert again == (code, found)


def test_a_weaker_model_is_worse(weaker: Gate, given: list[str]) -> None:
    ran = weaker("--entry", "cnn", "--junit", "gate.xml", "--markdown", "gate.md")
    assert (ran.code, ran.err) == (1, "")
    assert "cnn, short (linf 0.1): worse." in ran.out
    assert "decided by a sequential test after " in ran.out
    assert "<failure" in Path("gate.xml").read_text(encoding="utf-8")
    assert "**worse**" in Path("gate.md").read_text(encoding="utf-8")


def test_the_lost_samples_are_those_of_the_first_in_the_seeds_order(weaker: Gate) -> None:
    for seed in (0, 5):
        _, found = weaker.json("--entry", "cnn", "--seed", str(seed))
        item, baseline = only(found), Record.load(weaker.records / "cnn.json").at("short", 0.1)
        order = [baseline.samples[position] for position in sample_order(baseline.samples, seed)]
        assert found["order_seed"] == seed
        assert {flip["sample"] for flip in item["lost"]} <= set(order[: item["used"]])
        assert item["lost"][-1]["sample"] == order[item["used"] - 1]  # the one that decided


def test_width_changes_neither_the_decision_nor_the_samples(weaker: Gate, given: list[str]) -> None:
    found = [weaker.json("--entry", "cnn", "--width", width, "--out", f"gate-{width}")[1] for width in ("3", "256")]
    assert len(given) == 2
    assert found[0]["items"] == found[1]["items"]


@pytest.mark.parametrize("after", [1, 6])
def test_interrupted_it_goes_on_and_finds_the_same(
    after: int, weaker: Gate, given: list[str], monkeypatch: pytest.MonkeyPatch, retired: Callable[[Path], int]
) -> None:
    arguments = ("--max-drop", "0.2", "--entry", "cnn", "--always")
    _, whole = weaker.json(*arguments, "--out", "whole")
    appended, count = Journal.append, iter(range(1000))

    def interrupted(self: Journal, run: int, batches: Any) -> None:
        appended(self, run, batches)
        if next(count) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as interrupting:
        interrupting.setattr(Journal, "append", interrupted)
        ran = weaker(*arguments)
        assert ran.code == 130
        assert "are kept in runs/small-gate. Run the same command again to go on." in ran.err
    before = retired(weaker.folder / "runs" / "small-gate")
    _, found = weaker.json(*arguments)
    assert found["items"] == whole["items"]
    assert retired(weaker.folder / "runs" / "small-gate") >= before


def test_worker_processes_find_the_same(weaker: Gate, launch: Any) -> None:
    _, here = weaker.json("--always", "--max-drop", "0.2", "--out", "here")
    ran = launch(weaker.folder, "gate", "small", "--always", "--max-drop", "0.2", "--workers", "2", "--json").wait()
    assert ran.code == 1
    assert json.loads(ran.out)["items"] == here["items"]


def test_undecided_on_all_samples_fails_only_when_strict(gate: Gate) -> None:
    code, found = gate.json("--always", "--entry", "cnn", "--max-drop", "0.02")
    item = only(found)
    assert (code, item["conclusion"], item["decided_by"], item["used"]) == (0, "undecided", "all samples", 48)
    assert item["samples_to_decide"] > 48
    assert gate("--always", "--entry", "cnn", "--max-drop", "0.02", "--strict").code == 1


def test_one_record_is_the_baseline_of_the_one_entry(gate: Gate, given: list[str]) -> None:
    code, found = gate.json("--entry", "vit", "--baseline", str(gate.records / "cnn.json"))
    assert (code, only(found)["conclusion"], given) == (1, "worse", ["vit"])  # the undefended against the trained


def refused(ran: Any, message: str, given: list[str]) -> None:
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == f"error: {message}\n"


def test_a_board_without_records_is_refused(folder: Path, rbvit: Rbvit, given: list[str]) -> None:
    refused(
        rbvit("gate", "small"),
        "leaderboards/small.yaml has no records of its own to compare with; name a baseline (--baseline), or make them:"
        " rbvit run small --publish",
        given,
    )


def test_a_missing_entry_is_refused_with_the_nearest_name(gate: Gate, given: list[str]) -> None:
    (gate.records / "cnn.json").rename(gate.records / "cnn2.json")
    refused(
        gate("--entry", "cnn"),
        "the records of small: unknown baseline of entry 'cnn'; did you mean 'cnn2'?",
        given,
    )


def test_another_protocol_is_refused_with_the_fields(gate: Gate, given: list[str]) -> None:
    card = gate.folder / "leaderboards" / "small.yaml"
    card.write_text(card.read_text(encoding="utf-8").replace("eps: 0.1", "eps: 0.2"), encoding="utf-8")
    refused(
        gate("--entry", "cnn"),
        "leaderboards/small.yaml and the baseline of 'cnn' in the records of small don't belong together; they"
        " differ:\n         eps.0: 0.2 / 0.1",
        given,
    )


def test_a_smoke_profile_is_refused(gate: Gate, given: list[str]) -> None:
    assert gate.rbvit("run", "small", "--smoke", "--entry", "cnn").code == 0
    given.clear()
    ran = gate("--entry", "cnn", "--baseline", "runs/small-smoke")
    assert (ran.code, given) == (2, [])
    assert '\n         profile: "full" / "smoke"' in ran.err


def test_missing_samples_are_refused(gate: Gate, given: list[str]) -> None:
    record = Record.load(gate.records / "cnn.json")
    gate.change("cnn", outcomes=tuple(o for o in record.outcomes if o.sample not in record.at("short").samples[40:]))
    refused(
        gate("--entry", "cnn"),
        "the baseline of 'cnn' in the records of small lacks 8 of the board's 48 samples, such as"
        f" '{record.at('short').samples[40]}'; evaluate the baseline on all of them",
        given,
    )


def test_a_newer_format_is_refused(gate: Gate, given: list[str]) -> None:
    path = gate.records / "cnn.json"
    path.write_text(path.read_text(encoding="utf-8").replace("/record/2", "/record/9"), encoding="utf-8")
    ran = gate("--entry", "cnn")
    assert (ran.code, given) == (2, [])
    assert "cnn.json" in ran.err


def test_too_few_samples_are_refused(gate: Gate, given: list[str]) -> None:
    card = gate.folder / "leaderboards" / "small.yaml"
    card.write_text(card.read_text(encoding="utf-8").replace("samples: all", "samples: 5"), encoding="utf-8")
    refused(
        gate("--always"),
        "leaderboards/small.yaml: 5 samples are too few to decide anything; 'not worse' takes 189 even without a flip,"
        " 'worse' takes 7",
        given,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "2"], "--max-drop is a share between 0 and 1, got 2; did you mean 0.02?"),
        (["--alpha", "0"], "--alpha is a share between 0 and 1, got 0"),
        (["--entry", "cn"], "leaderboards/small.yaml: unknown entry 'cn'; did you mean 'cnn'?"),
    ],
)
def test_bad_options(gate: Gate, given: list[str], arguments: list[str], message: str) -> None:
    refused(gate(*arguments), message, given)
