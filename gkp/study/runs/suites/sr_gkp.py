"""SR-GKP itself: the released notebook's numbers, its choices one by one, its costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gkp.study.runs import protocols
from gkp.study.runs.run import RATE, UNPRUNED, Run
from gkp.study.runs.suites.grids import Suite, cifar10_run
from gkp.study.runs.suites.recipes import PAPER_RECIPE


def method() -> Suite:
    """SR-GKP itself: equality with the released search, costs, and the released notebook's numbers."""
    start = Run("cifar10", "resnet20", UNPRUNED, weights="authors", evaluation=protocols.cifar())
    pruned = replace(start, method="sr-gkp", rate=RATE, evaluation=protocols.released())
    one_epoch = replace(PAPER_RECIPE, epochs=1)  # a noisy point of the course: three seeds show how noisy
    return Suite(
        "method",
        "SR-GKP on the authors' ResNet-20, before and after one epoch of fine-tuning",
        "CIFAR-10",
        (start, pruned, *(replace(pruned, recipe=one_epoch, seed=seed) for seed in (0, 1, 2))),
        facts=("search-equality", "cost-table"),
    )


# What differs from SR-GKP's defaults, the most telling first.
ABLATIONS: tuple[dict[str, Any], ...] = (
    {"options": (("strategy", "smoothest"),)},
    {"options": (("strategy", "roughest"),)},
    {"options": (("strategy", "random"),)},
    {"options": (("grouping", "random"),)},
    {"options": (("beta", "exact"),)},
    {"options": (("alpha", 0.0),)},
    {"method": "gkp-greedy"},
    {"groups": 16},
    {"groups": 4},
    {"groups": 2},
    {"options": (("share", 0.05),)},
    {"options": (("variant", "absolute"),)},
    {"options": (("alpha", 0.5),)},
    {"options": (("strategy", "greedy"),)},
)
# These prune the authors' ResNet-20 to the very network of the defaults: their untuned records show it,
# and training them would repeat the training of the defaults.
SAME_NETWORK: tuple[dict[str, Any], ...] = (
    {"options": (("alpha", 1.0),)},
    {"options": (("beam_width", 1),)},
)


def ablations() -> Suite:
    """SR-GKP with one choice changed at a time, before and after the short fine-tuning.

    All sets of a 64-channel layer cannot be listed, so strategy="exact" is left out. Two more seeds of
    the unchanged method show how large a difference between two trainings of one network is.
    """
    control = cifar10_run("resnet20", "authors", short=True)
    common = replace(control, method="sr-gkp")
    untuned = replace(
        Run("cifar10", "resnet20", "sr-gkp", weights="authors", rate=RATE), evaluation=protocols.released()
    )
    start = replace(untuned, method=UNPRUNED, rate=None, evaluation=protocols.cifar())
    return Suite(
        "cifar10-resnet20-ablations",
        "SR-GKP's choices one by one, ResNet-20: before and after 4 epochs, one-cycle",
        "CIFAR-10",
        (
            start,
            *(replace(untuned, **change) for change in ({}, *ABLATIONS, *SAME_NETWORK)),
            replace(control, macs_ratio=None),
            *(replace(common, **change) for change in ({}, *ABLATIONS)),
            *(replace(common, seed=seed) for seed in (1, 2)),
        ),
        facts=("search-ablations",),
    )


def costs() -> Suite:
    """Times that a record keeps; to measure them again, delete results/cost/."""
    return Suite(
        "cost",
        "Seconds of the pruning step and latency of what it leaves, on this machine",
        "nothing: public and untrained weights",
        (),
        facts=("pruning-time", "method-time", "latency", "pruning-time-vgg16"),
    )
