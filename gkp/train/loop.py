"""Fine-tuning, plain or for robustness, with the data set resident on the device.

One code path for CPU and GPU. Everything random is derived from the seed and the number of the epoch, so a
run that was killed continues from its state file and ends in the same weights, bit for bit, as one that was
not (same device, same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.evaluate import outcome
from gkp.train.augment import crop_and_flip, draw_epoch, pixels, stream_seed
from gkp.train.checks import check, check_arguments, check_attacks, diverged, joins_last, placed_for
from gkp.train.graphs import Replayed, recordable
from gkp.train.history import EpochRow, History
from gkp.train.hooks import Hooks, Step
from gkp.train.losses import answered, objective, prepared
from gkp.train.recipe import Recipe, learning_rate, sgd
from gkp.train.rounded import reproducible
from gkp.train.state import identity_of, load_state, save_state
from gkp.utils.logits import as_logits, logits, told_of_in_place_changes, weight_type
from gkp.utils.progress import Progress, Task

if TYPE_CHECKING:
    from gkp.attacks import Attack
    from gkp.data import Split

EVALUATION_BATCH = 500  # images
GRAPH_DEVICES = ("cuda",)


@torch.inference_mode(False)  # which turns gradients on, wherever the call is made
def fine_tune(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    *,
    validation: Split | None = None,
    test: Split | None = None,
    attacks: Mapping[str, Attack] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    state_path: str | Path | None = None,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    after_epoch: Callable[[EpochRow], bool] | None = None,
    cuda_graphs: bool = False,
    teacher: nn.Module | None = None,
) -> History:
    """Train `model` in place; it ends on `device`, in eval mode, with the weights of the last epoch.

    The model takes pixels in [0, 1]. `validation` is evaluated after every epoch and its best weights are
    kept in the History; `test` likewise, which is the paper's way of choosing and looks at the test set.
    attacks: name -> attack on all of `test` after every epoch, whose best weights are kept too; not
    "validation" or "test", which are the clean scores.
    With `state_path` every epoch is saved there and the same call continues where it stopped; the file
    stays afterwards, its removal is up to the caller.

    after_epoch: called when an epoch and its state are done; training ends early where it returns True, with
    fewer rows in the History than the recipe has epochs.
    cuda_graphs: on a GPU, replay forward and backward as a CUDA graph where neither an attack nor a
    penalty nor another loss is part of the step and no module has a forward hook; on a CPU it changes
    nothing.
    teacher: what Recipe.distillation learns from, mostly the network before pruning; a copy of it is used.

    Where a batch norm cannot take a last batch of one image, that image goes with the batch before it.
    Raises ValueError for unusable data or networks, StateError for a state file that is damaged or of another
    run, OSError when the state cannot be written, and RuntimeError when the loss stops being a finite number.
    """
    given = {"training": train, "validation": validation, "test": test}
    splits = {part: split for part, split in given.items() if split is not None}
    check_arguments(recipe, teacher, attacks or {}, test)
    check(model, splits)
    check_attacks(model, train, [*(attacks or {}).values(), *filter(None, [recipe.adversarial])])
    joined = joins_last(model, train, recipe.batch_size)
    identity = identity_of(model, splits, recipe, seed, attacks or {}, teacher)
    device, hooks, attacks = torch.device(device), hooks or Hooks(), attacks or {}
    layout = placed_for(model, train, device)
    held = {part: split.to(device) for part, split in splits.items() if part != "training"}
    optimizer = sgd(model, recipe)
    graphs = cuda_graphs and device.type in GRAPH_DEVICES and recordable(model)
    teacher = prepared(model, teacher, recipe, hooks, train)
    run = _Run(
        model,
        train.to(device),
        held,
        recipe,
        optimizer,
        hooks,
        seed,
        attacks,
        layout=layout,
        graphs=graphs,
        joined=joined,
        teacher=teacher,
    )
    history = History()
    if state_path is not None and Path(state_path).exists():
        history = _restore(run, load_state(state_path, identity))
    elif state_path is not None:
        # Shows now, and not after an epoch, whether the place can be written.
        save_state(state_path, identity, _snapshot(run, history))

    done, total = len(history.epochs) * run.steps, recipe.epochs * run.steps
    with (progress or Progress("off")).task("fine-tune", total, done=done) as task:
        for epoch in range(len(history.epochs) + 1, recipe.epochs + 1):
            history.add(_epoch(run, epoch, task), model)
            if state_path is not None:
                save_state(state_path, identity, _snapshot(run, history))
            task.say(history.epochs[-1].text(recipe.epochs))
            if after_epoch and after_epoch(history.epochs[-1]):
                break
    model.eval()
    return history


@dataclass
class _Run:
    """Everything that stays the same object from the first step to the last."""

    model: nn.Module
    train: Split
    held: dict[str, Split]
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    hooks: Hooks
    seed: int
    attacks: Mapping[str, Attack]
    layout: torch.memory_format = torch.channels_last  # of images
    graphs: bool = False
    joined: bool = False  # the last image goes with the batch before, see `gkp.train.checks.joins_last`
    teacher: nn.Module | None = None  # on the device, in eval mode
    replayed: list[Replayed] = field(default_factory=list)  # the recorded step, once there is one

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    @property
    def steps(self) -> int:
        """Steps per epoch; the last may have fewer images, or one more."""
        return math.ceil(len(self.train) / self.recipe.batch_size) - self.joined

    def batch(self, step: int) -> slice:
        """The places in an epoch's order that a step takes."""
        size = self.recipe.batch_size
        last = self.joined and step == self.steps - 1
        return slice(step * size, (step + 1) * size + last)


