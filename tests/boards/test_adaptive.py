"""Adaptive attacks on a board: columns of their own, a worst case beside the floor, and never the rank."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from robustbench_vit.boards import build_table, publish, render, stale
from robustbench_vit.boards.badge import badge
from robustbench_vit.boards.columns import Estimate
from robustbench_vit.boards.folder import load_records
from robustbench_vit.boards.methods import methods_text
from robustbench_vit.boards.references import references_text
from robustbench_vit.boards.robustbench import model_info
from robustbench_vit.errors import ProtocolMismatchError
from robustbench_vit.plan import resolve_attack
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.statistics import wilson

Make = Callable[..., Any]
COLUMNS = (
    "entry, model, clean, pgd-40, 'autoattack:interval', 'autoattack:survivors', 'autoattack:forwards', seconds",
    "rank, entry, 'autoattack:interval', fgsm, rays, 'rays:interval', 'rays:survivors', 'rays:forwards',"
    " 'rays:seconds', best_known, 'best_known:interval', only_adaptive",
)
WEAK = ("weights: weights/weak.safetensors}", "weights: weights/weak.safetensors, adaptive: [rays, fgsm]}")
STRONG = ("weights: weights/strong.safetensors}", "weights: weights/strong.safetensors, adaptive: [rays]}")


def attacked(made: Any, record: Record, **robust: str) -> Record:
    """The record with an adaptive attack for each keyword, whose digits say which samples stayed robust."""
    first = made.board.card.attacks[-1]
    lines, evidence = list(record.outcomes), {}
    for attack, digits in robust.items():
        evidence[attack] = {**resolve_attack(made.workspace, attack, "linf"), "algorithm_versions": {"pgd": 1}}
        for eps in made.board.card.eps:
            for outcome, digit in zip(record.at(first, eps).outcomes, digits, strict=True):
                wrong = outcome.status is Status.MISCLASSIFIED
                status = outcome.status if wrong else Status.SURVIVED if digit == "1" else Status.BROKEN
                by = attack if status is Status.BROKEN else None
                lines.append(Outcome(outcome.sample, attack, "linf", eps, "untargeted", status, by, forwards=40))
    about = {"seconds": {**record.provenance["seconds"], "rays": 2.5}}
    return dataclasses.replace(record, outcomes=tuple(lines), evidence=evidence, provenance=about)


@pytest.fixture
def adaptive(make_board: Make) -> Any:
    return make_board(COLUMNS, WEAK)


@pytest.fixture
def records(adaptive: Any, make_record: Make) -> dict[str, Record]:
    """Ten samples, of which the floor leaves seven on both rows; two of weak's fall to an adaptive attack alone."""
    weak = make_record(adaptive, "weak", robust="1111111000")
    return {
        "weak": attacked(adaptive, weak, rays="0111111000", fgsm="0011111111"),
        "strong": make_record(adaptive, "strong", robust="1111111000"),
    }


def table(made: Any, records: dict[str, Record]) -> Any:
    return build_table(made.board, made.workspace, records)


def cells(made: Any, records: dict[str, Record], entry: str) -> dict[str, Any]:
    found = table(made, records)
    (row,) = (row for row in found.rows if row.entry == entry)
    return {column.key: value for column, value in zip(found.columns, row.cells, strict=True)}


def test_an_adaptive_attack_has_columns_and_lowers_best_known(adaptive: Any, records: dict[str, Record]) -> None:
    row = cells(adaptive, records, "weak")
    assert row["autoattack:interval"] == Estimate(0.7, *wilson(7, 10, 0.95))
    assert (row["fgsm"], row["rays"]) == (0.8, 0.6)
    assert row["rays:interval"] == Estimate(0.6, *wilson(6, 10, 0.95))
    assert (row["rays:survivors:rays"], row["rays:forwards"], row["rays:seconds"]) == (6, 40, 2.5)
    assert row["best_known"] == 0.5
    assert row["best_known:interval"] == Estimate(0.5, *wilson(5, 10, 0.95))
    assert row["only_adaptive"] == 2


def test_a_row_without_them_has_the_floor_and_nothing_else(adaptive: Any, records: dict[str, Record]) -> None:
    row = cells(adaptive, records, "strong")
    assert row["best_known:interval"] == row["autoattack:interval"] == Estimate(0.7, *wilson(7, 10, 0.95))
    empty = {"fgsm", "rays", "rays:interval", "rays:survivors:rays", "rays:forwards", "rays:seconds", "only_adaptive"}
    assert {key for key, value in row.items() if value is None} == empty


