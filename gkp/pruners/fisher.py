"""Group Fisher pruning: the channel of least Fisher information for what it takes goes, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import default_input, remove_filters
from gkp.pruners.common.gates import Costs, Gates, drops
from gkp.pruners.common.images import batch_logits, gradients, sample, scoring_copy
from gkp.pruners.common.ranking import MINIMUM
from gkp.pruners.common.registry import Cut, register
from gkp.pruners.dependency import bundles_to_prune, refuse_uncoupled
from gkp.utils.whole import is_whole

DIVISORS = ("memory", "macs", "none")


@register(
    "group-fisher",
    structure="filter",
    needs="images and labels",
    citation="Liu et al. 2021 (ICML), Group Fisher Pruning, arXiv:2108.00708",
    summary="channels of least Fisher information over all their readers for the memory they take, in steps",
)
def group_fisher(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 320,
    batch_size: int = 32,
    step: int = 8,
    per: str = "memory",
    seed: int = 0,
    minimum: float = MINIMUM,
) -> Cut:
    """Group Fisher: s_c = sum over images of q_c^2, q_c the gradient of the image's loss by a gate of 1 on c.

    The gate stands where layers read the channel, so that q sums over all of these and their calls before it
    is squared. s is divided by what the channel takes in the network as it is by then (per: "memory", the
    numbers that are written for one image, "macs", or "none"); the `step` lowest of the network are masked,
    and s is taken anew with `images` others. rate: share of the multiply-adds of all layers that write or
    read a removable channel.

    The original does so while it trains: 10 batches for every single channel (step=1), at a fifth of the
    learning rate. Here no weight moves before the cut, and all batches are in eval mode. A channel here is
    one of a dependency group, see "group-norm", of which a share `minimum` stays, which is ours.
    """
    example_input = default_input(model, example_input)
    if per not in DIVISORS:
        raise ValueError(f"per={per!r}: choose one of {', '.join(DIVISORS)}")
    if not is_whole(step):
        raise ValueError(f"step={step!r}: give the number of channels to mask at a time, 1 or more")
    if not 0 <= minimum < 1:
        raise ValueError(f"minimum={minimum!r}: the share of channels that a group keeps, from 0 to below 1")
    channels = channels_of(model, example_input)
    bundles = bundles_to_prune(model, channels)
    refuse_uncoupled(model, [bundle.producers for bundle in bundles], example_input)
    units = [unit for bundle in bundles for unit in bundle.units]
    costs = Costs(model, channels, units, example_input)
    scored = scoring_copy(model).requires_grad_(False)
    gates = Gates(scored, channels, units)

    def information(mask: Tensor, turn: int) -> Tensor:
        return fisher(scored, gates, mask, sample(data, images, seed + turn), batch_size)

    sizes = [len(bundle.units) for bundle in bundles]
    order = Order(
        sizes, [size - max(1, math.ceil(minimum * size)) for size in sizes], costs, information, step, per
    )

    def cut(rate: float) -> nn.Module:
        gone = {units[place] for place in order.until(rate)}
        return remove_filters(model, drops(channels, bundles, gone), example_input, channels=channels)

    return cut


def fisher(model: nn.Module, gates: Gates, mask: Tensor, data: Split, batch_size: int) -> Tensor:
    """Sum over the images of the squared gradient of its loss by the gates, at mask (units,): (units,)."""
    for size in (batch_size, 1):
        gates.each_image(mask.to(gates.values))
        total = torch.zeros_like(mask)
        for output, labels in batch_logits(model, data, size):
            loss = F.cross_entropy(output, labels, reduction="sum")  # of a mean q would depend on the batch
            (q,) = gradients(loss, [gates.values])
            total += q.double().square().sum(0).cpu()
        if gates.apart:
            break
    return total


@dataclass
class Order:
    """In which order channels go, as far as anyone has asked, by their places in one list of all of them.

    sizes, spare: channels of each bundle, and how many of them may go. information: (mask, turn) -> (units,).
    """

    sizes: list[int]
    spare: list[int]
    costs: Costs
    information: Callable[[Tensor, int], Tensor]
    step: int
    per: str
    places: list[int] = field(default_factory=list)
    left: list[float] = field(default_factory=list)  # share of the multiply-adds after each of `places`
    turn: int = 0

    def __post_init__(self) -> None:
        self.mask = torch.ones(sum(self.sizes), dtype=torch.float64)
        self.bundle = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).tolist()
        self.whole = float(self.costs.macs(self.mask))
        self.extend()

    def until(self, rate: float) -> list[int]:
        """As many of the first channels as cost a share `rate` of the multiply-adds or less."""
        while any(self.spare) and not (self.left and self.left[-1] <= 1 - rate):
            self.extend()
        return self.places[: sum(left >= 1 - rate - 1e-9 for left in self.left)]

    def extend(self) -> None:
        """Mask the next `step` channels, those of least information for what they take."""
        scores = self.information(self.mask, self.turn) / self._takes()
        scores[self.places] = torch.inf
        last = len(self.places) + self.step
        for place in scores.sort(stable=True).indices.tolist():
            bundle = self.bundle[place]
            if self.spare[bundle] and self.mask[place] and len(self.places) < last:
                self.spare[bundle] -= 1
                self.mask[place] = 0
                self.places.append(place)
                self.left.append(float(self.costs.macs(self.mask)) / self.whole)
        self.turn += 1

    def _takes(self) -> Tensor:
        """What every channel takes, in the network as it is now: (units,)."""
        if self.per == "none":
            return torch.ones_like(self.mask)
        gates = self.mask.clone().requires_grad_(True)
        cost = self.costs.elements(gates) if self.per == "memory" else self.costs.macs(gates)
        return torch.autograd.grad(cost, gates)[0].clamp_min(1e-9)
