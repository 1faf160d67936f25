"""Where runs read and write, on what they compute, and until when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gkp import data
from gkp.data import Split
from gkp.study.runs.run import Run
from gkp.study.runs.store import Store
from gkp.utils.progress import Progress

STATE_PARTS = ("", "-pruning", "-snapshots")  # the last training of a run, and one that may precede it


class OutOfTime(Exception):
    """The time budget is used up; what was finished is on disk and the run can be continued."""


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
    gathering: bool = False  # trainings are asked for, not done: see `gkp.study.execute.fleet`
    pruned: Path | None = None  # where pruned networks are kept meanwhile: see `gkp.study.execute.ahead`

    def titled(self, title: str) -> Progress:
        """Progress whose pieces of work begin with that title."""
        mode, stream = (self.progress.mode, self.progress.stream) if self.progress else ("off", None)
        return Progress(mode, stream=stream, prefix=f"{title}, ")

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

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

    def attacks_path(self, run: Run) -> Path:
        """Where the attacks of the run are kept until its record is written."""
        return self.state_folder / f"{run.hash}-attacks.json"

    @property
    def state_folder(self) -> Path:
        """Where everything that can be continued lies until it is done."""
        return self.store.root / "work" / "state"

    def snapshots_folder(self, run: Run) -> Path:
        """Where the weights that a training passed through are kept."""
        return self.store.root / "work" / "snapshots" / run.hash


def pick_device(device: str) -> torch.device:
    """ "auto" is the GPU when PyTorch sees one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: PyTorch sees no GPU here; use --device cpu")
    return torch.device(device)
