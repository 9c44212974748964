"""BibTeX: well formed, complete for the built-in cards, and only what a board rests on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustbench_vit.boards.references import (
    DATA,
    INTERVALS,
    OURS,
    RANKS,
    ROBUSTBENCH,
    arxiv_ids,
    attack_works,
    by_arxiv,
    parse_works,
    references_text,
    tex,
    works,
)
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import FOLDERS, builtin_layer
from robustbench_vit.data import datasets
from robustbench_vit.errors import InputError

Make = Callable[..., Any]
ROOT = Path(__file__).parents[2]
BUILTIN = Workspace((builtin_layer(),))
CARDS = [loaded for kind in FOLDERS for loaded in BUILTIN.load_all(kind)[0]]
NEEDED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "techreport": {"author", "title", "institution", "year"},
    "misc": {"author", "title"},
}


def closing(text: str, start: int) -> int:
    """The place after the brace that closes the first one from `start` on."""
    depth = 0
    for place in range(text.index("{", start), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise AssertionError(f"not closed: {text[start : start + 40]}")


def entries(text: str) -> list[tuple[str, str, dict[str, str]]]:
    """Kind, key and fields of every entry, read with another reader than the package's: by counting braces."""
    found = []
    for start in (match.start() for match in re.finditer(r"^@", text, re.MULTILINE)):
        entry = re.fullmatch(r"@(\w+)\{([^,]+),(.*)\}", text[start : closing(text, start)], re.DOTALL)
        assert entry
        kind, key, body = entry.groups()
        lines = [line.strip() for line in body.strip().splitlines()]
        assert [line.endswith(",") for line in lines] == [True] * (len(lines) - 1) + [False], key
        fields = [re.fullmatch(r"(\w+) = \{(.*)\},?", line) for line in lines]
        assert all(fields), key
        found.append((kind, key, {field[1]: field[2] for field in fields if field}))
    return found


def test_the_entries_are_well_formed() -> None:
    text = files("robustbench_vit.boards").joinpath("references.bib").read_text(encoding="utf-8")
    found = entries(text)
    assert len({key for _, key, _ in found}) == len(found) == len(works())
    assert text.count("{") == text.count("}")
    for kind, key, fields in found:
        assert NEEDED[kind] <= fields.keys(), key
        assert works()[key].fields == fields
        assert ("eprint" in fields) == (fields.get("archiveprefix") == "arXiv"), key
    eprints = [fields["eprint"] for _, _, fields in found if "eprint" in fields]
    assert len(set(eprints)) == len(eprints)


@pytest.mark.parametrize("loaded", CARDS, ids=lambda loaded: f"{loaded.path.parent.name}/{loaded.name}")
def test_every_arxiv_id_on_a_built_in_card_has_an_entry(loaded: Any) -> None:
    named = arxiv_ids(loaded.card.reference)
    assert [arxiv for arxiv in named if by_arxiv(arxiv) is None] == []
    surnames_and_years = re.findall(r"(\w+)(?: et al\.| and (\w+))? (\d{4})", loaded.card.reference)
    known = [(works_.fields["author"], works_.fields["year"]) for works_ in works().values() if "year" in works_.fields]
    for first, second, year in surnames_and_years:
        assert any(a.startswith(f"{first}, ") and second in a and y == year for a, y in known), (first, year)


def test_every_dataset_and_every_statistic_has_its_works() -> None:
    assert {*datasets.names()} <= DATA.keys()
    keys = {OURS, ROBUSTBENCH, *RANKS, *INTERVALS.values(), *(key for named in DATA.values() for key in named)}
    assert keys <= works().keys()


def test_ours_agrees_with_the_citation_file() -> None:
    if not (ROOT / "CITATION.cff").is_file():
        pytest.skip("not the repository")
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert works()[OURS].fields["title"] == tex(said["title"])
    assert works()[OURS].fields["author"] == f"{{{tex(said['authors'][0]['name'])}}}"


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(InputError, match="key 'a' stands twice"):
        parse_works("@misc{a,\n  title = {A}\n}\n\n@misc{a,\n  title = {B}\n}\n")


