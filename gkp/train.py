"""Fine-tuning and adversarial fine-tuning with the data set resident on the device.

One code path for CPU and GPU. Everything random is derived from the seed and the number of the epoch, so a
run that was killed continues from its state file and ends in the same weights, bit for bit, as one that was
not (same device, same number of threads).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.augment import crop_and_flip, draw_epoch, stream_seed
from gkp.progress import Progress, Task
from gkp.recipe import PAPER, SHORT, Recipe, learning_rate
from gkp.run_state import StateError, load_state, save_state

if TYPE_CHECKING:
    from gkp.data import Split

__all__ = [
    "PAPER",
    "SHORT",
    "Chosen",
    "EpochRow",
    "History",
    "Hooks",
    "Recipe",
    "StateError",
    "fine_tune",
    "learning_rate",
]

EVALUATION_BATCH = 500
RULES = {"validation": "best on validation", "test": "best on test (the paper's rule)"}


@dataclass(frozen=True)
class EpochRow:
    """What one epoch gave; accuracies are fractions in [0, 1] after the epoch, None where not measured."""

    epoch: int  # counted from 1
    lr: float  # at the last step of the epoch
    train_loss: float  # mean cross entropy per training image, augmented, penalty excluded
    validation: float | None
    test: float | None
    seconds: float  # wall time, evaluation included


@dataclass
class Chosen:
    """The epoch a selection rule picks (the later of equals, as the authors do) and its weights on the CPU."""

    rule: str
    epoch: int
    accuracy: float
    weights: dict[str, Tensor]


@dataclass
class History:
    """The course of a run. The model itself holds the weights of the last epoch."""

    epochs: list[EpochRow] = field(default_factory=list)
    best_validation: Chosen | None = None
    best_test: Chosen | None = None

    def as_dict(self) -> dict:
        """Everything but the weights, ready for JSON."""
        best = {"validation": self.best_validation, "test": self.best_test}
        chosen = {
            part: {"rule": c.rule, "epoch": c.epoch, "accuracy": c.accuracy} for part, c in best.items() if c
        }
        return {"epochs": [asdict(row) for row in self.epochs], "chosen": chosen}


@dataclass
class Hooks:
    """What a method that prunes during training adds to the loop; epochs count from 1, steps from 0.

    `before_step(model, epoch, step)` runs after backward and may edit gradients; `penalty(model, epoch)`
    returns a scalar to add to the loss, or None; `after_epoch(model, epoch)` runs before the evaluation and
    may zero weights but not replace modules or parameters. Hooks that remember something give `state_dict`
    (tensors and plain values) and `load_state_dict`, or a resumed run would differ.
    """

    before_step: Callable[[nn.Module, int, int], None] | None = None
    penalty: Callable[[nn.Module, int], Tensor | None] | None = None
    after_epoch: Callable[[nn.Module, int], None] | None = None
    state_dict: Callable[[], dict] | None = None
    load_state_dict: Callable[[dict], None] | None = None

    def __post_init__(self) -> None:
        if (self.state_dict is None) != (self.load_state_dict is None):
            raise ValueError("hooks with a state need both state_dict and load_state_dict")


def fine_tune(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    *,
    validation: Split | None = None,
    test: Split | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    state_path: str | Path | None = None,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
) -> History:
    """Train `model` in place; it ends on `device`, in eval mode, with the weights of the last epoch.

    The model takes pixels in [0, 1]. `validation` is evaluated after every epoch and its best weights are
    kept in the History; `test` likewise, which is the paper's way of choosing and looks at the test set.
    With `state_path` every epoch is saved there and the same call continues where it stopped; the file
    stays afterwards, its removal is up to the caller.

    Raises ValueError for unusable data, StateError for a state file that is damaged or of another run, and
    RuntimeError when the loss is no longer a finite number.
    """
    hooks, device = hooks or Hooks(), torch.device(device)
    _check_data(model, train, validation, test)
    identity = _identity(model, train, recipe, validation, test, seed)
    model.to(device=device, memory_format=torch.channels_last)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient: call model.requires_grad_() first")
    optimizer = torch.optim.SGD(
        trainable, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    train = train.to(device)
    held = {"validation": validation, "test": test}
    held = {part: split.to(device) for part, split in held.items() if split is not None}
    history = History()
    if state_path is not None and Path(state_path).exists():
        history = _restore(load_state(state_path, identity), model, optimizer, hooks)
    elif state_path is not None:
        # Also shows now, and not after an epoch, that the place can be written.
        save_state(state_path, identity, _snapshot(model, optimizer, hooks, history))

    steps = math.ceil(len(train) / recipe.batch_size)
    done = len(history.epochs)
    with (progress or Progress("off")).task("fine-tune", recipe.epochs * steps, done=done * steps) as task:
        for epoch in range(done + 1, recipe.epochs + 1):
            started = time.perf_counter()
            with _reproducible(device, recipe, stream_seed("epoch", seed, epoch)):
                loss = _train_epoch(model, train, recipe, optimizer, hooks, epoch, seed, task)
                if hooks.after_epoch:
                    hooks.after_epoch(model, epoch)
                scores = {part: _accuracy(model, split) for part, split in held.items()}
            row = EpochRow(
                epoch,
                optimizer.param_groups[0]["lr"],
                loss,
                scores.get("validation"),
                scores.get("test"),
                time.perf_counter() - started,
            )
            _record(history, row, model)
            if state_path is not None:
                save_state(state_path, identity, _snapshot(model, optimizer, hooks, history))
            task.say(_row_text(row, recipe.epochs))
    model.eval()
    return history


def _train_epoch(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    hooks: Hooks,
    epoch: int,
    seed: int,
    task: Task,
) -> float:
    """One pass over `train`; returns the mean loss per image."""
    device, n = train.images.device, len(train)
    steps = math.ceil(n / recipe.batch_size)
    generator = torch.Generator().manual_seed(stream_seed("augment", seed, epoch))
    draws = draw_epoch(n, recipe.augment, recipe.padding, generator).to(device)
    total, finite = torch.zeros((), device=device), torch.ones((), dtype=torch.bool, device=device)
    model.train()
    for step in range(steps):
        batch = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        order = draws.order[batch]
        images = crop_and_flip(
            train.images[order], draws.top[batch], draws.left[batch], draws.flip[batch], recipe.padding
        )
        x, y = _pixels(images), train.labels[order]
        if recipe.adversarial is not None:
            x = _attack(model, x, y, recipe, seed=stream_seed("attack", seed, epoch, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, (epoch - 1) * steps + step, steps)
        with _autocast(device, recipe):
            logits = model(x)
        loss = cross_entropy = F.cross_entropy(logits.float(), y)
        penalty = hooks.penalty(model, epoch) if hooks.penalty else None
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if hooks.before_step:
            hooks.before_step(model, epoch, step)
        optimizer.step()
        # Summed on the device and read once per epoch: a GPU would wait at every read.
        total += cross_entropy.detach() * len(y)
        finite &= torch.isfinite(loss.detach())
        task.advance()
    if not finite:
        raise RuntimeError(
            f"the training loss stopped being a finite number in epoch {epoch}: lower Recipe.lr "
            f"(now {recipe.lr:g}) or use precision='float32'"
        )
    return total.item() / n


def _pixels(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1], channels last, the fast layout of convolutions."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def _attack(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, seed: int) -> Tensor:
    """`x` perturbed by the recipe's attack against the model in eval mode, which leaves its statistics alone."""
    attack = replace(recipe.adversarial, seed=seed)
    model.eval()
    with _autocast(x.device, recipe):
        perturbed = attack.perturb(model, x, y)
    model.train()
    return perturbed.detach()


