"""What Collaborative Compression expects a layer to suffer: without input channels, without directions.

A layer is its weight as a matrix of blocks, W (O, I, K) with K numbers a kernel, and the squares of the
gradient of the loss, of the same shape. Its units are the I input channels and the R = min(O, I K) singular
directions of W as a matrix (O, I K). Damage of a state W': m = sum of G^2 (W' - W)^2. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

CAP = 0.95  # the largest share of a layer's multiply-adds that goes
STEP = 0.01  # share of a layer's units that go before the damages are computed anew
NO_DAMAGE = (-1e6, 1e-6)  # what `exponential` says of a layer whose removal costs nothing: it goes first
AT_ONCE = 4_000_000  # numbers in the largest tensor, (channels, directions, I K)


def share_removed(weight: Tensor, channels: int, directions: int) -> float:
    """Share of the multiply-adds of `weight` (O, I, K) that goes with so many of its units.

    Without directions the layer stays one convolution; with some of them it is two, of R - directions
    channels in between, so that the first ones make it dearer (a negative share).
    """
    filters, inputs, size = weight.shape
    left, rank = (inputs - channels) * size, min(filters, inputs * size) - directions
    return 1 - ((left + filters) * rank if directions else filters * left) / weight.numel()


def directions(current: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` largest singular directions of current (O, I, K): U (O, rank), S V^T (rank, I, K).

    From the smaller of the two Gram matrices. Directions of size zero may have a U of zeros.
    """
    matrix = current.flatten(1)
    if matrix.shape[0] <= matrix.shape[1]:
        left = torch.linalg.eigh(matrix @ matrix.t()).eigenvectors.flip(1)[:, :rank]
        return left, (left.t() @ matrix).unflatten(1, current.shape[1:])
    values, right = torch.linalg.eigh(matrix.t() @ matrix)
    values, right = values.flip(0)[:rank].clamp_min(0).sqrt(), right.flip(1)[:, :rank]
    left = matrix @ right / values.where(values > 1e-7 * values.max(), torch.inf)
    return left, (left.t() @ matrix).unflatten(1, current.shape[1:])


