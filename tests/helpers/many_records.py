"""Records of many methods, as a finished suite would have them: seeded random outcomes, no networks."""

from dataclasses import replace

import torch
from record_factory import measured

from gkp.study.analysis.compared import Comparison
from gkp.study.report.plots.style import LOOKS
from gkp.study.runs import protocols
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Kept
from gkp.study.runs.run import UNPRUNED, Run
from gkp.study.runs.suites.recipes import SHORT_RECIPE

IMAGES = 400
METHODS = tuple(name for name in LOOKS if name not in ("baseline", "unpruned", "unpruned + fine-tune"))
START = Run("cifar10", "resnet20", UNPRUNED, weights="authors")
ATTACKS = {entry.attack.name: entry.attack for entry in protocols.cifar()}


def many_records(methods=METHODS, seeds=(0,), suite="small"):
    """Controls and methods; later ones are a little less accurate, attacks cost accuracy by their eps."""
    runs = [START]
    for seed in seeds:
        runs.append(replace(START, recipe=SHORT_RECIPE, seed=seed))
        runs += [replace(runs[-1], method=name, macs_ratio=0.5625) for name in methods]
    return [a_record(run, place, suite) for place, run in enumerate(runs)]


def comparison(methods=METHODS, seeds=(0,)):
    return Comparison(many_records(methods, seeds))


def a_record(run, place=0, suite="small", sha256="ab"):
    generator = torch.Generator().manual_seed(place)
    ability = torch.rand(IMAGES, generator=generator) + 0.4 - 0.004 * place
    metrics = {name: measured(attack, _right(attack, ability)) for name, attack in ATTACKS.items()}
    whole = counted(40_550_000, 270_000)
    return Record.of(
        run,
        suite,
        {"last": Kept(4, sha256, None, metrics, ())},
        cost={
            "before": whole,
            "after": counted(23_000_000, 150_000) if run.prunes else whole,
            "macs_ratio": 0.5625 if run.prunes else 1.0,
        },
        pruning={"rate": 0.4375, "seconds": 0.5, "data_images": 0},
        history={"epochs": _epochs(run.recipe.epochs, place)} if run.recipe else None,
        provenance={"data": {"dataset": "cifar10", "images": IMAGES, "official_size": 10000}},
    )


def counted(macs, params):
    """The same size in both conventions."""
    size = {"macs": macs, "params": params}
    return {"usual": size, "paper": size, "prunable_macs": 40_100_000}


def _right(attack, ability):
    strength = {"none": 0.0, "fgsm": 1.0, "pgd": 1.4}[attack.kind]
    harm = strength * attack.eps * (40 if attack.eps < 0.02 else 10)
    return ability > 0.45 + harm + 0.02 * (attack.labels == "true")


def _epochs(count, place):
    return [
        {
            "epoch": epoch,
            "lr": 0.01,
            "train_loss": 0.5 / epoch + 0.01 * place,
            "validation": 0.9 + 0.01 * epoch - 0.002 * place,
            "test": 0.88 + 0.01 * epoch - 0.002 * place,
            "seconds": 1.0,
        }
        for epoch in range(1, count + 1)
    ]
