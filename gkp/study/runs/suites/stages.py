"""Rates over the stages, crossed with how kernels are chosen and how networks are fine-tuned."""

from __future__ import annotations

from dataclasses import replace

from gkp.study.runs import protocols
from gkp.study.runs.run import UNPRUNED, Run
from gkp.study.runs.suites.grids import SEEDS, Suite, cifar10_run
from gkp.study.runs.suites.recipes import (
    DISTILLED_RECIPE,
    GENTLE_RECIPE,
    MIDDLE_EPOCHS,
    PENALTY_RECIPE,
    SHORT_RECIPE,
)
from gkp.study.runs.suites.trained import middle
from gkp.train.recipe import Recipe

# The factors of the profiles' suite, the most telling levels first: which stage loses how much, how kernels
# are chosen, and whether all convolutions lose kernels or the first of each block.
EARLY, REVERSE = "6:3:1", "1:3:6"
PROFILES = (EARLY, "1:1:0", REVERSE, "sensitivity", "flat")
SELECTIONS, WHICH = ("beam", "random", "greedy", "reconstruction"), ("all", "first")
SELECTING = {"greedy": "gkp-greedy", "reconstruction": "gkp-reconstruction"}  # selections that are methods
BEYOND = {("1:1:0", "first")}  # even one kernel each leaves more multiply-adds than the target
PARAMS_RATIO = 0.5665  # of all parameters: as SR-GKP leaves at the paper's rate, 152,794 of 269,722


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


def contenders(common: Run) -> list[Run]:
    """The finalists, and the filters that came next to them: are kernels needed where a profile is?"""
    filters = replace(common, method="fpgm", options=(("profile", EARLY),))
    return finalists(common) + [replace(filters, seed=seed) for seed in SEEDS]


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
    ordered = dict.fromkeys((*first, *filters, *contenders(common), untouched, *rest))
    return Suite(
        "cifar10-resnet20-profiles",
        "CIFAR-10, ResNet-20: which stage loses how much, which kernels, which layers",
        "CIFAR-10",
        tuple(ordered),
        by_seed=False,
    )


def parameters() -> Suite:
    """The profiles with as many parameters left as by SR-GKP's one rate, instead of as many multiply-adds."""
    common = replace(cifar10_run("resnet20", "authors", short=True), evaluation=protocols.sharp())
    equal = replace(common, macs_ratio=None, params_ratio=PARAMS_RATIO)
    runs = [kernels(equal, profile, how) for profile in (EARLY, REVERSE) for how in ("beam", "random")]
    runs += [kernels(common, "flat", how) for how in ("beam", "random")]  # equal in both
    runs += [replace(common, method=name) for name in ("random", "fpgm")]
    runs += [replace(common, method=UNPRUNED, macs_ratio=None)]
    runs += [kernels(equal, "sensitivity", how) for how in ("beam", "random")]
    return Suite(
        "cifar10-resnet20-parameters",
        "CIFAR-10, ResNet-20: which stage loses how much, equally many parameters left",
        "CIFAR-10",
        tuple(runs),
    )


def profiles_autoattack() -> Suite:
    common = cifar10_run("resnet20", "authors", short=True)
    common = replace(common, evaluation=protocols.sharp() + protocols.autoattack(512, seed=1))
    return Suite(
        "cifar10-resnet20-profiles-autoattack",
        "The telling networks of cifar10-resnet20-profiles under AutoAttack, 512 images",
        "CIFAR-10, and the records of cifar10-resnet20-profiles",
        tuple(contenders(common)),
        facts=("explanations",),
    )


def long_network_profiles() -> Suite:
    """The finalists on the paper's own network; chosen before any but L1Norm-B had such a profile there."""
    common = cifar10_run("resnet56", "akamaster", short=True)
    common = replace(common, evaluation=common.evaluation + protocols.strong_pgd(1000, seed=1))
    return Suite(
        "cifar10-resnet56-profiles",
        f"CIFAR-10, ResNet-56: the profile found on the ResNet-20, 3 seeds, {SHORT_RECIPE.epochs} epochs",
        "CIFAR-10",
        tuple(finalists(common)),
    )


def longer_profiles() -> Suite:
    """The finalists in the paper's own schedule; those without the profile are of cifar10-resnet56-57."""
    return Suite(
        f"cifar10-resnet56-profiles-{MIDDLE_EPOCHS}",
        f"CIFAR-10, ResNet-56: the profile found on the ResNet-20, {MIDDLE_EPOCHS} epochs of the paper's",
        "CIFAR-10 and a GPU",
        tuple(finalists(middle())),
    )


def finetuned(name: str, title: str, recipe: Recipe) -> Suite:
    """The finalists' seed 0 fine-tuned otherwise, to compare with plain fine-tuning at no more passes."""
    start = cifar10_run("resnet20", "authors", short=True)
    common = replace(start, recipe=recipe, evaluation=protocols.sharp())
    runs = [run for run in finalists(common) if run.seed == 0]
    runs.sort(key=lambda run: run.label not in ("sr-gkp-b", "unpruned + fine-tune"))  # these two first
    return Suite(f"cifar10-resnet20-{name}", f"ResNet-20 {title}", "CIFAR-10", tuple(runs))


def gentle() -> Suite:
    title = f"fine-tuned on images attacked at 0.5/255, {GENTLE_RECIPE.epochs} epochs"
    return finetuned("gentle", title, GENTLE_RECIPE)


def penalty() -> Suite:
    title = f"fine-tuned with a penalty on the gradient at the pixels, {PENALTY_RECIPE.epochs} epochs"
    return finetuned("penalty", title, PENALTY_RECIPE)


def distilled() -> Suite:
    title = f"fine-tuned on the unpruned network's answers, {DISTILLED_RECIPE.epochs} epochs"
    return finetuned("distilled", title, DISTILLED_RECIPE)


# How the finalists are fine-tuned, at most as many passes each: {name in tables: its suite}.
FINETUNINGS = {
    "plain": "cifar10-resnet20-profiles",
    "gentle attack": "cifar10-resnet20-gentle",
    "gradient penalty": "cifar10-resnet20-penalty",
    "distillation": "cifar10-resnet20-distilled",
}