def _autocast(device: torch.device, recipe: Recipe) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


@contextmanager
def _reproducible(device: torch.device, recipe: Recipe, seed: int) -> Iterator[None]:
    """Random streams of the epoch (dropout) and deterministic cuDNN, both given back as they were found."""
    cuda = [device] if device.type == "cuda" else []
    tf32 = recipe.precision == "tf32"
    with (
        torch.random.fork_rng(devices=cuda),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32),
    ):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split) -> float:
    """The fraction of `split` classified correctly, in float32 and eval mode."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=split.images.device)
    for images, labels in zip(
        split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True
    ):
        correct += (model(_pixels(images)).argmax(1) == labels).sum()
    return correct.item() / len(split)


def _record(history: History, row: EpochRow, model: nn.Module) -> None:
    """Append `row` and keep the weights if a rule prefers this epoch."""
    history.epochs.append(row)
    for part in RULES:
        score, best = getattr(row, part), getattr(history, f"best_{part}")
        if score is not None and (best is None or score >= best.accuracy):
            weights = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}
            setattr(history, f"best_{part}", Chosen(RULES[part], row.epoch, score, weights))


def _row_text(row: EpochRow, epochs: int) -> str:
    text = f"epoch {row.epoch}/{epochs}  lr {row.lr:.2g}  loss {row.train_loss:.4f}"
    for part in RULES:
        score = getattr(row, part)
        text += "" if score is None else f"  {part} {100 * score:.2f} %"
    return f"{text}  {row.seconds:.0f} s"


def _check_data(model: nn.Module, train: Split, *held: Split | None) -> None:
    splits = [train, *(s for s in held if s is not None)]
    for split in splits:
        if len(split) == 0:
            raise ValueError(f"the {split.part} part of {split.dataset} is empty: give at least one image")
        if split.images.dtype != torch.uint8:
            raise ValueError(
                f"images are {split.images.dtype}: give a Split with uint8 pixels (gkp.data.load)"
            )
    # One image through the network costs little; on a GPU a label out of range ends in a device assertion.
    parameter = next(model.parameters())
    model.eval()
    with torch.no_grad():
        classes = model(_pixels(train.images[:1]).to(parameter.device)).shape[1]
    largest = max(int(split.labels.max()) for split in splits)
    if largest >= classes:
        raise ValueError(f"label {largest} but the model has {classes} outputs: build it with more classes")


def _identity(
    model: nn.Module,
    train: Split,
    recipe: Recipe,
    validation: Split | None,
    test: Split | None,
    seed: int,
) -> dict[str, str]:
    """What a state file must agree on, part by part, as text."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "recipe": json.dumps(asdict(recipe), sort_keys=True),
        "seed": str(seed),
        "training data": train.fingerprint,
        "validation data": validation.fingerprint if validation else "none",
        "test data": test.fingerprint if test else "none",
        "initial weights": digest.hexdigest(),
    }


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, hooks: Hooks, history: History) -> dict:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "hooks": hooks.state_dict() if hooks.state_dict else {},
        "epochs": [asdict(row) for row in history.epochs],
        "best": {part: asdict(best) for part in RULES if (best := getattr(history, f"best_{part}"))},
    }


def _restore(state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, hooks: Hooks) -> History:
    """Put a snapshot back; returns the history so far."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if hooks.load_state_dict:
        hooks.load_state_dict(state["hooks"])
    best = {f"best_{part}": Chosen(**chosen) for part, chosen in state["best"].items()}
    return History([EpochRow(**row) for row in state["epochs"]], **best)
