"""Methods that score with data: half, bfloat16, double and one-channel networks, and data that do not fit."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import gkp
from gkp.data import Split
from gkp.pruners import get, prepare
from gkp.train.recipe import Recipe

IMAGES = [m for m in gkp.methods() if get(m).needs.startswith("images")]
SCORING = [m for m in IMAGES if get(m).structure != "grouped kernel"]
TRAINING = [m for m in gkp.methods() if get(m).start]
RECIPE = Recipe(epochs=2, batch_size=8, schedule="constant", augment="none")


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
    return model.eval()


def split(channels: int = 3, n: int = 16) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n) % 4, "mine", "train", tuple("abcd"), "", n)


def pruned(model: nn.Module, method: str, data: Split, channels: int = 3) -> nn.Module:
    quick = {"iterations": 20} if "iterations" in get(method).options else {}
    x = torch.rand(1, channels, 8, 8)
    return gkp.prune(model, method, rate=0.5, example_input=x, data=data, recipe=RECIPE, **quick)


@pytest.mark.parametrize("method", SCORING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_keeps_the_filters_of_the_same_weights_in_float32(method, dtype) -> None:
    """Weights that every type can hold: the choice is then the same one."""
    model = network().to(torch.float16 if dtype == torch.float16 else torch.bfloat16).float()
    found = pruned(copy.deepcopy(model).to(dtype), method, split())
    expected = pruned(model, method, split())
    assert {p.dtype for p in found.parameters()} == {dtype}
    assert found(torch.rand(2, 3, 8, 8).to(dtype)).isfinite().all()
    # The first batch norm tells which filters of the layer before it are left.
    torch.testing.assert_close(found[1].weight.float(), expected[1].weight)
    assert found[0].out_channels < 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_keeps_the_kernels_of_the_same_weights_in_float32(dtype) -> None:
    model = network().to(torch.float16 if dtype == torch.float16 else torch.bfloat16).float()
    found = pruned(copy.deepcopy(model).to(dtype), "gkp-reconstruction", split())
    expected = pruned(model, "gkp-reconstruction", split())
    assert {p.dtype for p in found.parameters()} == {dtype}
    assert torch.equal(found[3].kept, expected[3].kept)
    assert found[3].kept.shape[1] < 8


@pytest.mark.parametrize("method", TRAINING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_methods_that_train_name_the_remedy_for_half_precision(method, dtype) -> None:
    with pytest.raises(ValueError, match=r"model\.float\(\)"):
        pruned(network().to(dtype), method, split())


@pytest.mark.parametrize("method", TRAINING)
def test_methods_that_train_take_double_precision(method) -> None:
    found = pruned(network().double(), method, split())
    assert found(torch.rand(2, 3, 8, 8).double()).isfinite().all()


@pytest.mark.parametrize("method", [*SCORING, *TRAINING])
def test_one_channel_networks_take_data_of_one_channel_and_no_other(method) -> None:
    assert pruned(network(1), method, split(1), channels=1)(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"images of shape \(\d+, 3, 8, 8\): give images of the channels"):
        pruned(network(1), method, split(3), channels=1)


@pytest.mark.parametrize("method", SCORING)
def test_images_of_another_size_are_named(method) -> None:
    model = nn.Sequential(*network()[:6], nn.Flatten(), nn.Linear(8 * 8 * 8, 4)).eval()
    large = replace(split(), images=torch.zeros(16, 3, 9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(16, 3, 9, 9\).*the size that it was made for"):
        pruned(model, method, large)


@pytest.mark.parametrize("method", SCORING)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(torch.rand(3, 8, 8), 0)], "a?list: give a gkp.data.Split"),
        (replace(split(), images=torch.rand(16, 3, 8, 8)), "float32 images: give a gkp.data.Split"),
        (split(n=0), "0 torch.uint8 images"),
    ],
)
def test_what_is_no_split_of_bytes_is_named(method, data, message) -> None:
    with pytest.raises(ValueError, match=message):
        pruned(network(), method, data)


@pytest.mark.parametrize("method", ["hrank", "chip", "thinet"])
def test_maps_that_overflow_are_named(method) -> None:
    model = network()
    model[3].weight.data.fill_(3e38)
    with pytest.raises(ValueError, match="NaN"):
        pruned(model, method, split())


def test_taylor_checks_labels_and_gradients() -> None:
    x = torch.rand(1, 3, 8, 8)
    for labels, message in ((torch.arange(16), "label 15"), (torch.rand(16), "one integer label")):
        with pytest.raises(ValueError, match=message):
            prepare(network(), "taylor", example_input=x, data=replace(split(), labels=labels))
    narrow = replace(split(), labels=split().labels.to(torch.int16))
    for data in (split(), narrow):
        kept = prepare(network(), "taylor", example_input=x, data=data)(0.5)
        assert kept[0].out_channels + kept[3].out_channels < 16


def test_taylor_of_a_frozen_network_scores_as_ever() -> None:
    frozen, free = network().requires_grad_(False), network()
    a, b = (pruned(model, "taylor", split()) for model in (frozen, free))
    torch.testing.assert_close(a[1].weight, b[1].weight)
