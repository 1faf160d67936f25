"""Networks that do something that a network to evaluate should not do."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, PIXELS = 5, 3 * 8 * 8


class Odd(nn.Module):
    """A smooth network on (N, 3, 8, 8) with something odd before or behind it."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] | None = None, behind: Callable[[Tensor], Any] | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        self.before, self.behind = before, behind

    def forward(self, x: Tensor) -> Any:
        z = self.net(self.before(x) if self.before else x)
        return self.behind(z) if self.behind else z


def images(n: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def right_labels(model: nn.Module, x: Tensor) -> Tensor:
    """Labels that the network gives itself."""
    with torch.no_grad():
        return model.eval()(x).argmax(1)


def nan_where_bright(x: Tensor) -> Tensor:
    """NaN for an image with a pixel above 0.9, else the image."""
    return torch.where((x > 0.9).flatten(1).any(1).view(-1, 1, 1, 1), torch.nan, x)


def swallowed(z: Tensor) -> Tensor:
    """Where a logit is NaN the row becomes (NaN, 0, ...), whose argmax is class 0."""
    bad = z.isnan().any(1, keepdim=True)
    row = F.one_hot(torch.zeros(len(z), dtype=torch.long), CLASSES)
    return torch.where(bad, torch.where(row == 1, torch.nan, 0.0), z)
