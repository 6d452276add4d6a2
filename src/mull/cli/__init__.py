"""The command line: see `main.py`."""

from mull.cli.main import app, main
from mull.cli.training import COMMANDS

__all__ = ["COMMANDS", "app", "main"]
