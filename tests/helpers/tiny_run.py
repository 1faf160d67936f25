"""The suite "tiny" in processes that tests kill: `python tiny_run.py ROOT JOBS EPOCHS METHOD...`.

Workers import this file again, and so have the same suite and the same few digits. Environment variables:
TINY_LOG names a file that gets a line "PID PATH" for every file that was written; TINY_KILL=N kills the run,
parent and all, at the N-th moment in which one of its workers is writing a file. TINY_FLEET=N trains so many
networks side by side.
"""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tiny_suite import COMMON, IMAGES, RECIPE, tiny_suite

from gkp import data
from gkp.study.execute.suite import run_suite
from gkp.study.runs import suites
from gkp.study.runs.suites.grids import Suite, grid
from gkp.utils.progress import Progress

VOLATILE = ("seconds", "date", "commit", "dirty", "peak_memory_mb", "trainer")


@contextmanager
def started(
    root: Path, jobs: int, methods: tuple[str, ...], epochs: int = 2, **environment: object
) -> Iterator[subprocess.Popen[str]]:
    """Start the suite; `stdout` has a line for each epoch. What still works at the end is killed."""
    command = [sys.executable, __file__, str(root), str(jobs), str(epochs), *methods]
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    given = os.environ | {"PYTHONPATH": paths} | {name: str(value) for name, value in environment.items()}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=given) as process:
        try:
            yield process
        finally:
            process.kill()


def lasting(record: Any) -> Any:
    """A record without what two undisturbed runs differ in."""
    if isinstance(record, dict):
        return {key: lasting(value) for key, value in record.items() if key not in VOLATILE}
    return [lasting(value) for value in record] if isinstance(record, list) else copy.copy(record)


def without_compiler() -> None:
    """Nothing here is compiled, and importing torch.compile takes longer than all else that a process does.

    PyTorch imports it to have it leave optimizers and modes alone.
    """
    stand_in = ModuleType("torch._dynamo")
    stand_in.disable = lambda function, *_, **__: function
    stand_in.graph_break = lambda: None
    torch._dynamo = sys.modules["torch._dynamo"] = stand_in


def few_digits() -> None:
    load = data.load
    data.load = lambda name, part, **_: load(name, part).take(IMAGES)


def suite_of(methods: list[str], epochs: int) -> Suite:
    if epochs == RECIPE.epochs:
        return tiny_suite(*methods)
    recipe = dataclasses.replace(RECIPE, epochs=epochs)
    longer = dataclasses.replace(COMMON, baseline=recipe, recipe=recipe)
    return Suite("tiny", "", "", grid(longer, seeds=(0,), names=methods))


def watch_writes() -> None:
    """Log what is written, and kill where TINY_KILL says so: before a file is on disk, or has its name."""
    moments, log, deadly = 0, os.environ.get("TINY_LOG"), int(os.environ.get("TINY_KILL", 0))
    fsync, replace = os.fsync, os.replace

    def moment() -> None:
        nonlocal moments
        moments += 1
        if moments == deadly and multiprocessing.parent_process():
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_fsync(handle: int) -> None:
        moment()
        fsync(handle)

    def deadly_replace(source: Any, target: Any) -> None:
        moment()
        replace(source, target)
        if log:
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {target}\n")

    os.fsync, os.replace = deadly_fsync, deadly_replace


if __name__ in ("__main__", "__mp_main__"):
    without_compiler()
    few_digits()
    watch_writes()
    suites.SUITES["tiny"] = lambda: suite_of(sys.argv[4:], int(sys.argv[3]))
if __name__ == "__main__":
    root, jobs = sys.argv[1:3]
    fleet = int(os.environ.get("TINY_FLEET", 0)) or None
    progress = Progress("lines")
    done = run_suite("tiny", root=root, jobs=int(jobs), device="cpu", progress=progress, side_by_side=fleet)
    sys.exit(1 if done.failed or done.left else 0)
