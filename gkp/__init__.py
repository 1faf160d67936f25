"""Structured pruning of convolutional networks and honest measurement of its adversarial robustness.

What is named here is imported when it is first used: PyTorch and the rest take seconds, which `python -m gkp
--help` and a mistyped option should not cost.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from gkp.utils.moved import Finder

if TYPE_CHECKING:
    from gkp import attacks, data, evaluate, search
    from gkp.deploy import export
    from gkp.nets import cost, models
    from gkp.nets.channels.surgery import SkippedLayers
    from gkp.nets.checkpoint import save_model
    from gkp.nets.zoo import load_model
    from gkp.pruners import methods, prune
    from gkp.train import Recipe, fine_tune

__all__ = [
    "Recipe",
    "SkippedLayers",
    "attacks",
    "cost",
    "data",
    "evaluate",
    "export",
    "fine_tune",
    "load_model",
    "methods",
    "models",
    "prune",
    "save_model",
    "search",
]
__version__ = "0.2.0"

_HOMES = {
    "Recipe": "gkp.train",
    "SkippedLayers": "gkp.nets.channels.surgery",
    "export": "gkp.deploy",
    "cost": "gkp.nets",
    "fine_tune": "gkp.train",
    "load_model": "gkp.nets.zoo",
    "methods": "gkp.pruners",
    "models": "gkp.nets",
    "prune": "gkp.pruners",
    "save_model": "gkp.nets.checkpoint",
}

sys.meta_path.append(Finder())


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(_HOMES[name])
        return getattr(home, name, None) or importlib.import_module(f"{_HOMES[name]}.{name}")
    if not name.startswith("_") and importlib.util.find_spec(f"gkp.{name}"):
        return importlib.import_module(f"gkp.{name}")
    raise AttributeError(f"module 'gkp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
