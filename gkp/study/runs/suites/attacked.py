"""The grid's networks, not trained again, under other attacks."""

from __future__ import annotations

from dataclasses import replace

from gkp.nets.models import CIFAR_STD, IMAGENET_STD
from gkp.study.runs import protocols
from gkp.study.runs.run import UNPRUNED, Run
from gkp.study.runs.suites.grids import TELLING, Suite, cifar10

PIXEL_RATIO = round(sum(CIFAR_STD) / sum(IMAGENET_STD), 3)


def attacked(name: str, title: str, evaluation: protocols.Protocol, facts: tuple[str, ...]) -> Suite:
    """The networks of the short grid under another protocol, the TELLING ones before the rest."""
    runs = [replace(run, evaluation=evaluation) for run in cifar10("resnet20", "authors", short=True).runs]
    runs.sort(key=lambda run: TELLING.index(run.label) if run.label in TELLING else len(TELLING))
    return Suite(name, title, "CIFAR-10, and the records of cifar10-resnet20-short", tuple(runs), facts)


def audit() -> Suite:
    return attacked(
        "cifar10-resnet20-audit",
        "The short grid's networks: one change of the protocol at a time, PGD-50 over eps",
        protocols.cifar() + protocols.audit(),
        ("attacked-digit",),
    )


def autoattack() -> Suite:
    return attacked(
        "cifar10-resnet20-autoattack",
        "The short grid's networks under AutoAttack, 128 images",
        (*protocols.paper(), *protocols.strong_pgd(), *protocols.autoattack()),
        ("robustbench",),
    )


def unit() -> Suite:
    """The published ResNet-56 with the paper's eps as large in pixels as in the authors' networks.

    Those normalise by CIFAR-10's deviations, this one by ImageNet's.
    """
    first = tuple(replace(entry, n=2000) for entry in protocols.paper()[1:])
    evaluation = protocols.paper() + protocols.rescaled(first, PIXEL_RATIO)
    start = Run("cifar10", "resnet56", UNPRUNED, weights="akamaster", evaluation=evaluation)
    return Suite(
        "cifar10-resnet56-unit",
        "ResNet-56, unpruned: eps counted by CIFAR-10's deviations, not by ImageNet's",
        "CIFAR-10",
        (start,),
    )
