"""Every method at the same multiply-adds: a suite, and what the grids of runs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gkp.pruners import methods
from gkp.study.runs import protocols
from gkp.study.runs.run import MACS_RATIO, UNPRUNED, Run
from gkp.study.runs.suites.recipes import (
    DIGITS_BASELINE,
    DIGITS_RECIPE,
    LONG_RECIPE,
    SCRATCH_RECIPE,
    SHORT_RECIPE,
)


@dataclass(frozen=True)
class Suite:
    """A named set of runs. `needs` says in words what must be there; `facts` names computed checks.

    epochs_within_budget: `run --budget-minutes` chooses once, for each store, in how many epochs all runs are
    fine-tuned by their one recipe, which says how many at most: see `gkp.study.runs.store.Store.suite`.
    """

    name: str
    title: str
    needs: str
    runs: tuple[Run, ...]
    facts: tuple[str, ...] = ()
    by_seed: bool = True
    epochs_within_budget: bool = False

    def in_epochs(self, epochs: int) -> Suite:
        """The same networks, fine-tuned in so many epochs."""
        runs = (replace(r, recipe=r.recipe.scaled(epochs)) if r.recipe else r for r in self.runs)
        return replace(self, runs=tuple(runs))

    def ordered(self) -> list[Run]:
        """Runs by value: baselines, then seed 0 of every method in the suite's order, then seed 1, ...

        Without `by_seed` the runs are in the suite's own order.
        """
        baselines = list(dict.fromkeys(start for run in self.runs if (start := run.start())))
        return baselines + (sorted(self.runs, key=lambda run: run.seed) if self.by_seed else list(self.runs))


# Which methods a grid does first: this paper's, the control, the one every paper compares with.
FIRST = ("sr-gkp", "random", "l1")
SEEDS = (0, 1, 2)
LIVE = "digits"  # this suite's records are made on the reader's machine and are not committed
# Those that are done first where not all can be, and with three seeds.
TELLING = (
    "sr-gkp",
    "unpruned + fine-tune",
    "unpruned",
    "random",
    "l1",
    "l1-b",
    "gkp-greedy",
    "tmi-gkp",
    "fpgm",
)
# Rows of the paper's Table 10 that we have, and the control.
TABLE_10 = ("sr-gkp", "l1-b", "random", "l1-a", "fpgm", "sfp", "tmi-gkp", "cc", "nppm")


def by_value() -> list[str]:
    """The registered methods, the most telling first."""
    return sorted(methods(), key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def grid(common: Run, seeds: Iterable[int], names: Iterable[str] | None = None) -> tuple[Run, ...]:
    """Controls first, then every method at the same MACs: `common` says everything but method and seed."""
    untouched = replace(common, recipe=None, validation=0, rules=("last",), macs_ratio=None)
    runs = [replace(untouched, method=UNPRUNED)]
    for seed in seeds:
        runs.append(replace(common, method=UNPRUNED, seed=seed, macs_ratio=None))
        runs += [replace(common, method=name, seed=seed) for name in names or by_value()]
    return tuple(runs)


def digits() -> Suite:
    common = Run(
        dataset="digits",
        network="resnet8",
        method=UNPRUNED,
        baseline=DIGITS_BASELINE,
        macs_ratio=MACS_RATIO,
        recipe=DIGITS_RECIPE,
        evaluation=protocols.digits(),
    )
    return Suite(
        "digits",
        "Handwritten digits, ResNet-8: the whole pipeline live",
        "nothing: the images are embedded in scikit-learn",
        grid(common, seeds=(0,)),
    )


def cifar10_run(network: str, weights: str | None, *, short: bool) -> Run:
    """What all runs of one CIFAR-10 grid have in common."""
    return Run(
        dataset="cifar10",
        network=network,
        method=UNPRUNED,
        weights=weights,
        baseline=None if weights else SCRATCH_RECIPE,
        macs_ratio=MACS_RATIO,
        recipe=SHORT_RECIPE if short else LONG_RECIPE,
        validation=2000,
        rules=("last",) if short else ("last", "best-validation", "best-test"),
        evaluation=protocols.cifar() if short else protocols.whole(),
    )


def cifar10(
    network: str, weights: str | None, *, short: bool = False, names: Sequence[str] | None = None
) -> Suite:
    """One CIFAR-10 grid: the paper's 300 epochs with 3 seeds, or a short recipe with one.

    names: the methods, by default all of them.
    """
    common = cifar10_run(network, weights, short=short)
    title = network.replace("resnet", "ResNet-").replace("vgg", "VGG-")
    if names:
        title += f", {len(set(names) - {'random'})} methods"
    recipe = f"{SHORT_RECIPE.epochs} epochs, one-cycle" if short else "the paper's 300 epochs, 3 seeds"
    seeds = (0,) if short else SEEDS
    # As published these two mask to the last epoch; by default they leave epochs for fine-tuning.
    masked = [replace(common, method=name, options=(("share", 1.0),)) for name in ("sfp", "fpgm-training")]
    extra = () if short else tuple(replace(run, seed=seed) for seed in seeds for run in masked)
    return Suite(
        f"cifar10-{network}" + ("-short" if short else ""),
        f"CIFAR-10, {title}: {recipe}",
        "CIFAR-10" + ("" if short else " and a GPU"),
        grid(common, seeds, names) + extra,
    )
