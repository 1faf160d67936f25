"""Running suites: what is left, in which order, within which time."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gkp import estimates, suites
from gkp.configuration import Run
from gkp.context import Context, OutOfTime, Pace
from gkp.execute import execute, missing_entries
from gkp.facts import record_facts
from gkp.leftovers import is_of, remove_states, temporary_files
from gkp.progress import Progress
from gkp.records import Store
from gkp.suites import Suite
from gkp.threads import begun_with_in, computing_with
from gkp.workers import work_together

Queue = Sequence[tuple[str, Run]]  # (suite that the record is made for, run), the most valuable first

POLL_SECONDS = 1.0  # how often a process looks whether another one has finished what it waits for


@dataclass
class Summary:
    """What a call of `run_suite` did: file stems of runs, and the reason of each failure."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_suite(
    name: str,
    *,
    budget_minutes: float | None = None,
    jobs: int = 1,
    root: str | Path = ".",
    device: str = "auto",
    progress: Progress | None = None,
    download: bool = False,
) -> Summary:
    """Do every run of the suite that has no complete record yet, the most valuable first.

    budget_minutes: stop after the epoch in which this time is up; the next call continues there.
    jobs: processes that share the work (small networks leave a GPU idle); they end with this one. Several
    calls at once share it too. Each run keeps the number of threads it was begun with, and what is continued
    that of the first, whatever `jobs` is now. device: "auto", "cpu", "cuda".
    Raises ValueError for an unknown suite, OSError naming the path when something cannot be written.
    """
    suite = suites.get(name)
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: give 1 or more")
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    context = Context(Store(root), pick_device(device), progress, deadline, download)
    for fact in suite.facts:
        record_facts(fact, suite.name, context.store)
    queue = queue_of(suite)
    before = complete_stems(queue, context.store)
    failed = work_in(jobs, queue, context)
    context.store.update_manifest()
    return summarize(queue, before, failed, context.store)


def work_in(
    jobs: int, queue: Queue, context: Context, watch: Callable[[], bool] | None = None
) -> dict[str, str]:
    """Do the queue in so many processes, this one when it is one; the reasons of the runs that failed.

    watch: as in `gkp.workers.work_together`; not called where there is one process.
    """
    tidy(queue, context)
    threads = begun_with_in((run for _, run in queue), context)
    if jobs > 1:
        return work_together(queue, jobs, context, watch, threads)
    with computing_with(threads):
        return work(queue, context)


def queue_of(suite: Suite) -> Queue:
    return [(suite.name, run) for run in suite.ordered()]


def complete_stems(queue: Queue, store: Store) -> set[str]:
    return {run.stem for _, run in queue if is_complete(run, store)}


def summarize(queue: Queue, before: set[str], failed: dict[str, str], store: Store) -> Summary:
    """What was done since `before`, the file stems of the runs that were complete then."""
    complete = complete_stems(queue, store)
    order = [run.stem for _, run in queue]
    return Summary(
        done=[stem for stem in order if stem in complete - before],
        skipped=[stem for stem in order if stem in before],
        left=[stem for stem in order if stem not in complete],
        failed=failed,
    )


def pick_device(device: str) -> torch.device:
    """ "auto" is the GPU when PyTorch sees one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: PyTorch sees no GPU here; use --device cpu")
    return torch.device(device)


def is_complete(run: Run, store: Store) -> bool:
    """Whether the run has a record with every attack that is asked for."""
    record = store.find(run)
    return record is not None and not missing_entries(record, run)


def work(queue: Queue, context: Context) -> dict[str, str]:
    """Do runs until none is left or the time is up; returns the reasons of those that failed here."""
    failed: dict[str, str] = {}
    idle = False  # nobody seems to work on what is left
    while not out_of_time(context):
        unfinished = [
            run for _, run in queue if run.stem not in failed and not is_complete(run, context.store)
        ]
        ready = [run for run in unfinished if has_start(run, context.store)]
        possible = affordable(ready, context)
        with claim_first(possible, context.store.root) as run:
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


def out_of_time(context: Context) -> bool:
    return context.deadline is not None and time.monotonic() > context.deadline


def affordable(runs: list[Run], context: Context) -> list[Run]:
    """Runs whose estimate fits into the time left; when none fits, those that can be continued later."""
    if context.deadline is None:
        return runs
    left = (context.deadline - time.monotonic()) / 60
    if context.pace:  # nothing that cannot end in time, and else the most valuable
        return [run for run in runs if fits(run, 60 * left, context.pace)]
    fitting = [run for run in runs if estimates.minutes(run, context.device.type) <= left]
    return fitting or [run for run in runs if run.epochs > 1]


def fits(run: Run, seconds: float, pace: Pace) -> bool:
    """Whether what can be kept of the run, one epoch or one attack, ends within `seconds`."""
    return (pace.epoch(run) if run.epochs > 1 else pace.epoch(run) + pace.attack(run)) <= seconds


# ---- several processes ---------------------------------------------------------------------------


@contextmanager
def claim_first(runs: list[Run], root: Path) -> Iterator[Run | None]:
    """The first run that no other process works on, held until the end of the block; None if all are taken.

    The lock is the operating system's (flock), so that of a killed process is free again at once.
    """
    for run in runs:
        handle = _lock(run, root)
        if handle is not None:
            try:
                yield run
            finally:
                os.close(handle)
            return
    yield None


def is_claimed(run: Run, root: Path) -> bool:
    """Whether some process works on the run now."""
    handle = _lock(run, root)
    if handle is None:
        return True
    os.close(handle)
    return False


def tidy(queue: Queue, context: Context) -> None:
    """Remove what killed processes left of these runs; what another process works on now is its own."""
    temporary = temporary_files(context.store)
    for _, run in queue:
        done = is_complete(run, context.store)
        mine = [path for path in temporary if is_of(path, run)]
        if mine or (done and any(path.exists() for path in context.state_paths(run))):
            with claim_first([run], context.store.root) as claimed:
                if claimed is None:
                    continue
                for path in mine:
                    path.unlink(missing_ok=True)
                if done:
                    remove_states(run, context)


def _lock(run: Run, root: Path) -> int | None:
    path = root / "work" / "locks" / f"{run.hash}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
