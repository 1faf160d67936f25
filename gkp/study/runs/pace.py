"""How long a run takes, roughly: for orders, budgets and the list of suites."""

from __future__ import annotations

from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import Run

# images per second, forward and backward at 32x32 in float32 on 2 CPU cores
SPEED = {"resnet8": 1280, "resnet20": 500, "resnet32": 300, "resnet56": 165, "resnet110": 80, "vgg16": 110}
GPU_SPEEDUP = 30  # a guess until somebody has measured it
TRAIN_IMAGES = {"digits": 1300, "cifar10": 50000, "cifar100": 50000}
TEST_IMAGES = {"digits": 497, "cifar10": 10000, "cifar100": 10000}


def minutes(run: Run, device: str = "cpu") -> float:
    """Estimated minutes of training and evaluation on 2 CPU cores or one GPU; a guide, not a promise."""
    return training_minutes(run, device) + evaluation_minutes(run, device)


def training_minutes(run: Run, device: str = "cpu") -> float:
    """The part of `minutes` that all epochs take, with the attacks after each that a rule chooses by."""
    asked = sum(Entry(attack).passes for attack in run.selecting.values())
    images = TRAIN_IMAGES[run.dataset] - run.validation + asked * TEST_IMAGES[run.dataset]
    return _minutes(run.epochs * images, run, device)


def evaluation_minutes(run: Run, device: str = "cpu") -> float:
    """The part of `minutes` that the attacks on every kept checkpoint take."""
    passes = 0.0
    for entry in run.evaluation:
        networks = sum(entry.is_for(rule) for rule in run.rules)
        passes += entry.passes * (entry.n or TEST_IMAGES[run.dataset]) * networks
    return _minutes(passes, run, device)


def _minutes(passes: float, run: Run, device: str) -> float:
    """Minutes of `passes` images forward and backward."""
    return passes / SPEED.get(run.network, 100) / 60 / (GPU_SPEEDUP if device == "cuda" else 1)
