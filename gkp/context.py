"""Where runs read and write, on what they compute, and until when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gkp import data, estimates
from gkp.configuration import Run
from gkp.data import Split
from gkp.progress import Progress, Task
from gkp.records import Store

STATE_PARTS = ("", "-pruning", "-snapshots")  # the last training of a run, and one that may precede it


class OutOfTime(Exception):
    """The time budget is used up; what was finished is on disk and the run can be continued."""


@dataclass
class Pace:
    """How long things take on this machine: the estimates of `suites`, corrected by what was measured.

    With a pace a run stops before the epoch that would end after the deadline; without
    one it stops after the epoch in which the deadline passes.
    """

    device: str
    factor: float = 1.0  # measured by estimated seconds of the latest epoch
    margin: float = 1.2  # epochs differ, more so when several processes share a device

    def epoch(self, run: Run) -> float:
        """Seconds of the next epoch; 0 for a run that trains nothing."""
        return self._scaled(estimates.training_minutes(run, self.device)) / max(run.epochs, 1)

    def attack(self, run: Run) -> float:
        """Mean seconds of one attack on every kept checkpoint."""
        return self._scaled(estimates.evaluation_minutes(run, self.device)) / max(len(run.evaluation), 1)

    def _scaled(self, minutes: float) -> float:
        return 60 * minutes * self.factor * self.margin

    def measured(self, run: Run, seconds: float) -> None:
        """Take note of the seconds that an epoch of `run` took."""
        self.factor *= seconds * self.margin / self.epoch(run)


class TimedProgress(Progress):
    """Progress that raises `OutOfTime` at the end of the first epoch after the deadline.

    Training says one line per epoch, after that epoch's state is on disk: stopping there loses nothing.
    ahead: the run and its pace, to stop already before an epoch that would end after the deadline.
    """

    def __init__(
        self,
        inner: Progress | None,
        title: str,
        deadline: float | None,
        ahead: tuple[Run, Pace] | None = None,
    ) -> None:
        super().__init__(inner.mode if inner else "off", stream=inner.stream if inner else None)
        self.prefix, self.deadline, self.ahead = title, deadline, ahead

    @contextmanager
    def task(self, title: str, total: float, *, done: float = 0) -> Iterator[Task]:
        with super().task(f"{self.prefix}, {title}", total, done=done) as task:
            say, started = task.say, time.monotonic()

            def say_and_check(text: str) -> None:
                nonlocal started
                say(text)
                if not text:
                    return
                ended = time.monotonic()
                if self.ahead:
                    run, pace = self.ahead
                    pace.measured(run, ended - started)
                started = ended
                if self.expired() or (self.ahead and task.done < total and not self.fits_epoch()):
                    raise OutOfTime

            task.say = say_and_check  # type: ignore[method-assign]
            yield task

    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def fits_epoch(self) -> bool:
        """Whether one more epoch ends before the deadline; True where nobody asked to look ahead."""
        return self.ahead is None or self._left() > self.ahead[1].epoch(self.ahead[0])

    def _left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()


@dataclass
class Context:
    """Where runs read and write, and on what they compute; `splits` keeps loaded data between runs."""

    store: Store
    device: torch.device
    progress: Progress | None = None
    deadline: float | None = None  # of time.monotonic()
    download: bool = False  # fetch data that are missing
    splits: dict[tuple[str, str], Split] = field(default_factory=dict)
    cuda_graphs: bool = False  # see `gkp.train.fine_tune`
    pace: Pace | None = None  # to end before the deadline instead of an epoch after it

    def timed(self, run: Run) -> TimedProgress:
        """Progress of the run that stops it in time."""
        ahead = (run, self.pace) if self.pace else None
        return TimedProgress(self.progress, run.label, self.deadline, ahead)

    def split(self, dataset: str, part: str) -> Split:
        if (dataset, part) not in self.splits:
            self.splits[dataset, part] = data.load(dataset, part, download=self.download)
        return self.splits[dataset, part]

    def example(self, dataset: str) -> Tensor:
        """One image (1, 3, H, W) on the device, for tracing and counting."""
        return self.split(dataset, "test").pixels(slice(1)).to(self.device)

    def state_path(self, run: Run, part: str = "") -> Path:
        return self.state_folder / f"{run.hash}{part}.pt"

    def state_paths(self, run: Run) -> list[Path]:
        """Where the trainings of the run, one or two, are saved until its record is written."""
        return [self.state_path(run, part) for part in STATE_PARTS]

    @property
    def state_folder(self) -> Path:
        """Where everything that can be continued lies until it is done."""
        return self.store.root / "work" / "state"

    def snapshots_folder(self, run: Run) -> Path:
        """Where the weights that a training passed through are kept."""
        return self.store.root / "work" / "snapshots" / run.hash
