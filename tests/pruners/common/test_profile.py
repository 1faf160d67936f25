"""Shares of layers: what a profile means, that targets are met, and what is refused."""

import copy

import pytest
import torch
from torch import nn

import gkp
from gkp import pruners
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.common import profile
from gkp.pruners.common.budget import cut_to, prunable_macs

X = torch.full((1, 3, 32, 32), 0.5)
PROFILES = ("6:3:1", "1:3:6", "1:1:0", "falling", "sensitivity", "layer1=2,layer2.0.conv1=1,layer3=1")


def grouped(model: nn.Module) -> dict[str, GroupedKernelConv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, GroupedKernelConv2d)}


def lost(model: nn.Module) -> dict[str, float]:
    """Share of its kernels that each grouped layer has lost."""
    return {name: 1 - m.kept.shape[1] / m.in_channels for name, m in grouped(model).items()}


def quick(model: nn.Module, **options: object) -> pruners.Cut:
    return pruners.prepare(model, "sr-gkp", strategy="smoothest", **options)


def test_flat_is_what_it_was(resnet8: nn.Module) -> None:
    plain, flat = (quick(resnet8, **options)(0.4375) for options in ({}, {"profile": "flat"}))
    pairs = zip(plain.state_dict().values(), flat.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert set(lost(flat).values()) == {0.4375}


def test_stages_lose_in_proportion(resnet8: nn.Module) -> None:
    found = lost(quick(resnet8, profile="6:3:1")(0.3))
    # The mean is 0.3 over layers of equal cost, but for the first of stages 2 and 3, which cost half.
    unit = 0.3 * (2 + 1.5 + 1.5) / (6 * 2 + 3 * 1.5 + 1.5)
    for number, ratio in ((1, 6), (2, 3), (3, 1)):
        stage = [share for name, share in found.items() if name.startswith(f"layer{number}")]
        assert stage == pytest.approx([ratio * unit] * 2, abs=1 / 16)


@pytest.mark.parametrize("name", PROFILES)
def test_a_target_is_met_by_the_rate_it_names(name: str, resnet8: nn.Module) -> None:
    pruned, rate = cut_to(resnet8, quick(resnet8, profile=name), 0.75, X)
    assert prunable_macs(pruned, X) == pytest.approx(0.75 * prunable_macs(resnet8, X), rel=0.005)
    assert rate == pytest.approx(0.25, abs=0.003)


def test_a_target_is_met_with_half_of_the_layers(resnet8: nn.Module) -> None:
    pruned, _ = cut_to(resnet8, quick(resnet8, profile="6:3:1", which="first"), 0.75, X)
    assert prunable_macs(pruned, X) == pytest.approx(0.75 * prunable_macs(resnet8, X), rel=0.005)


def test_more_goes_at_a_higher_rate_and_one_kernel_stays(resnet8: nn.Module) -> None:
    cut = quick(resnet8, profile="6:3:1")
    # One of 16, 32 and 64 input channels stays; layers of equal cost, but for two that cost half.
    highest = 1 - (2 / 16 + 0.5 / 16 + 1 / 32 + 0.5 / 32 + 1 / 64) / 5
    macs = [prunable_macs(cut(rate), X) for rate in (0.05, 0.2, 0.4, 0.6, 0.8, highest)]
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) == len(macs)
    assert {m.kept.shape[1] for m in grouped(cut(highest)).values()} == {1}


@pytest.mark.parametrize("method", ["sr-gkp", "gkp-greedy", "l1"])
def test_a_rate_that_the_named_layers_cannot_lose_is_refused(method: str, resnet8: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"rate=0.9 with profile='1:0:0': .* of . layers can lose 0\.[34]"):
        gkp.prune(resnet8, method, rate=0.9, profile="1:0:0")
    least, _ = cut_to(resnet8, pruners.prepare(resnet8, method, profile="1:0:0"), 0.1, X)
    assert 0.5 < prunable_macs(least, X) / prunable_macs(resnet8, X) < 0.7  # what comes nearest


def test_a_stage_of_zero_stays_whole(resnet8: nn.Module) -> None:
    pruned = gkp.prune(resnet8, "sr-gkp-b", profile="1:1:0", strategy="random")
    assert {name[:6] for name in grouped(pruned)} == {"layer1", "layer2"}
    assert torch.equal(pruned.layer3[0].conv1.weight, resnet8.layer3[0].conv1.weight)


