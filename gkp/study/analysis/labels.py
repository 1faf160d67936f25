"""What methods, attacks and networks are called in tables and figures, and in which order they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gkp.attacks import Attack
from gkp.attacks.description import KINDS

BENIGN = Attack("none").name
CONTROL = "unpruned + fine-tune"  # same start, same recipe, nothing removed
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
CONTROLS = ("unpruned", CONTROL, "random")
FAMILIES: dict[str, tuple[str, ...]] = {  # kind of criterion -> methods, in the order of legends and tables
    "controls": ("unpruned", "unpruned + fine-tune", "random", "baseline"),
    "grouped kernels": ("sr-gkp", "sr-gkp-b", "tmi-gkp", "gkp-greedy", "gkp-reconstruction"),
    "size of weights": ("l1", "l1-a", "l1-b", "l2", "group-norm", "sfp", "rap-admm", "group-sl"),
    "groups driven to zero": ("hesso", "otov2-dhspg"),
    "geometry of filters": ("fpgm", "lrf", "fpgm-training", "cc"),
    "feature maps": ("hrank", "chip", "thinet"),
    "gradients and scales": ("taylor", "bn-gamma", "slimming", "group-fisher"),
    "learned gates": ("gal", "nppm", "dhp"),
}
OTHERS = "others"
TITLES = {  # in figures; tables have the names that the command line takes
    "random": "random filters",
    "sr-gkp": "SR-GKP",
    "sr-gkp-b": "SR-GKP-B",
    "tmi-gkp": "TMI-GKP",
    "gkp-greedy": "GKP, greedy",
    "gkp-reconstruction": "GKP, least squares",
    "l1": "L1Norm",
    "l1-a": "L1Norm-A",
    "l1-b": "L1Norm-B",
    "l2": "L2Norm",
    "group-norm": "group norm",
    "sfp": "SFP",
    "fpgm": "FPGM",
    "lrf": "LRF",
    "fpgm-training": "FPGM, in training",
    "hrank": "HRank",
    "chip": "CHIP",
    "thinet": "ThiNet",
    "taylor": "Taylor",
    "bn-gamma": "BN gamma",
    "slimming": "slimming",
    "gal": "GAL",
    "rap-admm": "RAP-ADMM, adv. trained",
    "group-sl": "group SL",
    "hesso": "HESSO",
    "otov2-dhspg": "OTOv2 (DHSPG)",
    "cc": "CC",
    "group-fisher": "Group Fisher",
    "nppm": "NPPM",
    "dhp": "DHP, from scratch",
}
# Methods whose networks are trained otherwise than the rest of a suite.
FROM_SCRATCH, ATTACKED = ("dhp",), ("rap-admm",)
METHODS = tuple(name for members in FAMILIES.values() for name in members)


def base(label: str) -> str:
    """The method of a label: "sr-gkp (beta-exact)" -> "sr-gkp"."""
    return label if label in METHODS else label.partition(" (")[0]


def family(label: str) -> str:
    """What kind of criterion the label's method has: a key of FAMILIES, or "others"."""
    name = base(label)
    return next((kind for kind, members in FAMILIES.items() if name in members), OTHERS)


def ordered(labels: Iterable[str]) -> list[str]:
    """Distinct labels in the order of all figures: controls, grouped kernels, the other families."""
    place = {name: number for number, name in enumerate(METHODS)}
    return sorted(set(labels), key=lambda label: (place.get(base(label), len(place)), label))


def method_title(label: str) -> str:
    """ "l1-b" -> "L1Norm-B"; a variant with what it changes, "sr-gkp (alpha-0.0)" -> "SR-GKP, alpha 0.0"."""
    name = base(label)
    if label != name and name in TITLES:
        changed = label.removeprefix(f"{name} (").removesuffix(")").replace("_", " ").replace("-", " ")
        changed = re.sub(r"strategy (\w+)", r"\1 kernels", changed.replace("profile ", ""))
        return f"{TITLES[name]}, {changed}"
    return TITLES.get(label, label)


def network_title(name: str) -> str:
    """ "resnet20" -> "ResNet-20", "vgg16_bn" -> "VGG-16-BN"."""
    return name.replace("resnet", "ResNet-").replace("vgg", "VGG-").replace("_bn", "-BN")


def attack_titles(attacks: Mapping[str, Attack]) -> dict[str, str]:
    """Attack name -> column title: clean, the paper's attacks, the same with true labels, then pixels."""
    return {name: attack_title(attacks[name]) for name in sorted(attacks, key=lambda n: _place(attacks[n]))}


def attack_title(attack: Attack) -> str:
    """ "FGSM 1/255" in pixels, "FGSM 0.01 norm., pred." in the paper's units."""
    if attack.kind == "none":
        return BENIGN
    if attack.kind == "highpass":
        return f"high-pass {attack.theta:g}"
    if attack.kind == "autoattack":
        return f"AutoAttack {attack.eps * 255:g}/255"
    in_pixels = attack.space == "pixel" or attack.kind == "pgd"
    size = f"{attack.eps * 255:g}/255" if in_pixels else f"{attack.eps:g}"
    kind = attack.kind.upper() + (f"-{attack.iterations}" if attack.kind == "pgd" else "")
    kind += " random" if attack.start == "random" else ""
    kind += f" +{attack.restarts}" if attack.restarts else ""
    marks = "" if attack.space == "pixel" else " norm."
    marks += ", pred." if attack.labels == "predicted" else ""
    marks += ", loss in float64" if attack.loss == "float64" else ""
    return f"{kind} {size}{marks}"


def _place(attack: Attack) -> tuple[Any, ...]:
    relabelled = attack.space == "normalized" and attack.kind == "fgsm" and attack.labels == "true"
    order = (attack.kind != "none", attack.space == "pixel", relabelled, KINDS.index(attack.kind))
    return (*order, attack.iterations, attack.restarts, attack.eps, attack.theta)
