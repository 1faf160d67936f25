"""Gates where layers read channels: the network without the channels, and its cost."""

import copy

import pytest
import torch
from torch import nn

from gkp.nets import cost
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import remove_filters
from gkp.pruners.common.gates import Costs, Gates, drops


class Readers(nn.Module):
    """One convolution that two others read, one of them twice, and a depthwise one on the way to a third."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(n, 6, 3, padding=1) for n in (3, 6, 6))
        self.depth, self.d, self.head = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.a(x).relu()
        y = self.b(x) + self.b(x.flip(3)) + self.c(input=x)
        return self.head((self.d(self.depth(x)) + y.mean(1, keepdim=True)[:, :, 1:-1, 1:-1]).mean((2, 3)))


def networks(resnet8):
    return {"resnet8": resnet8, "readers": Readers().eval()}


@pytest.mark.parametrize("name", ["resnet8", "readers"])
def test_zeros_give_the_network_that_is_left_and_its_cost(name, resnet8):
    model, x = networks(resnet8)[name], torch.rand(2, 3, 32, 32)
    channels = channels_of(model, x[:1])
    units = [unit for bundle in channels.bundles for unit in bundle.units]
    gated = copy.deepcopy(model)
    gates, costs = Gates(gated, channels, units), Costs(model, channels, units, x[:1])
    ones = torch.ones(len(units))
    torch.testing.assert_close(gated(x), model(x))
    mask = torch.rand(len(units), generator=torch.Generator().manual_seed(0)).ge(0.4).float()
    gone = {unit for unit, left in zip(units, mask.tolist(), strict=True) if not left}
    small = remove_filters(model, drops(channels, channels.bundles, gone), x[:1])
    gates.values = mask
    torch.testing.assert_close(gated(x), small(x), rtol=1e-4, atol=1e-4)
    fewer = cost.count(model, x).macs - cost.count(small, x).macs
    assert fewer > 0
    assert float(costs.macs(ones) - costs.macs(mask)) == pytest.approx(fewer, rel=1e-5)


def test_what_is_written_is_counted_for_one_image(resnet8):
    channels = channels_of(resnet8, torch.rand(1, 3, 32, 32))
    units = channels.bundles[0].units  # of the first block
    costs = Costs(resnet8, channels, units, torch.rand(1, 3, 32, 32))
    gates = torch.ones(16, requires_grad=True)
    assert costs.elements(gates).detach() == 2 * 16 * 32 * 32  # by both layers of the block
    (each,) = torch.autograd.grad(costs.elements(gates), gates)
    assert each.tolist() == [32.0 * 32] * 16
    (each,) = torch.autograd.grad(costs.macs(gates), gates)
    assert each.tolist() == pytest.approx([2 * 16 * 9 * 32 * 32] * 16)