def test_works_as_cited_in_text() -> None:
    assert works()["croce2020reliable"].cited == "Croce and Hein, 2020"
    assert works()["madry2018towards"].cited == "Madry et al., 2018"
    assert works()["krizhevsky2009learning"].cited == "Krizhevsky, 2009"


def test_a_work_for_another_norm_is_left_out() -> None:
    reference = BUILTIN.attack("autoattack").card.reference
    assert [work.key for work in attack_works(reference, "linf")] == ["croce2020reliable"]
    assert [work.key for work in attack_works(reference, "l1")] == ["croce2020reliable", "croce2021mind"]


def keys(text: str) -> list[str]:
    return [key for _, key, _ in entries(text)]


def test_a_board_cites_what_it_rests_on(made: Any) -> None:
    assert keys(references_text(made.board, made.workspace)) == [
        OURS,
        *DATA["digits"],
        "madry2018towards",
        "croce2020reliable",
        "croce2020minimally",
        "andriushchenko2020square",
        "loshchilov2019decoupled",
        INTERVALS["wilson"],
        *RANKS,
    ]
    assert "chen2020rays" in keys(references_text(made.board, made.workspace, ("A", "C")))


def test_the_papers_of_reported_rows_are_cited_once_each(made: Any) -> None:
    folder = made.folder / "leaderboards" / "made" / "reported"
    folder.mkdir(parents=True)
    row = {"dataset": "digits", "architecture": "A", "eps": "0.2", "autoattack_acc": "50"}
    papers = {
        "Ada2020Of_one": {"name": "Of 50 % & {more", "link": "https://arxiv.org/abs/2001.00001", "venue": "ICML 2020"},
        "Ada2020Of_two": {"name": "Of 50 % & {more", "link": "https://arxiv.org/abs/2001.00001", "venue": "ICML 2020"},
        "Ada2020Of_other": {"name": "Another", "link": "https://example.org/x", "authors": "Ada One, Bob Two"},
        "Ada2020Of_third": {"name": "Third", "link": "http://x/}\\input{y}"},
        "Madry2018Towards": {"name": "Towards", "link": "https://arxiv.org/pdf/1706.06083"},
    }
    for name, paper in papers.items():
        (folder / f"{name}.json").write_text(json.dumps({**row, **paper}), encoding="utf-8")
    found = {key: fields for _, key, fields in entries(references_text(made.board, made.workspace))}
    assert ROBUSTBENCH in found
    assert [key for key in found if key.startswith(("Ada", "Madry"))] == [
        "Ada2020Of",
        "Ada2020Of_other",
        "Ada2020Of_third",
    ]
    assert found["Ada2020Of"] == {
        "title": r"{Of 50 \% \& \textbraceleft{}more}",  # BibTeX counts braces: none may stand alone
        "year": "2020",
        "note": "ICML 2020",
        "eprint": "2001.00001",
        "archiveprefix": "arXiv",
    }
    assert found["Ada2020Of_other"] == {
        "author": "Ada One and Bob Two",
        "title": "{Another}",
        "howpublished": r"\url{https://example.org/x}",
    }
    assert found["Ada2020Of_third"] == {"title": "{Third}"}


def test_what_is_not_known_is_listed(make_board: Make) -> None:
    made = make_board(("reference: none", "reference: 'Doe 2030, arXiv:3001.00001, and arXiv:1706.06083'"))
    text = references_text(made.board, made.workspace)
    assert text.endswith("\n\n% no entry is known for arXiv:3001.00001, cited by board made\n")
    made = make_board(("reference: none", "reference: Doe 2030"))
    assert '% no entry is known for "Doe 2030", cited by board made\n' in references_text(made.board, made.workspace)
