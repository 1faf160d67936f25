"""Networks of the study: CIFAR ResNets (option A) and VGG-16-BN, pixels in, logits out.

Every network starts with `Normalize`, so that an attack, a user and a saved file all speak of
pixels in [0, 1] and the preprocessing of a checkpoint cannot be forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}  # of each data set

VGG16_WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class Normalize(nn.Module):
    """(x - mean) / std per channel, for x of shape (N, C, H, W) in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = (tuple(round(v, 4) for v in b.flatten().tolist()) for b in (self.mean, self.std))
        return f"mean={mean}, std={std}"


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2016: subsample, then pad channels with zeros.

    `zeros` says where the new channels stand: "around" (half before, half after; akamaster's
    networks) or "after" (the authors' networks).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: str) -> None:
        super().__init__()
        if zeros not in ("around", "after"):
            raise ValueError(f'zeros={zeros!r}: choose "around" or "after"')
        extra = out_channels - in_channels
        before = extra // 2 if zeros == "around" else 0
        self.stride, self.padding = stride, (0, 0, 0, 0, before, extra - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels_before={self.padding[4]}, channels_after={self.padding[5]}"


class Nothing(nn.Module):
    """What stands in place of a layer of a removed branch: zeros, in the shape that the layer gave.

    That of its input, or with arguments that of a convolution of x (N, C, H, W).
    """

    def __init__(
        self,
        out_channels: int | None = None,
        kernel_size: tuple[int, ...] = (1, 1),
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__()
        self.out_channels, self.kernel_size, self.stride = out_channels, kernel_size, stride
        self.padding, self.dilation = padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        if self.out_channels is None:
            return torch.zeros_like(x)
        window = zip(self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        sizes = [(x.shape[2 + i] + 2 * p - d * (k - 1) - 1) // s + 1 for i, (k, s, p, d) in enumerate(window)]
        return x.new_zeros(x.shape[0], self.out_channels, *sizes)

    def extra_repr(self) -> str:
        return "" if self.out_channels is None else f"{self.out_channels}, stride={self.stride}"


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    inplace = False  # whether ReLUs overwrite what they get, as `gkp.nets.deploy.folded` has it

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else OptionAShortcut(in_channels, out_channels, stride, zeros)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), self.inplace)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), self.inplace)


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 for 32x32 images: stages of 16, 32 and 64 channels (He et al. 2016, 4.2).

    Input (N, 3, H, W) in [0, 1], H and W at least 8; output (N, num_classes) logits.
    """

    inplace = False  # as in `BasicBlock`

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        zeros: str = "after",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: a CIFAR ResNet has depth 6n+2 (8, 14, 20, 32, ...)")
        blocks = (depth - 2) // 6
        self.depth = depth
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1, zeros)
        self.layer2 = self._stage(16, 32, blocks, 2, zeros)
        self.layer3 = self._stage(32, 64, blocks, 2, zeros)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, zeros: str) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride, zeros)
        return nn.Sequential(
            first, *(BasicBlock(out_channels, out_channels, 1, zeros) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalize(x))), self.inplace)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


class CifarVGG16(nn.Module):
    """VGG-16 with batch normalisation for 32x32 images: 13 convolutions, one linear layer.

    Input (N, 3, 32, 32) in [0, 1]; output (N, num_classes) logits.
    """

    def __init__(
        self, num_classes: int = 10, mean: Sequence[float] = CIFAR_MEAN, std: Sequence[float] = CIFAR_STD
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG16_WIDTHS:
            if isinstance(width, str):  # "M"
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.pool(self.features(self.normalize(x))), 1))


TORCHVISION = "torchvision:"  # before the name of a network of torchvision's
RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)


def names() -> tuple[str, ...]:
    """The networks `create` builds."""
    return (*(f"resnet{depth}" for depth in RESNET_DEPTHS), "vgg16")


def create(
    network: str,
    *,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    zeros: str = "after",
) -> nn.Module:
    """An untrained network by name ("resnet20", "vgg16", ...), initialised from torch's global seed.

    `zeros` only matters for ResNets, see `OptionAShortcut`. ValueError names the known networks.
    """
    if network == "vgg16":
        return CifarVGG16(num_classes, mean, std)
    if network in names():
        return CifarResNet(int(network.removeprefix("resnet")), num_classes, mean, std, zeros)
    raise ValueError(f"unknown network {network!r}: choose one of {', '.join(names())}")


def base_network(
    network: str,
    *,
    num_classes: int = 10,
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    zeros: str = "after",
) -> nn.Module:
    """`create`, and torchvision's classifiers as "torchvision:resnet18", pixels in.

    A torchvision network stands as `network` behind a `normalize` of its own; not GoogLeNet and Inception,
    which preprocess differently with pretrained weights. ValueError for unknown names.
    """
    if not network.startswith(TORCHVISION):
        return create(network, num_classes=num_classes, mean=mean, std=std, zeros=zeros)
    import torchvision

    name = network.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(torchvision.models, exclude=("googlenet", "inception_v3"))
    if name not in known:
        raise ValueError(f"unknown torchvision network {name!r}: choose one of {', '.join(known)}")
    inner = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), network=inner))
