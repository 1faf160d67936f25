"""A suite that takes seconds: two epochs of a ResNet-8 on 80 digits, and three rules for its checkpoint."""

import dataclasses
from pathlib import Path

import torch

from gkp.attacks import Attack
from gkp.study.execute.context import Context
from gkp.study.runs.protocols import Entry
from gkp.study.runs.run import MACS_RATIO, Run
from gkp.study.runs.store import Store
from gkp.study.runs.suites import grids, recipes
from gkp.study.runs.suites.grids import Suite

IMAGES = 80
RECIPE = dataclasses.replace(recipes.DIGITS_RECIPE, epochs=2)
EVALUATION = (Entry(Attack("none")), Entry(Attack("fgsm", eps=8 / 255), 20))
COMMON = Run(
    "digits",
    "resnet8",
    "unpruned",
    baseline=RECIPE,
    macs_ratio=MACS_RATIO,
    recipe=RECIPE,
    validation=10,
    rules=("last", "best-validation", "best-test"),
    evaluation=EVALUATION,
)


def tiny_suite(*methods: str) -> Suite:
    return Suite("tiny", "", "", grids.grid(COMMON, seeds=(0,), names=methods))


def baseline_of(suite: Suite) -> Run:
    return suite.ordered()[0]


def context(root: Path, deadline: float | None = None) -> Context:
    return Context(Store(root), torch.device("cpu"), deadline=deadline)
