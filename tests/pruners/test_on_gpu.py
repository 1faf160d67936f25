"""Every method on a GPU: it removes what it removes on the CPU, and the network stays there.

What trains or scores with images does so on the CPU here in any case, and with its step recorded on a GPU.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_training import random_split, small_net
from torch import nn

import gkp
from gkp import pruners
from gkp.nets.models import CifarResNet
from gkp.pruners.common.registry import get
from gkp.train import Recipe, fine_tune

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
DATA, FEW = random_split(64, size=16), random_split(32)
RECIPE = Recipe(epochs=2, batch_size=32)
# These draw or train, which two devices do alike but not bit for bit.
CHANCE = {name for name in gkp.methods() if get(name).start or get(name).needs}
TRAINED = [name for name in gkp.methods() if get(name).start]
SCORING = [name for name in gkp.methods() if get(name).needs.startswith("images")]
# What takes seconds with its defaults, which are for whole data sets.
QUICK = {"images": 32, "batch_size": 16, "step": 64, "gamma": 0.0, "locations": 4}


def options(method: str) -> dict[str, Any]:
    if method not in SCORING:
        return {}
    wanted = QUICK | ({"iterations": 20} if method == "nppm" else {})
    return {name: value for name, value in wanted.items() if name in get(method).options}


@needs_gpu
@pytest.mark.parametrize("method", gkp.methods())
def test_a_gpu_prunes_as_the_cpu_does(method: str) -> None:
    torch.manual_seed(0)
    model, pruned = CifarResNet(14), {}
    given = options(method) | {"data": DATA, "recipe": RECIPE}
    if method == "tmi-gkp":
        given["snapshots"] = [{n: p.detach() for n, p in model.named_parameters()}]
    for device in ("cpu", "cuda"):
        example = DATA.pixels(slice(1)).to(device)
        pruned[device] = gkp.prune(copy.deepcopy(model).to(device), method, example_input=example, **given)
    weights = dict(pruned["cuda"].named_parameters())
    assert all(weight.is_cuda for weight in weights.values())
    # CC's widths and ranks, and which blocks of GAL go, follow from numbers that differ in the last bits.
    for name, weight in pruned["cpu"].named_parameters() if method not in CHANCE else ():
        torch.testing.assert_close(weights[name].cpu(), weight)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", SCORING)
def test_scores_are_taken_where_the_network_is(method: str, device: str) -> None:
    model = small_net().to(device)
    x = FEW.pixels(slice(2)).to(device)
    given = options(method) | {"images": 16}
    pruned = gkp.prune(model, method, example_input=x[:1], data=FEW, recipe=RECIPE, **given)
    check(pruned, model, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", TRAINED)
def test_trained_with_a_recorded_step_it_ends_where_it_does_without(method: str, device: str) -> None:
    """The network moves to the device after the session began; after the cut there is another recording."""
    x, losses = FEW.pixels(slice(2)), []
    for graphs in (False, True):
        model = small_net()
        session = pruners.start(model, method, rate=0.4, epochs=4, data=FEW, example_input=x[:1], share=0.5)
        before, after = session.recipes(Recipe(epochs=4, batch_size=8, lr=0.01))
        whole = small_net().to(device)
        rows = fine_tune(model, FEW, before, hooks=session.hooks, device=device, cuda_graphs=graphs).epochs
        pruned = session.finish(model)(0.4)
        rows += fine_tune(pruned, FEW, after, device=device, cuda_graphs=graphs).epochs
        check(pruned, whole, x.to(device))
        losses.append([row.train_loss for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def check(pruned: nn.Module, whole: nn.Module, x: torch.Tensor) -> None:
    """A smaller network on the device of x, in plain layers."""
    assert {tensor.device.type for tensor in pruned.state_dict().values()} == {x.device.type}
    assert pruned.eval()(x).isfinite().all()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in whole.parameters())
    assert not any("parametrizations" in name for name in pruned.state_dict())
