"""Methods that prune while training, and every way in which channels travel: it works, or a reason."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from building_blocks import BLOCKS, block, transformer
from small_training import random_split
from torch import nn

import gkp
from gkp import pruners
from gkp.data import Split
from gkp.nets.channels.surgery import SkippedLayers
from gkp.train import Recipe, fine_tune

METHODS = ("hesso", "otov2-dhspg", "group-sl", "dhp")
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.01, schedule="constant", augment="none")


def five_classes(n: int, size: int = 8) -> Split:
    data = random_split(n, size=size)
    return replace(data, labels=data.labels % 5)


DATA = five_classes(16)
X = DATA.pixels(slice(4))
UNTRAINABLE = "in place"  # it overwrites what its own gradient needs
TRAINABLE = [name for name in BLOCKS if name != UNTRAINABLE]


def refusal(method: str, name: str) -> str:
    """What a method says of a block that it cannot prune; "" where it can."""
    if name == "weight norm":
        return "parametrisation"
    if name == "weight standardised" and method in ("hesso", "otov2-dhspg"):
        return "a filter of zeros is not zero where it is read"
    if name == "view of a fixed size" and method == "dhp":
        return "is for filters of 2d convolutions, and last, which can lose some, is none"
    return "no reset_parameters" if name in ("shift", "attention") and method == "dhp" else ""


@pytest.mark.filterwarnings("ignore::gkp.nets.channels.surgery.SkippedLayers")
@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("method", METHODS)
def test_every_block_is_pruned_or_refused(method, name) -> None:
    model, options = block(name), {"rate": 0.4, "example_input": X[:1], "data": DATA, "recipe": RECIPE}
    if reason := refusal(method, name):
        with pytest.raises(ValueError, match=reason):
            gkp.prune(model, method, **options)
        return
    pruned = gkp.prune(model, method, **options)
    assert pruned(X).shape == model(X).shape
    assert pruned(X).isfinite().all()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    assert not any("parametrizations" in key for key in pruned.state_dict())


@pytest.mark.parametrize("name", [name for name in TRAINABLE if not refusal("hesso", name)])
def test_where_groups_vanish_the_cut_changes_nothing(name) -> None:
    """Whatever stands behind a filter: HESSO takes the layer only where its zeros stay zeros."""
    model = block(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedLayers)
        session = pruners.start(model, "hesso", rate=0.4, epochs=2, example_input=X[:1], data=DATA, span=0.9)
        fine_tune(model, DATA, RECIPE, hooks=session.hooks)
        whole = copy.deepcopy(model)
        pruned = session.finish(model)(0.4)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        torch.testing.assert_close(pruned.eval()(X), whole.eval()(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_prevents_its_own_gradient_is_refused(method) -> None:
    with pytest.raises(ValueError, match="changes numbers in place that the gradient needs: write x"):
        gkp.prune(block(UNTRAINABLE), method, rate=0.4, example_input=X[:1], data=DATA, recipe=RECIPE)


def test_layers_whose_zeros_are_shifted_are_named_and_left() -> None:
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = nn.Sequential(first, nn.Sigmoid(), second, *head)
    with pytest.warns(SkippedLayers, match="0: a filter of zeros is not zero where it is read"):
        pruned = gkp.prune(model, "hesso", rate=0.4, example_input=X[:1], data=DATA, recipe=RECIPE)
    assert (pruned[0].out_channels, pruned[2].out_channels) == (8, 5)
    model = nn.Sequential(first, nn.Sigmoid(), nn.Conv2d(8, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for method in ("hesso", "otov2-dhspg"):
        with pytest.raises(ValueError, match="not zero where it is read, even with .* in 0: use a method"):
            gkp.prune(model, method, rate=0.4, example_input=X[:1], data=DATA, recipe=RECIPE)


@pytest.mark.filterwarnings("ignore::gkp.nets.channels.surgery.SkippedLayers")
@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_loses_hidden_channels_or_is_refused(method) -> None:
    model, data = transformer(), five_classes(8, size=16)
    options = {"rate": 0.4, "example_input": data.pixels(slice(1)), "data": data, "recipe": RECIPE}
    if method == "dhp":
        with pytest.raises(ValueError, match="is none: use another method"):
            gkp.prune(model, method, **options)
        return
    pruned = gkp.prune(model, method, **options)
    assert sum(layer.mlp[0].out_features for layer in pruned.encoder.layers) < 128
