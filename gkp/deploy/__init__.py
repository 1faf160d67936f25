"""Files that run pruned networks fast: each layer in the form that this machine runs fastest, measured."""

from gkp.deploy.exporting import export
from gkp.deploy.groups import fastest_groups

__all__ = ["export", "fastest_groups"]
