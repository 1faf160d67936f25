"""What fleets are tested with: a network in float64, images, and whether two trainings are the same."""

import copy

import pytest
import torch
from small_training import random_split

import gkp
from gkp.nets.models import CifarResNet
from gkp.train import Recipe

IMAGES, HELD = random_split(100, size=8), random_split(40, size=8, seed=1, part="test")
STEPS = Recipe(epochs=3, batch_size=32, lr=0.02, step_epochs=1)  # the last batch of an epoch is smaller
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")


def resnet():
    """In float64, where the order of sums does not show in losses rounded to float32."""
    torch.manual_seed(1)
    return CifarResNet(8).double()


def pruned(start, method, **options):
    if method == "unpruned":
        return copy.deepcopy(start)
    return gkp.prune(start, method, example_input=IMAGES.pixels(slice(1)).double(), **options)


def assert_same(one, other, *, tolerance=1e-9):
    (model, history), (again, course) = one, other
    for row, theirs in zip(history.epochs, course.epochs, strict=True):
        assert theirs.train_loss == pytest.approx(row.train_loss, abs=tolerance)
        assert (theirs.lr, theirs.scores) == (row.lr, row.scores)
    assert {part: c.epoch for part, c in history.chosen.items()} == {
        part: c.epoch for part, c in course.chosen.items()
    }
    states = [(model.state_dict(), again.state_dict())]
    states += [(history.chosen[part].weights, course.chosen[part].weights) for part in history.chosen]
    for ours, theirs in states:
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=tolerance)
