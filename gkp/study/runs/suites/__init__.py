"""What to run: named sets of `Run`s, data set x network x method x seed."""

from __future__ import annotations

from collections.abc import Callable

from gkp.study.runs.suites.attacked import audit, autoattack, unit
from gkp.study.runs.suites.grids import TABLE_10, Suite, cifar10, digits
from gkp.study.runs.suites.sr_gkp import ablations, costs, method
from gkp.study.runs.suites.stages import (
    distilled,
    gentle,
    long_network_profiles,
    longer_profiles,
    parameters,
    penalty,
    profiles,
    profiles_autoattack,
)
from gkp.study.runs.suites.trained import (
    adversarial,
    budget,
    long_network_seeds,
    longer,
    precision,
    seeds,
    selection,
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
    "cifar10-resnet20-precision": precision,
    "cifar10-resnet20-adversarial": adversarial,
    "cifar10-resnet20-profiles": profiles,
    "cifar10-resnet20-profiles-autoattack": profiles_autoattack,
    "cifar10-resnet20-parameters": parameters,
    "cifar10-resnet20-gentle": gentle,
    "cifar10-resnet20-penalty": penalty,
    "cifar10-resnet20-distilled": distilled,
    "cifar10-resnet56-short": lambda: cifar10(
        "resnet56", "akamaster", short=True, names=(*TABLE_10, "group-fisher")
    ),
    "cifar10-resnet56-57": longer,
    "cifar10-resnet56-budget": budget,
    "cifar10-resnet56-seeds": long_network_seeds,
    "cifar10-resnet56-profiles": long_network_profiles,
    "cifar10-resnet56-profiles-57": longer_profiles,
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
