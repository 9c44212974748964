"""The page on the board digits-vit, from made records."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

import pytest

from benchmarks.digits_vit import BOARD, FIGURE, REPORT, pages
from benchmarks.digits_vit_page import QUESTIONS, SHAO, Board, points, sentence
from benchmarks.only_adaptive import CONTROL, fallen
from benchmarks.paired_trainings import Effect, difference
from robustbench_vit.boards import board_folder
from robustbench_vit.boards.folder import load_records
from robustbench_vit.cards import Entry, open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.records import Outcome, Record, Status
from tests.project.test_paired_trainings import CASES, verdicts

ATTACKS = ["pgd-40", "autoattack"]
ADAPTIVE = ["attention-evict", CONTROL]
N = 100


def entry(family: str, seed: int) -> Entry:
    settings = {"adaptive": ADAPTIVE} if family.startswith("evit-0") else {}
    named = {"name": f"{family}.seed-{seed}", "model": "digits_vit", "defense": "pgd-at", "weights": "w.safetensors"}
    return Entry.model_validate({**named, "family": family, "training_seed": seed, **settings})


def outcomes(attack: str, robust: Sequence[bool], correct: int) -> list[Outcome]:
    found = []
    for sample, held in enumerate(robust):
        broken = Status.MISCLASSIFIED if sample >= correct else Status.BROKEN
        status = Status.SURVIVED if held else broken
        by = attack if status is Status.BROKEN else None
        found.append(Outcome(f"s{sample}", attack, "linf", 0.2, "untargeted", status, by, forwards=9, backwards=4))
    return found


def record(one: Entry, left: int, lost: Mapping[str, Sequence[int]] | None = None) -> Record:
    """The board's attacks leave the first `left` samples; adaptive ones break those that `lost` names."""
    held = [sample < left for sample in range(N)]
    made = [outcome for attack in ATTACKS for outcome in outcomes(attack, held, 90)]
    for attack in one.adaptive:
        gone = (lost or {}).get(attack, ())
        made += outcomes(attack, [h and s not in gone for s, h in enumerate(held)], 90)
    resolved = {name: {"version": 1, "lanes": [{"name": name}]} for name in (*ATTACKS, *one.adaptive)}
    protocol = {"eps": [0.2], "criterion": "untargeted", "attacks": {name: resolved[name] for name in ATTACKS}}
    evidence = {name: resolved[name] for name in one.adaptive}
    return Record({"name": one.name}, protocol, tuple(made), (), {}, evidence=evidence)


def board(left: Mapping[str, Sequence[int]], lost: Mapping[str, Sequence[int]] | None = None) -> Board:
    """A board of these families under adversarial training, with what is left of each training."""
    entries = [entry(f"{name}-pgd-at", seed) for name, counts in left.items() for seed in range(len(counts))]
    card = open_workspace(builtin_layer()).board("digits-linf").card.model_copy(update={"entries": entries})
    counts = [count for each in left.values() for count in each]
    return Board(card, {e.name: record(e, count, lost) for e, count in zip(entries, counts, strict=True)})


@pytest.fixture
def made() -> Board:
    left = {"evit-1.0": (60, 61, 60), "evit-0.7": (50, 51, 51), "t2t": (59, 62, 60), "vit": (60, 60, 61)}
    return board(left, {"attention-evict": (1, 2), CONTROL: (2, 3)})


def page(held: Board) -> str:
    return pages(held.card, held.records)[0]


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_table_of_recipes(made: Board) -> None:
    rows = [line for line in page(made).splitlines() if line.startswith("| evit-0.7-pgd-at | 3 |")]
    assert rows == ["| evit-0.7-pgd-at | 3 | 90.0 | 50.7 | 50.7 | 0.58 | 47.7 |"]


def test_dropping_tokens_costs_when_the_interval_says_so(made: Board) -> None:
    said = section(page(made), "Token dropping")
    assert "- `evit-0.7-pgd-at` against `evit-1.0-pgd-at` under autoattack: **costs** 9.7 points [8.2, 11.1]." in said
    assert "under best known: **costs** 12.7 points" in said
    assert "evit-0.5" not in said  # no records


def test_the_sentence_on_shao_follows_from_the_numbers(made: Board) -> None:
    assert "On `t2t-pgd-at` against `evit-1.0-pgd-at`: what Shao et al. report" in " ".join(page(made).split())
    assert " is neither shown nor refuted." in " ".join(section(page(made), "Tokens-to-token").split())
    worse = page(board({"evit-1.0": (60, 61, 60), "t2t": (50, 51, 51)}))
    assert "evit-1.0-pgd-at`: this agrees with what Shao et al. report" in " ".join(worse.split())
    assert {*SHAO} == {*Effect}
    assert all("reported" in text and "2103.15670" in text for text in SHAO.values())


