"""Modules under the names that they had in version 0.1, for code that was written against it."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

HOMES = {
    "autoattack": "attacks", "robustbench": "attacks", "cifar": "data",
    "checkpoint": "nets", "cost": "nets", "grouped": "nets", "models": "nets", "zoo": "nets",
    "surgery": "nets.channels", "smoothness": "search", "hooks": "train", "recipe": "train",
    "files": "utils", "progress": "utils", "notebooks": "study.report", "suites": "study.runs",
}  # fmt: skip
MOVED = {f"gkp.{name}": f"gkp.{room}.{name}" for name, room in HOMES.items()} | {
    "gkp.configuration": "gkp.study.runs.run",
    "gkp.folded": "gkp.nets.deploy",
    "gkp.records": "gkp.study.runs.store",
    "gkp.report": "gkp.study.report.build",
    "gkp.run": "gkp.study.execute.suite",
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module itself: the old name and the new one are the same object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)
