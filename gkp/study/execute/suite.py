"""Running suites: what is left, in which order, within which time."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from gkp.study.execute.context import Context, pick_device
from gkp.study.execute.fleet import train_queue
from gkp.study.execute.queue import Queue, alone, tidy, work
from gkp.study.execute.threads import begun_with_in, computing_with
from gkp.study.execute.workers import work_together
from gkp.study.facts.method import record_facts
from gkp.study.runs import suites
from gkp.study.runs.store import Store, is_complete
from gkp.study.runs.suites.grids import Suite
from gkp.utils.progress import Progress


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
    cuda_graphs: bool = False,
    side_by_side: int | None = None,
    skip: Collection[str] = (),
) -> Summary:
    """Do every run of the suite that has no complete record yet, the most valuable first.

    budget_minutes: stop after the epoch in which this time is up; the next call continues there.
    jobs: processes that share the work (small networks leave a GPU idle); they end with this one. Several
    calls at once share it too. Each run keeps the number of threads it was begun with, and what is continued
    that of the first, whatever `jobs` is now. device: "auto", "cpu", "cuda".
    cuda_graphs: as in `gkp.train.fine_tune`. side_by_side: networks that train at once in one process, as in
    `gkp.train.fleet.train_together`; without a number a GPU trains so, and a CPU one after the other. skip:
    file stems of runs that are not tried.
    Raises ValueError for an unknown suite, OSError naming the path when something cannot be written.
    """
    suite = suites.get(name)
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: give 1 or more")
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    context = Context(Store(root), pick_device(device), progress, deadline, download, cuda_graphs=cuda_graphs)
    for fact in suite.facts:
        with alone(f"{name}-{fact}", context.store.root):  # some are times, which neighbours would change
            record_facts(fact, suite.name, context.store)
    queue = queue_of(suite)
    before = complete_stems(queue, context.store)
    failed: dict[str, str] = {}
    wanted = without(queue, skip)
    if side_by_side is not None or context.device.type == "cuda":
        failed = work_in_fleets(jobs, wanted, context, side_by_side)
    failed |= work_in(jobs, without(wanted, failed), context)
    context.store.update_manifest()
    return summarize(queue, before, failed, context.store)


def work_in(jobs: int, queue: Queue, context: Context) -> dict[str, str]:
    """Do the queue in so many processes, this one when it is one; the reasons of the runs that failed."""
    tidy(queue, context)
    threads = begun_with_in((run for _, run in queue), context)
    if jobs > 1:
        return work_together(queue, jobs, context, threads)
    with computing_with(threads):
        return work(queue, context)


def work_in_fleets(jobs: int, queue: Queue, context: Context, side_by_side: int | None) -> dict[str, str]:
    """Train side by side what can be, and finish those runs: others may start from what they leave."""
    failed: dict[str, str] = {}
    while not context.expired():
        with computing_with(begun_with_in((run for _, run in queue), context)):
            trained, reasons = train_queue(without(queue, failed), context, side_by_side)
        failed |= reasons
        if not trained:
            break
        failed |= work_in(jobs, trained, context)
    return failed


def without(queue: Queue, stems: Collection[str]) -> Queue:
    return [(name, run) for name, run in queue if run.stem not in stems]


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