def damages(
    weight: Tensor,
    squares: Tensor,
    current: Tensor,
    channels: Tensor,
    pair: tuple[Tensor, Tensor],
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """Score of every unit that is left: A + gamma B, the lowest goes.

    weight, squares, current: (O, I, K). channels: (n,) those that are left. pair: `directions` of current.
    Returns the scores of the channels (n,) and of the directions (rank,). A is the damage once the unit is
    gone, B the mean damage after one more, over all units that may be next:

        B = A + (4 sum G^2 (W_u - W)(-W_u) + sum (G W_u)^2 + sum (G s u v^T)^2) / (n - 1),

    the last sum over the directions s u v^T of W_u, too.
    """
    whole = (squares * (current - weight) ** 2).sum()
    weight, squares, current = (tensor[:, channels] for tensor in (weight, squares, current))
    change = current - weight
    left, right = pair[0], pair[1][:, channels]
    others = max(len(channels) + left.shape[1] - 1, 1)

    def by_channel(values: Tensor) -> Tensor:
        return (squares * values).sum((0, 2))

    def by_direction(values: Tensor) -> Tensor:
        """Sum of G^2 values u (s v)^T, for each direction."""
        return ((left.t() @ (squares * values).flatten(1)) * right.flatten(1)).sum(1)

    damage, cross, energy = (by_channel(v) for v in (change**2, change * current, current**2))
    own = ((left**2).t() @ squares.flatten(1) * right.flatten(1) ** 2).sum(1)  # sum of (G s u v^T)^2
    changed, kept = by_direction(change), by_direction(current)
    first_channels = whole - damage + by_channel(weight**2)
    first_directions = whole - 2 * changed + own
    if not gamma:
        return first_channels, first_directions
    next_channels = 4 * (cross - cross.sum()) + energy.sum() - energy
    next_channels = next_channels + _own_without_each(left, right, squares)
    next_directions = 4 * (changed + kept - own - cross.sum()) + energy.sum() - 2 * kept + own
    next_directions = next_directions + own.sum() - own
    return (
        (1 + gamma) * first_channels + gamma / others * next_channels,
        (1 + gamma) * first_directions + gamma / others * next_directions,
    )


def _own_without_each(left: Tensor, right: Tensor, squares: Tensor) -> Tensor:
    """Sum over its directions of (G s u v^T)^2, of the matrix without each of its channels in turn: (n,).

    left, right: directions of the matrix with all channels, (O, r) and (r, n, K). Without a channel it lies
    in the span of these, so that its own directions are found among r numbers and not O.
    """
    rank, count, _ = right.shape
    gram = torch.einsum("ank,bnk->ab", right, right)
    chunk = max(1, AT_ONCE // max(1, rank * right[0].numel()))
    sums = []
    for start in range(0, count, chunk):
        part = torch.arange(start, min(start + chunk, count))
        without = gram - torch.einsum("ank,bnk->nab", right[:, part], right[:, part])
        inner = torch.linalg.eigh(without).eigenvectors.mT  # (n, r, r), rows
        outer = ((inner @ left.t()) ** 2).flatten(0, 1) @ squares.flatten(1)
        values = (inner.flatten(0, 1) @ right.flatten(1)) ** 2 * outer
        values = values.view(len(part), rank, count, -1).sum((1, 3))  # by the channel without, by channel
        sums.append(values.sum(1) - values[torch.arange(len(part)), part])
    return torch.cat(sums)


@dataclass
class Path:
    """In which order the units of one layer go, as far as anyone has asked.

    units: channels by number, -1 for a direction. A direction is the one of least score at its time; which it
    is does not matter later, because the layer keeps the largest of the original weight.
    """

    weight: Tensor
    squares: Tensor
    gamma: float
    units: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current = self.weight.clone()

    def until(self, share: float) -> tuple[list[int], int]:
        """(channels, directions) that are gone when `share` of the multiply-adds is, or all that can be.

        Without directions where the channels alone reach the share.
        """
        if share <= 0:
            return [], 0
        length = 0
        while length < len(self.units) or self._extend():
            length += 1
            channels = [unit for unit in self.units[:length] if unit >= 0]
            gone = length - len(channels)
            if share_removed(self.weight, len(channels), 0) >= share:
                return channels, 0
            if share_removed(self.weight, len(channels), gone) >= share:
                return channels, gone
        return channels, gone

    def _extend(self) -> bool:
        """Find the next max(1, 1%) units; False when one channel and one direction are all that is left."""
        filters, inputs, size = self.weight.shape
        total = min(filters, inputs * size)
        gone = [unit for unit in self.units if unit >= 0]
        rank = total - (len(self.units) - len(gone))
        left = torch.tensor(sorted(set(range(inputs)) - set(gone)))
        pair = u, sv = directions(self.current, rank)
        scores = torch.cat(damages(self.weight, self.squares, self.current, left, pair, self.gamma))
        spare = {"channel": len(left) - 1, "direction": rank - 1}
        dropped: list[int] = []
        for unit in scores.sort(stable=True).indices.tolist():
            kind = "channel" if unit < len(left) else "direction"
            if spare[kind] and len(dropped) < max(1, int(STEP * (inputs + total))):
                spare[kind] -= 1
                dropped.append(unit)
        lost = [unit - len(left) for unit in dropped if unit >= len(left)]
        if lost:
            self.current -= (u[:, lost] @ sv[lost].flatten(1)).view_as(self.current)
        for unit in dropped:
            self.units.append(int(left[unit]) if unit < len(left) else -1)
        self.current[:, [unit for unit in self.units if unit >= 0]] = 0
        return bool(dropped)


def exponential(weight: Tensor, squares: Tensor) -> tuple[float, float]:
    """(ln p1, p2) of m = p1 exp(p2 c): how the damage of a layer grows with the share c that is removed.

    All units go in the order of what each would damage alone. m is divided by its largest value; the fit is
    of ln(m + 1e-10), with weights sqrt(m), over the states that cost less than the layer.
    """
    shares, values = _course(weight, squares)
    shares, values = shares[shares > 0], values[shares > 0]
    if not len(values) or not values.max() > 0:
        return NO_DAMAGE
    values = values / values.max()
    weights, logs = values.sqrt() / values.sqrt().sum(), (values + 1e-10).log()
    mean, level = (weights * shares).sum(), (weights * logs).sum()
    spread = (weights * (shares - mean) ** 2).sum()
    slope = (weights * (shares - mean) * (logs - level)).sum() / spread.clamp_min(1e-12)
    slope = slope.clamp_min(1e-6)  # damage that does not grow: the layer goes as soon as its level is reached
    return float(level - slope * mean), float(slope)


def _course(weight: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """(shares of the multiply-adds that are gone, damages) after each unit, by the damage of each alone."""
    filters, inputs, size = weight.shape
    rank = min(filters, inputs * size)
    current, pair = weight.clone(), directions(weight, rank)
    alone = torch.cat(damages(weight, squares, weight, torch.arange(inputs), pair, 0.0))
    gone: list[int] = []
    base, lost, stale = 0, 0, False
    shares, values = [], []
    for unit in alone.sort(stable=True).indices.tolist():
        if unit < inputs:
            current[:, unit] = 0
            lost, stale = lost + 1, True
        else:
            # Counted among the directions of the matrix as it is now, where those that are gone come last.
            # They stay where they are until a channel goes.
            if stale:
                pair, base, stale = directions(current, rank), len(gone), False
            number = unit - inputs
            place = number - sum(earlier < number for earlier in gone[:base])
            u, sv = pair
            current -= u[:, place, None, None] * sv[place]
            gone.append(number)
        shares.append(share_removed(weight, lost, len(gone)))
        values.append((squares * (current - weight) ** 2).sum())
    return torch.tensor(shares, dtype=torch.float64), torch.stack(values)


def allocation(curves: list[tuple[float, float]], costs: list[float], removed: float) -> list[float]:
    """Share of each layer's cost to remove, c = clip(ln(x / (p1 p2)) / p2, 0, CAP), `removed` in all.

    curves: (ln p1, p2), see `exponential`. One x for all layers: the least sum of cost p1 exp(p2 c), each
    layer's damage weighted by its cost. Where `removed` cannot be reached every layer loses CAP.
    """
    start, p2 = torch.tensor(curves, dtype=torch.float64).unbind(1)
    cost, level = torch.tensor(costs, dtype=torch.float64), start + p2.log()
    low, high = float(level.min()), float((level + CAP * p2).max())
    for _ in range(100):
        middle = (low + high) / 2
        shares = ((middle - level) / p2).clamp(0, CAP)
        low, high = (middle, high) if (cost * shares).sum() < removed else (low, middle)
    return ((high - level) / p2).clamp(0, CAP).tolist()