def test_ranks_and_order_are_those_of_the_floor(adaptive: Any, records: dict[str, Record], make_record: Make) -> None:
    """Weak falls to nothing but an adaptive attack, which leaves its rank alone."""
    weak = make_record(adaptive, "weak", robust="1" * 20)
    fallen = attacked(adaptive, weak, rays="0" * 20, fgsm="0" * 20)
    held = {"weak": fallen, "strong": make_record(adaptive, "strong", robust="1" * 5 + "0" * 15)}
    rows = table(adaptive, held).rows
    assert [(row.entry, row.rank) for row in rows] == [("weak", 1), ("strong", 2), ("absent", None)]
    assert cells(adaptive, held, "weak")["best_known"] == 0


def test_several_eps_have_columns_each(make_board: Make, make_record: Make) -> None:
    made = make_board(COLUMNS, WEAK, eps="[0.1, 0.2]")
    record = attacked(made, make_record(made, "weak", robust="11"), rays="01", fgsm="11")
    row = cells(made, {"weak": record}, "weak")
    assert (row["best_known@0.1"], row["best_known@0.2:interval"].value) == (0.5, 0.5)
    assert (row["only_adaptive@0.1"], row["rays@0.2"]) == (1, 0.5)


def test_notes_say_what_best_known_is_and_who_was_attacked(adaptive: Any, records: dict[str, Record]) -> None:
    page = render(table(adaptive, records), "md")
    notes = [line for line in page.splitlines() if line.startswith("- ")]
    assert notes == [
        "- best known: what autoattack and the adaptive attacks on a row leave together, so autoattack's own number"
        " where there are none; autoattack alone ranks. Only adaptive: samples that no attack of the board broke, and"
        " an adaptive one did.",
        "- adaptive attacks on weak: `rays` and `fgsm`.",
    ]
    assert "best known % [95 %]" in page
    assert "50.0 [23.7, 76.3]" in page


def test_rows_with_the_same_attacks_share_a_note(make_board: Make, make_record: Make) -> None:
    made = make_board(("weights/weak.safetensors}", "weights/weak.safetensors, adaptive: [rays]}"), STRONG)
    held = {name: attacked(made, make_record(made, name, robust="11"), rays="01") for name in ("weak", "strong")}
    notes = [line for line in render(table(made, held), "md").splitlines() if line.startswith("- ")]
    assert notes == ["- adaptive attacks on strong and weak: `rays`."]


@pytest.mark.parametrize("form", ["md", "csv", "tex", "json"])
def test_every_format_shows_them(adaptive: Any, records: dict[str, Record], form: str) -> None:
    page = render(table(adaptive, records), form)
    assert "best_known" in page if form in ("csv", "json") else "best known" in page
    frame = table(adaptive, records).to_frame().set_index("entry")
    assert frame.loc["weak", "best_known:estimate"] == 0.5
    assert frame["only_adaptive"].isna().to_dict() == {"weak": False, "strong": True, "absent": True}


def test_json_names_the_samples_that_fell_to_adaptive_attacks_alone(adaptive: Any, records: dict[str, Record]) -> None:
    rows = {row["entry"]: row for row in json.loads(render(table(adaptive, records), "json"))["rows"]}
    assert rows["weak"]["adaptive"] == ["rays", "fgsm"]
    assert rows["weak"]["only_to_adaptive"] == [
        {"eps": 0.2, "samples": {"digits:0": ["rays", "fgsm"], "digits:1": ["fgsm"]}}
    ]
    assert "adaptive" not in rows["strong"]


def test_an_attack_that_never_ran_is_said_and_stale(make_board: Make, make_record: Make) -> None:
    made = make_board(COLUMNS, WEAK, STRONG)
    floor = make_record(made, "strong", robust="11")
    held = {"weak": attacked(made, make_record(made, "weak", robust="11"), fgsm="01"), "strong": floor}
    page = render(table(made, held), "md")
    for name in ("weak", "strong"):
        said = f"- {name}: `rays` on its card never ran, so best known may be too high; run the board again."
        assert said in page.splitlines()
    made.save(*held.values())
    publish(made.board, made.workspace)
    assert stale(made.board, made.workspace) == [
        "leaderboards/made.yaml: adaptive attack 'rays' has not run on 'weak'; run the board again",
        "leaderboards/made.yaml: adaptive attack 'rays' has not run on 'strong'; run the board again",
    ]


def test_records_of_other_evidence_share_a_table_and_come_back(adaptive: Any, records: dict[str, Record]) -> None:
    assert records["weak"].protocol_id == records["strong"].protocol_id
    adaptive.save(*records.values())
    publish(adaptive.board, adaptive.workspace)
    assert stale(adaptive.board, adaptive.workspace) == []
    held = load_records(adaptive.folder / "leaderboards" / "made" / "records")
    assert held["weak"].evidence == records["weak"].evidence
    assert cells(adaptive, held, "weak") == cells(adaptive, records, "weak")


