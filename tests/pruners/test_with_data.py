"""Methods that take images, on networks that nobody here built: right, or a sentence that says why not."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from building_blocks import BLOCKS, block, silence
from small_training import random_split
from torch import Tensor, nn

import gkp
from gkp import pruners
from gkp.data import Split
from gkp.nets.channels.layers import copied
from gkp.pruners.lowrank import cc
from gkp.train import Recipe
from gkp.train.checks import laid_last

SCORING = [name for name in pruners.methods() if pruners.get(name).needs.startswith("images")]
SWEPT = ("hesso", "otov2-dhspg", "group-sl", "dhp")  # over all blocks, in trained/test_odd_networks.py
TRAINED = [name for name in pruners.methods() if pruners.get(name).start and name not in SWEPT]
BY_GRADIENT = ("cc", "group-fisher", "nppm", "taylor")
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.01, schedule="constant", augment="none")
QUICK = {"images": 16, "batch_size": 8, "step": 4, "locations": 20, "iterations": 4}


def five_classes(n: int = 16, size: int = 8) -> Split:
    data = random_split(n, size=size)
    return replace(data, labels=data.labels % 5)


DATA = five_classes()
X = DATA.pixels(slice(8))


def prune(model: nn.Module, method: str, rate: float = 0.4, data: Split = DATA, **options: Any) -> nn.Module:
    """Pruned with as few images and steps as it takes, without what is said about layers."""
    offered = pruners.get(method).options if method in SCORING else ()
    options |= {name: value for name, value in QUICK.items() if name in offered}
    common = {"groups": 2, "example_input": X[:1], "data": data, "recipe": RECIPE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gkp.SkippedLayers)
        return gkp.prune(model, method, rate=rate, **common, **options)


def same(one: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(X), other.eval()(X), rtol=1e-3, atol=1e-5)


class Keeping(nn.Module):
    """Keeps the feature maps of its last forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.second(torch.relu(self.norm(self.first(x))))
        return self.head(self.features.relu().mean((2, 3)))


@pytest.mark.parametrize("method", SCORING)
def test_a_network_that_keeps_what_it_computed_is_pruned(method: str) -> None:
    torch.manual_seed(0)
    model = Keeping().eval()
    model(X)
    pruned = prune(model, method, rate=0.5)
    assert pruned(X).shape == (8, 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("method", [name for name in pruners.methods() if pruners.get(name).start])
def test_training_leaves_neither_its_layout_nor_gradients(method: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).to(memory_format=layout)
    pruned = prune(model, method, rate=0.5)
    for place in (0, 3, 6):
        assert (pruned[place].weight.stride(3) == 1) == (model[place].weight.stride(3) == 1)
    assert all(parameter.grad is None for parameter in pruned.parameters())
    assert laid_last(model) == laid_last(pruned)


# ---- every method on some networks -------------------------------------------------------------------

NETWORKS = (
    *("pixels first", "view of a fixed size", "flip before a norm"),
    *("transposed", "squeeze and excitation", "weight norm"),
)
NONE = "this network has no convolution whose filters can be removed|no dependency group"
NO_KERNELS = "and this network has none|no convolution can be pruned with groups=2"
NEITHER = {
    "gal": "gal removes residual blocks .* or filters with a batch norm of their own, and finds neither here",
    "slimming": "ranks scales of batch norms, and no removable filter has one",
}
BEHIND = "sets filters to zero, and the batch norm at or behind norm, not the filters' own"
FLAT = {"pixels first", "view of a fixed size", "transposed"}  # one 2d convolution


def refusal(method: str, name: str) -> str:
    """A pattern of what a method says of a network that it cannot prune; "" where it can."""
    if method in ("cc", "gkp-reconstruction"):
        return NO_KERNELS if name in FLAT | {"weight norm"} else ""
    if name == "weight norm":
        return NONE
    if method in ("gal", "slimming"):
        return NEITHER[method]
    if name == "flip before a norm" and method in ("sfp", "fpgm-training"):
        return BEHIND
    if name == "view of a fixed size" and method in (
        "hrank",
        "chip",
        "taylor",
        "thinet",
        "sfp",
        "fpgm-training",
    ):
        return "is for filters of 2d convolutions, and last, which can lose some, is none"
    if method == "thinet" and name == "transposed":
        return "thinet needs a 2d convolution that exactly one other layer reads, .* first is not"
    return ""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [*SCORING, *TRAINED])
def test_a_smaller_network_or_a_reason(method: str, name: str) -> None:
    model = block(name)
    if reason := refusal(method, name):
        with pytest.raises(ValueError, match=reason):
            prune(model, method)
        return
    pruned = prune(model, method)
    assert pruned(X).shape == model(X).shape
    assert pruned(X).isfinite().all()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


