"""The grid's networks trained otherwise: with more seeds, longer, or on attacked images."""

from __future__ import annotations

from dataclasses import replace

from gkp.pruners import methods
from gkp.study.runs import protocols
from gkp.study.runs.run import RULES, Run
from gkp.study.runs.suites.grids import SEEDS, TELLING, Suite, cifar10_run, grid
from gkp.study.runs.suites.recipes import (
    ADVERSARIAL_RECIPE,
    LONG_RECIPE,
    MIDDLE_EPOCHS,
    SELECTION_EPOCHS,
    SHORT_RECIPE,
)
from gkp.train.recipe import PAPER

# Methods of the grid that are trained longer than four epochs.
TRAINED_LONGER = ("sr-gkp", "random", "l1-b", "fpgm", "l1-a")
# Trained on attacked images: the paper's method, a control, filters, and the one that is meant for it.
TRAINED_ON_ATTACKS = ("sr-gkp", "random", "l1-b", "rap-admm")


def seeds() -> Suite:
    """The most telling methods of the short grid with three seeds each; seed 0 is the grid's own."""
    names = [name for name in TELLING if name in methods()]
    count = len(set(names) - {"random"})
    common = cifar10_run("resnet20", "authors", short=True)
    return Suite(
        "cifar10-resnet20-seeds",
        f"CIFAR-10, ResNet-20, {count} methods with 3 seeds: {SHORT_RECIPE.epochs} epochs, one-cycle",
        "CIFAR-10",
        grid(common, SEEDS, names),
    )


def trained_longer(epochs: int) -> Run:
    """What the runs of the paper's own network have in common in so many epochs of its schedule."""
    start = cifar10_run("resnet56", "akamaster", short=True)
    return replace(start, recipe=LONG_RECIPE.scaled(epochs), rules=("last", "best-test"))


def budget() -> Suite:
    """The rows of `longer`, one seed, in as many epochs as a slot on somebody's GPU allows."""
    return Suite(
        "cifar10-resnet56-budget",
        f"CIFAR-10, ResNet-56, {len(TRAINED_LONGER) - 1} methods: the paper's schedule in as many of its "
        f"{LONG_RECIPE.epochs} epochs as fit into `--budget-minutes`",
        "CIFAR-10 and a GPU",
        grid(trained_longer(LONG_RECIPE.epochs), (0,), TRAINED_LONGER),
        epochs_within_budget=True,
    )


def middle() -> Run:
    """What the runs of the paper's own network and schedule in fewer epochs have in common.

    The attacks that take most of the time are for the last epoch's weights alone.
    """
    common = trained_longer(MIDDLE_EPOCHS)
    return replace(common, evaluation=common.evaluation + protocols.for_rules(protocols.strong(), "last"))


def longer() -> Suite:
    """The paper's own network and schedule in fewer epochs, for the most telling rows of its Table 10."""
    start = cifar10_run("resnet56", "akamaster", short=True)
    untouched, *trained = grid(middle(), SEEDS, TRAINED_LONGER)
    methods = f"{len(TRAINED_LONGER) - 1} methods with {len(SEEDS)} seeds"
    return Suite(
        f"cifar10-resnet56-{MIDDLE_EPOCHS}",
        f"CIFAR-10, ResNet-56, {methods}: {MIDDLE_EPOCHS} epochs of the paper's schedule",
        "CIFAR-10 and a GPU",
        (replace(untouched, evaluation=start.evaluation), *trained),
        facts=("repeated",),
    )


def long_network_seeds() -> Suite:
    """The same methods in the short recipe with three seeds; seed 0 is that of the short grid."""
    common = cifar10_run("resnet56", "akamaster", short=True)
    return Suite(
        "cifar10-resnet56-seeds",
        f"CIFAR-10, ResNet-56, {len(TRAINED_LONGER) - 1} methods with 3 seeds: "
        f"{SHORT_RECIPE.epochs} epochs, one-cycle",
        "CIFAR-10",
        grid(common, SEEDS, TRAINED_LONGER),
    )


def precision() -> Suite:
    """The control and SR-GKP of the short grid trained in float32, as the paper trained; ours in bfloat16."""
    common = cifar10_run("resnet20", "authors", short=True)
    return Suite(
        "cifar10-resnet20-precision",
        f"CIFAR-10, ResNet-20, 3 seeds trained in float32: {SHORT_RECIPE.epochs} epochs, one-cycle",
        "CIFAR-10",
        grid(replace(common, recipe=replace(SHORT_RECIPE, precision="float32")), SEEDS, ("sr-gkp",)),
    )


def selection() -> Suite:
    """The paper's schedule and its three ways of choosing a checkpoint on the test set, in few epochs."""
    common = replace(
        cifar10_run("resnet20", "authors", short=True),
        recipe=replace(PAPER.scaled(SELECTION_EPOCHS), batch_size=128, precision="bfloat16"),
        rules=RULES,
        evaluation=protocols.paper(),
    )
    return Suite(
        "cifar10-resnet20-selection",
        f"Which checkpoint is shown: the paper's rules on {SELECTION_EPOCHS} epochs of its schedule",
        "CIFAR-10",
        (replace(common, method="sr-gkp"), replace(common, macs_ratio=None)),
    )


def adversarial() -> Suite:
    """Whether the choice of what to prune matters where training makes robust, at the same passes for all.

    The start is not trained adversarially: a few epochs have to make robust what is left of it, so that
    accuracies are far below those of long adversarial training, and only the rows of this suite compare.
    """
    common = replace(
        cifar10_run("resnet20", "authors", short=True),
        recipe=ADVERSARIAL_RECIPE,
        evaluation=protocols.defended(),
    )
    return Suite(
        "cifar10-resnet20-adversarial",
        f"ResNet-20 fine-tuned on attacked images, {ADVERSARIAL_RECIPE.epochs} epochs, attacked up to 8/255",
        "CIFAR-10",
        grid(common, (0,), TRAINED_ON_ATTACKS),
    )