@pytest.mark.parametrize("name", ["flat", "falling"])
def test_first_are_the_first_of_each_block(name: str, resnet8: nn.Module) -> None:
    cut = quick(resnet8, which="first", profile=name)
    assert set(grouped(cut(0.5))) == {f"layer{stage}.0.conv1" for stage in (1, 2, 3)}
    assert {m.kept.shape[1] for m in grouped(cut(1 - (1 / 16 + 0.5 / 16 + 0.5 / 32) / 2)).values()} == {1}


def test_falling_is_6_3_1_of_three_stages_and_fits_any_number(resnet8: nn.Module) -> None:
    two = [lost(quick(resnet8, profile=name)(0.4)) for name in ("falling", "6:3:1")]
    assert two[0] == two[1]
    assert profile._stretched(profile.CURVE, 4) == pytest.approx([6, 4, 7 / 3, 1])
    assert profile._stretched(profile.CURVE, 1) == [6]


def test_stages_are_sizes_of_feature_maps() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 8, 1),
    )
    found = profile.stages_of(net, ["0", "1", "3"], torch.rand(1, 3, 8, 8))
    assert found == {(8, 8): ["0", "3"], (4, 4): ["1"]}
    linear = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert profile.stages_of(linear, ["0", "1"], torch.rand(1, 7, 4)) == {(7,): ["0", "1"]}


def test_a_dead_layer_costs_nothing_and_a_live_one_what_it_does(resnet8: nn.Module) -> None:
    model = copy.deepcopy(resnet8)
    nn.init.zeros_(model.layer2[0].bn2.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = ["layer1.0.conv1", "layer2.0.conv2"]
    found = profile.damage(model, layers, X)
    assert found["layer2.0.conv2"] == 0
    assert found["layer1.0.conv1"] > 1e-4
    assert profile.damage(model, layers, X) == found
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_sensitivity_spares_what_hurts_most() -> None:
    """y = 10 a(x) + b(x) with equal costs: b loses a hundred times as much as a."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
            self.b.weight.data = self.a.weight.data.clone()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 10 * self.a(x) + self.b(x)

    model, x, sizes = Sum(), torch.rand(1, 8, 6, 6), {"a": 8, "b": 8}
    shares = profile.layer_shares(model, "sensitivity", sizes, {"a": 1.0, "b": 1.0}, x)
    assert 20 < shares["b"] / shares["a"] < 500  # their random draws differ


@pytest.mark.parametrize("method", ["random", "l1", "fpgm"])
def test_filters_go_by_a_profile_too(method: str, resnet20: nn.Module) -> None:
    cut = pruners.prepare(resnet20, method, profile="6:3:1")
    pruned, rate = cut_to(resnet20, cut, 0.5625, X)
    assert prunable_macs(pruned, X) == pytest.approx(0.5625 * prunable_macs(resnet20, X), rel=0.005)
    assert rate == pytest.approx(0.4375, abs=0.02)
    wide = [pruned.get_submodule(f"layer{stage}.1.conv1").out_channels for stage in (1, 2, 3)]
    assert wide == pytest.approx([16 * 0.235, 32 * 0.62, 64 * 0.87], abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "6:1"}, r"has 2 numbers, and this network 3 stages.*32x32 \(2 layers\).*give 3 numbers"),
        ({"profile": "steep"}, r"profile='steep': give \"flat\""),
        ({"profile": "1:-1:1"}, "give numbers of 0 or more"),
        ({"profile": "0:0:0"}, "not 0 for all"),
        ({"profile": "layer1=1,layer2"}, 'give "flat"'),
        ({"profile": {"layer9": 1.0}}, "no layer to prune is layer9: choose of layer1.0.conv1"),
        ({"profile": {"layer1": 1.0, "layer1.0": 0.0}}, "above 0 for one layer or more"),
        ({"which": "last"}, "which='last': choose one of all, first"),
    ],
)
def test_what_is_no_profile_is_refused(options: dict, message: str, resnet8: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        gkp.prune(resnet8, "sr-gkp", **options)
