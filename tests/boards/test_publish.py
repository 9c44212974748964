"""The generated files: written, fresh, stale, and never inside an installed package."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.boards import publish, render, stale
from robustbench_vit.boards.generated import board_table
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.errors import InputError

Make = Callable[..., Any]
FILES = [
    "badges/weak.svg",
    "methods.txt",
    "references.bib",
    "table.csv",
    "table.json",
    "table.md",
    "table.tex",
]
"""What is made from the record of `weak`."""
README = "# Mine\n\n<!-- board:made -->\nold\n<!-- /board -->\n\nAfter it.\n"


def names(paths: list[Path], folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_publishing_makes_everything_fresh(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    (made.folder / "README.md").write_text(README, encoding="utf-8")
    assert len(stale(made.board, made.workspace)) == 1 + len(FILES)
    written = publish(made.board, made.workspace)
    assert names(written, made.folder) == ["README.md", *(f"leaderboards/made/{name}" for name in FILES)]
    assert stale(made.board, made.workspace) == []
    assert publish(made.board, made.workspace) == []
    table = render(board_table(made.board, made.workspace), "md")
    readme = (made.folder / "README.md").read_text(encoding="utf-8")
    assert readme == README.replace("old\n", table)
    assert (made.folder / "leaderboards/made/table.md").read_text(encoding="utf-8") == table


def test_a_readme_without_the_block_is_left_alone(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    text = README.replace("board:made", "board:other")
    (made.folder / "README.md").write_text(text, encoding="utf-8")
    publish(made.board, made.workspace)
    assert (made.folder / "README.md").read_text(encoding="utf-8") == text
    assert stale(made.board, made.workspace) == []


def test_what_changed_is_named(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    (made.folder / "README.md").write_text(README, encoding="utf-8")
    publish(made.board, made.workspace)
    folder = made.folder / "leaderboards" / "made"
    (folder / "table.csv").unlink()
    content = (folder / "table.json").read_text(encoding="utf-8")
    (folder / "table.json").write_text(content.replace("0.7", "0.8"), encoding="utf-8")
    assert stale(made.board, made.workspace) == [
        f"{folder / 'table.csv'}: does not exist",
        f"{folder / 'table.json'}: differs from what the records say",
    ]
    publish(made.board, made.workspace)
    made.save(make_record(made, "strong"))
    names_of = [fault.split(": ")[0] for fault in stale(made.board, made.workspace)]
    changed = ["badges/strong.svg", "methods.txt", *(f"table.{form}" for form in ("csv", "json", "md", "tex"))]
    assert sorted(names_of) == sorted([str(made.folder / "README.md"), *(str(folder / name) for name in changed)])


def test_what_nothing_stands_behind_any_more_is_removed(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"), make_record(made, "strong"))
    publish(made.board, made.workspace)
    folder = made.folder / "leaderboards" / "made"
    for name in ("notes.txt", "logo.svg"):
        (folder / "badges" / name).write_text("mine", encoding="utf-8")
    (folder / "records" / "strong.json").unlink()
    badge = folder / "badges" / "strong.svg"
    assert f"{badge}: nothing stands behind it any more" in stale(made.board, made.workspace)
    assert badge in publish(made.board, made.workspace)
    assert not badge.exists()
    assert sorted(path.name for path in (folder / "badges").iterdir()) == ["logo.svg", "notes.txt", "weak.svg"]
    (folder / "records" / "weak.json").unlink()
    assert folder / "methods.txt" in publish(made.board, made.workspace)
    assert stale(made.board, made.workspace) == []


def test_a_smoke_profile_gets_no_badge_and_no_methods(made: Any, make_record: Make) -> None:
    records = made.folder / "runs" / "made-smoke" / "records"
    make_record(made, "weak", protocol={"profile": "smoke"}).save(records / "weak.json")
    written = names(publish(made.board, made.workspace, records), made.folder)
    assert written == [f"runs/made-smoke/{name}" for name in FILES if name.startswith(("table", "references"))]


def test_a_record_without_an_entry_and_other_weights_are_stale(made: Any, make_record: Make) -> None:
    weights = made.folder / "leaderboards" / "made" / "weights" / "weak.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    made.save(make_record(made, "weak", entry={"weights_sha256": hashlib.sha256(b"first").hexdigest()}))
    publish(made.board, made.workspace)
    assert stale(made.board, made.workspace) == []
    weights.write_bytes(b"second")
    stray = weights.parent.parent / "records" / "gone.json"
    shutil.copy(stray.with_name("weak.json"), stray)
    assert stale(made.board, made.workspace) == [
        f"{stray}: leaderboards/made.yaml has no entry 'gone'",
        f"{weights}: not the weights that 'weak' was evaluated with; run the board again",
    ]


def test_records_elsewhere_get_their_tables_beside_them(made: Any, make_record: Make) -> None:
    records = made.folder / "runs" / "made" / "records"
    make_record(made, "weak").save(records / "weak.json")
    (made.folder / "README.md").write_text(README, encoding="utf-8")
    written = publish(made.board, made.workspace, records)
    assert names(written, made.folder) == [f"runs/made/{name}" for name in FILES]
    assert (made.folder / "README.md").read_text(encoding="utf-8") == README
    assert stale(made.board, made.workspace, records) == []
    loose = made.folder / "loose"
    make_record(made, "weak").save(loose / "weak.json")
    assert names(publish(made.board, made.workspace, loose), made.folder) == [f"loose/{name}" for name in FILES]


def test_tables_beside_loose_records_are_not_taken_for_records(made: Any, make_record: Make) -> None:
    loose = made.folder / "loose"
    make_record(made, "weak").save(loose / "weak.json")
    publish(made.board, made.workspace, loose)
    assert stale(made.board, made.workspace, loose) == []


def test_no_folder_with_records(made: Any) -> None:
    with pytest.raises(InputError) as caught:
        board_table(made.board, made.workspace, made.folder / "nowhere")
    assert str(caught.value) == f"no folder with records at {made.folder / 'nowhere'}"


def test_an_altered_record_is_refused(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    path = made.folder / "leaderboards" / "made" / "records" / "weak.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["protocol"]["norm"] = "l2"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="the file was altered"):
        board_table(made.board, made.workspace)


def test_an_installed_package_is_never_written_to(
    made: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = made.folder / "_workspace"
    shutil.copytree(made.folder / "leaderboards", installed / "leaderboards")
    monkeypatch.setattr("robustbench_vit.boards.folder.builtin_layer", lambda: installed)
    workspace = Workspace((builtin_layer(), installed))
    board = workspace.board("made")
    with pytest.raises(InputError) as caught:
        publish(board, workspace)
    assert str(caught.value) == (
        "board 'made' is part of the installed package, which is never written to; "
        "give the records of your own run: --records runs/made/records"
    )
    assert not list(installed.glob("leaderboards/made/*"))
    records = made.folder / "runs" / "made" / "records"
    make_record(made, "weak").save(records / "weak.json")
    assert len(publish(board, workspace, records)) == len(FILES)


@pytest.mark.parametrize("name", Workspace((builtin_layer(),)).names("board"))
def test_the_committed_tables_are_fresh(name: str) -> None:
    workspace = Workspace((builtin_layer(),))
    assert stale(workspace.board(name), workspace) == []
