"""Runs that are killed: nothing computes on, nothing is computed twice, and nothing comes out otherwise."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from signal import SIGHUP, SIGTERM

import pytest
from tiny_checks import assert_same, undisturbed
from tiny_run import started, suite_of

from gkp.study.execute.queue import is_claimed
from gkp.study.runs.store import Store

METHODS = ("sfp", "tmi-gkp")
MORE = (*METHODS, "random", "l1", "sr-gkp", "fpgm-training", "slimming", "thinet", "taylor")
# What training needs most of its time for here, and a machine that is busy with something else.
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return undisturbed(tmp_path_factory.mktemp("whole"), METHODS)


# ---- the end of the parent -----------------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    found = {int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in _words(path)}
    return found.union(*(descendants(child) for child in found))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except FileNotFoundError:  # of a process that just ended
        return []


def lives(pid: int) -> bool:
    """Whether it still computes; one that nobody waited for is dead all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in Linux's /proc")


@linux
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, *(pytest.param(other, marks=pytest.mark.slow) for other in (SIGTERM, SIGHUP))]
)
def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    with started(tmp_path, 2, METHODS, epochs=10_000) as process:
        assert any("epoch 1/10000" in line for line in process.stdout)
        children = descendants(process.pid)
        assert len(children) >= 2
        process.send_signal(how)  # the parent alone
        assert process.wait(PATIENCE_SECONDS) == -how
        assert eventually(lambda: not any(lives(pid) for pid in children))
    (baseline,) = tmp_path.glob("work/state/*.pt")
    run = suite_of(list(METHODS), 10_000).ordered()[0]
    assert baseline.name.startswith(run.hash)
    assert not is_claimed(run, tmp_path)


DEAF = """
import multiprocessing, signal, sys, time
from gkp.study.execute.workers import end_with_parent

def child(pipe):
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send("ready")
    time.sleep(600)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=child, args=(there,))
    process.start()
    here.recv()
    print(process.pid, flush=True)
    time.sleep(600)
"""


@linux
def test_a_child_that_does_not_listen_ends_too(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    command = [sys.executable, str(tmp_path / "deaf.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        assert lives(child)
        process.kill()
        process.wait()
        assert eventually(lambda: not lives(child))


# ---- one owner -----------------------------------------------------------------------------------


def test_two_calls_at_once_share_the_work(tmp_path: Path, whole: Store) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    with ExitStack() as stack:
        for process in [stack.enter_context(started(root, j, METHODS, TINY_LOG=log)) for j in (1, 2)]:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    writers = defaultdict(set)
    for line in log.read_text().splitlines():
        pid, path = line.split(maxsplit=1)
        writers[path].add(pid)
    work = {path: pids for path, pids in writers.items() if not path.endswith("manifest.json")}
    assert {path for path, pids in work.items() if len(pids) > 1} == set()
    assert len([path for path in work if "/results/" in path]) == len(whole.all())
    assert {record.stem for record in Store(root).all()} == {record.stem for record in whole.all()}


# ---- what is continued ---------------------------------------------------------------------------


def run_with_kills(root: Path, methods: tuple[str, ...], draw: random.Random, most: int) -> int:
    """Start the suite again and again until it is done; how often it was killed, `most` times at most.

    One kill hits while a file is being written, the next at any moment after an epoch or two.
    """
    for kills in range(most + 1):
        deadly, spared = draw.randint(1, 12), kills == most
        in_writing = kills % 2 == 0
        environment = {"TINY_KILL": deadly} if in_writing and not spared else {}
        with started(root, 2, methods, **environment) as process:
            if not in_writing and not spared:
                for _ in range(deadly // 4):
                    process.stdout.readline()
                time.sleep(draw.random())
                process.kill()
            _, errors = process.communicate(timeout=600)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, errors
            return kills
    raise AssertionError("killed although it was spared")


def test_a_kill_in_writing_changes_nothing(tmp_path: Path, whole: Store) -> None:
    assert run_with_kills(tmp_path, METHODS, random.Random(0), most=1) == 1
    assert_same(Store(tmp_path), whole)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "whole", MORE)
    draw, kills, place = random.Random(1), 0, 0
    while kills < 20:
        root = tmp_path / f"killed{place}"
        kills += run_with_kills(root, MORE, draw, most=20 - kills)
        place += 1
        assert_same(Store(root), expected)
