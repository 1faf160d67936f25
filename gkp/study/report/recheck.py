"""Attacking saved networks again and comparing with what their records say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from torch import nn

from gkp import data
from gkp.attacks import Attack
from gkp.nets import zoo
from gkp.nets.checkpoint import load_file
from gkp.study.analysis.labels import attack_title
from gkp.study.execute.context import Context, pick_device
from gkp.study.execute.one_run import attack_all, self_check
from gkp.study.report.tables import to_markdown
from gkp.study.runs import protocols, suites
from gkp.study.runs.protocols import Entry
from gkp.study.runs.record import Record
from gkp.study.runs.record_parts import Kept, Metric
from gkp.study.runs.store import Store
from gkp.utils.files import readable_file, sha256_file
from gkp.utils.progress import Progress

TOLERANCE = 0.05  # points; other builds and devices round differently on a handful of images


def context(root: str | Path, device: str, progress: Progress, *, download: bool = False) -> Context:
    return Context(Store(root), pick_device(device), progress, download=download)


def suite(name: str, context: Context, images: int | None = None) -> tuple[str, bool]:
    """A table of every shipped checkpoint of the suite, recorded against measured, and whether all agree.

    images: only the first so many; the records know every image. Only the attacks that this suite asks for
    are repeated. FileNotFoundError when the suite has no checkpoint to attack.
    """
    suites.get(name)
    rows = []
    records = context.store.of_suite(name)
    check_images(images, max((metric.n for record in records for metric in record.measured()), default=0))
    for record in records:
        once: list[tuple[list[str], Kept]] = []
        for rule, kept in record.kept.items():  # several may have chosen the same weights
            same = [rules for rules, other in once if other == kept]
            if same:
                same[0].append(rule)
            elif kept.file is not None:
                once.append(([rule], kept))
        for rules, kept in once:
            rows += _compare(record, ", ".join(rules), kept, context, images)
    if not rows:
        raise FileNotFoundError(
            f"no checkpoint of suite {name!r} in {context.store.checkpoints}; run the suite first"
        )
    frame = pd.DataFrame(rows)
    wrong = int((frame["verdict"] != "OK").sum())
    ending = f"{len(frame) - wrong} of {len(frame)} accuracies within {TOLERANCE} points of their records\n"
    return f"{to_markdown(frame)}\n{ending}", wrong == 0


def _compare(
    record: Record, rule: str, kept: Kept, context: Context, images: int | None
) -> list[dict[str, str]]:
    path = context.store.root / str(kept.file)
    if not path.exists():
        raise FileNotFoundError(f"{path} is recorded but missing: restore it from git or run the suite again")
    readable_file(path)
    damaged = sha256_file(path) != kept.sha256
    entries = [Entry(metric.attack, min(images or metric.n, metric.n)) for metric in kept.metrics.values()]
    progress = context.titled(record.label)
    measured: dict[str, Metric] = {}
    dataset = record.run.dataset
    for fold in (True, False):  # as they were recorded, because rounding decides about single images
        some = [entry for entry in entries if _folded(record, entry.attack) == fold]
        if some:
            measured |= attack_all(load_file(path), dataset, some, context, progress, fold=fold)
    rows = []
    for name, metric in kept.metrics.items():
        n, ours = measured[name].n, 100 * measured[name].accuracy
        recorded = 100 * float(metric.right[:n].double().mean())
        close = abs(recorded - ours) <= TOLERANCE
        rows.append(
            {
                "method": record.label,
                "checkpoint": rule,
                "attack": attack_title(metric.attack),
                "images": str(n),
                "recorded": f"{recorded:.2f}",
                "measured": f"{ours:.2f}",
                "verdict": "SHA-256 differs" if damaged else "OK" if close else "DIFFERS",
            }
        )
    return rows


def _folded(record: Record, attack: Attack) -> bool:
    """Whether an attack of the record was made on a folded network; AutoAttack always was."""
    later = [about for about in record.evaluations if attack.name in about["attacks"]]
    about = later[-1] if later else record.value(["provenance"]) or {}
    return bool(about.get("folded", attack.kind == "autoattack"))


def named(name: str, dataset: str | None, images: int | None, context: Context) -> str:
    """`one` of a network by its name in `zoo.named_model`; ValueError where the images do not fit it."""
    here = context.store.checkpoints
    shipped = here if (here / "manifest.json").exists() else None
    network, model, dataset = zoo.named_model(name, dataset, shipped=shipped)
    if dataset not in data.DATASETS:
        raise ValueError(
            f"{name} is for {dataset}, whose images are not read here: in Python, give gkp.evaluate.accuracy "
            "those of gkp.data.load_folder(...)"
        )
    zoo.check_fits(model, context.example(dataset).cpu(), name, dataset)
    check_images(images, len(context.split(dataset, "test")))
    return one(model, network, dataset, images, context)


def check_images(images: int | None, there: int) -> None:
    """ValueError for a number of images that is not there; 0 where nothing is known."""
    if images is not None and (images < 1 or 0 < there < images):
        raise ValueError(f"--images {images}: give a number from 1 to {there}, which are all there are")


def one(model: nn.Module, title: str, dataset: str, images: int | None, context: Context) -> str:
    """Accuracy of one network under the evaluation of the CIFAR-10 suites, or of digits."""
    entries = protocols.digits() if dataset == "digits" else protocols.cifar()
    if images is not None:
        entries = tuple(Entry(entry.attack, min(images, entry.n or images)) for entry in entries)
    progress = context.titled(title)
    metrics = attack_all(model, dataset, entries, context, progress)
    rows = [
        {
            "attack": attack_title(metric.attack),
            "images": str(metric.n),
            "accuracy": f"{100 * metric.accuracy:.2f}",
            "95 % interval": f"{100 * metric.low:.2f} to {100 * metric.high:.2f}",
        }
        for metric in metrics.values()
    ]
    checks = "; ".join(self_check(metrics)) or "ok"
    return f"{to_markdown(pd.DataFrame(rows))}\nself-check: {checks}"
