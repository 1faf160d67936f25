"""A folded network computes the same, with less; pruned networks of every structure, gradients too."""

import copy

import pytest
import torch
from odd_networks import NETWORKS, Pair, odd_network, randomised
from torch import nn

import gkp
from gkp.nets import models
from gkp.nets.deploy import folded
from gkp.nets.grouped import GroupedKernelConv2d

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


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_no_plain_pair_stays_and_everything_computes_the_same(name: str) -> None:
    model, x = odd_network(name), torch.randn(4, 3, 8, 8)
    before = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    result = folded(model)
    after = sum(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    assert before - after == NETWORKS[name][1]
    with torch.no_grad():
        torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


def test_an_example_shows_what_the_graph_did_not() -> None:
    torch.manual_seed(0)

    def switched(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = net.conv(x)  # for torch.fx the symbol y is no tensor
        return net.norm(y) + y if isinstance(y, torch.Tensor) else net.norm(y)

    model, x = randomised(Pair(switched)), torch.randn(4, 3, 8, 8)
    assert (folded(model)(x) - model(x)).abs().max() > 1e-2
    assert torch.equal(folded(model, x)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types_are_folded(dtype: torch.dtype) -> None:
    model, x = odd_network("plain").to(dtype), torch.randn(4, 3, 8, 8, dtype=dtype)
    result = folded(model, x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    torch.testing.assert_close(result(x), model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("conv", "norm", "size"), [(nn.Conv1d, nn.BatchNorm1d, (9,)), (nn.Conv3d, nn.BatchNorm3d, (4, 5, 6))]
)
def test_sequences_and_volumes_are_folded(conv: type, norm: type, size: tuple[int, ...]) -> None:
    model = nn.Sequential(conv(3, 5, 3), norm(5), nn.ReLU())
    x = torch.randn(4, 3, *size)
    model(x)  # moves the statistics
    model.eval()
    result = folded(model)
    assert isinstance(result[1], nn.Identity)
    torch.testing.assert_close(result(x), model(x), rtol=1e-4, atol=1e-5)


def test_hooks_of_containers_still_run() -> None:
    model, seen = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval(), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    folded(model)(torch.randn(1, 3, 8, 8))
    assert seen[-1] == (1, 4, 6, 6)


def test_relus_overwrite_only_what_nobody_sees() -> None:
    model = models.create("resnet8").eval()
    seen: list[torch.Tensor] = []
    model.layer1[0].bn1.register_forward_hook(lambda module, given, output: seen.append(output))
    result = folded(model)
    assert not model.inplace
    assert result.inplace
    assert [block.inplace for block in (result.layer1[0], result.layer2[0])] == [False, True]
    result(torch.rand(2, 3, 8, 8))
    assert seen[-1].min() < 0
