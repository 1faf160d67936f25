"""How a pruned network recovers: fine-tuning, plain or adversarial, that continues where it was stopped."""

from gkp.train.history import EpochRow, History
from gkp.train.hooks import Hooks, Step
from gkp.train.loop import fine_tune
from gkp.train.recipe import PAPER, SHORT, Recipe
from gkp.train.state import StateError

__all__ = ["PAPER", "SHORT", "EpochRow", "History", "Hooks", "Recipe", "StateError", "Step", "fine_tune"]
