"""A linear network and images that it classifies, for attacks in closed form."""

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def model():
    """Linear, ten classes: what an image withstands is known exactly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(27, 10)).eval()


@pytest.fixture(scope="module")
def images(model):
    """30 images away from 0 and 1, so that no perturbation is clipped; the first three are clean errors."""
    x = torch.rand(30, 3, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    return x, y
