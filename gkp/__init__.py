"""Structured pruning of convolutional networks and honest measurement of its adversarial robustness.

What is named here is imported when it is first used: PyTorch and the rest take seconds, which `python -m gkp
--help` and a mistyped option should not cost.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkp import attacks, cost, data, evaluate, search
    from gkp.pruners import methods, prune
    from gkp.surgery import SkippedLayers
    from gkp.zoo import load_model

__all__ = [
    "SkippedLayers",
    "attacks",
    "cost",
    "data",
    "evaluate",
    "load_model",
    "methods",
    "prune",
    "search",
]
__version__ = "0.1.0"

_HOMES = {
    "SkippedLayers": "gkp.surgery",
    "load_model": "gkp.zoo",
    "methods": "gkp.pruners",
    "prune": "gkp.pruners",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"gkp.{name}"):
        return importlib.import_module(f"gkp.{name}")
    raise AttributeError(f"module 'gkp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
