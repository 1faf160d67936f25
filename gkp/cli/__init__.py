"""The command line, `python -m gkp`; the one room on the library's side that knows the study."""

from gkp.cli import export  # noqa: F401, importing it registers the command
from gkp.cli.commands import main

__all__ = ["main"]
