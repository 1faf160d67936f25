"""What processes that were killed left behind: files half written, and states of runs that are done."""

from __future__ import annotations

import shutil
from pathlib import Path

from gkp.study.execute.context import Context
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store

# Where `gkp.utils.files` writes under a temporary name before it renames.
TEMPORARY = ("results/*/.*.tmp", "checkpoints/*/.*.tmp", "work/state/.*.tmp", "work/snapshots/*/.*.tmp")


def temporary_files(store: Store) -> list[Path]:
    """Files that are being written, or were when their process was killed."""
    return [path for pattern in TEMPORARY for path in store.root.glob(pattern)]


def is_of(path: Path, run: Run) -> bool:
    """Whether this temporary file was to become one of the run's."""
    return path.parent.name == run.hash or path.name.startswith((f".{run.hash}", f".{run.stem}"))


def kept_until_done(run: Run, context: Context) -> list[Path]:
    """Files that continue the run, there or not."""
    return [*context.state_paths(run), context.attacks_path(run)]


def remove_states(run: Run, context: Context) -> None:
    """Remove what a run needs only until its record is written."""
    for path in kept_until_done(run, context):
        path.unlink(missing_ok=True)
    if run.prunes:  # the snapshots of a baseline serve the runs that start from it
        shutil.rmtree(context.snapshots_folder(run), ignore_errors=True)
