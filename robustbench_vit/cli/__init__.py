"""The command line: parse, call one function, print. Nothing here imports torch before a command needs it."""

from robustbench_vit.cli import (  # importing a module of commands registers them
    cards,
    compare,
    gate,
    norms,
    papers,
    pictures,
    runs,
    single,
    tables,
    verify,
)
from robustbench_vit.cli.app import app, main

__all__ = [
    "app",
    "cards",
    "compare",
    "gate",
    "main",
    "norms",
    "papers",
    "pictures",
    "runs",
    "single",
    "tables",
    "verify",
]
