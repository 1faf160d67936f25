"""The suite "tiny" for jobs of a cluster: a plug-in, since jobs learn of those by GKP_PLUGINS.

TINY_METHODS has its methods; TINY_EPOCHS, TINY_LOG and the few digits are as in `tiny_run`. TINY_VICTIM names
a file: the first job that comes to its fourth moment of writing makes it and is killed.
"""

import os
import signal

import tiny_run

from gkp.study.runs import suites

FOURTH = 4


def kill_one(victim: str) -> None:
    """Kill the first process that writes its fourth file, before that file is on disk."""
    fsync, written = os.fsync, 0

    def deadly(handle: int) -> None:
        nonlocal written
        written += 1
        if written == FOURTH and not os.path.exists(victim):
            os.close(os.open(victim, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = deadly


tiny_run.few_digits()
tiny_run.watch_writes()
if "TINY_VICTIM" in os.environ:
    kill_one(os.environ["TINY_VICTIM"])
methods = os.environ["TINY_METHODS"].split()
suites.SUITES["tiny"] = lambda: tiny_run.suite_of(methods, int(os.environ.get("TINY_EPOCHS", 2)))
