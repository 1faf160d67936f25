"""Pruning and training of one run."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_suite import RECIPE, context

import gkp
from gkp import data
from gkp.nets import models
from gkp.study.execute import steps
from gkp.study.runs.run import MACS_RATIO, Run
from gkp.utils.progress import Progress


@pytest.mark.parametrize("method", ["l1", "sfp"], ids=["one-shot", "in training"])
def test_a_pruned_network_learns_from_the_network_before_pruning(tmp_path: Path, method: str) -> None:
    splits = {("digits", part): data.load("digits", part).take(40) for part in ("train", "test")}
    few, progress = dataclasses.replace(context(tmp_path), splits=splits), Progress("off")
    recipe = dataclasses.replace(RECIPE, distillation=1.0, temperature=1.0)
    run = Run("digits", "resnet8", method, baseline=RECIPE, macs_ratio=MACS_RATIO, recipe=recipe)
    torch.manual_seed(0)
    parent = models.create("resnet8")
    pruned, _, _ = steps.prune_and_train(copy.deepcopy(parent), run, few, progress)
    if method == "l1":
        expected, _ = steps.prune(parent, run, few)
        gkp.fine_tune(expected, splits["digits", "train"], recipe, teacher=parent)
        assert all(map(torch.equal, expected.state_dict().values(), pruned.state_dict().values()))
    plain = dataclasses.replace(run, recipe=RECIPE)
    other, _, _ = steps.prune_and_train(parent, plain, few, progress)
    assert not all(map(torch.equal, other.state_dict().values(), pruned.state_dict().values()))
