"""The sentences for a paper: every part of them follows the card and the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from robustbench_vit.boards.folder import load_records
from robustbench_vit.boards.generated import board_table, citation
from robustbench_vit.boards.methods import methods_text
from robustbench_vit.boards.references import references_text
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.cli import main
from robustbench_vit.data import load_dataset
from robustbench_vit.errors import InputError
from robustbench_vit.records import Evidence, Judgement, Reason, Reliability

Make = Callable[..., Any]
STRONG = Judgement(
    "autoattack", 0.2, Reliability(Evidence.STRONG, (Reason("check", Evidence.STRONG, "said"),), {}, 0.0)
)


def said(made: Any) -> str:
    return methods_text(made.board, made.workspace, board_table(made.board, made.workspace))


def test_the_embedded_board() -> None:
    workspace = Workspace((builtin_layer(),))
    board = workspace.board("digits-linf")
    records = load_records(board.path.parent / "digits-linf" / "records")
    (protocol,) = {record.protocol_id for record in records.values()}
    assert methods_text(board, workspace, board_table(board, workspace)) == (
        "We evaluate ten models with pgd-40 (Madry et al., 2018) and AutoAttack (standard; Croce and Hein, 2020) in"
        " linf at eps = 0.2 on all n = 500 test images of scikit-learn's handwritten digits (Alpaydin and Kaynak, 1998;"
        " Pedregosa et al., 2011), searched in IEEE float32 and every adversarial image rechecked, seed 0, with"
        f" robustbench_vit 0.1.0 (protocol {protocol}). Accuracies are shares of all samples, given with 95 % Wilson"
        " intervals (Wilson, 1927) over the draw of the test images; rank is one plus the number of rows that are"
        " significantly better under autoattack by exact McNemar tests (McNemar, 1947), with Holm's correction (Holm,"
        " 1979) over 45 pairs, α = 0.05.\n"
    )
    assert len(load_dataset("digits", "test")) == 500  # what 'all' says


def test_one_model_is_not_ranked_and_fewer_samples_are_the_first(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    text = said(made)
    assert text.startswith("We evaluate one model with ")
    assert "on the first n = 10 of 500 test images of scikit-learn's" in text
    assert "McNemar" not in text


def test_two_models_are_one_pair(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"), make_record(made, "strong"))
    text = said(made)
    assert text.startswith("We evaluate two models with ")
    assert "over one pair, α = 0.05." in text


def test_the_cards_choices(make_board: Make, make_record: Make) -> None:
    made = make_board(
        ("interval: wilson", "interval: clopper-pearson"),
        ("confidence: 0.95", "confidence: 0.9"),
        ("alpha: 0.05", "alpha: 0.01"),
        eps="[4/255, 8/255]",
    )
    provenance = {"seed": 3, "packages": {"robustbench_vit": "1.2.3"}}
    for name in ("weak", "strong"):
        made.save(with_provenance(make_record(made, name), provenance))
    text = said(made)
    assert "at eps = 4/255 and 8/255 on" in text
    assert "90 % Clopper–Pearson intervals (Clopper and Pearson, 1934)" in text
    assert "significantly better under autoattack at eps = 4/255 by" in text
    assert "α = 0.01." in text
    assert ", seed 3, with robustbench_vit 1.2.3 (protocol " in text


def with_provenance(record: Any, provenance: dict[str, Any]) -> Any:
    return type(record)(record.entry, record.protocol, record.outcomes, (), provenance)


def test_l1_cites_the_paper_on_l1(make_board: Make, make_record: Make) -> None:
    made = make_board(("norm: linf", "norm: l1"), eps="12")
    made.save(make_record(made, "weak"))
    assert "AutoAttack (standard; Croce and Hein, 2020; Croce and Hein, 2021) in l1 at eps = 12" in said(made)


def test_a_custom_attack_is_called_so(make_board: Make, make_record: Make) -> None:
    made = make_board(("attacks: [pgd-40, autoattack]", "attacks: [pgd-40, autoattack-mine]"), MINE, eps="0.2")
    (made.folder / "attacks").mkdir()
    card = "version: 1\nabout: Shorter.\nreference: 'arXiv:2003.01690'\nlanes: [apgd-ce]\n"
    (made.folder / "attacks" / "autoattack-mine.yaml").write_text(card, encoding="utf-8")
    made.save(make_record(made, "weak"))
    assert "and a custom attack called autoattack-mine (" in said(made)
    assert "; after Croce and Hein, 2020) in linf" in said(made)
    assert "AutoAttack (" not in said(made)


MINE = (
    "'autoattack:interval', 'autoattack:survivors', 'autoattack:forwards'",
    "'autoattack-mine:interval', 'autoattack-mine:survivors', 'autoattack-mine:forwards'",
)


def test_other_policies_are_told(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak", policy="B"), make_record(made, "strong", policy="C"))
    text = said(made)
    assert "weak was attacked by AutoAttack (rand), for answering at random: gradients are averaged over draws" in text
    assert "strong was attacked by black-box, for want of a useful gradient: scores and decisions only" in text
    assert "chen2020rays" in citation(made.board, made.workspace)


def test_precisions_are_told(make_board: Make, make_record: Make) -> None:
    made = make_board(("precision: fp32", "precision: [fp32, bf16]"))
    made.save(make_record(made, "weak"), make_record(made, "strong", protocol={"precision": "bf16"}))
    text = said(made)
    assert (
        "searched in IEEE float32 or mixed bfloat16 (as the table says) and every adversarial image rechecked in"
        in text
    )
    assert "(protocols " in text


def test_masked_gradients_are_told(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak", judgements=(STRONG,)))
    assert said(made).endswith(
        " For weak there is strong evidence of masked gradients: robust accuracy is probably too high.\n"
    )


def test_trainings_of_a_family_are_told(make_board: Make, make_record: Make) -> None:
    made = make_board(
        ("weights/weak.safetensors}", "weights/weak.safetensors, family: net, training_seed: 0}"),
        ("weights/strong.safetensors}", "weights/strong.safetensors, family: net, training_seed: 1}"),
    )
    made.save(make_record(made, "weak"), make_record(made, "strong", broken=(1, 0, 0, 0)))
    assert said(made).endswith(
        " net was trained two times with different seeds; between trainings, robust accuracies have a mean of 70.0 %"
        " and a standard deviation of 14.1 points.\n"
    )


def test_the_command_prints_both(made: Any, make_record: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made.save(make_record(made, "weak"))
    with pytest.raises(SystemExit) as left:
        main(["--workspace", str(made.folder), "cite", "made"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"{said(made)}\n{references_text(made.board, made.workspace)}"


def test_smoke_profiles_and_empty_boards_have_no_methods(made: Any, make_record: Make) -> None:
    with pytest.raises(InputError, match="nothing is measured yet, so there is no method to state"):
        said(made)
    assert citation(made.board, made.workspace).startswith("@misc{robustbench_vit,")
    made.save(make_record(made, "weak", protocol={"profile": "smoke"}))
    with pytest.raises(InputError, match="a smoke profile, whose numbers mean nothing"):
        said(made)
