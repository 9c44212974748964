"""Adaptive attacks of an entry: run beside the board's, resumed, kept out of the protocol, and refused when bad."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.cards import BoardCard, Loaded, open_workspace
from robustbench_vit.data import load_dataset
from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.evaluation import algorithm_versions
from robustbench_vit.plan import make_plan, with_evidence
from robustbench_vit.records import Record
from robustbench_vit.running.committed import compare_with_committed
from robustbench_vit.running.entries import board_plan
from robustbench_vit.running.sequential import ranking

Rbvit = Callable[..., Any]
CNN = "weights: weights/cnn-pgd-at.safetensors"
COLUMNS = "'short:survivors', 'short:forwards'"


def change(folder: Path, *replacements: tuple[str, str]) -> None:
    """Replaces text on the card of the board `small`."""
    path = folder / "leaderboards" / "small.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def changed(folder: Path, *replacements: tuple[str, str]) -> Loaded[BoardCard]:
    """The board `small` with replacements on its card."""
    change(folder, *replacements)
    return open_workspace(folder).board("small")


@pytest.fixture
def weak_floor(folder: Path) -> Loaded[BoardCard]:
    """Its floor is one step; an adaptive attack on the cnn takes twenty."""
    columns = (COLUMNS, "pgd-20, best_known, only_adaptive")
    floor = ("eps: 0.1", "eps: 0.25"), ("attacks: [fgsm, short]", "attacks: [fgsm]"), ("fgsm, 'short:interval'", "fgsm")
    return changed(folder, *floor, columns, (CNN, f"{CNN}, adaptive: [pgd-20]"))


def record(folder: Path, entry: str, run: str = "small") -> Record:
    return Record.load(folder / "runs" / run / "records" / f"{entry}.json")


def test_it_runs_on_its_entry_and_shows_what_the_floor_hides(
    weak_floor: Any, folder: Path, given: list[str], rbvit: Rbvit
) -> None:
    ran = rbvit("run", "small")
    assert (ran.code, ran.err, given) == (0, "", ["vit", "cnn"])
    cnn, vit = record(folder, "cnn"), record(folder, "vit")
    assert cnn.protocol_id == vit.protocol_id
    assert cnn.budgets == [("fgsm", 0.25), ("pgd-20", 0.25)]
    assert (vit.evidence, vit.budgets) == ({}, [("fgsm", 0.25)])
    floor, twenty = cnn.at("fgsm").robust, cnn.at("pgd-20").robust
    assert (cnn.best_known() == floor & twenty).all()
    assert list(cnn.only_adaptive()) == [
        s for s, f, t in zip(cnn.at("fgsm").samples, floor, twenty, strict=True) if f > t
    ]
    assert len(cnn.only_adaptive()) > 0, "the test wants a floor that hides something"
    assert cnn.evidence["pgd-20"]["lanes"][0]["steps"] == 20
    assert cnn.evidence["pgd-20"]["algorithm_versions"].keys() == {"pgd"}
    assert cnn.at("pgd-20").mean("backwards") > 1
    assert cnn.provenance["seconds"].keys() == {"fgsm", "pgd-20"}
    assert [judgement.attack for judgement in cnn.judgements] == ["fgsm"]
    assert "- adaptive attacks on cnn: `pgd-20`." in ran.out
    (row,) = (line for line in ran.out.splitlines() if line.startswith("| cnn"))
    assert row.split("|")[-2].strip() == str(len(cnn.only_adaptive()))


def test_a_run_of_other_entries_shows_no_column_of_it(weak_floor: Any, given: list[str], rbvit: Rbvit) -> None:
    ran = rbvit("run", "small", "--entry", "vit")
    assert (ran.code, ran.err, given) == (0, "", ["vit"])
    head = next(line for line in ran.out.splitlines() if line.startswith("| entry"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "entry", "clean %", "fgsm %", "best known %", "only adaptive",
    ]  # fmt: skip


def test_images_are_those_of_the_floor_and_verify(
    weak_floor: Any, folder: Path, given: list[str], rbvit: Rbvit
) -> None:
    assert rbvit("run", "small", "--entry", "cnn").code == 0
    cnn, data = record(folder, "cnn"), load_dataset("samples.npz")
    moved = (cnn.images != data.x).reshape(len(data), -1).any(1)
    assert moved.tolist() == [verdict == "fgsm" for verdict in cnn.at("fgsm").verdicts]
    said = json.loads(rbvit("verify", "runs/small/records/cnn.json", "--data", "samples.npz", "--json").out)
    assert (said["attack"], said["passed"]) == ("fgsm", True)
    sheet = rbvit("pictures", "runs/small/records/cnn.json", "--data", "samples.npz", "--out", "sheet.png")
    assert (sheet.code, sheet.err) == (0, "")


def test_adding_one_to_a_finished_run_computes_that_one_alone(
    copied: Path, folder: Path, given: list[str], rbvit: Rbvit, journalled: Callable[[Path], Any]
) -> None:
    before, whole = journalled(copied), record(folder, "cnn")
    changed(folder, (CNN, f"{CNN}, adaptive: [pgd-20]"))
    ran = rbvit("run", "small")
    assert (ran.code, given) == (0, ["cnn"])
    assert "vit: already complete, nothing computed" in ran.out
    after = journalled(copied)
    assert before.items() <= after.items()
    cnn = record(folder, "cnn")
    fresh = [o for o in cnn.outcomes if o.attack == "pgd-20"]
    assert len(after) - len(before) == sum(o.status != "misclassified" for o in fresh)
    assert cnn.protocol_id == whole.protocol_id
    assert tuple(o for o in cnn.outcomes if o.attack != "pgd-20") == tuple(whole.outcomes)
    assert rbvit("run", "small").out.count("already complete, nothing computed") == 2


def test_the_plan_counts_its_passes_for_its_entry(weak_floor: Any, rbvit: Rbvit) -> None:
    ran = rbvit("plan", "small")
    assert (ran.code, ran.err) == (0, "")
    head, tail = ran.out.split("\n\n")
    assert head.splitlines()[2:] == [
        "fgsm:",
        "  fgsm: 1 row a sample, 2 forwards, 1 backwards",
        "pgd-20, adaptive, on cnn:",
        "  pgd-20: 1 row a sample, 21 forwards, 20 backwards",
        "a robust sample costs at most 3 forward and 1 backward passes",
    ]
    vit, cnn = tail.splitlines()
    assert vit.endswith("one thread")
    assert cnn.endswith("one thread, with its adaptive attacks 24 forward and 21 backward passes")


def test_smoke_shortens_it_too(weak_floor: Any, folder: Path, given: list[str], rbvit: Rbvit) -> None:
    assert rbvit("run", "small", "--smoke").code == 0
    cnn = record(folder, "cnn", "small-smoke")
    assert cnn.evidence["pgd-20"]["lanes"][0]["steps"] == 4
    assert max(o.backwards for o in cnn.outcomes) <= 4


def test_a_run_that_stops_early_stops_by_the_floor(
    weak_floor: Any, folder: Path, given: list[str], rbvit: Rbvit
) -> None:
    ran = rbvit("run", "small", "--until", "0.2", "--entry", "cnn")
    assert (ran.code, ran.err) == (0, "")
    cnn = record(folder, "cnn", "small-until")
    assert cnn.n < 48
    assert cnn.complete
    assert len(cnn.at("pgd-20").outcomes) == cnn.n == len(cnn.best_known())
    assert rbvit("run", "small", "--until", "0.2", "--entry", "cnn").out.count("nothing computed") == 1


def test_a_gate_asks_the_floor_alone(copied: Path, folder: Path, given: list[str], rbvit: Rbvit) -> None:
    changed(folder, (CNN, f"{CNN}, adaptive: [pgd-20]"))
    arguments = ("gate", "small", "--baseline", "runs/small/records", "--entry", "cnn", "--always", "--max-drop", "0.3")
    ran = rbvit(*arguments, "--json")
    assert ran.code == 0
    assert [item["attack"] for item in json.loads(ran.out)["items"]] == ["short"]


def test_comparisons_are_of_the_floor(copied: Path, folder: Path, given: list[str], rbvit: Rbvit) -> None:
    plain = record(folder, "cnn")
    changed(folder, (CNN, f"{CNN}, adaptive: [pgd-20]"))
    assert rbvit("run", "small", "--entry", "cnn").code == 0
    plain.save(folder / "before.json")
    ran = rbvit("compare", "before.json", "runs/small/records/cnn.json", "--max-drop", "0.3", "--json")
    assert [item["attack"] for item in json.loads(ran.out)["items"]] == ["fgsm", "short"]


def test_a_committed_record_without_it_is_compared_in_the_rest(
    copied: Path, folder: Path, given: list[str], rbvit: Rbvit
) -> None:
    committed = record(folder, "cnn")
    board = changed(folder, (CNN, f"{CNN}, adaptive: [pgd-20]"))
    assert rbvit("run", "small", "--entry", "cnn").code == 0
    fresh = {"cnn": record(folder, "cnn")}
    path = folder / "leaderboards" / "small" / "records" / "cnn.json"
    committed.save(path)
    (line,) = compare_with_committed(board, fresh).values()
    assert line == "equals the committed record; other adaptive attacks: pgd-20"
    fresh["cnn"].save(path)
    (line,) = compare_with_committed(board, fresh).values()
    assert line == "equals the committed record"


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("adaptive", "message"),
    [
        ("[pgd-2]", ", entry 'cnn': unknown attack 'pgd-2'; did you mean 'pgd-20'?"),
        ("[bad]", None),
        (
            "[rays, fgsm]",
            ": entry 'cnn': adaptive attack 'fgsm' is one of the board's attacks, which run on every entry; leave it"
            " out",
        ),
        ("[rays, rays]", ": entry 'cnn': adaptive attack 'rays' stands twice; name each once"),
    ],
)
def test_a_bad_one_is_refused_before_any_work(
    folder: Path, rbvit: Rbvit, command: str, adaptive: str, message: str | None
) -> None:
    bad = "version: 1\nabout: Bad.\nreference: none\nextends: pgd-20\nsteps: 0\n"
    (folder / "attacks" / "bad.yaml").write_text(bad, encoding="utf-8")
    change(folder, (CNN, f"{CNN}, adaptive: {adaptive}"))
    before = sorted(folder.rglob("*"))
    ran = rbvit(command, "small")
    assert (ran.code, ran.out) == (2, "")
    if message is not None:
        assert ran.err == f"error: leaderboards/small.yaml{message}\n"
    else:
        assert "entry 'cnn': attacks/bad.yaml: field 'steps'" in ran.err
    assert sorted(folder.rglob("*")) == before


def test_a_plans_evidence_is_no_part_of_its_protocol_and_follows_its_policy(folder: Path) -> None:
    workspace = open_workspace(folder)
    board = workspace.board("small")
    plan, _ = board_plan(board, workspace, None, smoke=False)
    names = ["autoattack", "pgd-20"]
    more = with_evidence(plan, workspace, names, algorithm_versions(workspace, names, "linf"))
    assert (more.protocol_id, dataclasses.replace(more, evidence=())) == (plan.protocol_id, plan)
    assert [attack.name for attack in more.all_attacks] == ["fgsm", "short", *names]
    lanes = {policy: [lane.name for lane in more.under(policy).evidence[0].lanes] for policy in ("A", "B", "C")}
    assert lanes == {
        "A": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "B": ["apgd-ce-rand", "apgd-dlr-rand"],
        "C": ["square", "rays"],
    }
    late = with_evidence(plan.under("B"), workspace, names, algorithm_versions(workspace, names, "linf"))
    assert late == more.under("B")
    assert ranking(more) == ranking(plan)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["pgd-20", "pgd-20"], InputError, "adaptive attack 'pgd-20' stands twice; name each once"),
        (["fgsm"], InputError, "one of the board's attacks, which run on every entry; leave it out"),
        (["pgd-2"], UnknownNameError, "unknown attack 'pgd-2'; did you mean 'pgd-20'"),
    ],
)
def test_a_plan_refuses_evidence_it_has_or_does_not_know(names: list[str], error: Any, message: str) -> None:
    workspace, data = open_workspace(), load_dataset("digits").first(2)
    versions = algorithm_versions(workspace, ["fgsm", "pgd-20"], "linf")
    plan = make_plan(workspace, ["fgsm"], "linf", [0.1], data, 0, versions)
    with pytest.raises(error, match=message):
        with_evidence(plan, workspace, names, versions)
