"""A suite in jobs: shared, continued and killed as processes are, by the executor that needs no cluster.

test_slurm_cluster.py has the same with a real Slurm.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_jobs
import torch
from submitit.helpers import DelayedSubmission
from tiny_checks import assert_same, undisturbed
from tiny_run import suite_of
from tiny_suite import tiny_suite

from gkp.cli import cluster
from gkp.study.execute import queue
from gkp.study.execute.cluster import share, slurm
from gkp.study.execute.cluster.share import Share, hopeful
from gkp.study.execute.context import Context, OutOfTime
from gkp.study.execute.queue import claim_first, work
from gkp.study.execute.suite import queue_of
from gkp.study.runs import suites
from gkp.study.runs.provenance import provenance
from gkp.study.runs.record import Fact
from gkp.study.runs.store import Store
from gkp.study.runs.suites.grids import Suite

METHODS = ("l1",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return undisturbed(tmp_path_factory.mktemp("whole"), METHODS, threads=1)


def logs(root: Path) -> str:
    return "".join(path.read_text() for path in sorted(root.glob("work/slurm/*/*_log.*")))


# ---- whole suites --------------------------------------------------------------------------------


def test_four_jobs_share_the_work_while_one_is_killed_and_the_time_of_others_ends(
    tmp_path: Path, whole: Store
) -> None:
    victim, log = tmp_path / "victim", tmp_path / "log"
    variables = tiny_jobs.environment(METHODS, TINY_VICTIM=victim, TINY_HOUR=5, TINY_LOG=log)
    done = tiny_jobs.run(tmp_path, "executor=local,jobs=4,minutes=60", variables)
    assert done.returncode == 0, done.stderr + logs(tmp_path)
    assert "every run has its record" in done.stdout
    assert victim.exists()
    assert len(list(tmp_path.glob("work/slurm/*/*_result.pkl"))) == 3
    assert "Requeued job" in logs(tmp_path)
    assert_same(Store(tmp_path), whole)
    assert tiny_jobs.written_records(log) == len(whole.all())


INTERRUPTED = """
import os, signal
import gkp.pruners  # before the study, for its plug-ins
from gkp import cli
from gkp.study.execute.cluster import slurm

def wait(submission, progress):
    os.kill(os.getpid(), signal.SIGINT)
    return []

slurm.wait = wait
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_running_and_the_command_it_names_ends_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    variables = tiny_jobs.environment(METHODS, TINY_EPOCHS=10_000)
    command = tiny_jobs.command(tmp_path, "executor=local,jobs=1")
    command[1:3] = [str(tmp_path / "interrupted.py")]
    said = tmp_path / "said"
    with said.open("w") as errors:  # a pipe would stay open as long as the jobs run
        done = subprocess.run(command, env=variables, stdout=errors, stderr=errors, timeout=300)
    assert done.returncode == 130, said.read_text()
    (cancel,) = {part for part in said.read_text().split("`") if part.startswith("kill ")}
    (job,) = map(int, cancel.split()[1:])
    try:
        assert eventually(lambda: "epoch 1/10000" in logs(tmp_path)), logs(tmp_path)
    finally:
        subprocess.run(cancel.split(), check=True)
    assert eventually(lambda: not Path(f"/proc/{job}").exists() or is_zombie(job))
    assert not list(tmp_path.glob("work/slurm/*/*_result.pkl"))
    with claim_first([run for _, run in queue_of_tiny(10_000)], tmp_path) as run:
        assert run is not None  # nobody holds the baseline
        assert run.start() is None


