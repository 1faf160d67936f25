"""How long a run takes, roughly: for orders, budgets and the list of suites."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from gkp.nets import cost, models
from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import BASELINE, Run
from gkp.train.recipe import Recipe

# images per second, forward and backward at 32x32 in float32 on 2 CPU cores
SPEED = {"resnet8": 1280, "resnet20": 500, "resnet32": 300, "resnet56": 165, "resnet110": 80, "vgg16": 110}
TRAIN_IMAGES = {"digits": 1300, "cifar10": 50000, "cifar100": 50000}
TEST_IMAGES = {"digits": 497, "cifar10": 10000, "cifar100": 10000}

# Measured on one NVIDIA H200 with a ResNet-56 at batch 64, training in bfloat16, accuracy on 12,000 images
# after every epoch included. Others are taken to need time in proportion to their multiply-adds.
MEASURED, BATCH = "resnet56", 64
STEP_MS = {
    "cuda": 4.38,
    "fleet": 1.51,
}  # a step of one network alone (CUDA graphs), of one of six side by side
ATTACK_PASSES = 21_000  # images per second, forward and backward in float32
FLEET = 6


def minutes(run: Run, device: str = "cpu") -> float:
    """Estimated minutes of training and evaluation; a guide, not a promise.

    device: "cpu" (two cores), "cuda" (one network at a time), or "fleet" (the share of one of six networks
    that train side by side on a GPU).
    """
    return training_minutes(run, device) + evaluation_minutes(run, device)


def training_minutes(run: Run, device: str = "cpu") -> float:
    """The part of `minutes` that all epochs take, with the attacks after each that a rule chooses by."""
    asked = sum(Entry(attack).passes for attack in run.selecting.values()) * TEST_IMAGES[run.dataset]
    recipe = run.baseline if run.method == BASELINE else run.recipe
    images = (TRAIN_IMAGES[run.dataset] - run.validation) * (passes(recipe) if recipe else 1)
    if device == "cpu":
        return run.epochs * (images + asked) / cpu_speed(run) / 60
    steps_ms = images / BATCH * STEP_MS[device] * relative_size(run.network)
    return run.epochs * (steps_ms / 1000 / 60 + _attack_minutes(asked, run))


def passes(recipe: Recipe) -> float:
    """What an image costs in an epoch, in passes forward and backward of plain training.

    A backward pass is two thirds of both. The gradient at the pixels alone takes a forward pass and half of
    a backward pass; a penalty of it that half and, through the gradient and the network, two more of them and
    the backward pass; a teacher its forward pass.
    """
    if attack := recipe.adversarial:
        return 1 + (2 / 3) * attack.iterations * (1 + attack.restarts)
    return 1 + (recipe.gradient_penalty > 0) + (recipe.distillation > 0) / 3


def evaluation_minutes(run: Run, device: str = "cpu", entries: Iterable[Entry] | None = None) -> float:
    """The part of `minutes` that the attacks on every kept checkpoint take; of `entries` alone if given."""
    needed = evaluation_passes(run, entries)
    return needed / cpu_speed(run) / 60 if device == "cpu" else _attack_minutes(needed, run)


def evaluation_passes(run: Run, entries: Iterable[Entry] | None = None) -> float:
    """Passes of one image, forward and backward, that the attacks on every kept checkpoint take."""
    needed = 0.0
    for entry in run.evaluation if entries is None else entries:
        networks = sum(entry.is_for(rule) for rule in run.rules)
        needed += entry.passes * (entry.n or TEST_IMAGES[run.dataset]) * networks
    return needed


def cpu_speed(run: Run) -> float:
    """Images per second, forward and backward, on two cores."""
    return SPEED.get(run.network, 100)


@cache
def relative_size(network: str) -> float:
    """Multiply-adds of an image in the unpruned network over those of the one that was measured.

    Networks of the same size share a program that masks what is pruned, so that pruning saves no time.
    """
    sizes = [cost.count(models.create(name), torch.zeros(1, 3, 32, 32)).macs for name in (network, MEASURED)]
    return sizes[0] / sizes[1]


def _attack_minutes(needed: float, run: Run) -> float:
    return needed * relative_size(run.network) / ATTACK_PASSES / 60