# ---- what goes is what the method means ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flip", "flip before a norm", "pixels first"])
@pytest.mark.parametrize("method", ["chip", "group-fisher", "hrank", "taylor", "thinet"])
def test_silent_channels_go_and_leave_the_logits(method: str, name: str) -> None:
    """Wherever the channels stand in the layer that reads them, and with ThiNet's scales."""
    model = silence(block(name), X[:1])
    # Of which a ranking of all layers may take a third, too.
    options = {"minimum": 0.66} if method in ("group-fisher", "taylor") else {}
    pruned = prune(model, method, rate=0.25, **options)
    assert pruned.first.out_channels < 16
    same(pruned, model)


@pytest.mark.parametrize("name", ["flip", "called twice"])
def test_silent_kernels_go_and_the_others_keep_their_scale(name: str) -> None:
    model = block(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            module.weight.data[:, ::3] = 0
    same(prune(model, "gkp-reconstruction", rate=0.25), model)


@pytest.mark.parametrize("name", ["flip", "shuffle", "called twice", "depthwise"])
def test_what_cc_leaves_computes_what_zeros_and_low_rank_would(name: str, monkeypatch) -> None:
    model, asked = block(name), []
    without = cc._without

    def noted(*given: Any) -> nn.Module:
        asked.append(given[1])
        return without(*given)

    monkeypatch.setattr(cc, "_without", noted)
    pruned, reference = prune(model, "cc"), copied(model)
    for layer, (lost, directions) in asked[-1].items():
        weight = reference.get_submodule(layer).weight.data
        weight[:, lost] = 0
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        rank = len(values) - directions
        weight.copy_((left[:, :rank] * values[:rank] @ right[:rank]).view_as(weight))
    assert any(lost or directions for lost, directions in asked[-1].values())
    same(pruned, reference)


@pytest.mark.parametrize("kind", ["filters", "blocks"])
def test_what_gal_leaves_is_the_masked_network(kind: str) -> None:
    model = block("batch norm") if kind == "filters" else residual()
    session = pruners.start(model, "gal", rate=0.4, epochs=2, example_input=X[:1], data=DATA)
    state = session.hooks.state_dict()
    generator = torch.Generator().manual_seed(0)
    for number, (name, mask) in enumerate(state["masks"].items()):
        state["masks"][name] = torch.rand(mask.shape, generator=generator) + 0.5
        state["masks"][name][:: 3 if kind == "filters" else 1] *= number % 2 if kind == "blocks" else 0
    session.hooks.load_state_dict(state)
    masked = model(X).detach()
    pruned = session.finish(model)(0.3 if kind == "filters" else 0.5)
    torch.testing.assert_close(pruned.eval()(X), masked, rtol=1e-3, atol=1e-5)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


class Residual(nn.Module):
    """A block before its activation, with a branch of one convolution and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x).relu())
        y += x
        return y


def residual() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Residual() for _ in range(4)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, *head).eval()


# ---- data and networks that do not fit -------------------------------------------------------------------


def small(**changes: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 3), "n": nn.BatchNorm2d(8), "r": nn.ReLU(), "c": nn.Conv2d(8, 8, 3)}
    layers |= {"m": nn.BatchNorm2d(8), "s": nn.ReLU(), "flat": nn.Flatten(), "fc": nn.Linear(8 * 16, 5)}
    model = nn.Sequential()
    for name, module in (layers | changes).items():
        model.add_module(name, module)
    return model.eval()


@pytest.mark.parametrize("method", [*SCORING, "gal", "rap-admm"])
def test_images_of_another_size_are_named(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"the network fails on images of shape \(\d+, 3, 10, 10\): give images"
    ):
        prune(small(), method, data=five_classes(size=10))


@pytest.mark.parametrize("method", [*BY_GRADIENT, "gal"])
def test_labels_that_are_no_classes_are_named(method: str) -> None:
    with pytest.raises(ValueError, match="label 9 but the model has 5 outputs"):
        prune(small(), method, data=random_split(16))


@pytest.mark.parametrize("method", [*BY_GRADIENT, "rap-admm"])
def test_outputs_that_are_no_logits_are_named(method: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.net(x)}

    with pytest.raises(ValueError, match=r'returned a dict with the keys out .* e\.g\. output\["out"\]'):
        prune(Named().eval(), method)


@pytest.mark.parametrize("method", ["taylor", "rap-admm", "sfp"])
def test_what_prevents_its_own_gradient_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="changes numbers in place that the gradient needs"):
        prune(block("in place"), method)


@pytest.mark.parametrize("method", [*SCORING, *TRAINED])
def test_frozen_networks_in_train_mode_and_in_wrappers(method: str) -> None:
    """Frozen ones only where nothing is to be trained; flags, modes and the network itself stay."""
    model = small().train()
    model.a.requires_grad_(method in TRAINED)
    before = copy.deepcopy(model.state_dict())
    pruned = prune(nn.DataParallel(model), method)
    assert isinstance(pruned, nn.DataParallel)
    assert all(module.training for module in pruned.modules())
    assert pruned.module.a.weight.requires_grad == (method in TRAINED)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_every_block_named_here_exists() -> None:
    assert set(NETWORKS) <= set(BLOCKS)
