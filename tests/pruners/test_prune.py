"""The public call, `gkp.prune`, with SR-GKP and the shared machinery."""

import copy
import math
import warnings

import pytest
import torch
import torchvision
from torch import nn

import gkp
from gkp import pruners
from gkp.nets import cost, models
from gkp.nets.channels.surgery import SkippedLayers
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.common.budget import cut_to
from gkp.search import select

X = torch.rand(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet8() -> nn.Module:
    torch.manual_seed(0)
    return models.create("resnet8").eval()


def test_sr_gkp_replaces_every_convolution_but_the_first(resnet8: nn.Module) -> None:
    before = copy.deepcopy(resnet8.state_dict())
    pruned = gkp.prune(resnet8, "sr-gkp", rate=0.625, groups=4)
    grouped = {n: m for n, m in pruned.named_modules() if isinstance(m, GroupedKernelConv2d)}
    assert len(grouped) == 6
    assert type(pruned.conv1) is nn.Conv2d
    for name, module in grouped.items():
        expected = select(resnet8.get_submodule(name).weight, groups=4, rate=0.625)
        assert torch.equal(module.kept, expected.kept)
        assert torch.equal(module.filter_order, expected.filter_order)
    assert all(torch.equal(before[name], tensor) for name, tensor in resnet8.state_dict().items())
    assert not pruned.training


def test_search_options_reach_the_search(resnet8: nn.Module) -> None:
    pruned = gkp.prune(resnet8, strategy="greedy", beta="exact", grouping="contiguous")
    expected = select(resnet8.layer1[0].conv1.weight, strategy="greedy", beta="exact", grouping="contiguous")
    assert torch.equal(pruned.layer1[0].conv1.kept, expected.kept)


def test_a_torchvision_network(recwarn: pytest.WarningsRecorder) -> None:
    model = torchvision.models.resnet18(width_per_group=64).eval()
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()  # the small half: the search takes a moment
    model.fc = nn.Linear(128, 5)
    pruned = gkp.prune(model, "sr-gkp", rate=0.5)
    assert sum(isinstance(m, GroupedKernelConv2d) for m in pruned.modules()) == 8
    assert pruned(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    assert not [w for w in recwarn if issubclass(w.category, SkippedLayers)]


def test_layers_that_cannot_be_grouped_are_reported_or_refused(resnet8: nn.Module) -> None:
    with pytest.warns(
        SkippedLayers, match="layer1.0.conv1 and 1 more: groups=32 does not divide its 16 filters"
    ):
        pruned = gkp.prune(resnet8, groups=32)
    assert type(pruned.layer1[0].conv1) is nn.Conv2d
    assert isinstance(pruned.layer2[0].conv1, GroupedKernelConv2d)
    with pytest.raises(ValueError, match="indivisible='skip'"):
        gkp.prune(resnet8, groups=32, indivisible="refuse")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "magic"}, "unknown pruning method 'magic': choose one of .*sr-gkp"),
        ({"rate": 0}, "strictly between 0 and 1"),
        ({"rate": 1.2}, "strictly between 0 and 1"),
        ({"groups": 7}, "groups=7 does not divide"),
        ({"groups": 0}, "positive whole number"),
        ({"beam": 3}, "sr-gkp has no option beam; its options: beam_width"),
        ({"method": "l1", "beta": 1.0}, "l1 has no option beta; its options: profile"),
        ({"indivisible": "ignore"}, "skip"),
    ],
)
def test_errors_name_the_fix(resnet8: nn.Module, arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gkp.prune(resnet8, **arguments)


def test_an_unknown_network_needs_an_example() -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(ValueError, match="example_input"):
        gkp.prune(model, "l1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = gkp.prune(model, "l1", rate=0.5, example_input=torch.rand(1, 3, 64, 64))
    assert pruned.layer1[0].conv1.out_channels == 32


@pytest.mark.parametrize("method", ["random", "l1"])
def test_macs_are_met_by_bisection(method: str) -> None:
    model = models.create("resnet8")
    target = 0.5673 * cost.count(model, X).macs
    pruned, rate = pruners.match_macs(model, pruners.prepare(model, method), target)
    assert cost.count(pruned, X).macs == pytest.approx(target, rel=0.01)
    assert 0 < rate < 1
    with pytest.raises(ValueError, match=r"within 0\.1 % of .*raise the tolerance"):
        pruners.match_macs(model, pruners.prepare(model, method), target * 0.01, tolerance=0.001)


def test_params_are_met_by_bisection() -> None:
    model = models.create("resnet8")
    cut = pruners.prepare(model, "sr-gkp", profile="6:3:1", strategy="random")
    target = 0.5 * cost.count(model, X).params
    pruned, rate = pruners.match_params(model, cut, target)
    assert cost.count(pruned, X).params == pytest.approx(target, rel=0.01)
    assert cost.count(pruned, X).macs < 0.5 * cost.count(model, X).macs  # the late stage has the parameters
    assert cost.count(cut(rate), X) == cost.count(pruned, X)
    with pytest.raises(ValueError, match="M parameters: the nearest misses"):
        pruners.match_params(model, cut, target * 0.01)
    with pytest.raises(ValueError, match="params=0, .* give a positive number of parameters"):
        pruners.match_params(model, cut, 0)


def test_random_depends_on_its_seed_only(resnet8: nn.Module) -> None:
    weights = [gkp.prune(resnet8, "random", seed=seed).layer3[0].conv1.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_l1_keeps_the_largest_filters(resnet8: nn.Module) -> None:
    pruned = gkp.prune(resnet8, "l1", rate=0.25)
    norms = resnet8.layer1[0].conv1.weight.abs().sum((1, 2, 3))
    kept = pruned.layer1[0].conv1.weight.abs().sum((1, 2, 3))
    assert torch.allclose(kept.sort().values, norms.sort().values[4:])


def narrow() -> nn.Module:
    """Its last convolution reads four channels, of which a rate of 0.8 and more leaves none."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def test_rates_that_leave_nothing_are_passed_over() -> None:
    model, x = narrow(), torch.rand(1, 3, 12, 12)
    cut = pruners.prepare(model, "sr-gkp", groups=4, example_input=x)
    with pytest.raises(ValueError, match="keeps no kernel"):
        cut(0.875)
    target = 0.15 * cost.count(model, x).macs
    pruned, rate = pruners.match_macs(model, cut, target, example_input=x, tolerance=math.inf)
    assert 0.7 < rate < 0.8
    assert cost.count(pruned, x).macs == cost.count(cut(0.79), x).macs
    assert torch.equal(cut_to(model, cut, 0.1, x)[0][2].weight, pruned[2].weight)

    def never(rate: float) -> nn.Module:
        raise ValueError("not at any rate")

    with pytest.raises(ValueError, match="not at any rate"):
        pruners.match_macs(model, never, target, example_input=x, tolerance=math.inf)


@pytest.mark.parametrize(
    ("macs", "tolerance"), [(math.nan, 0.1), (math.inf, math.inf), (0, 0.1), (1e5, math.nan)]
)
def test_targets_that_are_no_numbers_are_refused(macs: float, tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"macs={macs}, tolerance={tolerance}: give a positive number"):
        pruners.match_macs(narrow(), lambda rate: narrow(), macs, example_input=X, tolerance=tolerance)


@pytest.mark.parametrize("seed", [0.5, "1", None, True, 2**70])
def test_a_seed_is_an_int(resnet8: nn.Module, seed: object) -> None:
    with pytest.raises(ValueError, match="seed=.*: give an int"):
        gkp.prune(resnet8, "random", seed=seed)


def test_a_recipe_is_a_recipe(resnet8: nn.Module) -> None:
    with pytest.raises(ValueError, match="the recipe is a dict: give gkp.Recipe"):
        gkp.prune(resnet8, "slimming", recipe={"epochs": 1})


@pytest.mark.parametrize(("kind", "shape"), [("1d", (1, 8, 16)), ("3d", (1, 8, 8, 8, 8))])
def test_networks_without_2d_convolutions_hear_what_holds(kind: str, shape: tuple[int, ...]) -> None:
    conv = getattr(nn, f"Conv{kind}")
    model = nn.Sequential(conv(8, 8, 3), nn.ReLU(), conv(8, 8, 3), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=f"it has Conv{kind}, and only kernels of Conv2d"):
        gkp.prune(model, "sr-gkp", example_input=torch.rand(shape))
