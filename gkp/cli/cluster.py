"""`run --slurm KEY=VALUE,...`: what is asked of a cluster, checked, and how its jobs are told about.

Nothing here imports PyTorch at the top: a mistyped key is answered at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gkp.cli.arguments import MOST_MINUTES, Misuse, number, whole
from gkp.utils.nearest import shown, unknown

OPTION = "--slurm"
# of a job; the number of jobs is what Slurm takes as one array where nobody changed that
MOST_JOBS, MOST_GPUS, MOST_CPUS, MOST_GB = 1000, 64, 4096, 100_000
NAME = re.compile(r"[A-Za-z0-9_.@:|&!()*\[\]/][A-Za-z0-9_.@:|&!()*\[\]/+-]*")


def _text(key: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not NAME.fullmatch(text):
            raise Misuse(f"{OPTION} {key}={text[:60]}: give a name that your cluster knows")
        return text

    return parse


def _choice(key: str, **values: Any) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text not in values:
            raise Misuse(f"{OPTION} {key}={text[:60]}: give {' or '.join(values)}")
        return values[text]

    return parse


KEYS: dict[str, Callable[[str], Any]] = {
    "partition": _text("partition"),
    "gpus": whole(f"{OPTION} gpus", 0, MOST_GPUS),
    "cpus": whole(f"{OPTION} cpus", 1, MOST_CPUS),
    "minutes": whole(f"{OPTION} minutes", 1, MOST_MINUTES),
    "jobs": whole(f"{OPTION} jobs", 1, MOST_JOBS),
    "account": _text("account"),
    "constraint": _text("constraint"),
    "memory_gb": number(
        f"{OPTION} memory_gb", lambda value: 0.1 <= value <= MOST_GB, f"a number from 0.1 to {MOST_GB}"
    ),
    "executor": _choice("executor", slurm="slurm", local="local"),
    "wait": _choice("wait", yes=True, no=False),
}


def parse(text: Any) -> dict[str, Any]:
    """ "partition=gpu,jobs=8" -> {"partition": "gpu", "jobs": 8}; every key once, each with its value."""
    values: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise Misuse(f"{OPTION} {shown(item)}: give KEY=VALUE,..., with keys of {', '.join(KEYS)}")
        if key not in KEYS:
            raise Misuse(f"{OPTION}: {unknown('key', key, KEYS)}")
        if key in values:
            raise Misuse(f"{OPTION}: {key} stands twice: give it once")
        values[key] = KEYS[key](value)
    return values


Slurm = Annotated[
    dict[str, Any] | None,
    typer.Option(
        OPTION,
        parser=parse,
        metavar="KEY=VALUE,...",
        help="Share the work among jobs of a Slurm cluster, as in partition=gpu,gpus=1,minutes=60,jobs=8; "
        f"keys: {', '.join(KEYS)}.",
    ),
]


def run(suite: str, given: dict[str, Any], root: Path, **options: Any) -> None:
    """Submit jobs, say which, and wait for them unless asked not to; typer.Exit(1) if something is left."""
    from gkp.study.execute.cluster import slurm
    from gkp.study.runs.store import Store
    from gkp.utils.progress import Progress

    if not slurm.missing(suite, Store(root)):
        print(f"{suite}: every run has its record; nothing to submit")
        return
    waits = given.pop("wait", True)
    submission = slurm.submit(suite, slurm.Allocation(**given), root=root, **options)
    cancel = f"`{submission.cancel}` cancels the jobs"
    print(f"{suite}: submitted {', '.join(submission.ids)}; {cancel}")
    print(f"logs are in {submission.folder}", flush=True)
    if not waits:
        return
    try:
        left = slurm.wait(submission, Progress())
    except KeyboardInterrupt:
        print(f"the jobs go on without this command; {cancel}", file=sys.stderr)
        sys.exit(130)
    tell(suite, left, *slurm.reports(submission), submission.folder)


def tell(suite: str, left: list[str], report: Any, silent: list[str], folder: Path) -> None:
    """Say what is left and why; typer.Exit(1) where something is."""
    if not left:
        print(f"{suite}: every run has its record")
        return
    print(f"{suite}: {len(left)} left", flush=True)
    for stem in left:
        if stem in report["failed"]:
            print(f"failed: {stem}: {report['failed'][stem]}", file=sys.stderr)
    if report["stopped"]:
        print(f"stopped: {report['stopped']}", file=sys.stderr)
    if silent:
        print(f"ended early, see {folder}: {', '.join(silent)}", file=sys.stderr)
    print("the jobs have ended; the same command submits new ones that continue", file=sys.stderr)
    raise typer.Exit(1)