def _epoch(run: _Run, epoch: int, task: Task) -> EpochRow:
    """Train and evaluate once."""
    started = time.perf_counter()
    with reproducible(run.device, run.recipe.precision, stream_seed("epoch", run.seed, epoch)):
        loss = _train(run, epoch, task)
        if run.hooks.after_epoch:
            run.hooks.after_epoch(run.model, epoch)
        scores = {part: _accuracy(run, split) for part, split in run.held.items()}
        attacked = {name: _attacked(run, attack) for name, attack in run.attacks.items()}
    lr, seconds = run.optimizer.param_groups[0]["lr"], time.perf_counter() - started
    return EpochRow(epoch, lr, loss, scores.get("validation"), scores.get("test"), seconds, attacked)


def _train(run: _Run, epoch: int, task: Task) -> float:
    """One pass over the training images; returns the mean cross entropy per image."""
    recipe, n = run.recipe, len(run.train)
    generator = torch.Generator().manual_seed(stream_seed("augment", run.seed, epoch))
    draws = draw_epoch(n, recipe.augment, recipe.padding, generator).to(run.device)
    total = torch.zeros((), device=run.device)
    finite = torch.ones((), dtype=torch.bool, device=run.device)
    run.model.train()
    run.replayed = [replayed for replayed in run.replayed if replayed.of(run.model)]
    for step in range(run.steps):
        batch = run.batch(step)
        order = draws.order[batch]
        images, labels = run.train.images[order], run.train.labels[order].long()
        images = crop_and_flip(images, draws.top[batch], draws.left[batch], draws.flip[batch], recipe.padding)
        cross_entropy, loss = _step(run, pixels(images, run.layout), labels, epoch, step)
        # Summed on the device and read once per epoch: a GPU would wait at every read.
        total += cross_entropy * len(labels)
        finite &= torch.isfinite(loss)
        task.advance()
    if not finite:
        raise diverged(epoch, recipe)
    return total.item() / n


def _step(run: _Run, x: Tensor, y: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """One update; returns the cross entropy and the loss (with the penalty), both detached scalars."""
    model, hooks = run.model, run.hooks
    if run.recipe.adversarial is not None:
        generator = torch.Generator().manual_seed(stream_seed("attack", run.seed, epoch, step))
        with _autocast(run):
            x = run.recipe.adversarial.perturb(model, x, y, generator=generator)
    lr = learning_rate(run.recipe, (epoch - 1) * run.steps + step, run.steps)
    at = Step(epoch, step, lr, run.recipe.epochs, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    cross_entropy, loss = _gradients(run, x, y, epoch)
    if hooks.before_step:
        hooks.before_step(model, at)
    run.optimizer.step()
    if hooks.after_step:
        hooks.after_step(model, at)
    return cross_entropy, loss


def _gradients(run: _Run, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, ...]:
    """What `_backward` does and returns, from a recording where that is possible."""
    recipe, hooks = run.recipe, run.hooks
    extra = (
        recipe.adversarial or recipe.gradient_penalty or recipe.distillation or hooks.penalty or hooks.loss
    )
    if run.graphs and not extra:
        if not run.replayed:
            run.replayed.append(Replayed(run.model, lambda x, y: _backward(run, x, y, epoch), x, y))
        if run.replayed[0].fits(x):
            return run.replayed[0](x, y)
    return _backward(run, x, y, epoch)


def _backward(run: _Run, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Put new gradients into the parameters; the cross entropy and the loss, detached scalars."""
    recipe = run.recipe
    if penalised := recipe.gradient_penalty > 0:
        x = x.requires_grad_()  # and a copy for the network, which may work in place
    with _autocast(run):
        outputs = as_logits(run.model(x.to(weight_type(run.model) or x.dtype, copy=penalised)), len(x))
        answers = answered(run.teacher, x) if run.teacher else None
    outputs = outputs.float()
    cross_entropy = F.cross_entropy(outputs, y)
    loss = objective(recipe, cross_entropy, outputs, x, answers)
    if run.hooks.loss:
        loss = run.hooks.loss(run.model, x, y, outputs, epoch)
    penalty = run.hooks.penalty(run.model, epoch) if run.hooks.penalty else None
    if penalty is not None:
        loss = loss + penalty
    run.optimizer.zero_grad(set_to_none=True)
    with told_of_in_place_changes():
        loss.backward()
    return cross_entropy.detach(), loss.detach()


def _autocast(run: _Run) -> torch.autocast:
    # A CUDA graph must not find weights that were cast before it was recorded.
    enabled, cache = run.recipe.precision == "bfloat16", not run.graphs
    return torch.autocast(run.device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)


@torch.no_grad()
def _accuracy(run: _Run, split: Split) -> float:
    """The fraction of `split` classified correctly, in float32 and eval mode."""
    run.model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=split.images.device)
    for start in range(0, len(split), EVALUATION_BATCH):
        batch = slice(start, start + EVALUATION_BATCH)
        predicted = logits(run.model, pixels(split.images[batch], run.layout)).argmax(1)
        correct += (predicted == split.labels[batch]).sum()
    return correct.item() / len(split)


def _attacked(run: _Run, attack: Attack) -> float:
    """The fraction of the test images classified correctly under `attack`."""
    test = run.held["test"]
    images, batch = pixels(test.images, run.layout), EVALUATION_BATCH
    return outcome(run.model, images, test.labels, attack, batch_size=batch, fold=False).accuracy


def _snapshot(run: _Run, history: History) -> dict:
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "hooks": run.hooks.state_dict() if run.hooks.state_dict else {},
        **history.state_dict(),
    }


def _restore(run: _Run, state: dict) -> History:
    """Put a snapshot back; returns the history so far."""
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.hooks.load_state_dict:
        run.hooks.load_state_dict(state["hooks"])
    return History.from_state_dict(state)
