"""Facts about attacks: what the paper's eps looks like on a digit, RobustBench's own number, and repeats."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkp import data, evaluate
from gkp.attacks import Attack, fgsm
from gkp.attacks.robustbench import benchmark
from gkp.nets import models
from gkp.nets.checkpoint import load_file
from gkp.study.runs import protocols, suites
from gkp.study.runs.provenance import CODE
from gkp.study.runs.record_parts import Kept
from gkp.study.runs.store import Store
from gkp.study.runs.suites import recipes
from gkp.train import fine_tune
from gkp.utils.files import sha256_file

EPS = (0.01, 0.1)  # of the paper's FGSM
SPACES = ("normalized", "pixel")  # what eps counts in
NETWORK = ("cifar10-resnet20-short", "sr-gkp")  # suite and label of the network that RobustBench attacks
IMAGES, RADIUS = 32, 1.0  # the first of the test set; eps in 1/255
REPEATED = 500  # images on which recorded attacks are repeated


def attacked_digit() -> dict[str, Any]:
    """One digit under the paper's FGSM with its eps read after normalisation and in pixels, true labels.

    {"label", "clean": {"image", "predicted", "confidence"}, "attacked": [{"space", "eps", "furthest",
    "difference", "predicted", "confidence"}, ...]}: furthest is the largest change of a pixel in 1/255,
    confidence the share that the prediction has in the softmax; image and difference are for `unpacked`.
    """
    model, test = digit_network(), data.load("digits", "test")
    with torch.inference_mode():
        right = model(test.pixels()).argmax(1) == test.labels
    part = right.nonzero()[0]  # the first digit that the network knows
    x, y = test.pixels(part), test.labels[part]
    attacked = []
    for space, eps in itertools.product(SPACES, EPS):
        changed = fgsm(model, x, y, eps=eps, space=space)
        levels = 255 * (changed - x)[0]
        about = {"space": space, "eps": eps, "furthest": round(float(levels.abs().max()), 2)}
        attacked.append(about | {"difference": packed(levels)} | answer(model, changed))
    return {"label": int(y), "clean": {"image": packed(255 * x[0])} | answer(model, x), "attacked": attacked}


def answer(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What the network says of one image (1, C, H, W)."""
    with torch.inference_mode():
        shares = model(x).softmax(1)[0]
    return {"predicted": int(shares.argmax()), "confidence": round(float(shares.max()), 3)}


def packed(image: Tensor) -> str:
    """An image (3, 32, 32) in grey levels, or a difference of two, as text: float16, three digits."""
    return base64.b64encode(image.numpy().astype("<f2").tobytes()).decode()


def unpacked(text: str) -> Tensor:
    """`packed` undone: float32 (3, 32, 32), grey levels of 255."""
    levels = np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)
    return torch.from_numpy(levels).view(3, 32, 32)


def digit_network() -> nn.Module:
    """A ResNet-8 trained as the suite `digits` trains its own before pruning: some seconds on a CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.create("resnet8")
    fine_tune(model, data.load("digits", "train"), recipes.DIGITS_BASELINE)
    return model.eval()


def robustbench() -> dict[str, Any]:
    """RobustBench's own `benchmark` of one shipped network, to compare with the record of our AutoAttack.

    {"suite", "label", "attack", "images", "clean", "robust"}: how many of the first `images` of the test set
    are right without and under the attack. About three minutes of CPU time.
    """
    suite, label = NETWORK
    run = next(run for run in suites.get(suite).runs if run.label == label)
    model = load_file(Store(CODE).weights_path(suite, run.stem)).eval()
    first, eps = data.load("cifar10", "test").take(IMAGES), RADIUS / 255
    clean, robust = benchmark(model, first.pixels(), first.labels, eps=eps, batch_size=IMAGES)
    counts = {"clean": round(IMAGES * clean), "robust": round(IMAGES * robust)}
    attack = Attack("autoattack", eps=eps).name
    return {"suite": suite, "label": label, "attack": attack, "images": IMAGES, **counts}


def repeated(suite: str) -> dict[str, Any]:
    """The paper's attacks on every shipped checkpoint of a suite again, here, image by image.

    {"suite", "recorded_on", "images", "checkpoints", "damaged", "self_checks_differ", "answers", "differ":
    {name of an attack: count}}. damaged: files with another SHA-256 than recorded. self_checks_differ:
    checkpoints whose recorded outcomes say something else of themselves than their record does. differ: of
    the `answers` of each attack, those right here and wrong there or the other way round. About five minutes
    for twelve ResNet-56. FileNotFoundError when no checkpoint is shipped.
    """
    store = Store(CODE)
    checkpoints, devices = shipped(suite, store)
    if not checkpoints:
        raise FileNotFoundError(f"no checkpoint of suite {suite!r} is shipped: run the suite first")
    first = data.load("cifar10", "test").take(REPEATED)
    differ = {entry.attack.name: 0 for entry in protocols.paper()}
    for checkpoint in checkpoints:
        model = load_file(store.root / str(checkpoint.file)).eval()
        for name in differ:
            metric = checkpoint.metrics[name]
            again = evaluate.outcome(
                model, first.pixels(), first.labels, metric.attack, batch_size=REPEATED, fold=False
            )
            differ[name] += int((again.correct != metric.right[:REPEATED]).sum())
    return {
        "suite": suite,
        "recorded_on": devices,
        "images": REPEATED,
        "checkpoints": len(checkpoints),
        "damaged": sum(sha256_file(store.root / str(k.file)) != k.sha256 for k in checkpoints),
        "self_checks_differ": sum(not consistent(k) for k in checkpoints),
        "answers": REPEATED * len(checkpoints),
        "differ": differ,
    }


def shipped(suite: str, store: Store) -> tuple[list[Kept], list[str]]:
    """The checkpoints of the suite's own records, equal weights once, and what they were made on."""
    records = [record for record in store.of_suite(suite) if record.suite == suite]
    checkpoints = {kept.sha256: kept for record in records for kept in record.kept.values() if kept.file}
    return list(checkpoints.values()), sorted({str(record.provenance.device) for record in records})


def consistent(kept: Kept) -> bool:
    """Whether the outcomes say of themselves what the record says, in whatever order."""
    said = evaluate.self_check(metric.outcome for metric in kept.metrics.values())
    return set(said) == set(kept.self_check)
