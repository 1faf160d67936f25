"""The work of a suite, shared by any number of processes: what is left, who has it, what the time allows."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.leftovers import is_of, kept_until_done, remove_states, temporary_files
from gkp.study.execute.one_run import execute
from gkp.study.runs import pace as estimates
from gkp.study.runs.locks import alone
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store, is_complete

Queue = Sequence[tuple[str, Run]]  # (suite that the record is made for, run), the most valuable first

POLL_SECONDS = 1.0  # how often a process looks whether another one has finished what it waits for


def work(queue: Queue, context: Context) -> dict[str, str]:
    """Do runs until none is left or the time is up; returns the reasons of those that failed here."""
    failed: dict[str, str] = {}
    idle = False  # nobody seems to work on what is left
    while not context.expired():
        unfinished = [
            run for _, run in queue if run.stem not in failed and not is_complete(run, context.store)
        ]
        ready = [run for run in unfinished if has_start(run, context.store)]
        possible = affordable(ready, context) or ready  # whose attacks are kept one by one
        with claim_first(possible, context.store.root) as run:
            if run is not None:
                look_anew(context)
            if run is not None and not is_complete(run, context.store):
                try:
                    execute(run, next(suite for suite, other in queue if other == run), context)
                except OutOfTime:
                    break
                except (RuntimeError, ValueError, ModuleNotFoundError) as error:
                    # One network that diverges, refuses or lacks a package must not cost the others.
                    failed |= report_failure([run], error)
                except FileNotFoundError as error:
                    if len({suite for suite, _ in queue}) == 1:
                        raise
                    # Nor must a public network that is not here cost the suites that start elsewhere.
                    failed |= report_failure([r for r in unfinished if same_start(r, run)], error)
        if run is None:
            if possible or any(is_claimed(other, context.store.root) for other in unfinished):
                time.sleep(POLL_SECONDS)
            elif idle:
                break
            else:  # what others start from may have ended since `ready` was made: look once more
                idle = True
                continue
        idle = False
    return failed


def look_anew(context: Context) -> None:
    """Have a network file system ask its server what is in the folders of records and states.

    Machines remember for up to a minute that a file is not there, which another one has written since.
    """
    for folder in (*context.store.results.glob("*/"), context.store.results, context.state_folder):
        with suppress(OSError):  # not there yet, or somebody else's
            folder.chmod(stat.S_IMODE(folder.stat().st_mode))  # the answer tells when it was changed


def report_failure(runs: list[Run], error: Exception) -> dict[str, str]:
    """Say on standard error why the runs failed; the reason of each."""
    failed = {run.stem: f"{type(error).__name__}: {error}" for run in runs}
    for stem, reason in failed.items():
        print(f"failed: {stem}: {reason}", file=sys.stderr, flush=True)
    return failed


def same_start(a: Run, b: Run) -> bool:
    return (a.dataset, a.network, a.weights) == (b.dataset, b.network, b.weights)


def has_start(run: Run, store: Store) -> bool:
    """Whether the network that the run starts from is there."""
    start = run.start()
    return start is None or store.find(start) is not None


def affordable(runs: list[Run], context: Context) -> list[Run]:
    """Runs whose estimate fits into the time left; when none fits, those that are done epoch by epoch."""
    if context.deadline is None:
        return runs
    left = (context.deadline - time.monotonic()) / 60
    fitting = [run for run in runs if estimates.minutes(run, context.device.type) <= left]
    return fitting or [run for run in runs if run.epochs > 1]


@contextmanager
def claim_first(runs: Sequence[Run], root: Path) -> Iterator[Run | None]:
    """The first run that no other process works on, held until the end of the block; None if all are taken.

    Until then `gkp.study.runs.merge` leaves its record alone, too.
    """
    for run in runs:
        lock = alone(run.hash, root)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            yield run
        finally:
            lock.release()
        return
    yield None


def is_claimed(run: Run, root: Path) -> bool:
    """Whether some process works on the run now."""
    with claim_first([run], root) as claimed:
        return claimed is None


def tidy(queue: Queue, context: Context) -> None:
    """Remove what killed processes left of these runs; what another process works on now is its own."""
    temporary = temporary_files(context.store)
    for _, run in queue:
        done = is_complete(run, context.store)
        mine = [path for path in temporary if is_of(path, run)]
        if mine or (done and any(path.exists() for path in kept_until_done(run, context))):
            with claim_first([run], context.store.root) as claimed:
                if claimed is None:
                    continue
                for path in mine:
                    path.unlink(missing_ok=True)
                if done:
                    remove_states(run, context)
