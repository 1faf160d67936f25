"""Weights of a network while it trains, for a method that asks how training changed them (TMI-GKP).

A suite that trains its own start keeps snapshots of that training, from the part of it that TMI-GKP
looks at (epochs 35 to 70 of 300, Zhong et al. 2022). The training of a public checkpoint is gone: then
the unpruned network is fine-tuned once more, by the recipe and the seed of the run, and every epoch of
that is a snapshot. That is another trajectory, after the weights instead of before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor, nn

from gkp.train.hooks import Hooks
from gkp.utils.files import atomic_write_bytes

FIRST, LAST = 35 / 300, 70 / 300  # of a training
MOST = 12  # snapshots; the original keeps all 36, but neighbouring epochs vote alike

Snapshot = dict[str, Tensor]  # the convolutions' weights, named as in the state_dict


def early(epochs: int) -> list[int]:
    """The epochs (from 1) whose weights are kept of a whole training, evenly spaced, at least one."""
    first, last = max(1, round(FIRST * epochs)), max(1, round(LAST * epochs))
    return spaced(range(first, last + 1))


def spaced(epochs: Sequence[int]) -> list[int]:
    """At most `MOST` of these epochs, evenly spaced, with the first and the last."""
    places = np.linspace(0, len(epochs) - 1, min(MOST, len(epochs)))
    return [epochs[int(place)] for place in places.round()]


def keep(folder: Path, epochs: Sequence[int]) -> Hooks:
    """Hooks of a training that write the weights of these epochs into `folder`, one file each."""

    def after_epoch(model: nn.Module, epoch: int) -> None:
        if epoch in epochs:
            convolutions = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
            weights = {f"{n}.weight": w.detach().cpu().contiguous() for n, w in convolutions.items()}
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(_file(folder, epoch), safetensors.torch.save(weights))

    return Hooks(after_epoch=after_epoch)


def read(folder: Path, epochs: Sequence[int]) -> list[Snapshot]:
    """The snapshots of these epochs, in order. FileNotFoundError naming the first that is missing."""
    return [safetensors.torch.load(_file(folder, epoch).read_bytes()) for epoch in epochs]


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:03}.safetensors"
