"""Running a suite: what is left, in which order, within which time, by how many processes."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gkp import suites
from gkp.context import Context, OutOfTime
from gkp.execute import execute, missing_entries
from gkp.facts import record_facts
from gkp.progress import Progress
from gkp.records import Store
from gkp.suites import Run, Suite

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
    jobs: processes that share the work (small networks leave a GPU idle). device: "auto", "cpu", "cuda".
    Raises ValueError for an unknown suite, OSError naming the path when something cannot be written.
    """
    suite = suites.get(name)
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: give 1 or more")
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    store = Store(root)
    for fact in suite.facts:
        record_facts(fact, suite.name, store)
    before = {run.stem for run in suite.ordered() if is_complete(run, store)}
    if jobs == 1:
        failed = work(suite, Context(store, pick_device(device), progress, deadline, download))
    else:
        failed = work_together(suite, jobs, store, device, progress, deadline, download)
    complete = {run.stem for run in suite.ordered() if is_complete(run, store)}
    store.update_manifest()
    order = [run.stem for run in suite.ordered()]
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


def work(suite: Suite, context: Context) -> dict[str, str]:
    """Do runs until none is left or the time is up; returns the reasons of those that failed here."""
    failed: dict[str, str] = {}
    while not out_of_time(context):
        unfinished = [
            run for run in suite.ordered() if run.stem not in failed and not is_complete(run, context.store)
        ]
        ready = [run for run in unfinished if has_start(run, context.store)]
        with claim_first(affordable(ready, context), context.store.root) as run:
            if run is not None and not is_complete(run, context.store):
                try:
                    execute(run, suite.name, context)
                except OutOfTime:
                    break
                except (RuntimeError, ValueError) as error:
                    # One network that diverges or refuses must not cost the others.
                    failed[run.stem] = f"{type(error).__name__}: {error}"
                    print(f"failed: {run.stem}: {failed[run.stem]}", file=sys.stderr, flush=True)
        if run is None:
            if not any(is_claimed(other, context.store.root) for other in unfinished):
                break
            time.sleep(POLL_SECONDS)
    return failed


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
    fitting = [run for run in runs if suites.minutes(run, context.device.type) <= left]
    return fitting or [run for run in runs if run.epochs > 1]


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


def work_together(
    suite: Suite,
    jobs: int,
    store: Store,
    device: str,
    progress: Progress | None,
    deadline: float | None,
    download: bool,
) -> dict[str, str]:
    """`work` in `jobs` processes at once; Ctrl-C reaches all of them through the terminal."""
    spawn = multiprocessing.get_context("spawn")
    reports = spawn.SimpleQueue()
    left = None if deadline is None else deadline - time.monotonic()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    mode = "lines" if progress and progress.mode != "off" else "off"
    arguments = (suite.name, str(store.root), device, mode, left, threads, download, reports)
    processes = [spawn.Process(target=_worker, args=arguments) for _ in range(jobs)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.join()
        raise
    failed: dict[str, str] = {}
    while not reports.empty():
        failed |= reports.get()
    crashed = sum(process.exitcode != 0 for process in processes)
    if crashed:
        raise RuntimeError(f"{crashed} of {jobs} processes ended early; what they said stands above")
    return failed


def _worker(
    suite: str,
    root: str,
    device: str,
    mode: str,
    left: float | None,
    threads: int,
    download: bool,
    reports: multiprocessing.SimpleQueue,
) -> None:
    torch.set_num_threads(threads)
    deadline = None if left is None else time.monotonic() + left
    try:
        context = Context(Store(root), pick_device(device), Progress(mode), deadline, download)
        reports.put(work(suites.get(suite), context))
    except KeyboardInterrupt:
        sys.exit(130)
