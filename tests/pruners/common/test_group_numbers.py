"""Numbers of groups by layer: what they prune, and what is wrong with them."""

import warnings

import pytest
import torch

import gkp
from gkp.nets.grouped import GroupedKernelConv2d


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return gkp.models.create("resnet8").eval()


def numbers(model: torch.nn.Module) -> dict[str, int]:
    return {n: m.groups for n, m in model.named_modules() if isinstance(m, GroupedKernelConv2d)}


@pytest.mark.parametrize("method", ["sr-gkp", "gkp-greedy"])
def test_each_layer_gets_its_groups_and_others_the_papers(method: str, model: torch.nn.Module) -> None:
    given = {"layer1.0.conv1": 2, "layer3.0.conv2": 16}
    found = numbers(gkp.prune(model, method, groups=given))
    assert found == dict.fromkeys(found, 8) | given


def test_one_number_for_all_is_the_number_itself(model: torch.nn.Module) -> None:
    one = gkp.prune(model, groups=4)
    other = gkp.prune(model, groups=dict.fromkeys(numbers(one), 4))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"layer1.0.conv3": 2}, "layer1.0.conv"),
        ({"conv1": 2}, "conv1, which reads nothing but the image"),
        ({"layer1.0.conv1": 3}, "3 does not divide the 16 filters of layer1.0.conv1"),
        ({"layer1.0.conv1": 0}, "positive whole number"),
        ({"layer1.0.conv1": 2.0}, "positive whole number"),
        ("auto", "gkp.deploy.fastest_groups"),
    ],
)
def test_wrong_numbers_get_a_sentence(groups: dict, message: str, model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        gkp.prune(model, groups=groups)


# ---- 1x1 convolutions beside larger ones ---------------------------------------------------------


def bottleneck(wide: int) -> torch.nn.Module:
    """Convolutions 1 of 3x3 between 1x1 ones of `wide` channels, behind one that reads the image."""
    torch.manual_seed(0)
    sizes = [(3, wide, 1), (wide, 16, 1), (16, 16, 3), (16, wide, 1)]
    layers = [torch.nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in sizes]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


@pytest.mark.parametrize("method", ["sr-gkp", "gkp-greedy"])
def test_1x1_convolutions_are_pruned_where_they_are_named(method: str) -> None:
    image = torch.randn(1, 3, 8, 8)
    found = numbers(gkp.prune(bottleneck(32), method, groups={"1": 4, "3": 8}, example_input=image))
    assert found == {"1": 4, "2": 8, "3": 8}


def test_1x1_convolutions_with_most_of_the_weights_are_named_with_the_remedy() -> None:
    image = torch.randn(1, 3, 8, 8)
    with pytest.warns(gkp.SkippedLayers, match=r"1 and 1 more: 1x1, .*groups=\{name: 4\}"):
        assert numbers(gkp.prune(bottleneck(256), groups=4, example_input=image)) == {"2": 4}


def test_few_1x1_convolutions_are_no_surprise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", gkp.SkippedLayers)
        gkp.prune(bottleneck(32), example_input=torch.randn(1, 3, 8, 8))
        gkp.prune(bottleneck(256), groups={"1": 4, "3": 4}, example_input=torch.randn(1, 3, 8, 8))


def test_1x1_convolutions_whose_weights_are_computed_are_left_as_they_are() -> None:
    model = bottleneck(256)
    for name in ("1", "3"):
        torch.nn.utils.parametrizations.weight_norm(model.get_submodule(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error", gkp.SkippedLayers)
        assert numbers(gkp.prune(model, groups=4, example_input=torch.randn(1, 3, 8, 8))) == {"2": 4}
