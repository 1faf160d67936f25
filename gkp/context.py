"""Where runs read and write, on what they compute, and until when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gkp import data
from gkp.data import Split
from gkp.progress import Progress, Task
from gkp.records import Store
from gkp.suites import Run


class OutOfTime(Exception):
    """The time budget is used up; what was finished is on disk and the run can be continued."""


class TimedProgress(Progress):
    """Progress that raises `OutOfTime` at the end of the first epoch after the deadline.

    Training says one line per epoch, after that epoch's state is on disk: stopping there loses nothing.
    """

    def __init__(self, inner: Progress | None, title: str, deadline: float | None) -> None:
        super().__init__(inner.mode if inner else "off", stream=inner.stream if inner else None)
        self.prefix, self.deadline = title, deadline

    @contextmanager
    def task(self, title: str, total: float, *, done: float = 0) -> Iterator[Task]:
        with super().task(f"{self.prefix}, {title}", total, done=done) as task:
            say = task.say

            def say_and_check(text: str) -> None:
                say(text)
                if text and self.expired():
                    raise OutOfTime

            task.say = say_and_check  # type: ignore[method-assign]
            yield task

    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


@dataclass
class Context:
    """Where runs read and write, and on what they compute; `splits` keeps loaded data between runs."""

    store: Store
    device: torch.device
    progress: Progress | None = None
    deadline: float | None = None  # of time.monotonic()
    download: bool = False  # fetch data that are missing
    splits: dict[tuple[str, str], Split] = field(default_factory=dict)

    def split(self, dataset: str, part: str) -> Split:
        if (dataset, part) not in self.splits:
            self.splits[dataset, part] = data.load(dataset, part, download=self.download)
        return self.splits[dataset, part]

    def example(self, dataset: str) -> Tensor:
        """One image (1, 3, H, W) on the device, for tracing and counting."""
        return self.split(dataset, "test").pixels(slice(1)).to(self.device)

    def state_path(self, run: Run, part: str = "") -> Path:
        return self.store.root / "work" / "state" / f"{run.hash}{part}.pt"

    def snapshots_folder(self, run: Run) -> Path:
        """Where the weights that a training passed through are kept."""
        return self.store.root / "work" / "snapshots" / run.hash
