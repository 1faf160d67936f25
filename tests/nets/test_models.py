import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gkp.nets import models


def test_parameter_counts_are_the_published_ones() -> None:
    """He et al. 2016, table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M and 1.7 M for 20 to 110 layers."""
    millions = [
        sum(p.numel() for p in models.create(f"resnet{depth}").parameters()) / 1e6
        for depth in (20, 32, 44, 56, 110)
    ]
    assert [round(m, 2) for m in millions] == [0.27, 0.46, 0.66, 0.85, 1.73]


@pytest.mark.parametrize("network", models.names())
def test_every_network_maps_images_to_logits(network: str) -> None:
    model = models.create(network, num_classes=7).eval()
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert isinstance(next(iter(model.children())), models.Normalize)


def test_normalize_is_per_channel() -> None:
    layer = models.Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert layer(torch.ones(1, 3, 1, 1)).flatten().tolist() == [1.0, 3.0, 0.5]


@given(st.sampled_from(("around", "after")), st.integers(0, 100))
def test_option_a_shortcut_by_hand(zeros: str, seed: int) -> None:
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    out = models.OptionAShortcut(4, 8, 2, zeros)(x)
    first = 2 if zeros == "around" else 0
    assert out.shape == (1, 8, 3, 3)
    assert torch.equal(out[:, first : first + 4], x[:, :, ::2, ::2])
    assert torch.allclose(out.abs().sum(), x[:, :, ::2, ::2].abs().sum())


def test_errors_name_the_choices() -> None:
    with pytest.raises(ValueError, match="resnet20"):
        models.create("alexnet")
    with pytest.raises(ValueError, match="6n"):
        models.CifarResNet(21)
    with pytest.raises(ValueError, match="around"):
        models.OptionAShortcut(4, 8, 2, "before")


def test_vgg_has_thirteen_convolutions() -> None:
    widths = [m.out_channels for m in models.create("vgg16").modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256] + [512] * 6