def test_best_known_is_compared_only_where_somebody_looked(made: Board) -> None:
    assert "best known" not in section(page(made), "Tokens-to-token")


def test_questions_without_records_say_so(made: Board) -> None:
    assert "Too few trainings have records." in section(page(made), "IC layers")


@pytest.mark.parametrize("effect", Effect)
def test_every_effect_has_its_words(effect: Effect) -> None:
    plain, other = (verdicts(*counts) for counts in CASES[effect])
    found = difference("a", "b", {"a": plain, "b": other}, 0.95)
    assert found is not None
    said = sentence(found, "autoattack")
    words = {"costs": effect is Effect.COSTS, "helps": effect is Effect.HELPS}
    assert {word: f"**{word}**" in said for word in words} == words
    assert said.startswith("`b` against `a` under autoattack: **")


def test_the_interval_of_a_gain_is_turned_round() -> None:
    found = difference("a", "b", {"a": verdicts(50, 51, 51), "b": verdicts(60, 61, 60)}, 0.95)
    assert found is not None
    assert "**helps** by 9.7 points [8.2, 11.1]" in sentence(found, "autoattack")


def test_points_hold_no_minus_zero() -> None:
    assert points(-0.0001, -0.012, 0.0) == "0.0 [-1.2, 0.0]"


def test_what_fell_only_to_adaptive_attacks(made: Board) -> None:
    one = fallen(made.records["evit-0.7-pgd-at.seed-0"], made.card)
    assert one.fell == {"s1": ("attention-evict",), "s2": ("attention-evict", CONTROL), "s3": (CONTROL,)}
    assert (one.robust, one.n, one.by("attention-evict"), one.by(CONTROL)) == (50, 100, 2, 2)
    assert (one.beyond, one.against_control("attention-evict")) == (("s1",), (1, 1))
    assert one.passes[CONTROL] == (9.0, 4.0)


def test_the_verdict_on_false_security(made: Board) -> None:
    said = " ".join(section(page(made), "Token dropping under attack").split())
    assert "Of 152 pairs of an entry and a sample that pgd-40 and autoattack left robust, 9 fell" in said
    assert "3 of these the control did not break" in said
    assert "`attention-evict` broke 3 that the control did not, and not 3 that it did." in said
    assert "- evit-0.7-pgd-at.seed-0: s1 (attention-evict); s2 (attention-evict, pgd-100); s3 (pgd-100)" in said
    assert "| passes | | | | 9 + 4 | 9 + 4 | |" in said


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ({}, "none fell to an adaptive attack: these attacks show no false security."),
        ({"attention-evict": (1,), CONTROL: (1, 2)}, "The control broke all of them"),
    ],
)
def test_no_more_is_claimed_than_was_found(lost: dict[str, Sequence[int]], says: str) -> None:
    said = " ".join(page(board({"evit-0.7": (50, 51)}, lost)).split())
    assert says in said
    assert "aimed at the dropping" not in said


def test_incomplete_records_are_left_out(made: Board) -> None:
    records = dict(made.records)
    del records["t2t-pgd-at.seed-1"]
    text = pages(made.card, records)[0]
    assert "11 of its 12 entries" in " ".join(text.split())
    assert "| t2t-pgd-at | 2 |" in text


def test_the_figure_has_a_dot_per_training(made: Board) -> None:
    drawn = pages(made.card, made.records)[1]
    ET.fromstring(drawn)
    assert len(re.findall("<circle", drawn)) == 2 + 2 * 12


def test_the_board_has_every_recipe_that_is_asked_about() -> None:
    card = open_workspace(builtin_layer()).board(BOARD).card
    families = {e.family: e for e in card.entries}
    assert len(card.entries) == 48
    assert {f"{name}-{d}" for q in QUESTIONS for pair in q.pairs for name in pair for d in ("standard", "pgd-at")} <= {
        *families
    }
    assert {e.training_seed for e in card.entries} == {0, 1, 2}
    assert all(e.name == f"{e.family}.seed-{e.training_seed}" for e in card.entries)
    assert {e.family for e in card.entries if e.adaptive} == {
        f"evit-{keep}-{defense}" for keep in ("0.7", "0.5") for defense in ("standard", "pgd-at")
    }


def test_the_committed_page_is_fresh() -> None:
    loaded = open_workspace(builtin_layer()).board(BOARD)
    records = load_records(board_folder(loaded) / "records")
    if not records or not REPORT.is_file():
        pytest.skip("no records or no page yet; `python -m benchmarks.digits_vit` makes it")
    assert pages(loaded.card, records) == (REPORT.read_text(encoding="utf-8"), FIGURE.read_text(encoding="utf-8"))
