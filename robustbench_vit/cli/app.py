"""The program `rbvit`: its global options, and what its errors look like.

A module of commands decorates functions with `@app.command()` and is imported by `robustbench_vit.cli`. A command lets
every RobustbenchError through: `main` prints it and exits with its code. `state(context)` has the global options.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import robustbench_vit
from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.errors import RobustbenchError

INTERRUPTED = 130

app = typer.Typer(
    name="rbvit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adversarial robustness of image classifiers: evaluations, leaderboards, training.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted (work kept).",
)


@dataclass
class State:
    """The global options."""

    verbose: bool = False
    folder: Path | None = None

    @property
    def workspace(self) -> Workspace:
        """The built-in cards with the user's laid over them."""
        return open_workspace(self.folder)


def state(context: typer.Context) -> State:
    """The global options that a command was called with."""
    return context.ensure_object(State)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robustbench_vit {robustbench_vit.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tell more; show where an error came from.")] = False,
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder whose attacks/, defenses/ and leaderboards/ are laid over the built-in cards."
            " Default: the current folder, when it has one of them.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    found = state(context)
    found.verbose, found.folder = verbose, workspace


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `rbvit` and exits: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    options = State()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="rbvit", obj=options)
    except RobustbenchError as error:
        if options.verbose:
            traceback.print_exc()
        for line in _error_lines(error):
            typer.echo(line, err=True)
        sys.exit(error.exit_code)
    except SystemExit as left:
        if left.code == INTERRUPTED:  # Ctrl-C before a command could say what it keeps
            typer.echo("interrupted; run the same command again to go on", err=True)
        raise


def _error_lines(error: RobustbenchError) -> list[str]:
    first, *rest = str(error).splitlines() or [type(error).__name__]
    return [f"error: {first}", *(f"       {line}" for line in rest)]