def queue_of_tiny(epochs: int) -> queue.Queue:
    return queue_of(suite_of(list(METHODS), epochs))


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def eventually(condition, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


# ---- one job -------------------------------------------------------------------------------------


@pytest.fixture
def failing(tiny: Suite, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs of "l1" fail; the stems of all that were tried."""
    tried, whole = [], queue.execute
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: tiny_suite("l1"))

    def execute(run, suite, context):
        tried.append(run.stem)
        if run.method == "l1":
            raise RuntimeError("the loss is not finite")
        return whole(run, suite, context)

    monkeypatch.setattr(queue, "execute", execute)
    return tried


def no_time_again() -> None:
    raise AssertionError("the job was continued")


def test_what_failed_in_a_job_is_not_tried_again_and_ends_it(
    failing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "again", no_time_again)
    job = Share("tiny", tmp_path, 60, options={"device": "cpu"})
    report = job()
    (stem,) = report["failed"]
    assert stem.startswith("l1-")
    assert "not finite" in report["failed"][stem]
    assert report["stopped"] is None
    assert failing.count(stem) == 1
    assert job() == report
    assert failing.count(stem) == 1
    other = Share("tiny", tmp_path, 60, options={"device": "cpu"})  # another job tries it once too
    assert set(other()["failed"]) == {stem}
    assert failing.count(stem) == 2


def test_a_job_with_work_left_is_continued_with_what_failed(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_time(*_) -> None:
        raise OutOfTime

    asked = []
    monkeypatch.setattr(queue, "execute", out_of_time)
    monkeypatch.setattr(share, "again", lambda: asked.append(1))
    job = Share("tiny", tmp_path, 60, options={"device": "cpu"}, failed={"other": "why"})
    assert "the same command continues" in job()["stopped"]
    assert asked == [1]
    asked_again = job.checkpoint()
    assert isinstance(asked_again, DelayedSubmission)
    continued = asked_again.function
    assert (continued.failed, continued.fruitless) == ({"other": "why"}, 1)


def test_a_job_that_achieves_nothing_is_not_continued_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, states = Share("tiny", tmp_path, 7), tmp_path / "work" / "state"
    states.mkdir(parents=True)
    for fruitless in (1, 2):
        job = job.checkpoint().function
        assert job.fruitless == fruitless
    (states / "a.pt").write_text("an epoch")
    job = job.checkpoint().function
    assert job.fruitless == 0
    job._before = share.achieved(Store(tmp_path))
    job = job.checkpoint().function
    job = job.checkpoint().function
    assert job.checkpoint() is None
    assert "3 times 7 minutes led to nothing new: give more minutes" in capsys.readouterr().err


def test_a_users_mistake_stops_a_job(tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_) -> None:
        raise FileNotFoundError("no CIFAR-10 here")

    monkeypatch.setattr(queue, "execute", missing)
    monkeypatch.setattr(share, "again", no_time_again)
    report = Share("tiny", tmp_path, 60, options={"device": "cpu"})()
    assert report == {"failed": {}, "stopped": "no CIFAR-10 here"}


def test_what_takes_longer_than_a_job_is_said(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "again", no_time_again)
    baseline, evaluated = (run for run in tiny.ordered() if run.label in ("baseline", "unpruned"))
    monkeypatch.setitem(suites.SUITES, "tiny", lambda: Suite("tiny", "", "", (evaluated,)))
    work([("tiny", baseline)], Context(Store(tmp_path), torch.device("cpu")))
    report = Share("tiny", tmp_path, 1e-6, options={"device": "cpu"})()
    assert report["failed"] == {}
    assert "more than 1e-06 minutes at once: give more minutes" in report["stopped"]


def test_what_is_worth_a_job(tiny: Suite, tmp_path: Path) -> None:
    work_left = queue_of(tiny)
    runs = [run for _, run in work_left]
    baseline, rest = runs[0], runs[1:]
    cpu = torch.device("cpu")
    context = Context(Store(tmp_path), cpu, deadline=time.monotonic() + 3600)
    assert set(hopeful(work_left, {}, context)) == set(runs)
    # nothing can start from a baseline that failed
    assert hopeful(work_left, {baseline.stem: "why"}, context) == []
    with claim_first([baseline], tmp_path):  # by another job, after which this one may be needed
        assert set(hopeful(work_left, {}, context)) == set(rest)
    work([("tiny", baseline)], Context(Store(tmp_path), cpu))
    (evaluated,) = [run for run in rest if run.epochs == 0]
    with claim_first([evaluated], tmp_path):
        assert set(hopeful(work_left, {}, context)) == {*rest} - {evaluated}
        assert hopeful([("tiny", evaluated)], {}, context) == []
    # what cannot be interrupted does not fit into no time, however often a job is continued
    short = dataclasses.replace(context, deadline=time.monotonic())
    assert hopeful([("tiny", evaluated)], {}, short) == []
    assert hopeful([("tiny", evaluated)], {}, context) == [evaluated]


def test_a_record_that_the_machine_did_not_see_yet_is_not_made_again(
    tiny: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system: until a folder is touched, this process sees what it saw before."""
    work_left = [queue_of(tiny)[0]]
    context = Context(Store(tmp_path), torch.device("cpu"))
    folder, list_folder, chmod = tmp_path / "results" / "tiny", os.listdir, Path.chmod
    folder.mkdir(parents=True)
    stale = {str(folder)}
    work(work_left, Context(Store(tmp_path), torch.device("cpu")))  # by another machine
    monkeypatch.setattr(os, "listdir", lambda path: [] if str(path) in stale else list_folder(path))
    monkeypatch.setattr(Path, "chmod", lambda path, mode: (stale.discard(str(path)), chmod(path, mode)))
    before = folder.stat().st_mode
    monkeypatch.setattr(queue, "execute", lambda *_: pytest.fail("computed twice"))
    assert work(work_left, context) == {}
    assert (stale, folder.stat().st_mode) == (set(), before)


# ---- where the command is given ------------------------------------------------------------------


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch here.*executor=local"):
        slurm.submit("digits", slurm.Allocation(), root=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package submitit: pip install"):
        slurm.submit("digits", slurm.Allocation(executor="local"), root=tmp_path)
    assert not list(tmp_path.iterdir())


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_slurm_refuses_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    script(tmp_path, "srun", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="Slurm refuses the jobs.*invalid partition specified: gpuu"):
        slurm.submit("digits", slurm.Allocation(partition="gpuu", jobs=2), root=tmp_path)


def test_what_is_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "sbatch", "echo Submitted batch job 7")
    script(tmp_path, "srun", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wanted = slurm.Allocation(8, 60, 1, 4, 16.5, "gpu", "group", "a100&ib")
    submission = slurm.submit("digits", wanted, root=tmp_path, jobs=2)
    assert submission.ids == [f"7_{place}" for place in range(8)]
    assert submission.cancel == "scancel 7"
    text = (submission.folder / "7_submission.sh").read_text()
    for flag in (
        "array=0-7%8", "time=60", "gpus-per-node=1", "cpus-per-task=4", "mem=16896MB", "partition=gpu",
        "account=group", "constraint='a100&ib'", "requeue", "job-name=gkp-digits", "signal=USR2@300",
    ):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in text, flag
    assert "--cpus-per-task=4" in text.partition("# command")[2]
    job = submission.jobs[0].submission().function
    assert (job.budget_minutes, job.threads, job.options) == (50, 4, {"jobs": 2})
    again = slurm.submit("digits", wanted, root=tmp_path)
    assert again.folder != submission.folder


def test_runs_and_facts_are_missing_until_they_have_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, suite = Store(tmp_path), suites.get("method")
    assert suite.facts
    stems = [run.stem for run in suite.ordered()]
    assert slurm.missing("method", store) == [*stems, *suite.facts]
    store.write(Fact.of(suite.facts[0], "method", {"a": 1}, {**provenance("cpu"), "seconds": 0.1}))
    monkeypatch.setattr(slurm, "is_complete", lambda run, _: run.stem == stems[0])
    assert slurm.missing("method", store) == [*stems[1:], *suite.facts[1:]]


@pytest.mark.parametrize(
    ("answer", "running"),
    [
        ("printf '7_0\\n7_2\\n'", ["7_0", "7_2"]),
        ("exit 0", []),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", []),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", ["7_0", "7_1"]),
    ],
)
def test_which_jobs_run(answer: str, running: list[str], tmp_path: Path, monkeypatch) -> None:
    script(tmp_path, "squeue", answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = [SimpleNamespace(job_id=f"7_{place}") for place in (0, 1)]
    submission = slurm.Submission("tiny", Store(tmp_path), "slurm", tmp_path, jobs)
    assert submission.running() == running


def test_what_is_left_is_told_with_its_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.tell("tiny", [], {"failed": {"a": "why"}, "stopped": None}, [], tmp_path)
    assert "every run has its record" in capsys.readouterr().out
    with pytest.raises(cluster.typer.Exit) as ending:
        cluster.tell("tiny", ["a", "b"], {"failed": {"a": "why"}, "stopped": "no data"}, ["7_1"], tmp_path)
    assert ending.value.exit_code == 1
    said = capsys.readouterr()
    assert "2 left" in said.out
    for text in ("failed: a: why", "stopped: no data", f"see {tmp_path}: 7_1", "the same command"):
        assert text in said.err
