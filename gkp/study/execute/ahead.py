"""Networks that are pruned once for all that needs them in one call: a fleet, and the runs after it.

A fleet asks for all its networks before it trains the first; several processes then prune side by side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gkp import pruners
from gkp.nets.checkpoint import load_file, read_header, save_model
from gkp.pruners.common.registry import SNAPSHOTS
from gkp.study.execute.context import Context
from gkp.study.runs.run import Run

Pruned = tuple[nn.Module, dict[str, Any]]  # a network, and what pruning it took


@contextmanager
def keeping(context: Context) -> Iterator[Context]:
    """The context of a call in which pruned networks are kept; they are gone at its end."""
    with tempfile.TemporaryDirectory(prefix="gkp-pruned-") as folder:
        yield replace(context, pruned=Path(folder))


def keeps(run: Run, context: Context) -> bool:
    """Whether the run's pruned network is kept: not where it depends on a training of this very run."""
    return context.pruned is not None and run.prunes and pruners.get(run.method).needs != SNAPSHOTS


def is_kept(run: Run, context: Context) -> bool:
    return _path(run, context).exists()


def kept(run: Run, context: Context) -> Pruned | None:
    """The network of the run as it was pruned, bit for bit, on the context's device; None if it was not."""
    if not is_kept(run, context):
        return None
    path = _path(run, context)
    return load_file(path).to(context.device), read_header(path)["about"]["pruning"]


def keep(run: Run, context: Context, model: nn.Module, pruning: dict[str, Any]) -> None:
    """Keep what `gkp.study.execute.steps.pruned_now` gave."""
    about = {"pruning": pruning}
    save_model(model, _path(run, context), network=run.network, dataset=run.dataset, about=about)


def same_pruning(run: Run) -> str:
    """What runs share that differ in nothing but what comes after the cut."""
    return replace(run, recipe=None, rules=("last",)).hash


def _path(run: Run, context: Context) -> Path:
    assert context.pruned is not None
    return context.pruned / f"{same_pruning(run)}.safetensors"
