"""Networks small enough to attack in milliseconds."""

import torch
from torch import nn

from gkp.nets.models import IMAGENET_MEAN, IMAGENET_STD, Normalize


class SmallNet(nn.Module):
    """Normalisation, one convolution, a smooth activation (no gradient is exactly 0), one linear layer."""

    def __init__(self, seed=0, classes=10):
        super().__init__()
        torch.manual_seed(seed)
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 8 * 8, classes)

    def forward(self, x):
        return self.linear(torch.tanh(self.norm(self.conv(self.normalize(x)))).flatten(1))


class LinearNet(nn.Module):
    """Two classes with logits (w.x + b, 0): the margin of class 0 is w.x + b itself."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def margin(self, x):
        return x.flatten(1) @ self.weight + self.bias

    def forward(self, x):
        margin = self.margin(x)
        return torch.stack([margin, torch.zeros_like(margin)], 1)
