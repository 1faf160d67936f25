"""What is trained side by side: one training each, and the images of an epoch that several share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gkp.attacks.ascent import uniform
from gkp.train.augment import crop_and_flip, draw_epoch, stream_seed
from gkp.train.fleet.trial import unrepeatable
from gkp.train.hooks import Hooks
from gkp.train.recipe import Recipe
from gkp.train.state import identity_of, load_state

if TYPE_CHECKING:
    from gkp.attacks import Attack
    from gkp.data import Split

AUGMENTED_AT_ONCE = 8192  # images
RECORDED = ("fgsm", "pgd")  # kinds of attacks on training batches
TRIED = 8  # images, to see what a forward pass changes


@dataclass
class Member:
    """One training: the arguments of `gkp.train.fine_tune`, and the network that `model` was pruned from."""

    model: nn.Module
    train: Split
    recipe: Recipe
    validation: Split | None = None
    test: Split | None = None
    seed: int = 0
    state_path: str | Path | None = None
    hooks: Hooks = field(default_factory=Hooks)
    attacks: Mapping[str, Attack] = field(default_factory=dict)
    start: nn.Module | None = None
    title: str = "fine-tune"
    teacher: nn.Module | None = None

    @property
    def held(self) -> dict[str, Split]:
        """What is evaluated after every epoch."""
        given = {"validation": self.validation, "test": self.test}
        return {part: split for part, split in given.items() if split is not None}

    def identity(self) -> dict[str, str]:
        """What its state file must agree on; before the first step."""
        splits = {"training": self.train, **self.held}
        return identity_of(self.model, splits, self.recipe, self.seed, self.attacks, self.teacher)

    def epochs_saved(self, identity: dict[str, str] | None = None) -> int:
        """How many epochs its state file holds, 0 without one; StateError when it is of another training."""
        if self.state_path is None or not Path(self.state_path).exists():
            return 0
        return len(load_state(self.state_path, identity or self.identity())["epochs"])

    def why_alone(self) -> str:
        """Why `fine_tune` has to train it by itself; "" where a fleet can.

        Runs a copy of the network once, see `gkp.train.fleet.trial`.
        """
        modules, attack = list(self.model.modules()), self.recipe.adversarial
        reasons = {
            "epochs are chosen by attacks": bool(self.attacks),
            "its batches meet neither FGSM nor PGD": bool(attack and attack.kind not in RECORDED),
            "its method adds to the loss": self.hooks.penalty is not None or self.hooks.loss is not None,
            "some of its weights are shared": shared(self.model),
            "some of its weights are frozen": not all(p.requires_grad for p in self.model.parameters()),
            "its weights are of several types": len({p.dtype for p in self.model.parameters()}) > 1,
            "it has dropout": any(isinstance(m, _DropoutNd) and m.p > 0 for m in modules),
            "a batch norm averages over all batches": any(
                isinstance(m, _BatchNorm) and m.track_running_stats and m.momentum is None for m in modules
            ),
        }
        if reason := next((reason for reason, holds in reasons.items() if holds), ""):
            return reason
        few = self.train.pixels(slice(TRIED))
        few = few.repeat(2, 1, 1, 1) if len(few) == 1 else few
        return unrepeatable(self.model, few.to(next(self.model.parameters()).device))


def shared(model: nn.Module) -> bool:
    """Whether a parameter has two names."""
    names = len(list(model.named_parameters(remove_duplicate=False)))
    return names > len(list(model.named_parameters()))


class Images:
    """The training images of one epoch in order, cropped and flipped; members with one seed share them.

    images: (N, C, H, W) uint8, channels last; labels: (N,) int64; starts: (draws, N, C, H, W) float32 in
    [-1, 1], of the recipe's attack on them. All keep their place in memory.
    """

    def __init__(self, train: Split, recipe: Recipe, seed: int, batches: Sequence[slice]) -> None:
        """batches: the images of each step, by their places in the epoch."""
        self.train, self.recipe, self.seed, self.epoch, self.batches = train, recipe, seed, 0, batches
        self.images = torch.zeros_like(train.images, memory_format=torch.channels_last)
        self.labels = torch.zeros_like(train.labels, dtype=torch.long)
        draws = recipe.adversarial.draws if recipe.adversarial else 0
        self.starts = torch.zeros(draws, *train.images.shape, device=train.images.device)

    def load(self, epoch: int) -> None:
        """Those of `epoch`, by the draws of `gkp.train.fine_tune`."""
        if epoch == self.epoch:
            return
        recipe, n, device = self.recipe, len(self.train), self.images.device
        generator = torch.Generator().manual_seed(stream_seed("augment", self.seed, epoch))
        draws = draw_epoch(n, recipe.augment, recipe.padding, generator).to(device)
        for start in range(0, n, AUGMENTED_AT_ONCE):
            part = slice(start, start + AUGMENTED_AT_ONCE)
            images = self.train.images[draws.order[part]]
            corner = draws.top[part], draws.left[part], draws.flip[part]
            self.images[part] = crop_and_flip(images, *corner, recipe.padding)
        self.labels.copy_(self.train.labels[draws.order])
        for step, batch in enumerate(self.batches if len(self.starts) else ()):
            generator = torch.Generator().manual_seed(stream_seed("attack", self.seed, epoch, step))
            for starts in self.starts:
                starts[batch] = uniform(starts[batch], generator)
        self.epoch = epoch
