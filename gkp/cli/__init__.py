"""The command line, `python -m gkp`; the one room on the library's side that knows the study."""

from gkp.cli.commands import main

__all__ = ["main"]
