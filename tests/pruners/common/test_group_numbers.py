"""Numbers of groups by layer: what they prune, and what is wrong with them."""

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
        ({"conv1": 2}, "conv1"),
        ({"layer1.0.conv1": 3}, "3 does not divide the 16 filters of layer1.0.conv1"),
        ({"layer1.0.conv1": 0}, "positive whole number"),
        ({"layer1.0.conv1": 2.0}, "positive whole number"),
        ("auto", "gkp.deploy.fastest_groups"),
    ],
)
def test_wrong_numbers_get_a_sentence(groups: dict, message: str, model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        gkp.prune(model, groups=groups)
