"""The suite "tiny" for jobs of a cluster: a plug-in, since jobs learn of those by GKP_PLUGINS.

TINY_METHODS has its methods; TINY_EPOCHS, TINY_LOG and the few digits are as in `tiny_run`. TINY_VICTIM names
a file: the first job that comes to its second moment of writing makes it and is killed. TINY_HOUR=N: an hour
has passed when a job has written N files.
"""

import os
import signal
import time

import tiny_run

from gkp.study.runs import suites

FATAL = 2
HOUR_SECONDS = 3600.0


def watch(victim: str | None, hour: int | None) -> None:
    fsync, monotonic, written = os.fsync, time.monotonic, 0

    def counted(handle: int) -> None:
        nonlocal written
        written += 1
        if victim and written == FATAL and not os.path.exists(victim):
            os.close(os.open(victim, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    def late() -> float:
        return monotonic() + (HOUR_SECONDS if hour and written >= hour else 0)

    os.fsync, time.monotonic = counted, late


tiny_run.without_compiler()
tiny_run.few_digits()
tiny_run.watch_writes()
if os.environ.get("SUBMITIT_EXECUTOR"):  # in a job, not where it is submitted
    watch(os.environ.get("TINY_VICTIM"), int(os.environ.get("TINY_HOUR", 0)))
methods = os.environ["TINY_METHODS"].split()
suites.SUITES["tiny"] = lambda: tiny_run.suite_of(methods, int(os.environ.get("TINY_EPOCHS", 2)))
