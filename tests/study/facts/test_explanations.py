"""Bounds, gradients and kernels of networks, against dense algebra and by hand."""

import math

import pytest
import torch
from torch import nn

from gkp.nets import models
from gkp.nets.deploy import folded
from gkp.study.facts import explanations as facts


def matrix_of(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """The layer without its bias as a matrix (outputs, inputs)."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        return (layer(units) - zero).flatten(1).t()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 6)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), (4, 4, 4)),
        (nn.Linear(7, 3), (7,)),
    ],
)
def test_the_spectral_norm_is_the_largest_singular_value(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    expected = torch.linalg.matrix_norm(matrix_of(layer, shape), 2)
    assert facts.spectral_norm(layer, torch.Size((1, *shape))) == pytest.approx(float(expected), rel=1e-3)


def test_a_layer_of_zeros_has_norm_zero() -> None:
    layer = nn.Conv2d(2, 2, 3)
    nn.init.zeros_(layer.weight)
    assert facts.spectral_norm(layer, torch.Size((1, 2, 5, 5))) == 0


def test_no_step_moves_the_logits_further_than_the_bound() -> None:
    torch.manual_seed(0)
    model = models.create("resnet8").eval()
    plain, x = folded(model), torch.rand(1, 3, 16, 16)
    bound = facts.lipschitz_bound(plain, facts.spectral_norms(plain, x), (16, 16))
    jacobian = torch.autograd.functional.jacobian(lambda pixels: model(pixels)[0], x).flatten(1)
    gain = float(torch.linalg.matrix_norm(jacobian, 2))
    assert gain <= bound
    with torch.no_grad():
        model.layer2[0].conv1.weight *= 10
    norms, louder = facts.spectral_norms(plain, x), folded(model)
    block = norms["layer2.0.conv1"] * norms["layer2.0.conv2"]
    ratio = facts.lipschitz_bound(louder, facts.spectral_norms(louder, x), (16, 16)) / bound
    assert ratio == pytest.approx((1 + 10 * block) / (1 + block), rel=1e-3)


@pytest.mark.parametrize(("side", "positions"), [(4, 1), (6, 4)])
def test_the_bound_is_met_where_only_one_pixel_counts(side: int, positions: int) -> None:
    """Stem: ten times the red pixel; blocks: their shortcut alone; logit 0: the mean of that channel."""
    model = models.create("resnet8", std=(0.5, 1.0, 1.0)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.zero_()
        model.conv1.weight[0, 0, 1, 1] = 10
        model.linear.weight[0, 0] = 3
    plain, x = folded(model), torch.full((1, 3, side, side), 0.9)
    bound = facts.lipschitz_bound(plain, facts.spectral_norms(plain, x), (side, side))
    (jacobian,) = torch.autograd.functional.jacobian(lambda pixels: plain(pixels)[0, :1], x)
    assert bound == pytest.approx(3 * 10 / 0.5 / positions**0.5, rel=1e-4)  # so many are left
    assert float(jacobian.norm()) == pytest.approx(bound, rel=1e-3)


def test_the_share_of_high_frequencies() -> None:
    place = torch.arange(8)
    smooth = torch.ones(8, 8)
    stripes = torch.where(place % 2 == 0, 1.0, -1.0).expand(8, 8)
    images = torch.stack([smooth, stripes, smooth + stripes, torch.zeros(8, 8)])[:, None]
    assert float(facts.high_share(images)) == pytest.approx((0 + 1 + 0.5) / 3)


def test_a_linear_network_by_hand() -> None:
    """Logits +-a sum(x): the gradient is the same number at each pixel."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 4, bias=False)
            self.conv.weight.data = (
                0.1 * torch.ones(2, 3, 4, 4) * torch.tensor([1.0, -1.0])[:, None, None, None]
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).flatten(1)

    x, y = torch.full((3, 3, 4, 4), 0.5), torch.tensor([0, 0, 1])
    found = facts.of_network(Sum().eval(), x, y)
    right = torch.tensor(0.2 * 24).sigmoid().item()  # difference of the logits: 2 * 0.1 * 48 * 0.5
    assert found["steepness"] == pytest.approx(48 * 0.2 * (2 * (1 - right) + right) / 3, rel=1e-4)
    assert found["high"] == pytest.approx(0, abs=1e-6)
    assert found["kernel"] == pytest.approx(0.4)
    assert found["spread"] == pytest.approx(0, abs=1e-5)
    assert found["norms"]["conv"] == pytest.approx(0.1 * 96**0.5, rel=1e-3)
    assert "bound" not in found
