"""What a method that prunes during training adds to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """Where a training is: before or after one of its updates."""

    epoch: int  # from 1
    step: int  # of the epoch, from 0
    lr: float  # the learning rate of this update
    epochs: int  # of the whole training
    per_epoch: int  # steps

    @property
    def number(self) -> int:
        """Which step of the training, from 0."""
        return (self.epoch - 1) * self.per_epoch + self.step

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.per_epoch


@dataclass
class Hooks:
    """Functions that `gkp.train.fine_tune` calls; epochs count from 1.

    `before_step(model, at)` runs after backward and may edit gradients; `penalty(model, epoch)` returns a
    scalar to add to the loss, or None; `loss(model, x, y, logits, epoch)` replaces the cross entropy (x
    float32 pixels (B, C, H, W), y (B,), logits float32), for distillation or a discriminator;
    `after_step(model, at)` runs after the update, for a projection; `at` is the `Step`. `after_epoch(model,
    epoch)` runs before the evaluation. Hooks may zero weights but not replace modules or parameters. Those
    that remember something give `state_dict` (tensors, plain values) and `load_state_dict`, or a resumed
    run would differ.
    """

    before_step: Callable[[nn.Module, Step], None] | None = None
    penalty: Callable[[nn.Module, int], Tensor | None] | None = None
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor] | None = None
    after_step: Callable[[nn.Module, Step], None] | None = None
    after_epoch: Callable[[nn.Module, int], None] | None = None
    state_dict: Callable[[], dict] | None = None
    load_state_dict: Callable[[dict], None] | None = None

    def __post_init__(self) -> None:
        if (self.state_dict is None) != (self.load_state_dict is None):
            raise ValueError("hooks with a state need both state_dict and load_state_dict")
