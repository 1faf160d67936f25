"""One job's part of a suite: what it does on the machine where it runs, and when it is continued.

Jobs share a queue as processes of one machine do, by locks and records on a file system that all of them see.
A job stops before its time is up and is put into the cluster's queue again as long as there is something for
it to do; submitit does that without more rights than those of a user.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import gkp.pruners  # noqa: F401 - the first, so that plug-ins find the study whole when a job loads this
from gkp.study.execute.context import Context, pick_device
from gkp.study.execute.queue import Queue, affordable, has_start, is_claimed
from gkp.study.execute.suite import queue_of, run_suite
from gkp.study.execute.threads import computing_with
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store, is_complete
from gkp.utils.progress import Progress

MOST_FRUITLESS = 3  # times in a row that a job may be continued without a new epoch, batch or record


class Report(TypedDict):
    """What a job says at its end: file stem -> reason of runs that failed in it, and what stopped it."""

    failed: dict[str, str]
    stopped: str | None


@dataclass
class Share:
    """One job's part of a suite, called on the machine where the job runs; submitit pickles it.

    options: further arguments of `run_suite`. failed: runs that failed in this job, which it does not try
    again. fruitless: how often in a row it was continued although nothing had been achieved.
    """

    suite: str
    root: Path
    budget_minutes: float
    threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    fruitless: int = 0
    _before: dict[str, int] = field(default_factory=dict)

    def __call__(self) -> Report:
        """Do what the time allows. Does not return where the job is put into the queue again."""
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # `kill` sends it; submitit ignores it, as on a cluster it announces a preemption.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self._before = achieved(Store(self.root))
        with computing_with(self.threads):
            try:
                summary = run_suite(
                    self.suite,
                    root=self.root,
                    budget_minutes=self.budget_minutes,
                    skip=tuple(self.failed),
                    fit_epochs=False,
                    progress=Progress("lines"),
                    **self.options,
                )
            except (ValueError, OSError) as error:  # a user's mistake, which the next hour would not mend
                print(f"stopped: {error}", file=sys.stderr, flush=True)
                return {"failed": self.failed, "stopped": str(error)}
        self.failed |= summary.failed
        if not self.possible(self.budget_minutes):
            long = f"what is left takes more than {self.budget_minutes:g} minutes at once: give more minutes"
            return {"failed": self.failed, "stopped": long if self.possible(None) else None}
        again()
        reason = "this job could not be put into the queue again; the same command continues"
        return {"failed": self.failed, "stopped": reason}

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again when the time is up or the job is preempted, or None."""
        from submitit.helpers import DelayedSubmission

        fruitless = self.fruitless + 1 if achieved(Store(self.root)) == self._before else 0
        if fruitless >= MOST_FRUITLESS:
            often = f"{fruitless} times {self.budget_minutes:g} minutes"
            print(f"stopped: {often} led to nothing new: give more minutes", file=sys.stderr, flush=True)
            return None
        return DelayedSubmission(replace(self, fruitless=fruitless))

    def possible(self, minutes: float | None) -> bool:
        """Whether there is something to do in so much time that did not fail and that nobody does now."""
        device = pick_device(self.options.get("device", "auto"))
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        context = Context(Store(self.root), device, deadline=deadline)
        return bool(hopeful(queue_of(context.store.suite(self.suite)), self.failed, context))


def hopeful(queue: Queue, failed: Mapping[str, str], context: Context) -> list[Run]:
    """Unfinished runs that nobody works on, that did not fail, and that fit into the context's time.

    With them those that wait for a start that may still come.
    """
    store = context.store
    left = [run for _, run in queue if run.stem not in failed and not is_complete(run, store)]
    ready = [run for run in left if has_start(run, store)]
    stems = {run.stem for run in left}
    waiting = [run for run in left if (start := run.start()) and run not in ready and start.stem in stems]
    return waiting + [run for run in affordable(ready, context) if not is_claimed(run, store.root)]


def achieved(store: Store) -> dict[str, int]:
    """Records, and states of what is under way, with the times at which they were written."""
    times = {}
    for pattern in ("results/*/*.json", "work/state/*", "work/snapshots/*/*"):
        for path in store.root.glob(pattern):
            with suppress(FileNotFoundError):  # of another job that just finished a run
                times[str(path)] = path.stat().st_mtime_ns
    return times


def again() -> None:
    """Have submitit continue this job: it calls `checkpoint`, puts the job into the queue and ends it."""
    from submitit import JobEnvironment

    signal.raise_signal(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])
