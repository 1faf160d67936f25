"""The cost of a network by the widths of its layers is that of the network that is cut."""

import pytest
import torch
from building_blocks import block

from gkp.nets import cost
from gkp.nets.channels.surgery import prunable_layers, remove_filters
from gkp.nets.models import create
from gkp.pruners.common.widths import Widths

BLOCKS = ("plain", "flatten", "batch norm", "depthwise", "depthwise, two each", "transposed", "zeros around")
BLOCKS += ("squeeze and excitation", "in one dimension")


@pytest.mark.parametrize("network", ["resnet8", *BLOCKS])
def test_widths_cost_what_the_cut_network_does(network) -> None:
    model = create(network).eval() if network == "resnet8" else block(network)
    x = torch.rand(1, 3, 32, 32) if network == "resnet8" else torch.rand(1, 3, 8, 8)
    layers = prunable_layers(model, x)
    widths = Widths(model, layers, x)
    for share in (0.0, 0.3, 0.6):
        gone = {name: int(share * layer.filters) for name, layer in layers.items()}
        small = remove_filters(model, {name: torch.arange(n) for name, n in gone.items()}, x)
        assert widths.macs(gone) == pytest.approx(cost.count(small, x).macs, rel=1e-6), share
