"""Groups of one layer that share their kept channels where that costs little: the layer needs fewer gathers.

Groups with one set of channels run as one wider group (`gkp.deploy`). The joint set of several groups is the
one of least summed cost, each group by its own distances: the best of all where a layer has up to `LISTED`
sets, else the best of the groups' own sets, improved by exchanges of one kernel. Pairs of groups (or of what
has been joined) join one after the other, the one first that adds least to the cost, as long as the layer's
cost stays within the price; of a wider layer the exchanges are made for that pair alone.
"""

from __future__ import annotations

import itertools
import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from gkp.search.objective import Problem, all_sets, constant, costs_of_sets, set_cost

LISTED = 20_000  # sets; 16 input channels at the paper's rate have 11,440
TRIED = 4  # additions of an exchange
EQUAL = 1e-12  # an exchange that gains less, relative to the cost, is rounding


Groups = tuple[int, ...]


class Common(NamedTuple):
    """What some groups keep together: kept (keep,) ascending, and the sum of their costs."""

    kept: Tensor
    cost: float


def check_share(share: float, strategy: str = "greedy", decision: str = "cost") -> None:
    """ValueError unless share is a number of at least 0, and 0 where no cost decides what is kept."""
    if isinstance(share, bool) or not isinstance(share, numbers.Real) or not share >= 0:
        raise ValueError(
            f"share={share!r}: give the relative rise of a layer's cost that is allowed, at least 0, "
            "for example 0.02"
        )
    if share and (strategy not in ("beam", "greedy", "exact") or decision != "cost"):
        raise ValueError(
            f"share={share!r} weighs costs: take strategy='beam', 'greedy' or 'exact' and decision='cost', "
            f"not strategy={strategy!r} with decision={decision!r}, or share=0"
        )


def shared(problem: Problem, kept: Tensor, share: float) -> Tensor:
    """Kept sets (G, keep) of which several groups have the same, from the groups' own `kept` (G, keep).

    share: by how much the summed cost may rise, relative to the size of what the distances contribute to it
    (its constant, the ones of the similarities 1 - d, says nothing about kernels; with beta="exact" it is 0).
    0 changes nothing; infinity gives all groups one set.
    """
    if not share:
        return kept
    costs = set_cost(problem, kept)
    left = share * abs(float(costs.sum()) - len(kept) * constant(problem))
    listed = math.comb(problem.channels, problem.keep) <= LISTED
    sets, result = all_sets(problem) if listed else kept, kept.clone()
    table = torch.stack([costs_of_sets(problem, group, sets) for group in range(len(kept))])

    def offer(groups: Groups) -> Common:
        cost, best = table[list(groups)].sum(0).min(0)
        return Common(sets[best], float(cost))

    joined: dict[Groups, Common] = {(g,): Common(kept[g], float(costs[g])) for g in range(len(kept))}
    offers = {pair: offer(pair[0] + pair[1]) for pair in itertools.combinations(joined, 2)}
    while offers:
        rises = {(a, b): joint.cost - joined[a].cost - joined[b].cost for (a, b), joint in offers.items()}
        a, b = min(rises, key=lambda pair: rises[pair])
        starts = torch.stack([common.kept for common in (offers[a, b], joined[a], joined[b])])
        joint = offers[a, b] if listed else improved(problem.of(a + b), starts)
        left -= joint.cost - joined.pop(a).cost - joined.pop(b).cost
        if left < 0:
            break
        result[list(a + b)] = joint.kept
        offers = {pair: joint for pair, joint in offers.items() if not {a, b} & set(pair)}
        offers |= {(other, a + b): offer(other + a + b) for other in joined}
        joined[a + b] = joint
    return result


def improved(problem: Problem, candidates: Tensor) -> Common:
    """The best of `candidates` (C, keep) for all groups together, improved by exchanges while that helps."""
    costs = summed_cost(problem, candidates)
    kept, cost = candidates[costs.argmin()], costs.min()
    while True:
        others = exchanges(problem, kept)
        costs = summed_cost(problem, others)
        if not costs.min() < cost - EQUAL * cost.abs():
            return Common(kept, float(cost))
        kept, cost = others[costs.argmin()], costs.min()


def summed_cost(problem: Problem, sets: Tensor) -> Tensor:
    """Cost (M,) of each of the sets (M, keep) in all groups together."""
    return torch.stack([costs_of_sets(problem, g, sets) for g in range(len(problem.distance))]).sum(0)


def exchanges(problem: Problem, kept: Tensor) -> Tensor:
    """Sets (M, keep): with one of the `TRIED` kernels best to add, without the one then best to remove."""
    distance, total = problem.distance, problem.distance.sum(0)
    nearest = min(problem.neighbours, len(kept)) if problem.beta else 0
    value = -total[:, kept].sum(1)
    if nearest:
        near = distance[:, :, kept].topk(nearest, largest=False).values
        far = near[..., :-1].sum(-1, keepdim=True) + torch.minimum(near[..., -1:], distance)
        far[:, kept] = 0
        value += problem.beta * (far.sum((0, 1)) - far.diagonal(dim1=1, dim2=2).sum(0))
    value[kept] = math.inf
    added = value.topk(min(TRIED, len(value) - len(kept)), largest=False).indices
    more = torch.cat([kept.expand(len(added), -1), added[:, None]], 1)
    return torch.stack([_without_one(problem, kernels, nearest) for kernels in more])


def _without_one(problem: Problem, more: Tensor, nearest: int) -> Tensor:
    """The set `more` (keep + 1,) without the kernel whose removal leaves the least cost, ascending."""
    value = problem.distance.sum(0)[more][:, more].sum(1)
    if nearest:
        # Who loses this kernel turns to the next one; the kernel itself is pruned, 0 away from itself.
        near, place = problem.distance[:, :, more].topk(nearest + 1, largest=False)
        turned = near[..., nearest:] - near[..., :nearest]
        turned[:, more] = 0
        value.index_add_(0, place[..., :nearest].flatten(), problem.beta * turned.flatten())
        value += problem.beta * near[:, more].sum((0, 2))
    return more[torch.arange(len(more)) != value.argmin()].sort().values