def test_an_attack_whose_card_has_changed_is_refused(adaptive: Any, records: dict[str, Record]) -> None:
    weak = records["weak"]
    rays = {**weak.evidence["rays"], "lanes": [{**weak.evidence["rays"]["lanes"][0], "queries": 7}]}
    held = {"weak": dataclasses.replace(weak, evidence={**weak.evidence, "rays": rays})}
    with pytest.raises(ProtocolMismatchError) as refused:
        table(adaptive, held)
    assert str(refused.value) == (
        "attack 'rays' is not what it was for the record of 'weak', so that its numbers would be called what they"
        " aren't; run the board again. They differ:\n  lanes.0.queries: 5000 / 7"
    )


def test_evidence_that_is_unfinished_leaves_the_row_incomplete(adaptive: Any, records: dict[str, Record]) -> None:
    lines = [
        dataclasses.replace(o, status=Status.NOT_RUN) if o.attack == "fgsm" else o for o in records["weak"].outcomes
    ]
    weak = dataclasses.replace(records["weak"], outcomes=tuple(lines))
    assert {row.entry: row.note for row in table(adaptive, {"weak": weak}).rows}["weak"] == "incomplete"


def test_families_show_the_mean_where_the_board_shows_best_known(make_board: Make, make_record: Make) -> None:
    recipe = ("model: digits_vit, defense: pgd-at", "model: digits_vit, defense: pgd-at, family: f, training_seed: 1")
    first = (
        "model: digits_cnn, defense: standard",
        "model: digits_cnn, defense: standard, family: f, training_seed: 0",
    )
    made = make_board(COLUMNS, WEAK, recipe, first)
    weak = attacked(made, make_record(made, "weak", robust="1110"), rays="0110", fgsm="1111")
    found = table(made, {"weak": weak, "strong": make_record(made, "strong", robust="1111")})
    (family,) = found.families
    assert (family.robust, family.best_known) == (0.875, 0.75)
    last = render(found, "md").split("\n\n")[3].splitlines()
    assert [line.split("|")[-2].strip() for line in last] == ["best known %", "-----------:", "75.0"]
    assert json.loads(render(found, "json"))["families"][0]["best_known"] == 0.75


def test_methods_and_references_name_and_cite_them(adaptive: Any, records: dict[str, Record]) -> None:
    said = methods_text(adaptive.board, adaptive.workspace, table(adaptive, records), records)
    assert (
        "weak was also attacked adaptively, with rays (Chen and Gu, 2020) and fgsm (Goodfellow et al., 2015). Best"
        " known accuracies count a sample as robust only if these failed too; autoattack alone decides ranks." in said
    )
    bib = references_text(adaptive.board, adaptive.workspace)
    assert "{chen2020rays," in bib
    assert "{goodfellow2015explaining," in bib


def test_a_badge_tells_the_best_known_accuracy(adaptive: Any, records: dict[str, Record]) -> None:
    assert "; 50.0 % best known, under rays, fgsm too" in badge(records["weak"])
    assert "best known" not in badge(records["strong"])


def test_an_export_has_the_best_known_accuracy_where_it_is_lower(adaptive: Any, records: dict[str, Record]) -> None:
    written = {name: model_info(record) for name, record in records.items()}
    assert (written["weak"]["autoattack_acc"], written["weak"]["external"]) == ("70.00", "50.00")
    assert "external" not in written["strong"]


def test_a_name_that_is_not_what_it_claims_is_called_custom(make_board: Make, make_record: Make) -> None:
    made = make_board(
        ("attacks: [pgd-40, autoattack]", "attacks: [pgd-40, square]"),
        ("entry, model, clean, pgd-40, 'autoattack:interval', 'autoattack:survivors', 'autoattack:forwards', seconds",
         "entry, autoattack"),
        ("weights: weights/weak.safetensors}", "weights: weights/weak.safetensors, adaptive: [autoattack]}"),
    )  # fmt: skip
    record = attacked(made, make_record(made, "weak", robust="11"), autoattack="01")
    claimed = {**record.evidence["autoattack"], "custom": ["lanes.0.steps: 100 in autoattack, 7 here"]}
    other = dataclasses.replace(record, evidence={"autoattack": claimed})
    assert other.custom("autoattack") == claimed["custom"]
    with pytest.raises(ProtocolMismatchError, match="custom: absent / "):
        table(made, {"weak": other})
    assert table(made, {"weak": record}).custom == {}


def test_a_notebooks_card_tells_them_apart(adaptive: Any, records: dict[str, Record]) -> None:
    page = records["weak"]._repr_html_()
    assert "rays (adaptive)" in page
    assert "autoattack (adaptive)" not in page
    assert "best known at 0.2: 50.0 % robust under autoattack and, aimed at this model, rays and fgsm" in page
    assert "best known" not in records["weak"].at("rays")._repr_html_()
