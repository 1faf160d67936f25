"""Structured pruning of convolutional networks and honest measurement of its adversarial robustness."""

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
