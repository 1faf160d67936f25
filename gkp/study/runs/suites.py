"""What to run: named sets of `Run`s, data set x network x method x seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gkp.attacks import Attack
from gkp.nets.models import CIFAR_STD, IMAGENET_STD
from gkp.pruners import methods
from gkp.study.runs import protocols
from gkp.study.runs.run import MACS_RATIO, RATE, RULES, UNPRUNED, Run
from gkp.train.recipe import PAPER

PAPER_RECIPE = PAPER
# What the suites of 300 epochs train with; the paper trained in float32 (docs/DIFFERENCES.md).
LONG_RECIPE = replace(PAPER, precision="bfloat16")
SHORT_RECIPE = replace(PAPER, epochs=4, batch_size=128, lr=0.02, schedule="onecycle", precision="bfloat16")
# He et al. 2016, section 4.2, for networks without a public checkpoint; cosine instead of two drops.
SCRATCH_RECIPE = replace(LONG_RECIPE, epochs=200, batch_size=128, lr=0.1, schedule="cosine", nesterov=True)
MIDDLE_EPOCHS = 57  # 19 at each of the paper's learning rates
# One step of 1.25 eps from a random point, the cheapest that trains robust networks (Wong et al. 2020).
ONE_STEP = Attack("pgd", eps=8 / 255, step=10 / 255, start="random")
ADVERSARIAL_RECIPE = replace(SHORT_RECIPE, epochs=6, lr=0.05, adversarial=ONE_STEP)
# As many passes as SHORT_RECIPE: an attacked batch takes two. eps is where networks without a defence differ.
GENTLE = Attack("pgd", eps=0.5 / 255, step=0.625 / 255, start="random")
GENTLE_RECIPE = replace(SHORT_RECIPE, epochs=SHORT_RECIPE.epochs // 2, adversarial=GENTLE)
# No flips: a mirrored digit is another digit or none.
DIGITS_BASELINE = replace(PAPER, epochs=12, batch_size=32, lr=0.1, schedule="onecycle", augment="crop")
DIGITS_RECIPE = replace(DIGITS_BASELINE, epochs=2, lr=0.03)


@dataclass(frozen=True)
class Suite:
    """A named set of runs. `needs` says in words what must be there; `facts` names computed checks."""

    name: str
    title: str
    needs: str
    runs: tuple[Run, ...]
    facts: tuple[str, ...] = ()
    by_seed: bool = True

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
SELECTION_EPOCHS = 6  # two at each of the paper's three learning rates
PIXEL_RATIO = round(sum(CIFAR_STD) / sum(IMAGENET_STD), 3)
# Rows of the paper's Table 10 that we have, and the control.
TABLE_10 = ("sr-gkp", "l1-b", "random", "l1-a", "fpgm", "sfp", "tmi-gkp")
# Those of them that are trained longer than four epochs.
TRAINED_LONGER = ("sr-gkp", "random", "l1-b", "fpgm", "l1-a")
# Trained on attacked images: the paper's method, the controls, the one that is meant for it.
TRAINED_ON_ATTACKS = ("sr-gkp", "random", "l1-b", "rap-admm")


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


def longer() -> Suite:
    """The paper's own network and schedule in fewer epochs, for the most telling rows of its Table 10.

    The attacks that take most of the time are for the last epoch's weights alone.
    """
    start = cifar10_run("resnet56", "akamaster", short=True)
    common = replace(
        start,
        recipe=LONG_RECIPE.scaled(MIDDLE_EPOCHS),
        rules=("last", "best-test"),
        evaluation=protocols.cifar() + protocols.for_rules(protocols.strong(), "last"),
    )
    untouched, *trained = grid(common, SEEDS, TRAINED_LONGER)
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


# The factors of the profiles' suite, the most telling levels first: which stage loses how much, how kernels
# are chosen, and whether all convolutions lose kernels or the first of each block.
EARLY, PROFILES = "6:3:1", ("6:3:1", "1:1:0", "1:3:6", "sensitivity", "flat")
SELECTIONS, WHICH = ("beam", "random", "greedy", "reconstruction"), ("all", "first")
SELECTING = {"greedy": "gkp-greedy", "reconstruction": "gkp-reconstruction"}  # selections that are methods
BEYOND = {("1:1:0", "first")}  # even one kernel each leaves more multiply-adds than the target


def kernels(common: Run, profile: str, selection: str = "beam", which: str = "all") -> Run:
    """The run of grouped kernel pruning with these levels of the factors, under the name it is known by."""
    options = {"profile": profile, "strategy": selection, "which": which}
    method = SELECTING.get(selection, "sr-gkp-b" if profile == EARLY else "sr-gkp")
    known = {"profile": EARLY if method == "sr-gkp-b" else "flat", "which": "all"}
    known["strategy"] = selection if selection in SELECTING else "beam"
    return replace(common, method=method, options=tuple(o for o in options.items() if known[o[0]] != o[1]))


def finalists(common: Run) -> list[Run]:
    """Three seeds of the profile that spares late stages, of its controls, and of the methods without it."""
    runs = [kernels(common, EARLY), kernels(common, EARLY, "random")]
    runs += [replace(common, method="l1-b"), replace(common, method=UNPRUNED, macs_ratio=None)]
    runs += [replace(common, method=name) for name in ("sr-gkp", "random", "fpgm")]
    return [replace(run, seed=seed) for seed in SEEDS for run in runs]


def profiles() -> Suite:
    """Rates over the stages x choice of kernels x layers, at equal multiply-adds; filters beside them."""
    common = replace(cifar10_run("resnet20", "authors", short=True), evaluation=protocols.sharp())
    untouched = replace(common, recipe=None, validation=0, macs_ratio=None)
    first = [kernels(common, profile, how) for profile in PROFILES[:-1] for how in ("beam", "random")]
    filters = [
        replace(common, method=name, options=(("profile", EARLY),)) for name in ("random", "fpgm", "l1")
    ]
    rest = [
        kernels(common, profile, how, which)
        for which in WHICH
        for how in SELECTIONS
        for profile in PROFILES
        if (profile, which) not in BEYOND
    ]
    ordered = dict.fromkeys((*first, *filters, *finalists(common), untouched, *rest))
    return Suite(
        "cifar10-resnet20-profiles",
        "CIFAR-10, ResNet-20: which stage loses how much, which kernels, which layers",
        "CIFAR-10",
        tuple(ordered),
        by_seed=False,
    )


def profiles_autoattack() -> Suite:
    common = cifar10_run("resnet20", "authors", short=True)
    both = replace(common, evaluation=protocols.sharp() + protocols.autoattack(512, seed=1))
    return Suite(
        "cifar10-resnet20-profiles-autoattack",
        "The telling networks of cifar10-resnet20-profiles under AutoAttack, 512 images",
        "CIFAR-10, and the records of cifar10-resnet20-profiles",
        tuple(finalists(both)),
        facts=("explanations",),
    )


def gentle() -> Suite:
    """The finalists fine-tuned on gently attacked images, to compare with their plain fine-tuning."""
    start = cifar10_run("resnet20", "authors", short=True)
    common = replace(start, recipe=GENTLE_RECIPE, evaluation=protocols.sharp())
    return Suite(
        "cifar10-resnet20-gentle",
        f"ResNet-20 fine-tuned on images attacked at 0.5/255, {GENTLE_RECIPE.epochs} epochs",
        "CIFAR-10",
        tuple(run for run in finalists(common) if run.seed == 0),
    )


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


def unit() -> Suite:
    """The published ResNet-56 with the paper's eps as large in pixels as in the authors' networks.

    Those normalise by CIFAR-10's deviations, this one by ImageNet's.
    """
    first = tuple(replace(entry, n=2000) for entry in protocols.paper()[1:])
    both = protocols.paper() + protocols.rescaled(first, PIXEL_RATIO)
    start = Run("cifar10", "resnet56", UNPRUNED, weights="akamaster", evaluation=both)
    return Suite(
        "cifar10-resnet56-unit",
        "ResNet-56, unpruned: eps counted by CIFAR-10's deviations, not by ImageNet's",
        "CIFAR-10",
        (start,),
    )


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


SUITES: dict[str, Callable[[], Suite]] = {
    "digits": digits,
    "method": method,
    "cifar10-resnet20-short": lambda: cifar10("resnet20", "authors", short=True),
    "cifar10-resnet20-ablations": ablations,
    "cifar10-resnet20-seeds": seeds,
    "cifar10-resnet20-audit": audit,
    "cifar10-resnet20-autoattack": autoattack,
    "cifar10-resnet20-selection": selection,
    "cifar10-resnet20-adversarial": adversarial,
    "cifar10-resnet20-profiles": profiles,
    "cifar10-resnet20-profiles-autoattack": profiles_autoattack,
    "cifar10-resnet20-gentle": gentle,
    "cifar10-resnet56-short": lambda: cifar10("resnet56", "akamaster", short=True, names=TABLE_10),
    "cifar10-resnet56-57": longer,
    "cifar10-resnet56-seeds": long_network_seeds,
    "cifar10-resnet56-unit": unit,
    "cost": costs,
    "cifar10-resnet20": lambda: cifar10("resnet20", "authors"),
    "cifar10-resnet56": lambda: cifar10("resnet56", "akamaster"),
    "cifar10-resnet32": lambda: cifar10("resnet32", "akamaster"),
    "cifar10-resnet110": lambda: cifar10("resnet110", "akamaster"),
    "cifar10-vgg16": lambda: cifar10("vgg16", None),
}


def get(name: str) -> Suite:
    """The suite of that name; ValueError lists the known ones."""
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    return SUITES[name]()
