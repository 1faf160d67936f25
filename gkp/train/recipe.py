"""What a fine-tuning run does: hyper-parameters with units, and the learning rate they give at each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gkp.train.augment import AUGMENTATIONS
from gkp.utils.whole import is_number, is_whole, plain

if TYPE_CHECKING:
    from gkp.attacks import Attack

SCHEDULES = ("step", "onecycle", "cosine", "constant")
PRECISIONS = ("float32", "tf32", "bfloat16")
LATER = ("gradient_penalty", "distillation", "temperature")
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: value > 0, "a positive number"),
    "gamma": (lambda value: 0 < value <= 1, "a number above 0 and up to 1"),
    "warmup": (lambda value: 0 < value < 1, "a share between 0 and 1"),
    "momentum": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "weight_decay": (lambda value: value >= 0, "0 or more"),
    "gradient_penalty": (lambda value: value >= 0, "0 or more"),
    "distillation": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "temperature": (lambda value: value > 0, "a positive number"),
}

# torch.optim.lr_scheduler.OneCycleLR's defaults: start at peak/25, end at start/10,000.
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1e-4


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of `gkp.train.fine_tune`; the defaults are the paper's (`PAPER`).

    Raises ValueError for values out of range.
    """

    epochs: int = 300  # passes over the training set
    batch_size: int = 64  # images per step; the last, incomplete batch of an epoch is used too
    lr: float = 0.01  # learning rate: at the start, or at the peak of "onecycle"
    schedule: str = "step"  # "step" | "onecycle" | "cosine" | "constant"
    step_epochs: int = 100  # epochs between two drops ("step")
    gamma: float = 0.1  # factor of each drop ("step")
    warmup: float = 0.3  # share of all steps spent rising to the peak ("onecycle")
    momentum: float = 0.9  # of SGD
    nesterov: bool = False
    weight_decay: float = 5e-4  # L2, added to the gradient of every parameter, batch norm included
    augment: str = "crop+flip"  # "none" | "crop" | "crop+flip"; no flip for digits and letters
    padding: int = 4  # black pixels on each side before the crop
    precision: str = "float32"  # of convolutions and matrix products; weights and sums stay float32
    adversarial: Attack | None = None  # perturbs every training batch, in pixels (Madry et al. 2018)
    # Times the squared L2 norm of the loss's gradient at the pixels (Ross & Doshi-Velez 2018), 0 for none.
    gradient_penalty: float = 0.0
    distillation: float = 0.0  # share of a teacher's answers in the loss (Hinton et al. 2015), 0 for none
    temperature: float = 4.0  # which divides the logits of both; for distillation alone

    def __post_init__(self) -> None:
        choices = (("schedule", SCHEDULES), ("augment", AUGMENTATIONS), ("precision", PRECISIONS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        for name, low in (("epochs", 0), ("batch_size", 1), ("step_epochs", 1), ("padding", 0)):
            value = getattr(self, name)
            if not is_whole(value, low):
                raise ValueError(f"{name}={value!r}: give a whole number, {low} or more")
            object.__setattr__(self, name, plain(value))
        for name, (valid, wanted) in RANGES.items():
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value) or not valid(value):
                raise ValueError(f"{name}={value!r}: give {wanted}")
            object.__setattr__(self, name, plain(value))
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum above 0")
        if self.adversarial is not None:
            self._check_attack()
        self._one_way()

    def _check_attack(self) -> None:
        from gkp.attacks import Attack  # which few recipes need

        if not isinstance(self.adversarial, Attack):
            raise ValueError(f'adversarial={self.adversarial!r}: give a gkp.attacks.Attack("fgsm", eps=...)')

    def _one_way(self) -> None:
        ways = ("adversarial", "gradient_penalty", "distillation")
        if len(chosen := [name for name in ways if getattr(self, name)]) > 1:
            raise ValueError(f"{chosen[0]} and {chosen[1]} are two ways of fine-tuning: choose one of them")
        if self.temperature != Recipe.temperature and not self.distillation:
            raise ValueError(f"temperature={self.temperature!r} is for distillation: give both or neither")

    @property
    def json(self) -> dict[str, Any]:
        """As in records and saved states: fields newer than these only where they say something."""
        return {k: v for k, v in asdict(self).items() if k not in LATER or v != getattr(Recipe, k)}

    @property
    def phases(self) -> int:
        """How many learning rates follow one another, an equal number of epochs each; 1 for smooth ones."""
        return -(-self.epochs // self.step_epochs) if self.schedule == "step" else 1

    def scaled(self, epochs: int) -> Recipe:
        """The same recipe in `epochs` epochs; the drops of "step" keep their place in the run."""
        if self.epochs == 0:
            return replace(self, epochs=epochs)
        step_epochs = max(1, round(self.step_epochs * epochs / self.epochs))
        return replace(self, epochs=epochs, step_epochs=step_epochs)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of the `step`-th update of the run, counted from 0.

    A formula instead of a scheduler object, so that a resumed run has no schedule state to restore. Equal
    to PyTorch's StepLR (once per epoch) and, once per step, to OneCycleLR and CosineAnnealingLR (to 0).
    """
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** (step // steps_per_epoch // recipe.step_epochs)
    if recipe.schedule == "cosine":
        return _cosine(recipe.lr, 0.0, step / total)
    if recipe.schedule == "onecycle":
        peak_step, start = recipe.warmup * total - 1, recipe.lr * ONECYCLE_START
        if step <= peak_step:
            return _cosine(start, recipe.lr, step / peak_step if peak_step else 1.0)
        return _cosine(recipe.lr, start * ONECYCLE_END, (step - peak_step) / (total - 1 - peak_step))
    return recipe.lr


def _cosine(first: float, last: float, share: float) -> float:
    """From `first` (share 0) to `last` (share 1) along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a training; ValueError when there is nothing to train."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient: call model.requires_grad_() first")
    momentum, decay = recipe.momentum, recipe.weight_decay
    return torch.optim.SGD(trainable, recipe.lr, momentum, weight_decay=decay, nesterov=recipe.nesterov)


# The SR-GKP authors' settings for CIFAR-10: 300 epochs, lr 0.01 divided by 10 every 100, batch 64.
PAPER = Recipe()

# A few minutes on a CPU: one cycle converges in few epochs; with instructions for bfloat16 1.5 times as fast
# as in float32, without them no slower (gkp.train.rounded).
SHORT = Recipe(epochs=5, batch_size=128, lr=0.05, schedule="onecycle", precision="bfloat16")
