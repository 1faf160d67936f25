"""Several processes that share the work of one queue, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import torch

from gkp.study.execute.context import Context
from gkp.study.execute.queue import Queue, work
from gkp.study.execute.threads import most_threads
from gkp.utils.progress import Progress

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

Work = Callable[[Queue, Context], dict[str, str]]  # does what it finds to do; reasons of runs that failed

PATIENCE_SECONDS = 5.0  # for a process that was asked to end
ORPHAN_SECONDS = 2.0  # the same for one whose parent is gone, and with it whoever could insist


def work_together(
    queue: Queue,
    jobs: int,
    context: Context,
    threads: int | None = None,
    do: Work = work,
) -> dict[str, str]:
    """`do`, a function that can be pickled, in `jobs` processes at once; the reasons of the runs that failed.

    The processes end with this one, however it ends.
    threads: of each process, by default its share of the cores.
    Raises RuntimeError when a process ended before its work did.
    """
    mode = "lines" if context.progress and context.progress.mode != "off" else "off"
    # A clock that every process reads alike; what starting them takes is part of the time.
    end = None if context.deadline is None else time.time() + context.deadline - time.monotonic()
    portable = replace(context, progress=None, deadline=None, splits={})
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    if threads * jobs > most_threads():
        # For processes started from here on: threads that spin would keep those of the others from working.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    processes: list[SpawnProcess] = []
    try:
        reports = [_start(processes, (do, queue, portable, mode, end, threads)) for _ in range(jobs)]
        failed = _collect(reports)
        for process in processes:
            process.join()
    finally:
        _stop(processes)
    crashed = sum(process.exitcode != 0 for process in processes)
    if crashed:
        raise RuntimeError(f"{crashed} of {jobs} processes ended early; what they said stands above")
    return failed


def _start(processes: list[SpawnProcess], arguments: tuple) -> Connection:
    """Start a process and add it to `processes`; where it sends its report, a pipe that ends with it."""
    spawn = multiprocessing.get_context("spawn")
    reports, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_worker, args=(*arguments, sender), daemon=True)
    process.start()
    processes.append(process)
    sender.close()  # here; the process has its own
    return reports


def _collect(reports: list[Connection]) -> dict[str, str]:
    """What all processes report until they end."""
    failed: dict[str, str] = {}
    while reports:
        ready = wait(reports)
        for report in [report for report in reports if report in ready]:
            try:
                failed |= report.recv()
            except EOFError:
                reports.remove(report)
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
    do: Work,
    queue: Queue,
    context: Context,
    mode: str,
    end: float | None,
    threads: int,
    reports: Connection,
) -> None:
    # As an exception, so that files being written are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    end_with_parent()

    torch.set_num_threads(threads)
    context.progress = Progress(mode)
    context.deadline = None if end is None else time.monotonic() + end - time.time()
    try:
        reports.send(do(queue, context))
    except KeyboardInterrupt:
        sys.exit(130)


def end_with_parent() -> None:
    """End this process of `multiprocessing` as soon as the one that started it is gone.

    Called by the main thread. A process that was killed cannot end its children. The system closes its end of
    the pipe that `multiprocessing` keeps between the two, which a thread here waits for; nothing is polled.
    """
    parent, main = multiprocessing.parent_process(), threading.get_ident()
    assert parent is not None  # this is a process of multiprocessing

    def watch() -> None:
        parent.join()
        signal.pthread_kill(main, signal.SIGTERM)  # wakes the main thread where it waits
        time.sleep(ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
