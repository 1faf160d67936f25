"""A suite in jobs of a Slurm cluster: what is asked of it, how jobs are submitted and waited for.

submitit talks to Slurm; its local executor makes jobs of this machine's processes where there is no cluster.
What a job does is in `gkp.study.execute.cluster.share`.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gkp.study.execute.cluster.share import Report, Share
from gkp.study.execute.context import Context
from gkp.study.execute.queue import tidy
from gkp.study.execute.suite import queue_of
from gkp.study.runs.store import Store, is_complete
from gkp.utils.progress import Progress

POLL_SECONDS = 2.0  # how often records are counted
SQUEUE_SECONDS = 15.0  # how often Slurm is asked, which serves everybody
MOST_TIMEOUTS = 10**6  # of submitit, which would give a job up after three


@dataclass(frozen=True)
class Allocation:
    """What is asked of the cluster for each job. memory_gb: of 2^30 bytes, as Slurm counts them."""

    jobs: int = 1
    minutes: int = 60
    gpus: int = 0
    cpus: int | None = None
    memory_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    executor: str = "slurm"  # or "local": processes of this machine

    @property
    def reserve(self) -> float:
        """Minutes of a job that are kept for starting, for the epoch that is under way, and for saving."""
        return min(10.0, self.minutes / 4)


@dataclass
class Submission:
    """Jobs that were submitted for a suite, and the folder with their logs."""

    suite: str
    store: Store
    executor: str
    folder: Path
    jobs: Sequence[Any]  # submitit's

    @property
    def ids(self) -> list[str]:
        return [job.job_id for job in self.jobs]

    @property
    def cancel(self) -> str:
        """The command that cancels all jobs."""
        if self.executor == "local":
            return f"kill {' '.join(self.ids)}"
        return f"scancel {self.array}"

    @property
    def array(self) -> str:
        """Slurm's number of all jobs together."""
        return self.ids[0].partition("_")[0]

    def running(self) -> list[str]:
        """Ids of the jobs that run or wait to run; all of them while Slurm does not answer."""
        if self.executor == "local":
            return [job.job_id for job in self.jobs if not job.done()]
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={self.array}"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            return self.ids
        return answer.stdout.split()


def submit(suite: str, allocation: Allocation, *, root: str | Path = ".", **options: Any) -> Submission:
    """Submit the jobs of a suite and return at once.

    root: on a file system that all machines share. options: of `run_suite` in each job.
    ValueError where submitit or Slurm is missing, or Slurm refuses the jobs.
    """
    check_tools(allocation.executor)
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    root = Path(root).resolve()
    folder = new_folder(root / "work" / "slurm", suite)
    budget = allocation.minutes - allocation.reserve
    share = Share(suite, root, budget, threads=allocation.cpus, options=options)
    limits = {f"{name}_max_num_timeout": MOST_TIMEOUTS for name in ("slurm", "local")}
    executor = submitit.AutoExecutor(folder, cluster=allocation.executor, **limits)
    executor.update_parameters(**parameters(suite, allocation))
    # A Ctrl-C here is for this process; what it starts inherits that it is ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        jobs = executor.submit_array([replace(share) for _ in range(allocation.jobs)])
    except (FailedJobError, FailedSubmissionError) as error:
        raise ValueError(f"Slurm refuses the jobs: {' '.join(str(error).split())}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    return Submission(suite, Store(root), allocation.executor, folder, jobs)


def check_tools(executor: str) -> None:
    """ValueError where submitit, or Slurm's commands if it is to be used, are missing."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError('--slurm needs the package submitit: pip install submitit, or "gkp[slurm]"')
    if executor == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError("--slurm: no sbatch here: go to a machine of the cluster, or give executor=local")


def new_folder(parent: Path, suite: str) -> Path:
    """A folder of its own for each submission: ids of jobs come again, where they are those of processes."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{suite}-{stamp}{f'-{n}' if n else ''}" for n in range(1000))
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir(parents=True)
    return folder


def parameters(suite: str, allocation: Allocation) -> dict[str, Any]:
    """The allocation in submitit's words."""
    known = {
        "name": f"gkp-{suite}",
        "timeout_min": allocation.minutes,
        "gpus_per_node": allocation.gpus or None,
        "cpus_per_task": allocation.cpus,
        "mem_gb": allocation.memory_gb,
        "slurm_partition": allocation.partition,
        "slurm_account": allocation.account,
        "slurm_constraint": allocation.constraint,
        # A site may have set that jobs are not put into the queue again; their owner may say otherwise.
        "slurm_additional_parameters": {"requeue": True},
        # Since Slurm 22.05 the step does not inherit it from the job.
        "slurm_srun_args": [f"--cpus-per-task={allocation.cpus}"] if allocation.cpus else None,
        # The end of a job that an epoch kept too long; it comes up to a minute early.
        "slurm_signal_delay_s": int(30 * allocation.reserve),
    }
    return {name: value for name, value in known.items() if value is not None}


def missing(suite: str, store: Store) -> list[str]:
    """The file stems of runs without a complete record, and the names of facts without one."""
    wanted = store.suite(suite)
    facts = [name for name in wanted.facts if store.fact(suite, name) is None]
    return [run.stem for run in wanted.ordered() if not is_complete(run, store)] + facts


def wait(submission: Submission, progress: Progress) -> list[str]:
    """Show how many records there are until the jobs have ended; what is `missing` then.

    Jobs that wait for a machine when nothing is missing are cancelled. Ctrl-C ends the waiting alone.
    """
    store = submission.store
    suite = store.suite(submission.suite)
    total = len(suite.ordered()) + len(suite.facts)
    left = len(missing(suite.name, store))
    asked, cancelled = time.monotonic(), False
    running = submission.ids
    with progress.task(f"{suite.name} in {len(running)} jobs", total, done=total - left) as task:
        while running:
            time.sleep(POLL_SECONDS)
            before, left = left, len(missing(suite.name, store))
            task.advance(before - left)
            if not left and not cancelled and submission.executor == "slurm":
                # Those that just ended by themselves are an error to it, which is none here.
                subprocess.run(["scancel", "--state=PENDING", submission.array], capture_output=True)
                cancelled = True
            pause = SQUEUE_SECONDS if left and submission.executor == "slurm" else 0
            if time.monotonic() - asked >= pause:
                running, asked = submission.running(), time.monotonic()
    tidy(queue_of(suite), Context(store, torch.device("cpu")))
    store.update_manifest()
    return missing(suite.name, store)


def reports(submission: Submission) -> tuple[Report, list[str]]:
    """What the jobs said at their ends, taken together, and the ids of those that said nothing."""
    failed: dict[str, str] = {}
    stopped: dict[str, None] = {}
    silent = []
    for job in submission.jobs:
        if not job.paths.result_pickle.exists() or job.exception() is not None:
            silent.append(job.job_id)
            continue
        report = job.result()
        failed |= report["failed"]
        if report["stopped"]:
            stopped[report["stopped"]] = None
    return {"failed": failed, "stopped": "; ".join(stopped) or None}, silent
