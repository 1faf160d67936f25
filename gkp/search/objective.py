"""What a good choice of kernels is: the cost of a kept set (Eq. 3 of the paper).

In a group of filters, "kernel" j is the grouped kernel GK_j: the slice (O/groups, kh, kw) of input
channel j. With Euclidean distances d between grouped kernels and similarity 1 - d, a kept set V
has the cost

    cost(V) = sum_{u<v in V} sim(u, v) - beta * sum_{p not in V} sum_{m nearest u in V} sim(p, u)

The smallest is wanted: kept kernels far from one another, every pruned kernel close to a kept one.
That is Eq. 3 with its sign turned, and the released code's arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec

import torch
from torch import Tensor

ARITHMETICS = ("fast", "released")
HELD = 1 << 21  # distances of sets that are valued together, 16 MB
TILE = 256  # kernels whose distances are computed together


def compiles() -> bool:
    """Whether `gkp.search.compiled` can be had: whether Numba is installed."""
    return find_spec("numba") is not None


@dataclass(frozen=True)
class Problem:
    """One layer's groups as the search sees them: distances (G, n, n), smoothness (G, n), the knobs."""

    distance: Tensor
    smooth: Tensor
    keep: int
    beta: float
    neighbours: int
    arithmetic: str = "fast"

    @property
    def channels(self) -> int:
        return self.distance.shape[-1]

    def of(self, groups: Sequence[int]) -> Problem:
        """The same problem for some of the groups, in this order; one may stand there more than once."""
        return replace(self, distance=self.distance[list(groups)], smooth=self.smooth[list(groups)])

    @property
    def released(self) -> bool:
        """Whether sums are to have the last bits of the released code's."""
        return self.arithmetic == "released"

    @cached_property
    def apart(self) -> Tensor:
        """(G, n, n) what the search adds up: distances d, or d - 1 in the released arithmetic.

        The released code adds similarities 1 - d. Their negatives round alike, so that one search,
        which looks for the largest, serves both.
        """
        return self.distance - 1 if self.released else self.distance

    @cached_property
    def marks(self) -> Tensor:
        """(n,) int64 of 64 random bits: their sums over two different sets hardly ever agree (1 in 2^64)."""
        draw = torch.Generator().manual_seed(0)
        return torch.randint(-(1 << 63), (1 << 63) - 1, (self.channels,), generator=draw)

    @cached_property
    def ties(self) -> Tensor:
        """(G,) whether two kernels of the group are equal, so that sets tie but for last bits."""
        twins = self.distance <= 1e-12 * self.distance.amax((1, 2), keepdim=True)
        return twins.sum((1, 2)) > self.channels


def kept_count(channels: int, rate: float) -> int:
    """How many input channels a group keeps: int((1 - rate) * (channels + 1)), at most all of them."""
    keep = min(int((1 - rate) * (channels + 1)), channels)
    if keep < 1:
        raise ValueError(f"rate={rate} keeps no kernel of {channels} input channels: choose a smaller rate")
    return keep


def resolve_beta(beta: str | float, channels: int, keep: int, first_use: int, neighbours: int) -> float:
    """The weight of the pruned-kernel term: the number of pairs in the first sum over that in the second.

    "exact" counts them for the final set, C(keep, 2) / pruned with one neighbour (Eq. 3). "reference"
    counts them for the first sets that the released code evaluates (`first_use` kernels kept), and
    stays frozen from then on. As in the released code a pruned kernel counts for `neighbours` pairs,
    also where fewer kernels than that are kept. 0 when nothing is pruned or no neighbour counts.
    """
    if not isinstance(beta, str):
        return float(beta)
    size = keep if beta == "exact" else first_use
    pairs = (channels - size) * neighbours
    return math.comb(size, 2) / pairs if pairs else 0.0


def grouped_kernel_distance(weight: Tensor, order: Tensor, arithmetic: str = "fast") -> Tensor:
    """Euclidean distances between the grouped kernels: weight (O, I, kh, kw), order (G, O/G) -> (G, I, I).

    arithmetic "released": by SciPy, as the released code, which adds squares in the order of the weights.
    """
    vectors = weight[order].transpose(1, 2).flatten(2).contiguous()  # 1x1 kernels are a view till here
    if arithmetic == "released":
        from scipy.spatial.distance import cdist

        return torch.stack([torch.from_numpy(cdist(group, group)) for group in vectors.numpy()])
    if compiles():
        from gkp.search.compiled.distances import distances

        return torch.stack([torch.from_numpy(distances(group)) for group in vectors.numpy()])
    channels = vectors.shape[1]
    distance = vectors.new_empty(len(order), channels, channels)
    for at in range(0, channels, TILE):  # the upper half, and its mirror image
        tile = slice(at, at + TILE)
        # Differences, not the matrix-multiplication shortcut: two equal kernels are at distance 0 exactly.
        part = torch.cdist(vectors[:, tile], vectors[:, at:], compute_mode="donot_use_mm_for_euclid_dist")
        distance[:, tile, at:], distance[:, at:, tile] = part, part.mT
    return distance


def set_cost(problem: Problem, kept: Tensor) -> Tensor:
    """Cost of one kept set per group, kept (G, keep) -> (G,). Written directly from the definition."""
    columns = problem.distance.gather(2, kept[:, None].expand(-1, problem.channels, -1))
    to_kept = 1 - columns  # (G, n, keep)
    among = to_kept.gather(1, kept[..., None].expand(-1, -1, kept.shape[1]))
    inner = torch.triu(among, 1).sum((1, 2))
    if problem.neighbours == 0 or problem.beta == 0:
        return inner
    count = min(problem.neighbours, kept.shape[1])
    nearest = to_kept.amax(2) if count == 1 else to_kept.topk(count, dim=2).values.sum(2)
    return inner - problem.beta * nearest.scatter(1, kept, 0).sum(1)


def constant(problem: Problem) -> float:
    """What the ones of the similarities 1 - d add to the cost of every set of a group."""
    pruned, nearest = problem.channels - problem.keep, min(problem.neighbours, problem.keep)
    return math.comb(problem.keep, 2) - problem.beta * pruned * nearest


def all_sets(problem: Problem) -> Tensor:
    """(C(n, keep), keep): every set that a group could keep."""
    combinations = itertools.combinations(range(problem.channels), problem.keep)
    flat = torch.tensor(list(itertools.chain.from_iterable(combinations)), dtype=torch.int64)
    return flat.view(-1, problem.keep)


def costs_of_sets(problem: Problem, group: int, sets: Tensor) -> Tensor:
    """Costs (M,) of the sets (M, keep) in one group."""
    distance, smooth = problem.distance[group], problem.smooth[group]
    chunks = torch.split(sets, max(1, HELD // (problem.channels * problem.keep)))
    return torch.cat(
        [
            set_cost(
                replace(
                    problem,
                    distance=distance.expand(len(chunk), -1, -1),
                    smooth=smooth.expand(len(chunk), -1),
                ),
                chunk,
            )
            for chunk in chunks
        ]
    )
