"""What methods are compared at: the share of multiply-adds that is left."""

from dataclasses import replace

import pytest
import torch
from record_factory import RUN, edited, make_record
from torch import nn

from gkp.nets.models import create
from gkp.pruners.common.budget import costs, cut_to, prunable_macs

EXAMPLE = torch.zeros(1, 3, 32, 32)


def test_prunable_macs_of_resnet20_by_hand() -> None:
    stages = 6 * 16 * 16 * 9 * 32**2
    stages += (16 * 32 + 5 * 32 * 32) * 9 * 16**2
    stages += (32 * 64 + 5 * 64 * 64) * 9 * 8**2
    counted = costs(create("resnet20"), EXAMPLE)
    assert counted["prunable_macs"] == stages
    assert counted["usual"]["macs"] == stages + 3 * 16 * 9 * 32**2 + 640


class Line(nn.Sequential):
    """A network whose middle layer has `width` channels: MACs proportional to it."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.Conv2d(4, width, 1), nn.Conv2d(width, 4, 1))


@pytest.mark.parametrize("power", [1, 3])
def test_the_target_is_met_whatever_a_rate_means_to_a_method(power: int) -> None:
    asked = []

    def cut(rate: float) -> nn.Module:
        asked.append(rate)
        return Line(max(1, round(1000 * (1 - rate**power))))

    pruned, rate = cut_to(Line(1000), cut, 0.5625, EXAMPLE)
    assert prunable_macs(pruned, EXAMPLE) == pytest.approx(
        0.5625 * prunable_macs(Line(1000), EXAMPLE), rel=0.01
    )
    assert asked[0] == 0.4375
    assert (len(asked) == 1) == (power == 1)
    assert rate == pytest.approx(0.4375 ** (1 / power), rel=0.02)


@pytest.mark.parametrize(("width", "off"), [(900, True), (501, False), (495, False), (480, True)])
def test_a_target_that_cannot_be_met_gives_what_comes_nearest_and_is_told(width: int, off: bool) -> None:
    whole = Line(1000)
    pruned, _ = cut_to(whole, lambda rate: Line(width), 0.5, EXAMPLE)
    assert prunable_macs(pruned, EXAMPLE) == prunable_macs(Line(width), EXAMPLE)
    cost = {"before": costs(whole, EXAMPLE), "after": costs(pruned, EXAMPLE)}
    asked = make_record(replace(RUN, rate=None, macs_ratio=0.5))
    record = edited(asked, (("cost",), cost | {"macs_ratio": 0.5}))
    assert record.misses_target == off
    assert not edited(make_record(), (("cost",), cost | {"macs_ratio": 0.5})).misses_target


@pytest.mark.parametrize(("ratio", "off"), [(0.5, False), (0.504, False), (0.52, True)])
def test_a_target_of_parameters_that_is_missed_is_told(ratio: float, off: bool) -> None:
    whole = Line(1000)
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    half = costs(whole, EXAMPLE)
    half["usual"] = half["usual"] | {"params": parameters // 2}
    asked = make_record(replace(RUN, rate=None, params_ratio=ratio))
    cost = {"before": costs(whole, EXAMPLE), "after": half, "macs_ratio": 1.0}
    assert edited(asked, (("cost",), cost)).misses_target == off


class Backwards(nn.Module):
    """Defines its layers in the opposite order of their calls, one of them by function."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.second, self.stem = nn.Linear(4, 2), nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(self.stem(x), self.second.weight)
        return self.head(x.mean((2, 3)))


def test_the_first_convolution_is_the_one_that_reads_the_image() -> None:
    assert prunable_macs(Backwards(), EXAMPLE) == 4 * 4 * 9 * 28**2


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), nn.Flatten()])
def test_without_a_second_convolution_there_is_no_share_to_keep(network: nn.Module) -> None:
    assert costs(network, EXAMPLE)["prunable_macs"] == 0
    with pytest.raises(ValueError, match="choose a rate"):
        cut_to(network, lambda rate: network, 0.5, EXAMPLE)
