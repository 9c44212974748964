"""The command line: parse, call one function, print. Nothing here imports torch before a command needs it."""

from robustbench_vit.cli import cards, runs, single, tables, verify  # importing a module of commands registers them
from robustbench_vit.cli.app import app, main

__all__ = ["app", "cards", "main", "runs", "single", "tables", "verify"]
