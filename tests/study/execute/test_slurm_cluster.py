"""A suite in jobs of a real Slurm on this machine: shared, continued, killed; skipped where there is none."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import tiny_jobs
from tiny_checks import assert_same, undisturbed

from gkp.study.runs.store import Store

METHODS = ("l1",)
MORE = ("sfp", "tmi-gkp", "random", "l1", "sr-gkp", "fpgm-training", "slimming", "thinet", "taylor")
KILLS = int(os.environ.get("GKP_KILLS", 20))
ASKED = f"partition={slurm_cluster.PARTITION},jobs=4,minutes=60"

pytestmark = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "-")


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with slurm_cluster.cluster() as variables:
        yield variables


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def logs(root: Path) -> str:
    return "".join(path.read_text() for path in sorted(root.glob("work/slurm/*/*_log.*")))


def at_work(slurm: dict[str, str]) -> dict[int, str]:
    """Process id -> job of what computes: the processes of steps, not the scripts that start them."""
    lines = [line.split() for line in slurm_cluster.asked(slurm, "scontrol", "listpids").splitlines()[1:]]
    return {int(pid): job for pid, job, step, *_ in lines if step.isdecimal() and int(pid) > 0}


def test_four_jobs_share_the_work_while_one_is_killed_and_the_time_of_others_ends(
    tmp_path: Path, compiled: Path, slurm: dict[str, str]
) -> None:
    whole = undisturbed(tmp_path / "whole", METHODS, threads=1)
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    variables = tiny_jobs.environment(METHODS, compiled, TINY_LOG=log, TINY_HOUR=5, **slurm)
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
    assert f"`scancel {said.split('scancel ')[1].split('`')[0]}` cancels the jobs" in said
    assert "Requeued job" in logs(root)
    assert_same(Store(root), whole)
    assert tiny_jobs.written_records(log) == len(whole.all())
    left = slurm_cluster.asked(slurm, "squeue", "--noheader").strip()
    assert left == ""


def kill_one(slurm: dict[str, str], draw: random.Random) -> str | None:
    """Kill a job that computes, by kill -9 of its process or by Slurm's scancel; which, or None for neither."""
    jobs = at_work(slurm)
    if not jobs:
        return None
    pid = draw.choice(sorted(jobs))
    if draw.random() < 0.5:
        slurm_cluster.asked(slurm, "scancel", "--full", "--signal=KILL", jobs[pid])
        return "scancel"
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself meanwhile
        return None
    return "kill -9"


def run_with_kills(
    root: Path, variables: dict[str, str], slurm: dict[str, str], draw: random.Random, most: int
) -> list[str]:
    """Give the command until every run has its record; which kills there were, `most` at most."""
    kills: list[str] = []
    quiet = subprocess.DEVNULL
    for _ in range(most + 1):  # each time after the first, all jobs of the time before were killed
        command = tiny_jobs.command(root, ASKED)
        with subprocess.Popen(command, env=variables, stdout=quiet, stderr=quiet) as process:
            while process.poll() is None and len(kills) < most:
                time.sleep(draw.uniform(0.5, 8))
                if kind := kill_one(slurm, draw):
                    kills.append(kind)
            if process.wait(900) == 0:
                return kills
    raise AssertionError(f"something is left although no job was killed\n{logs(root)}")


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(
    tmp_path: Path, compiled: Path, slurm: dict[str, str]
) -> None:
    """GKP_KILLS of them, by default twenty; `-s` shows the numbers."""
    expected = undisturbed(tmp_path / "whole", MORE, threads=1)
    runs, draw, kills = len(expected.all()), random.Random(2), []
    for place in range(KILLS):
        root, log = tmp_path / f"killed{place}", tmp_path / f"log{place}"
        root.mkdir()
        variables = tiny_jobs.environment(MORE, compiled, TINY_LOG=log, TINY_HOUR=12, **slurm)
        found = run_with_kills(root, variables, slurm, draw, KILLS - len(kills))
        kills += found
        assert_same(Store(root), expected)
        # A process may be killed between a file's new name and the line about it.
        written = tiny_jobs.written_records(log)
        assert runs - len(found) <= written <= runs
        times, submitted = logs(root).count("Requeued job"), len(list(root.glob("work/slurm/*")))
        print(f"{found}: {runs} runs, {written} records written, {submitted} submissions, {times} continued")
        if len(kills) == KILLS:
            break
    assert len(kills) == KILLS
