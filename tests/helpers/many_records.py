"""Records of many methods, as a finished suite would have them: seeded random outcomes, no networks."""

from dataclasses import asdict, replace

import torch

from gkp.attacks.outcome import Outcome, pack_bits
from gkp.study.report.style import LOOKS
from gkp.study.runs import protocols
from gkp.study.runs.run import UNPRUNED, VERSION, Run
from gkp.study.runs.store import run_config
from gkp.study.runs.suites import SHORT_RECIPE

IMAGES = 400
METHODS = tuple(name for name in LOOKS if name not in ("baseline", "unpruned", "unpruned + fine-tune"))
START = Run("cifar10", "resnet20", UNPRUNED, weights="authors")


def many_records(methods=METHODS, seeds=(0,), suite="small"):
    """Controls and methods; later ones are a little less accurate, attacks cost accuracy by their eps."""
    runs = [START]
    for seed in seeds:
        runs.append(replace(START, recipe=SHORT_RECIPE, seed=seed))
        runs += [replace(runs[-1], method=name, macs_ratio=0.5625) for name in methods]
    return [a_record(run, place, suite) for place, run in enumerate(runs)]


def a_record(run, place=0, suite="small"):
    generator = torch.Generator().manual_seed(place)
    ability = torch.rand(IMAGES, generator=generator) + 0.4 - 0.004 * place
    metrics = {entry.attack.name: _metric(entry.attack, ability) for entry in protocols.cifar()}
    whole = {name: {"macs": 4.055e7, "params": 2.7e5} for name in ("usual", "paper")}
    whole["prunable_macs"] = 4.01e7
    counted = {name: {"macs": 2.3e7, "params": 1.5e5} for name in ("usual", "paper")} if run.prunes else whole
    return {
        "version": VERSION,
        "hash": run.hash,
        "suite": suite,
        "stem": run.stem,
        "label": run.label,
        "pruned": run.prunes,
        "config": run_config(run),
        "cost": {"before": whole, "after": counted, "macs_ratio": 0.5625 if run.prunes else 1.0},
        "pruning": {"rate": 0.4375, "seconds": 0.5, "data_images": 0},
        "history": {"epochs": _epochs(run.recipe.epochs, place)} if run.recipe else None,
        "checkpoints": {
            "last": {"epoch": 4, "sha256": "ab", "file": None, "metrics": metrics, "self_check": []}
        },
        "evaluations": [],
        "provenance": {
            "commit": None,
            "data": {"dataset": "cifar10", "images": IMAGES, "official_size": 10000},
        },
    }


def _metric(attack, ability):
    harm = {"none": 0.0, "fgsm": 1.0, "pgd": 1.4}[attack.kind] * (
        attack.eps * (40 if attack.eps < 0.02 else 10)
    )
    outcome = Outcome(attack.name, ability > 0.45 + harm + 0.02 * (attack.labels == "true"), 0.1, attack)
    low, high = outcome.interval
    counts = {"correct": int(outcome.correct.sum()), "n": IMAGES, "asked_n": None, "seconds": 0.1}
    accuracies = {"accuracy": outcome.accuracy, "low": low, "high": high}
    return {**counts, **accuracies, "attack": asdict(attack), "bits": pack_bits(outcome.correct)}


def _epochs(count, place):
    return [
        {
            "epoch": epoch,
            "lr": 0.01,
            "train_loss": 0.5 / epoch + 0.01 * place,
            "validation": 0.9 + 0.01 * epoch - 0.002 * place,
            "test": None,
            "seconds": 1.0,
        }
        for epoch in range(1, count + 1)
    ]
