"""Permutations are folded where nothing sees the channels in between, and the function never changes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layers import grouped_kernels
from odd_networks import Rectified, doubled, randomised
from torch import Tensor, nn

from gkp.nets.grouped import fold_permutations, set_execution


class Chain(nn.Module):
    """Two convolutions of grouped kernels with a batch norm between; `change` alters it, `run` runs it."""

    def __init__(self, run: Callable | None = None, change: Callable | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = grouped_kernels(nn.Conv2d(4, 8, 3, padding=1), groups=4, keep=2)
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU()
        self.second = grouped_kernels(nn.Conv2d(8, 4, 3, padding=1), groups=2, keep=5, seed=1)
        self.run = run or (lambda net, x: net.second(net.act(net.norm(net.first(x)))))
        if change:
            change(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def between(function: Callable) -> Callable[[], nn.Module]:
    return lambda: Chain(lambda net, x: net.second(function(net.norm(net.first(x)))))


def changed(change: Callable) -> Callable[[], nn.Module]:
    return lambda: Chain(change=change)


def boxed(net: Chain) -> None:
    """A container between the two, with a hook that treats channels differently."""
    net.box = nn.Sequential(net.act)
    net.box.register_forward_hook(lambda m, i, o: o * torch.arange(8.0).view(-1, 1, 1))
    net.run = lambda net, x: net.second(net.box(net.norm(net.first(x))))


def tied_norm(net: Chain) -> None:
    net.other = nn.BatchNorm2d(8)
    net.other.bias = net.norm.bias
    net.run = lambda net, x: net.second(net.norm(net.first(x))) + net.other.bias[0]


def only_in_training(net: Chain, x: Tensor) -> Tensor:
    x = net.first(x)
    bonus = x[:, :4] if net.training else 0
    return net.second(net.act(net.norm(x))) + bonus


def scaled_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), (8,), torch.arange(8.0)).movedim(-1, 1)


class Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.arange(8.0).view(-1, 1, 1))


FOLDED = {
    "plain": Chain,
    "keywords": lambda: Chain(
        lambda net, x: net.second(input=F.relu(input=net.norm(input=net.first(input=x))))
    ),
    "pooled": between(lambda x: F.max_pool2d(F.gelu(x), 2)),
    "methods": between(lambda x: x.relu().relu_()),
    "without a norm": lambda: Chain(lambda net, x: net.second(net.act(net.first(x)))),
    "a shared activation": lambda: Chain(lambda net, x: net.act(net.second(net.act(net.first(net.act(x)))))),
    "under two names": changed(lambda net: setattr(net, "again", net.first)),
    "a hook around": changed(lambda net: net.register_forward_hook(doubled)),
    "bias of a norm missing": changed(lambda net: setattr(net, "norm", nn.BatchNorm2d(8, affine=False))),
}
KEPT = {
    "shuffled": between(lambda x: F.channel_shuffle(x, 2)),
    "scaled by channel": between(lambda x: x * torch.arange(8.0).view(-1, 1, 1)),
    "a slice": between(lambda x: torch.cat([x[:, :4].relu(), x[:, 4:]], 1)),
    "normalised over channels": between(scaled_norm),
    "softmax of channels": between(lambda x: x.softmax(1)),
    "grouped norm": between(lambda x: F.group_norm(x, 2)),
    "sum": lambda: Chain(lambda net, x: (y := net.first(x)) + net.second(net.norm(y)).repeat(1, 2, 1, 1)),
    "returned": lambda: Chain(lambda net, x: torch.cat([y := net.first(x), net.second(net.norm(y))], 1)),
    "twice": lambda: Chain(lambda net, x: net.second(net.act(net.first(net.second(net.first(x)))))),
    "norm twice": lambda: Chain(lambda net, x: net.second(net.norm(net.norm(net.first(x)).relu()))),
    "norm read": lambda: Chain(lambda n, x: n.second(n.norm(n.first(x))) + n.norm.running_mean[0]),
    "in training": lambda: Chain(only_in_training),
    "hook on the first": changed(lambda net: net.first.register_forward_hook(doubled)),
    "hook on the norm": changed(lambda net: net.norm.register_forward_hook(doubled)),
    "hook on the activation": changed(lambda net: net.act.register_forward_hook(doubled)),
    "hook on a container": changed(boxed),
    "own norm": changed(lambda net: setattr(net, "norm", Rectified(8))),
    "own activation": changed(lambda net: setattr(net, "act", Shifted())),
    "tied norm": changed(tied_norm),
    "a weight for each channel": changed(lambda net: setattr(net, "act", nn.PReLU(8, init=0.3))),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FOLDED, *KEPT])
@pytest.mark.parametrize("training", [True, False])
def test_folding_never_changes_the_function(name: str, training: bool) -> None:
    model = randomised((FOLDED | KEPT)[name]()).train(training)
    result, x = fold_permutations(model), torch.randn(2, 4, 8, 8)
    assert result.first.in_order == (name in FOLDED)
    assert not model.first.in_order
    assert result.training is training
    for execution in ("dense", "grouped"):
        for train in (True, False):
            found = set_execution(result, execution).train(train)(x)
            expected = set_execution(model, execution).train(train)(x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [nn.GELU(), F.relu])
def test_linear_layers_fold_through_activations(function: Callable) -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = grouped_kernels(nn.Linear(6, 8), groups=4, keep=2)
            self.second = grouped_kernels(nn.Linear(8, 6), groups=2, keep=5, seed=1)
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.function(self.first(x)))

    model, x = Perceptron(), torch.randn(2, 3, 6)
    result = fold_permutations(model)
    assert result.first.in_order
    for execution in ("dense", "grouped"):
        torch.testing.assert_close(set_execution(result, execution)(x), model(x))


def test_linear_layers_keep_their_order_where_images_are_meant() -> None:
    model = nn.Sequential(
        grouped_kernels(nn.Linear(6, 8), groups=4, keep=2),
        nn.BatchNorm2d(8),  # over the second axis, which is not that of the features
        nn.MaxPool2d((1, 2), (1, 1), padding=(0, 1)),
        grouped_kernels(nn.Linear(9, 6), groups=2, keep=5),
    )
    randomised(model)
    x = torch.randn(2, 8, 3, 6)
    torch.testing.assert_close(fold_permutations(model)(x), model(x))


def test_a_network_that_branches_is_refused_by_name() -> None:
    model = Chain(lambda net, x: net.second(net.first(x if x.mean() > 0 else -x)))
    with pytest.raises(ValueError, match="torch.fx cannot trace this Chain"):
        fold_permutations(model)
