"""gkp.nets.channels.copying: every network that can be copied is, and the rest is named."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from gkp.nets.channels.copying import copied


class Keeping(nn.Module):
    """Keeps what it computed, in an attribute and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 4, 3), {}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x)
        self.kept = {"all": [self.features.relu(), (self.features.tanh(),)]}
        return self.features.mean((2, 3))


def masked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    prune.l1_unstructured(model[0], "weight", 5)
    return model


def normalised() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))).eval()


@pytest.mark.parametrize("make", [Keeping, masked, normalised, lambda: nn.Conv2d(3, 4, 3)])
def test_a_copy_computes_the_same_and_learns_alone(make) -> None:
    model, x = make(), torch.randn(2, 3, 6, 6)
    model(x)
    other = copied(model)
    assert torch.equal(other(x), model(x))
    before = model(x).detach()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert not torch.equal(other(x), before)
    assert torch.equal(model(x), before)
    other(x).sum().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3))
    model[1].lock = threading.Lock()
    with pytest.raises(ValueError, match=r"1\.lock is a lock that copy.deepcopy refuses .*__deepcopy__"):
        copied(model)
