"""Filling a given time with the most valuable unfinished work of several suites, ready for transport."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gkp import cifar, suites
from gkp.configuration import BASELINE, UNPRUNED, Run
from gkp.context import Context, Pace
from gkp.pack import Packed, archives_in, pack, stamps
from gkp.progress import Progress
from gkp.records import Store
from gkp.run import Queue, Summary, complete_stems, pick_device, summarize, work_in

SUITES = ("cifar10-resnet56", "cifar10-resnet20")
# The methods that the paper's claims compare, and the controls of those claims; others come after them.
METHODS = ("sr-gkp", "l1-a", "l1-b", "fpgm-training", "sfp", "tmi-gkp", UNPRUNED, "random")
RESERVE_SECONDS, RESERVE_SHARE = 45.0, 0.1  # of the time, for packing: whichever is less
PACK_SECONDS = 60.0  # between two packings while processes work


@dataclass(frozen=True)
class Filled:
    """What a call of `fill` did, and where the archives of it are."""

    summary: Summary
    packed: Packed


def fill(
    minutes: float,
    folder: str | Path,
    names: Sequence[str] = (),
    *,
    jobs: int = 1,
    root: str | Path = ".",
    device: str = "auto",
    progress: Progress | None = None,
    cuda_graphs: bool = False,
) -> Filled:
    """Work for `minutes` on runs without a record, then pack what is new into `folder`.

    names: suites, the most valuable first; `default_suites()` without any. jobs: processes that share the
    device. Work that would end too late is not begun. With two jobs or more, what takes longer than it was
    estimated to take is stopped, and archives are also written about every minute, so that a machine that
    takes the command down loses little; with one job neither can be done. cuda_graphs: as in
    `gkp.train.fine_tune`.

    Raises ValueError for an unknown suite, a time that is not positive or a folder that holds archives
    already, FileNotFoundError for missing data.
    """
    started = time.monotonic()
    if minutes <= 0 or jobs < 1:
        raise ValueError(f"minutes={minutes:g}, jobs={jobs}: give a time above 0 and 1 process or more")
    if archives_in(folder):
        raise ValueError(f"{folder} holds archives already: unpack and remove them, or give another folder")
    queue = plan(names or default_suites())
    where = pick_device(device)
    reserve = min(RESERVE_SECONDS, RESERVE_SHARE * 60 * minutes)
    deadline = started + 60 * minutes - reserve
    context = Context(Store(root), where, progress, deadline, cuda_graphs=cuda_graphs, pace=Pace(where.type))
    for dataset in sorted({run.dataset for _, run in queue} & set(cifar.SOURCES)):
        for part in cifar.PARTS:  # decoded here once, and not by every process
            context.split(dataset, part)
    since, before = stamps(root), complete_stems(queue, context.store)
    hashes = [run.hash for _, run in queue]

    def save() -> Packed:
        return pack(context.store, folder, since, hashes)

    failed: dict[str, str] = {}
    with ended_by_sigterm():
        try:
            failed = work_in(jobs, queue, context, watch(save, deadline + reserve / 3))
        finally:
            packed = save()
    context.store.update_manifest()
    return Filled(summarize(queue, before, failed, context.store), packed)


def default_suites() -> tuple[str, ...]:
    """All suites, the most telling first, but the digits, whose records belong to the machine they are on."""
    return (*SUITES, *(name for name in suites.SUITES if name not in (*SUITES, "digits")))


def plan(names: Sequence[str]) -> Queue:
    """The runs of these suites in the order of their value, each once."""
    queue: dict[str, tuple[str, Run]] = {}
    for name in names:
        for run in sorted(suites.get(name).ordered(), key=value):
            queue.setdefault(run.hash, (name, run))
    return list(queue.values())


def value(run: Run) -> tuple[int, int, int]:
    """Sorts what others start from and what trains nothing first, then seeds, then methods, then variants."""
    first = run.method == BASELINE or run.epochs == 0
    listed = run.method in METHODS and not run.options
    rank = METHODS.index(run.method) if listed else len(METHODS) + bool(run.options)
    return (0, 0, 0) if first else (1, run.seed, rank)


def watch(save: Callable[[], object], end: float) -> Callable[[], bool]:
    """For `work_together`: saves about every minute, and says when `end` (of time.monotonic()) has come."""
    last = time.monotonic()

    def over() -> bool:
        nonlocal last
        if time.monotonic() - last > PACK_SECONDS:
            save()
            last = time.monotonic()
        return time.monotonic() > end

    return over


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which machines end a command, raises KeyboardInterrupt as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
