"""The number of threads that runs compute with.

Sums over other parts round otherwise: a training that continues with another number of threads ends in
other weights, and everything that starts from them differs. So what was begun with some number ends with
it, however many processes share the work when it is continued.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch

from gkp.study.execute.context import Context
from gkp.study.runs.provenance import device_name
from gkp.study.runs.record import Record
from gkp.study.runs.run import Run
from gkp.train.state import StateError, threads_of


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """PyTorch computes with so many threads in the block; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def begun_with(run: Run, context: Context, record: Record | None = None) -> int | None:
    """The threads that `record`, or a saved training without one, was made with; None where that is open.

    It is open too where it cannot be kept: on another device, or with fewer cores.
    Raises StateError for a damaged file.
    """
    if record is not None:
        about = record.provenance
        threads = about.threads if about.device == device_name(context.device) else None
    else:
        paths = (path for path in context.state_paths(run) if path.exists())
        threads = next((threads_of(path) for path in paths), None)
    return threads if threads and threads <= most_threads() else None


def begun_with_in(runs: Iterable[Run], context: Context) -> int | None:
    """The same of the first of these runs that was begun: the others are to be computed alike."""
    for run in runs:
        with suppress(StateError):  # which the run itself says when its turn comes
            threads = begun_with(run, context, context.store.find(run))
            if threads:
                return threads
    return None


def most_threads() -> int:
    """The cores of this machine, or what the environment asked for."""
    return max(os.cpu_count() or 1, torch.get_num_threads())
