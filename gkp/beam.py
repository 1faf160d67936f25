"""The released beam search, over all groups and all start kernels at once.

From every start kernel each branch grows by the kernels most distant from what it keeps; every
`check_step` extensions the branches of a start are ranked by cost and smoothness (Eq. 2) and the
best few survive. Nothing loops over candidates: a step is a handful of tensor operations, and rows
(one per group and start) that have arrived at the same sets are merged, because they have the same
future.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gkp.objective import Problem

TIE = 1e9  # values closer than one part in this many count as equal in a rank
CHUNK = 1 << 18  # elements of a state tensor that are worked on together: 2 MB, about a core's cache


@dataclass(frozen=True)
class Beam:
    """State of every branch, leading dimensions (rows, branches); a row is one group and one start."""

    group: Tensor  # (R,) group of each row
    total: Tensor  # (R, B, n) summed distance to the kept kernels, -inf at the kept ones
    near: tuple[Tensor, ...]  # per neighbour, (R, B, n) ascending distances to the nearest kept kernels
    inner: Tensor  # (R, B) summed distance among the kept kernels
    smooth: Tensor  # (R, B) summed smoothness of the kept kernels
    size: int  # kept kernels

    def rows(self, index: Tensor) -> Beam:
        """The rows `index` (R',)."""
        near = tuple(near[index] for near in self.near)
        return Beam(
            self.group[index], self.total[index], near, self.inner[index], self.smooth[index], self.size
        )


@dataclass(frozen=True)
class Children:
    """Extensions of a beam's branches by one kernel each, not yet carried out; all (R, C)."""

    branch: Tensor  # which branch grows
    kernel: Tensor  # by which kernel
    inner: Tensor  # summed distance among the kept kernels afterwards
    smooth: Tensor  # summed smoothness afterwards

    def take(self, index: Tensor) -> Children:
        """The children (R, C') of each row."""
        return Children(*(getattr(self, name).gather(1, index) for name in self.__dataclass_fields__))


def search(
    problem: Problem, width: int, check_step: int, alpha: float, outer: bool, decision: str
) -> tuple[Tensor, Tensor]:
    """Beam search from every kernel of every group; returns kept (G, keep) and cost (G,)."""
    groups, channels = problem.smooth.shape
    group = torch.arange(groups).repeat_interleave(channels)
    first = torch.arange(channels).repeat(groups)
    rows = max(1, CHUNK // (channels * width ** min(check_step, problem.keep)))
    finals = []
    for chunk in torch.arange(len(first)).split(rows):
        beam = start(problem, group[chunk], first[chunk])
        for step in range(1, problem.keep):
            children = propose(beam, problem, width)
            if step % check_step:
                beam = grow(beam, problem, children)
            else:
                children = truncate(beam, problem, children, width, alpha, outer)
                beam = distinct(grow(beam, problem, children))
        finals.append(beam)
    return decide(finals, problem, decision)


def start(problem: Problem, group: Tensor, first: Tensor) -> Beam:
    """Branches that keep a single kernel: group (R,), first (R,)."""
    distance = problem.distance[group, first][:, None, :]
    total = distance.scatter(-1, first[:, None, None], -math.inf)
    unset = torch.full_like(distance, math.inf)
    near = (distance, *[unset] * (problem.neighbours - 1)) if problem.neighbours else ()
    zeros = torch.zeros(len(first), 1, dtype=distance.dtype)
    return Beam(group, total, near, zeros, problem.smooth[group, first][:, None], 1)


def propose(beam: Beam, problem: Problem, width: int) -> Children:
    """Of every branch, the `width` extensions by the kernels farthest from its kept ones."""
    width = min(width, problem.channels - beam.size)
    rest, kernels, gains = beam.total, [], []
    for turn in range(width):  # repeated maximum: faster than a sort for the few that are wanted
        gain, kernel = rest.max(-1)
        kernels.append(kernel)
        gains.append(gain)
        if turn + 1 < width:
            rest = rest.scatter(-1, kernel[..., None], -math.inf)
    kernel, gain = (torch.stack(each, -1).flatten(1) for each in (kernels, gains))
    branch = torch.arange(beam.inner.shape[1]).repeat_interleave(width).expand_as(kernel)
    return Children(
        branch=branch,
        kernel=kernel,
        inner=beam.inner.gather(1, branch) + gain,
        smooth=beam.smooth.gather(1, branch) + problem.smooth[beam.group[:, None], kernel],
    )


def grow(beam: Beam, problem: Problem, children: Children) -> Beam:
    """Carry the extensions out."""
    distance = distances(beam, problem, children.kernel)
    total = branches(beam.total, children.branch).add_(distance)
    total.scatter_(-1, children.kernel[..., None], -math.inf)
    near, carried = [], distance
    for old in beam.near:  # insert the new distance into the ascending list of the nearest ones
        old = branches(old, children.branch)
        near.append(torch.minimum(old, carried))
        if len(beam.near) > 1:
            carried = torch.maximum(old, carried)
    return Beam(beam.group, total, tuple(near), children.inner, children.smooth, beam.size + 1)


def branches(state: Tensor, branch: Tensor) -> Tensor:
    """state (R, B, n), branch (R, C) -> (R, C, n). Whole rows are copied, which gather does not do."""
    rows = torch.arange(len(state))[:, None] * state.shape[1] + branch
    return state.flatten(0, 1).index_select(0, rows.flatten()).view(*branch.shape, -1)


def distances(beam: Beam, problem: Problem, kernel: Tensor) -> Tensor:
    """Distances (R, C, n) from the kernels (R, C) to all kernels of their group."""
    rows = beam.group[:, None] * problem.channels + kernel
    return problem.distance.flatten(0, 1).index_select(0, rows.flatten()).view(*kernel.shape, -1)


def cost(beam: Beam, problem: Problem) -> Tensor:
    """Cost (R, B) of every branch's kept set."""
    near = beam.near[: beam.size]
    if len(near) == 1:
        far = near[0].sum(-1)  # over all kernels, since a kept one is at distance 0 of itself
    elif near:
        far = torch.where(beam.total == -math.inf, 0, sum(near[1:], near[0])).sum(-1)
    else:
        far = torch.zeros_like(beam.inner)
    return _cost(problem, beam.size, beam.inner, len(near), far)


def children_cost(beam: Beam, problem: Problem, children: Children) -> Tensor:
    """Cost (R, C) of every child's kept set, where possible without building its state."""
    if len(beam.near) != 1:
        return cost(grow(beam, problem, children), problem)
    distance = distances(beam, problem, children.kernel)
    far = torch.minimum(distance, branches(beam.near[0], children.branch), out=distance).sum(-1)
    return _cost(problem, beam.size + 1, children.inner, 1, far)


def _cost(problem: Problem, size: int, inner: Tensor, neighbours: int, far: Tensor) -> Tensor:
    """Similarities from summed distances: `inner` among the kept, `far` from each pruned to its nearest."""
    pairs = (problem.channels - size) * neighbours
    return math.comb(size, 2) - inner - problem.beta * (pairs - far)


def truncate(
    beam: Beam, problem: Problem, children: Children, width: int, alpha: float, outer: bool
) -> Children:
    """The `width` children of each row with the best weighted rank (Eq. 2).

    Ranks are positions in descending order, so that the lowest cost has the largest rank; equal
    values take different positions in the order in which the branches stand.
    """
    value = children_cost(beam, problem, children) if outer else -children.inner
    score = alpha * rank(value) + (1 - alpha) * rank(children.smooth)
    return children.take(score.sort(dim=1, descending=True, stable=True).indices[:, :width])


def rank(value: Tensor) -> Tensor:
    """Positions (R, C) of the values in descending order of their row."""
    # The same set reached in two orders must tie, whatever the last bits of its sums are.
    value = (value / value.abs().amax().clamp_min(1e-300) * TIE).round()
    return value.sort(dim=1, descending=True, stable=True).indices.argsort(1).double()


def distinct(beam: Beam) -> Beam:
    """One row for each group and tuple of kept sets: equal sets have equal futures."""
    kept = (beam.total == -math.inf).flatten(1)
    bits = torch.tensor([1 << bit for bit in range(32)])
    words = F.pad(kept, (0, -kept.shape[1] % 32)).view(len(kept), -1, 32)
    keys = torch.cat([beam.group[:, None], (words * bits).sum(-1)], 1)
    _, label = torch.unique(keys, dim=0, return_inverse=True)
    rows = torch.arange(len(keys))
    first = torch.full((int(label.max()) + 1,), len(keys)).scatter_reduce(0, label, rows, "amin")
    return beam.rows(first.sort().values) if len(first) < len(keys) else beam


def decide(finals: list[Beam], problem: Problem, decision: str) -> tuple[Tensor, Tensor]:
    """The final arena: of all branches of a group, the one of least cost (or smoothest)."""
    costs = torch.cat([cost(beam, problem).flatten() for beam in finals])
    smooth = torch.cat([beam.smooth.flatten() for beam in finals])
    group = torch.cat([beam.group.repeat_interleave(beam.inner.shape[1]) for beam in finals])
    kept = torch.cat([(beam.total == -math.inf).flatten(0, 1) for beam in finals])
    value = costs if decision == "cost" else smooth
    best = torch.stack(
        [torch.where(group == g, value, math.inf).argmin() for g in range(len(problem.distance))]
    )
    return kept[best].nonzero()[:, 1].view(len(best), problem.keep), costs[best]
