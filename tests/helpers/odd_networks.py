"""Small networks where a convolution and its batch norm must not be taken for a plain pair, and plain ones.

Each takes (N, 3, 8, 8) and has batch norms that are no identity, in evaluation mode.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import prune


class Pair(nn.Module):
    """Convolution, batch norm, ReLU and a head; `change` alters it, `run` replaces the forward."""

    def __init__(self, run: Callable | None = None, change: Callable | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)
        self.run = run or (lambda net, x: net.norm(net.conv(x)))
        if change:
            change(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, x).relu().mean((2, 3)))


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Own(nn.Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)


class Rectified(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Frozen(nn.BatchNorm2d):
    """Always normalises by the batch, whatever the mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


def setting(name: str, value: Callable[[], nn.Module]) -> Callable:
    return lambda net: setattr(net, name, value())


def doubled(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return 2 * output


def inside(net: Pair) -> None:
    """The convolution in a container that has a hook of its own."""
    net.box = nn.Sequential(net.conv)
    net.box.register_forward_hook(doubled)


def with_own_forward(net: Pair) -> None:
    plain = net.norm.forward
    net.norm.forward = lambda x: plain(x).tanh()


def tied(net: Pair) -> None:
    net.other = nn.Conv2d(3, 3, 3, padding=1)
    net.other.weight = net.conv.weight


def branching(net: Pair, x: Tensor) -> Tensor:
    return net.norm(net.conv(x if x.mean() > 0 else -x))


def viewed(net: Pair, x: Tensor) -> Tensor:
    x = net.norm(net.conv(x))
    return x.view(x.shape[0], 3, -1)[..., None]


# name: (network, how many of its batch norms are folded)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (Pair, 1),
    "keywords": (lambda: Pair(lambda net, x: net.norm(input=net.conv(input=x))), 1),
    "a norm without scale": (
        lambda: Pair(change=setting("norm", lambda: nn.BatchNorm2d(3, affine=False))),
        1,
    ),
    "a constructor of its own": (lambda: Pair(change=setting("conv", lambda: Own(3))), 1),
    "viewed": (lambda: Pair(viewed), 1),
    "convolution twice": (lambda: Pair(lambda net, x: net.norm(net.conv(net.conv(x)))), 0),
    "both twice": (lambda: Pair(lambda net, x: net.norm(net.conv(net.norm(net.conv(x)).relu()))), 0),
    "norm twice": (lambda: Pair(lambda net, x: net.norm(net.norm(net.conv(x)).relu())), 0),
    "output read twice": (lambda: Pair(lambda net, x: (y := net.conv(x)) + net.norm(y)), 0),
    "changed in place": (lambda: Pair(lambda net, x: net.norm(net.conv(x).relu_())), 0),
    "weight read": (lambda: Pair(lambda net, x: net.norm(net.conv(x)) + net.conv.weight.mean()), 0),
    "statistics read": (lambda: Pair(lambda net, x: net.norm(net.conv(x)) + net.norm.running_mean.mean()), 0),
    "hook on the convolution": (lambda: Pair(change=lambda n: n.conv.register_forward_hook(doubled)), 0),
    "hook on the norm": (
        lambda: Pair(change=lambda n: n.norm.register_forward_pre_hook(lambda m, x: (2 * x[0],))),
        0,
    ),
    "hook on a container": (lambda: Pair(lambda net, x: net.norm(net.box(x)), inside), 0),
    "own convolution": (lambda: Pair(change=setting("conv", lambda: Scaled(3, 3, 3, padding=1))), 0),
    "own norm": (lambda: Pair(change=setting("norm", lambda: Rectified(3))), 0),
    "own forward": (lambda: Pair(change=with_own_forward), 0),
    "always in training": (lambda: Pair(change=setting("norm", lambda: Frozen(3))), 0),
    "no statistics": (
        lambda: Pair(change=setting("norm", lambda: nn.BatchNorm2d(3, track_running_stats=False))),
        0,
    ),
    "parametrised": (lambda: Pair(change=lambda n: nn.utils.parametrizations.weight_norm(n.conv)), 0),
    "masked": (lambda: Pair(change=lambda n: prune.random_unstructured(n.conv, "weight", 5)), 0),
    "tied": (lambda: Pair(lambda net, x: net.norm(net.conv(x)) + net.other(x), tied), 0),
    "branching": (lambda: Pair(branching), 0),
}


def odd_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(NETWORKS[name][0]())


def randomised(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode with batch norms that scale and shift."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return model.eval()
