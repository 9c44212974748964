"""The pytest plugin: tests that fail when a model's robust accuracy is too low; see docs/ci.md.

Every pytest session of an environment imports this module, so it imports little: cards are read when a marked test is
set up, torch when it runs. PYTEST_DONT_REWRITE: there are no asserts in it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from robustbench_vit.errors import InputError, RobustbenchError
from robustbench_vit.testing.demand import MARKER, Asked, Demand, Marker, find_asked, read_demand
from robustbench_vit.testing.seen import Seen

if TYPE_CHECKING:
    from robustbench_vit.testing.accuracy import RobustAccuracy
    from robustbench_vit.testing.entries import Entries, Settings
    from robustbench_vit.testing.models import Models

FIXTURE = "robust_accuracy"
_HELP = (
    f"{MARKER}(board, entry, min=None, max_drop=None, alpha=None, attack=None, eps=None): evaluates an entry of a board"
    " and fails when its robust accuracy is below `min`, or worse than the board's record by more than `max_drop`"
)

_entries = pytest.StashKey["Entries"]()
_demand = pytest.StashKey[Demand]()
_asked = pytest.StashKey[Asked]()
_seen = pytest.StashKey[Seen]()


class RobustnessWarning(pytest.PytestWarning):
    """A robust accuracy on so few samples that a drop can neither be told from chance nor excluded."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options --robustness-… and the ini option robustness_workspace."""
    group = parser.getgroup("robustness", "robust accuracies (robustbench_vit)")
    group.addoption(
        "--robustness-n", type=_positive, metavar="N", help="only the first N samples; quick, and less certain"
    )
    group.addoption("--robustness-skip", action="store_true", help=f"skip tests marked `{MARKER}` or using `{FIXTURE}`")
    group.addoption(
        "--robustness-strict", action="store_true", help="a drop that is undecided on so few samples fails its test"
    )
    group.addoption(
        "--robustness-dir", type=Path, metavar="DIR", help="keep journals here, to resume; default: in pytest's cache"
    )
    group.addoption("--robustness-device", metavar="D", help="cpu, cuda, cuda:1, …")
    parser.addini(
        "robustness_workspace",
        "the folder with attacks/, defenses/ and leaderboards/ (default: the root directory)",
        type="string",
        default="",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of samples from 1 on, got {text!r}")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker; raises UsageError for a workspace that isn't there."""
    config.addinivalue_line("markers", _HELP)
    folder = _workspace_folder(config)
    if folder is not None and not folder.is_dir():
        raise pytest.UsageError(f"robustness_workspace: no folder {folder}")


def _workspace_folder(config: pytest.Config) -> Path | None:
    """What the ini option says, relative to the file that says it."""
    said = str(config.getini("robustness_workspace"))
    if not said:
        return None
    return (config.inipath.parent if config.inipath else config.rootpath) / said


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips the test if so asked; fails its set-up for arguments and names that make no sense."""
    markers = [Marker(node, mark.args, mark.kwargs) for node, mark in item.iter_markers_with_node(MARKER)]
    uses = FIXTURE in getattr(item, "fixturenames", ())
    if not markers and not uses:
        return
    if item.config.getoption("robustness_skip"):
        pytest.skip("--robustness-skip")
    item.stash[_seen] = Seen(properties=item.user_properties)
    with _failing():
        demand = item.stash[_demand] = read_demand(markers)
        if markers:
            _require_something(demand, uses)
        if demand.of_board:
            item.stash[_asked] = _find(item, demand)


@contextmanager
def _failing() -> Iterator[None]:
    """What this package raises on purpose while open fails the test, with its message and without a traceback."""
    try:
        yield
    except RobustbenchError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _require_something(demand: Demand, uses_fixture: bool) -> None:
    """Raises InputError for a marker that would check nothing."""
    if not demand.of_board and not uses_fixture:
        raise InputError(f"{MARKER}(…) names no board and entry, and the test doesn't use the fixture {FIXTURE}")
    if demand.of_board and not uses_fixture and demand.min is None and demand.max_drop is None:
        raise InputError(f"{MARKER}(…) says neither min nor max_drop: nothing would be checked")


def _find(item: pytest.Item, demand: Demand) -> Asked:
    from robustbench_vit.testing.committed import require_committed

    found = find_asked(demand, _session(item.config).settings.workspace, item.config.rootpath)
    if demand.max_drop is not None:
        require_committed(found)
    return found


def _session(config: pytest.Config) -> Entries:
    """The session's entries, made when the first test asks."""
    if _entries not in config.stash:
        from robustbench_vit.testing.entries import Entries

        config.stash[_entries] = Entries(_settings(config))
    return config.stash[_entries]


def _settings(config: pytest.Config) -> Settings:
    from robustbench_vit.cards import Workspace, open_workspace
    from robustbench_vit.cards.workspace import FOLDERS, builtin_layer
    from robustbench_vit.testing.entries import Settings

    said = _workspace_folder(config)
    folder = config.rootpath if said is None else said
    cards = said is not None or any((folder / name).is_dir() for name in FOLDERS.values())
    return Settings(
        workspace=open_workspace(folder) if cards else Workspace((builtin_layer(),)),
        folder=_journals(config),
        n=config.getoption("robustness_n"),
        device=config.getoption("robustness_device"),
    )


def _journals(config: pytest.Config) -> Path:
    """Where all processes of this session keep their journals, and later sessions find them."""
    asked = config.getoption("robustness_dir")
    if asked is not None:
        return config.invocation_params.dir / asked
    cache = getattr(config, "cache", None)
    if cache is not None:
        return cache.mkdir("robustness")
    folder = tempfile.mkdtemp(prefix="robustness-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    return Path(folder)


@pytest.fixture
def robust_accuracy(request: pytest.FixtureRequest) -> RobustAccuracy | Models:
    """The robust accuracy that the marker asks about; without board and entry there, a call that evaluates a model.

    With `@pytest.mark.robustness(board=…, entry=…)`: a `RobustAccuracy`, which compares like a number and has `value`,
    `interval`, `n` and `record`. Otherwise `robust_accuracy(model, x, y, min=…, attack=…, norm=…, eps=…)` returns the
    `Record` that `robustbench_vit.evaluate` returns, and fails the test when its robust accuracy is below `min`.
    """
    from robustbench_vit.testing.models import Models

    item = request.node
    if _seen not in item.stash:  # asked for by request.getfixturevalue, so that the set-up didn't know
        item.stash[_seen], item.stash[_demand] = Seen(properties=item.user_properties), Demand()
    if _asked in item.stash:
        return _evaluated(item)
    return Models(_session(item.config).settings, item.stash[_seen], item.stash[_demand].min)


def _evaluated(item: pytest.Item) -> RobustAccuracy:
    """The number the marker asks about; fails the test for an entry that cannot be evaluated."""
    asked = item.stash[_asked]
    with _failing():
        found = _session(item.config).accuracy(asked)
    item.stash[_seen].add(f"{asked.entry} ({asked.board.name})", found)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Runs the test, and then checks what its marker demands."""
    result = yield
    if _asked in item.stash:
        _check(item)
    elif _demand in item.stash and item.stash[_demand].min is not None and not item.stash[_seen].lines:
        pytest.fail(f"{MARKER}(min=…) names no board and entry, and the test evaluated no model", pytrace=False)
    return result


def _check(item: pytest.Item) -> None:
    """Fails the test when the entry isn't what its marker demands; warns when that can't be told."""
    _evaluated(item)
    with _failing():
        found = _session(item.config).complaints(item.stash[_demand], item.stash[_asked])
    strict = item.config.getoption("robustness_strict")
    failures = [*found.failures, *(found.undecided if strict else ())]
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
    for message in found.undecided:
        item.warn(RobustnessWarning(message))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the summary's lines to the test's report, which also travels from xdist's workers."""
    report = yield
    if report.when == "call" and _seen in item.stash:
        vars(report).update(robust_accuracies=list(item.stash[_seen].lines))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line for every number that tests had evaluated."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    lines = dict.fromkeys(line for report in reports for line in getattr(report, "robust_accuracies", ()))
    if not lines:
        return
    terminalreporter.section("robust accuracy")
    for line in lines:
        terminalreporter.line(line)
    if n := config.getoption("robustness_n"):
        terminalreporter.line(f"only the first {n:,} samples each (--robustness-n)")
