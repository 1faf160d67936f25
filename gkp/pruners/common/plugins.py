"""A reader's own methods: Python files that call `gkp.pruners.common.registry.register`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "GKP_PLUGINS"  # how worker processes learn of them; paths joined like those of PATH


def load(paths: Iterable[str | Path]) -> None:
    """Run each file once and remember it for processes started from here.

    FileNotFoundError for a missing file; ValueError naming a file that cannot be read as Python, and one
    that has the name of another. Whatever else the file raises is its own and comes through.
    """
    for path in map(Path, paths):
        path = path.resolve()
        name = f"gkp_plugin_{path.stem}"
        if name in sys.modules:
            loaded = sys.modules[name].__file__
            if loaded != str(path):
                raise ValueError(f"the plug-ins {path} and {loaded} have one name: rename one of them")
            continue
        if not path.is_file():
            raise FileNotFoundError(f"no plug-in file {path}: give the path of a Python file")
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no Python file: a plug-in's name ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up while they are made
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, SyntaxError):
                raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
            raise
        known = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
        if str(path) not in known:
            os.environ[VARIABLE] = os.pathsep.join([*known, str(path)])


def load_from_environment() -> None:
    """Load what GKP_PLUGINS names."""
    load(entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry)
