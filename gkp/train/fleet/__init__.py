"""Several networks trained side by side on one GPU, each as `gkp.train.fine_tune` would train it."""

from gkp.train.fleet.member import Member
from gkp.train.fleet.together import train_together

__all__ = ["Member", "train_together"]
