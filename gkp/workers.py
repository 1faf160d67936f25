"""Several processes that share the work of one queue, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gkp.context import Context
from gkp.progress import Progress

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.queues import SimpleQueue

    from gkp.run import Queue

WATCH_SECONDS = 0.5
PATIENCE_SECONDS = 5.0  # for a process that was asked to end


def work_together(
    queue: Queue, jobs: int, context: Context, watch: Callable[[], bool] | None = None
) -> dict[str, str]:
    """`gkp.run.work` in `jobs` processes at once; the reasons of the runs that failed.

    watch: called twice a second; when it returns True the processes are stopped, which costs each at most
    the epoch it is in. Raises RuntimeError when a process ended for another reason than that.
    """
    spawn = multiprocessing.get_context("spawn")
    reports = spawn.SimpleQueue()
    mode = "lines" if context.progress and context.progress.mode != "off" else "off"
    # A clock that every process reads alike; what starting them takes is part of the time.
    end = None if context.deadline is None else time.time() + context.deadline - time.monotonic()
    given = replace(context, progress=None, deadline=None, splits={})
    threads = max(1, (os.cpu_count() or 1) // jobs)
    processes = [
        spawn.Process(target=_worker, args=(queue, given, mode, end, threads, reports)) for _ in range(jobs)
    ]
    for process in processes:
        process.start()
    stopped = False
    try:
        while not stopped and any(process.is_alive() for process in processes):
            time.sleep(WATCH_SECONDS)
            stopped = watch is not None and watch()
    finally:
        _stop(processes)
    failed: dict[str, str] = {}
    while not reports.empty():
        failed |= reports.get()
    crashed = sum(process.exitcode != 0 for process in processes)
    if crashed and not stopped:
        raise RuntimeError(f"{crashed} of {jobs} processes ended early; what they said stands above")
    return failed


def _stop(processes: list[SpawnProcess]) -> None:
    """Ask those still running to end, and insist."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _worker(
    queue: Queue, context: Context, mode: str, end: float | None, threads: int, reports: SimpleQueue
) -> None:
    from gkp.run import work

    # As an exception, so that files being written are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torch.set_num_threads(threads)
    context.progress = Progress(mode)
    context.deadline = None if end is None else time.monotonic() + end - time.time()
    try:
        reports.put(work(queue, context))
    except KeyboardInterrupt:
        sys.exit(130)
