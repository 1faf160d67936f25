"""A suite in jobs of a real Slurm on this machine: shared, continued, killed; skipped where there is none."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import tiny_jobs
from tiny_checks import assert_same, undisturbed

from gkp.study.runs.store import Store

METHODS, EPOCHS = ("l1",), 6
MORE = ("sfp", "tmi-gkp", "random", "l1", "sr-gkp", "fpgm-training", "slimming", "thinet", "taylor")
KILLS = int(os.environ.get("GKP_KILLS", 20))
ASKED = f"partition={slurm_cluster.PARTITION},jobs=4,minutes=60"

pytestmark = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "-")


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with slurm_cluster.cluster() as variables:
        yield variables


def logs(root: Path) -> str:
    return "".join(path.read_text() for path in sorted(root.glob("work/slurm/*/*_log.*")))


def at_work(slurm: dict[str, str]) -> dict[int, str]:
    """Process id -> job of what computes: the processes of steps, not the scripts that start them."""
    lines = [line.split() for line in slurm_cluster.asked(slurm, "scontrol", "listpids").splitlines()[1:]]
    return {int(pid): job for pid, job, step, *_ in lines if step.isdecimal() and int(pid) > 0}


def test_four_jobs_share_the_work_while_one_is_killed_and_the_time_of_others_ends(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    whole = undisturbed(tmp_path / "whole", METHODS, threads=1, epochs=EPOCHS)
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    more = {"TINY_LOG": log, "TINY_HOUR": 5, "TINY_EPOCHS": EPOCHS}
    variables = tiny_jobs.environment(METHODS, **more, **slurm)
    pipe = subprocess.PIPE
    with subprocess.Popen(tiny_jobs.command(root, ASKED), env=variables, text=True, stdout=pipe) as process:
        while not log.exists():  # until the baseline's first epoch is saved
            assert process.poll() is None, logs(root)
            time.sleep(0.02)
        victim = int(log.read_text().split()[0])
        assert victim in at_work(slurm)
        os.kill(victim, signal.SIGKILL)
        said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said + logs(root)
    assert re.search(r"submitted (\d+)_0, \1_1, \1_2, \1_3; `scancel \1` cancels the jobs", said), said
    assert "Requeued job" in logs(root)
    assert_same(Store(root), whole)
    assert tiny_jobs.written_records(log) == len(whole.all())
    left = slurm_cluster.asked(slurm, "squeue", "--noheader").strip()
    assert left == ""


def kill_one(slurm: dict[str, str], log: Path, draw: random.Random) -> str | None:
    """Kill a job, by kill -9 of its process or by Slurm's scancel; what was done, or None for nothing.

    One that wrote something already, where there is one, and at times one that only starts.
    """
    jobs = at_work(slurm)
    begun = {int(line.split()[0]) for line in log.read_text().splitlines()} if log.exists() else set()
    computing = sorted(jobs.keys() & begun)
    if not computing and (not jobs or draw.random() < 0.8):
        return None
    pid = draw.choice(computing or sorted(jobs))
    when = "computing" if computing else "starting"
    if draw.random() < 0.5:
        slurm_cluster.asked(slurm, "scancel", "--full", "--signal=KILL", jobs[pid])
        return f"scancel, {when}"
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself meanwhile
        return None
    return f"kill -9, {when}"


def run_with_kills(root: Path, log: Path, slurm: dict[str, str], draw: random.Random, most: int) -> list[str]:
    """Give the command until every run has its record; which kills there were, `most` at most."""
    kills: list[str] = []
    quiet = subprocess.DEVNULL
    variables = tiny_jobs.environment(MORE, TINY_LOG=log, TINY_HOUR=4, **slurm)
    for _ in range(most + 1):  # each time after the first, all jobs of the time before were killed
        command = tiny_jobs.command(root, ASKED)
        with subprocess.Popen(command, env=variables, stdout=quiet, stderr=quiet) as process:
            while process.poll() is None and len(kills) < most:
                time.sleep(draw.uniform(0.1, 5))
                if kind := kill_one(slurm, log, draw):
                    kills.append(kind)
            if process.wait(900) == 0:
                return kills
    raise AssertionError(f"something is left although no job was killed\n{logs(root)}")


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    """GKP_KILLS of them, by default twenty; `-s` shows the numbers."""
    expected = undisturbed(tmp_path / "whole", MORE, threads=1)
    runs, draw, kills = len(expected.all()), random.Random(2), []
    for place in range(KILLS):
        root, log = tmp_path / f"killed{place}", tmp_path / f"log{place}"
        root.mkdir()
        found = run_with_kills(root, log, slurm, draw, KILLS - len(kills))
        kills += found
        assert_same(Store(root), expected)
        # A process may be killed between a file's new name and the line about it.
        written = tiny_jobs.written_records(log)
        assert runs - len(found) <= written <= runs
        print(f"{runs} runs, {written} records written, {dict(Counter(found))}", end=", ")
        print(f"{len(list(root.glob('work/slurm/*')))} submissions", end=", ")
        print(f"{logs(root).count('Requeued job')} times continued when the time was up")
        if len(kills) == KILLS:
            break
    assert len(kills) == KILLS
