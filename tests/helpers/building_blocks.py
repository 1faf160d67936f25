"""Networks in miniature, one for each way in which channels travel between two layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, SqueezeExcitation

from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.layers import mixes


class Net(nn.Module):
    """`first`, then a function of its feature maps, then `last`, then a linear layer on the mean."""

    def __init__(self, between: Callable[..., Tensor], last: nn.Module, **modules: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        for name, module in modules.items():
            setattr(self, name, module)
        self.last, self.head = last, nn.LazyLinear(5)
        self.between = between
        self(torch.rand(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.between(self, F.relu(self.first(x))))
        return self.head(x.flatten(2).mean(2) if x.dim() > 2 else x)


class Shift(nn.Module):
    """One number a channel, added and multiplied: a layer that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(16, 1, 1) + 0.5), nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class Rounds(torch.autograd.Function):
    """An operation whose gradient is zero everywhere."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def conv(inputs: int = 16, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, 6, 3, **options)  # type: ignore[arg-type]


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def attention(keys: Tensor, values: Tensor) -> Tensor:
    """Of positions to one another, as in a non-local block."""
    keys = keys.flatten(2)
    return (values.flatten(2) @ (keys.transpose(1, 2) @ keys).softmax(1)).view_as(values)


def circular(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="circular")


def lively(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            norm = isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d))
            if norm and tensor.is_floating_point():
                with torch.no_grad():
                    tensor.uniform_(0.5, 1.5)
    return model.eval()


# name -> (network, layers whose filters must be offered); the first layer's unless it is said otherwise
ONE_BY_ONE = ("first", "last")
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "plain": (lambda: Net(lambda m, x: x, conv()), ONE_BY_ONE),
    "flatten": (lambda: Net(lambda m, x: x.flatten(1), nn.Linear(1024, 6)), ("first",)),
    "pixels first": (
        lambda: Net(lambda m, x: x.permute(0, 2, 3, 1).flatten(1), nn.Linear(1024, 6)),
        ("first",),
    ),
    "view of a fixed size": (lambda: Net(lambda m, x: x.view(-1, 1024), nn.Linear(1024, 6)), ("last",)),
    "shuffle": (lambda: Net(lambda m, x: shuffle(x, 4), conv()), ("last",)),
    "flip": (lambda: Net(lambda m, x: x.flip(1), conv()), ONE_BY_ONE),
    "roll": (lambda: Net(lambda m, x: x.roll(3, 1), conv()), ("last",)),
    "fixed order": (lambda: Net(lambda m, x: x[:, torch.arange(15, -1, -1)], conv()), ("last",)),
    "flip before a norm": (
        lambda: Net(lambda m, x: F.relu(m.norm(x.flip(1))), conv(), norm=nn.BatchNorm2d(16)),
        ONE_BY_ONE,
    ),
    "pixel shuffle": (lambda: Net(lambda m, x: F.pixel_shuffle(x, 2), conv(4)), ("last",)),
    "pixel unshuffle": (lambda: Net(lambda m, x: F.pixel_unshuffle(x, 2), conv(64)), ONE_BY_ONE),
    "gate of two halves": (lambda: Net(lambda m, x: F.glu(x, 1), conv(8)), ("last",)),
    "slice": (lambda: Net(lambda m, x: x[:, :8], conv(8)), ("last",)),
    "beside itself": (lambda: Net(lambda m, x: torch.cat([x, x * 2], 1), conv(32)), ("last",)),
    "half of it treated": (
        lambda: Net(
            lambda m, x: torch.cat([x.chunk(2, 1)[0], m.b(x.chunk(2, 1)[1])], 1),
            conv(12),
            b=nn.Conv2d(8, 4, 1),
        ),
        ("b", "last"),
    ),
    "half of what is left treated": (
        lambda: Net(
            lambda m, x: torch.cat([x[:, : x.shape[1] // 2], m.b(x[:, x.shape[1] // 2 :])], 1),
            conv(12),
            b=nn.Conv2d(8, 4, 1),
        ),
        ("b", "last"),
    ),
    "batch norm": (lambda: Net(lambda m, x: m.norm(x), conv(), norm=nn.BatchNorm2d(16)), ONE_BY_ONE),
    "frozen batch norm": (
        lambda: Net(lambda m, x: m.norm(x), conv(), norm=FrozenBatchNorm2d(16)),
        ONE_BY_ONE,
    ),
    "instance norm": (
        lambda: Net(lambda m, x: m.norm(x), conv(), norm=nn.InstanceNorm2d(16, affine=True)),
        ONE_BY_ONE,
    ),
    "group norm": (lambda: Net(lambda m, x: m.norm(x), conv(), norm=nn.GroupNorm(4, 16)), ("last",)),
    "group norm of channels": (
        lambda: Net(lambda m, x: m.norm(x), conv(), norm=nn.GroupNorm(16, 16)),
        ONE_BY_ONE,
    ),
    "layer norm": (
        lambda: Net(
            lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), conv(), norm=nn.LayerNorm(16)
        ),
        ("last",),
    ),
    "local response": (
        lambda: Net(lambda m, x: m.norm(x), conv(), norm=nn.LocalResponseNorm(5)),
        ("last",),
    ),
    "unit length": (lambda: Net(lambda m, x: F.normalize(x, dim=1), conv()), ("last",)),
    "softmax of channels": (lambda: Net(lambda m, x: x.softmax(1), conv()), ("last",)),
    "mean of channels": (lambda: Net(lambda m, x: x.mean(1, keepdim=True), conv(1)), ("last",)),
    "maxout": (lambda: Net(lambda m, x: x.unflatten(1, (8, 2)).amax(2), conv(8)), ("last",)),
    "spatial attention": (
        lambda: Net(
            lambda m, x: x * m.at(torch.cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid(),
            conv(),
            at=nn.Conv2d(2, 1, 3, padding=1),
        ),
        ("last",),
    ),
    "prelu": (lambda: Net(lambda m, x: m.act(x - 1), conv(), act=nn.PReLU(16)), ONE_BY_ONE),
    "one slope": (lambda: Net(lambda m, x: m.act(x - 1), conv(), act=nn.PReLU()), ONE_BY_ONE),
    "shift": (lambda: Net(lambda m, x: m.shift(x), conv(), shift=Shift()), ("last",)),
    "depthwise": (
        lambda: Net(lambda m, x: m.dw(x), conv(), dw=nn.Conv2d(16, 16, 3, groups=16)),
        ONE_BY_ONE,
    ),
    "depthwise, two each": (
        lambda: Net(lambda m, x: m.dw(x), conv(32), dw=nn.Conv2d(16, 32, 3, groups=16)),
        ONE_BY_ONE,
    ),
    "grouped": (lambda: Net(lambda m, x: m.g(x), conv(), g=nn.Conv2d(16, 16, 3, groups=4)), ("last",)),
    "transposed": (lambda: Net(lambda m, x: x, nn.ConvTranspose2d(16, 6, 2, 2)), ONE_BY_ONE),
    "transposed, grouped": (
        lambda: Net(lambda m, x: m.g(x), conv(), g=nn.ConvTranspose2d(16, 16, 2, 2, groups=16)),
        ONE_BY_ONE,
    ),
    "circular": (lambda: Net(lambda m, x: circular(x), conv()), ONE_BY_ONE),
    "circular layer": (lambda: Net(lambda m, x: x, conv(padding=1, padding_mode="circular")), ONE_BY_ONE),
    "reflected layer": (lambda: Net(lambda m, x: x, conv(padding=1, padding_mode="reflect")), ONE_BY_ONE),
    "dilated": (lambda: Net(lambda m, x: x, conv(dilation=2, stride=2)), ONE_BY_ONE),
    "in one dimension": (lambda: Net(lambda m, x: x.flatten(2), nn.Conv1d(16, 6, 3)), ONE_BY_ONE),
    "in three dimensions": (
        lambda: Net(lambda m, x: x.unsqueeze(2), nn.Conv3d(16, 6, (1, 3, 3))),
        ONE_BY_ONE,
    ),
    "sum": (lambda: Net(lambda m, x: x + m.b(x), conv(), b=nn.Conv2d(16, 16, 3, padding=1)), ("last",)),
    "difference": (
        lambda: Net(lambda m, x: x - m.b(x).sigmoid(), conv(), b=nn.Conv2d(16, 16, 1)),
        ("last",),
    ),
    "squeeze and excitation": (
        lambda: Net(lambda m, x: m.se(x), conv(), se=SqueezeExcitation(16, 4)),
        ("first", "se.fc1", "last"),
    ),
    "product": (
        lambda: Net(lambda m, x: x * m.b(x).sigmoid(), conv(), b=nn.Conv2d(16, 16, 1)),
        ONE_BY_ONE,
    ),
    "gate of one channel": (
        lambda: Net(lambda m, x: x * m.b(x).sigmoid(), conv(), b=nn.Conv2d(16, 1, 1)),
        ONE_BY_ONE,
    ),
    "values of attention": (
        lambda: Net(
            lambda m, x: attention(m.a(x), m.b(x)), conv(), a=nn.Conv2d(16, 16, 1), b=nn.Conv2d(16, 16, 1)
        ),
        ("first", "b", "last"),
    ),
    "zeros around": (lambda: Net(lambda m, x: F.pad(x, (0, 0, 0, 0, 8, 8)), conv(32)), ONE_BY_ONE),
    "beside another": (
        lambda: Net(lambda m, x: torch.cat([x, m.b(x), x], 1), conv(36), b=nn.Conv2d(16, 4, 1)),
        ("b", "last"),
    ),
    "called twice": (
        lambda: Net(lambda m, x: m.b(F.relu(m.b(x))), conv(), b=nn.Conv2d(16, 16, 3, padding=1)),
        ("last",),
    ),
    "two names": (
        lambda: Net(lambda m, x: m.c(F.relu(m.b(x))), conv(), **dict.fromkeys("bc", nn.Conv2d(16, 16, 1))),
        ("last",),
    ),
    "weight standardised": (lambda: Net(lambda m, x: x, Standardised(16, 6, 3)), ("last",)),
    "weight norm": (
        lambda: Net(lambda m, x: x, nn.utils.parametrizations.weight_norm(conv())),
        (),
    ),
    "functional": (
        lambda: Net(lambda m, x: F.conv2d(x, m.b.weight), conv(8), b=nn.Conv2d(16, 8, 1)),
        ("last",),
    ),
    "tied weights": (lambda: tied(), ("last",)),
    "no gradient": (lambda: Net(lambda m, x: Rounds.apply(x), conv()), ("last",)),
    "detached": (lambda: Net(lambda m, x: x * x.detach(), conv()), ONE_BY_ONE),
    "cut off": (lambda: Net(lambda m, x: x.detach(), conv()), ("last",)),
    "in place": (lambda: Net(lambda m, x: x.mul_(2).add_(1).relu_(), conv()), ONE_BY_ONE),
    "einsum": (lambda: Net(lambda m, x: torch.einsum("nchw,cd->ndhw", x, torch.eye(16)), conv()), ("last",)),
    "attention": (
        lambda: Net(
            lambda m, x: m.att(*[x.flatten(2).transpose(1, 2)] * 3)[0].transpose(1, 2).unflatten(2, (8, 8)),
            conv(),
            att=nn.MultiheadAttention(16, 2, batch_first=True),
        ),
        ("last",),
    ),
}


def tied() -> nn.Module:
    net = Net(lambda m, x: m.b(m.a(x)), conv(), a=nn.Conv2d(16, 16, 1), b=nn.Conv2d(16, 16, 1))
    net.b.weight = net.a.weight
    return net


@torch.no_grad()
def silence(model: nn.Module, x: Tensor) -> nn.Module:
    """`model` with a third of its removable channels, drawn at random, zero where they are made and read."""
    channels, modules = channels_of(model, x), dict(model.named_modules())
    generator, silent = torch.Generator().manual_seed(3), list[int]()
    for bundle in channels.bundles:
        order = torch.randperm(len(bundle.units), generator=generator)
        silent += [bundle.units[place] for place in order[: -(-len(order) // 3)].tolist()]
    filters, inputs = channels.removed(silent)
    for name, places in filters.items():
        across = isinstance(modules[name], nn.ConvTranspose2d) and mixes(modules[name])
        for parameter in modules[name].parameters(recurse=False):
            (parameter.transpose(0, 1) if across and parameter.dim() > 1 else parameter)[places] = 0
    for name, places in inputs.items():
        if mixes(modules[name]):
            weight = modules[name].get_parameter("weight")
            (weight if isinstance(modules[name], nn.ConvTranspose2d) else weight.transpose(0, 1))[places] = 0
    return model


def block(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(BLOCKS[name][0]())


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=5).eval()
