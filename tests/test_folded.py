"""A folded network computes the same, with less; pruned networks of every structure, gradients too."""

import copy

import pytest
import torch
from torch import nn

import gkp
from gkp import models
from gkp.folded import folded
from gkp.grouped import GroupedKernelConv2d

METHODS = ("sr-gkp", "l1", "group-norm", "lrf")


@pytest.fixture(scope="module", params=(None, *METHODS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    resnet8 = models.create("resnet8")
    resnet8(torch.rand(64, 3, 32, 32))  # moves the statistics of the batch norms
    if request.param is None:
        return resnet8.eval()
    return gkp.prune(resnet8, request.param, groups=4, example_input=torch.rand(1, 3, 32, 32)).eval()


def test_logits_and_gradients_are_the_same(model: nn.Module) -> None:
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    outputs = [network(x) for network in (model, folded(model))]
    assert outputs[0].std() > 0.1
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(out.logsumexp(1).sum(), x)[0] for out in outputs]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_nothing_is_left_to_fold(model: nn.Module) -> None:
    kinds = {type(module) for module in folded(model).modules()}
    assert nn.Conv2d in kinds
    assert not kinds & {nn.BatchNorm2d, GroupedKernelConv2d}


def test_the_network_itself_stays(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    model.train()
    assert not folded(model).training
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.eval()
